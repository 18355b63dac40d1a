"""How a prior was trained, and how good it is: loss, denoising error, bound."""

from typing import Any

import numpy as np

from numpyro_diffusion.checks import checked_array, checked_integer, checked_real
from numpyro_diffusion.plotting.figures import (
    checked_fields,
    checked_flag,
    checked_label,
    one_axes,
)

__all__ = ["plot_bound", "plot_denoising_error", "plot_training"]


def plot_training(
    result: Any,
    *,
    every: int = 500,
    window: int = 100,
    log: bool = False,
    label: str | None = None,
    ax: Any = None,
) -> Any:
    """Draw the loss of every step, its running mean, and the loss of held-out events.

    Args:
        result: What `fit` returned.
        every: Steps from look to look, of the `Monitor` that watched.
        window: Steps behind the running mean, half of them before and half after; fewer
            at the ends.
        log: Whether the losses' axis is logarithmic.
        label: What was trained, for the legend.
        ax: Axes to draw on; by default those of a new figure.

    Returns:
        The axes. The lowest loss of held-out events is marked.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: An argument is of another kind.
        ValueError: There are no losses, or not as many looks as steps of `every`.
    """
    caller = "plot_training"
    checked_fields(
        caller, "result", result, ("losses", "validation_losses"), "fit(...)"
    )
    every = checked_integer(caller, "every", every)
    window = checked_integer(caller, "window", window)
    log = checked_flag(caller, "log", log)
    label = checked_label(caller, "label", label)
    checked_array(caller, "result.losses", result.losses, ndim=1, finite=False)
    losses = np.asarray(result.losses, dtype=float)
    steps = np.arange(1, len(losses) + 1)
    looks = _looks(caller, result.validation_losses, len(losses), every)

    axis = one_axes(caller, ax)
    named = lambda text: text if label is None else f"{label}: {text}"
    (mean,) = axis.plot(
        steps,
        _running_mean(losses, window),
        label=named(f"training, mean of {min(window, len(losses))} steps"),
        zorder=2.1,
    )
    axis.plot(steps, losses, color=mean.get_color(), alpha=0.2, linewidth=0.5)
    if looks is not None and np.any(np.isfinite(looks)):
        at = every * np.arange(1, len(looks) + 1)
        (line,) = axis.plot(at, looks, "o-", markersize=3, label=named("held-out"))
        best = np.nanargmin(looks)
        axis.plot(at[best], looks[best], "*", color=line.get_color(), markersize=12)
    axis.set(xlabel="step", ylabel="loss", yscale="log" if log else "linear")
    axis.legend()
    return axis


def _running_mean(losses: np.ndarray, window: int) -> np.ndarray:
    """Mean of `window` losses around each step: one behind it would lag what falls."""
    total = np.concatenate([[0.0], np.cumsum(losses)])
    first = np.arange(len(losses)) - window // 2
    last = np.minimum(first + window, len(losses))
    first = np.maximum(first, 0)
    return (total[last] - total[first]) / (last - first)


def _looks(caller: str, values: Any, num_steps: int, every: int) -> np.ndarray | None:
    if values is None:
        return None
    name = "result.validation_losses"
    checked_array(caller, name, values, finite=False, empty=True)
    looks = np.asarray(values, dtype=float)
    if looks.shape != (num_steps // every,):
        raise ValueError(
            f"{caller}: every must be that of the monitor, as Monitor(every={every}), "
            f"got {every} for {num_steps} steps and looks of shape {looks.shape}."
        )
    return looks


def plot_denoising_error(
    error: Any,
    *,
    schedule: Any = None,
    reference: Any = None,
    label: str | None = None,
    ax: Any = None,
) -> Any:
    r"""Draw the mean squared denoising error against time, or the log SNR.

    Args:
        error: What `denoising_error` returned, or the `error` of a trained process.
        schedule: Its noise schedule, to draw over the logarithm of the ratio of signal to
            noise, $\log \bar\alpha / (1 - \bar\alpha)$, noise at the left, and not over
            time. Levels without any signal are left out.
        reference: A process whose error is known, drawn as a dashed line: as
            `analytic.GaussianReverse` with mean and covariance of the data. What denoises
            best among linear functions has its error, whatever the data's law, so a
            network that is above it has more to learn.
        label: Whose error it is, for the legend.
        ax: Axes to draw on; by default those of a new figure.

    Returns:
        The axes; the error's is logarithmic.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: An argument is of another kind.
        ValueError: The reference knows its error for none of the times.
    """
    caller = "plot_denoising_error"
    checked_fields(caller, "error", error, ("times", "values"), "denoising_error(...)")
    label = checked_label(caller, "label", label)
    times = np.asarray(error.times, dtype=float)
    values = np.asarray(error.values, dtype=float)
    known = None
    if reference is not None:
        example = "analytic.GaussianReverse(forward, mean, covariance)"
        checked_fields(caller, "reference", reference, ("denoising_variance",), example)
        known = np.array([float(reference.denoising_variance(t)) for t in times])
    at, name = times, "time $t$: data at 0, noise at 1"
    if schedule is not None:
        checked_fields(
            caller, "schedule", schedule, ("alpha_bar", "noise"), "schedules.cosine()"
        )
        with np.errstate(divide="ignore"):
            signal = np.log(np.asarray(schedule.alpha_bar(times), dtype=float))
            at = signal - np.log(np.asarray(schedule.noise(times), dtype=float))
        name = "log signal-to-noise ratio: noise left, data right"

    axis = one_axes(caller, ax)
    has_signal = np.isfinite(at)
    axis.plot(
        at[has_signal],
        values[has_signal],
        "o-",
        markersize=3,
        label=label or "measured",
    )
    if known is not None:
        axis.plot(
            at[has_signal],
            known[has_signal],
            "--",
            color="0.4",
            label=f"exact error of {type(reference).__name__}",
        )
    axis.set(xlabel=name, ylabel="mean squared error per entry", yscale="log")
    axis.legend()
    return axis


def plot_bound(
    bound: Any, *, unit: str = "nats", label: str | None = None, ax: Any = None
) -> Any:
    """Draw what each step of the chain adds to the variational bound.

    Args:
        bound: What `variational_bound` returned.
        unit: Its unit, in words: the bound is asked for in `NATS` (by default) or `BITS`.
        label: Whose bound it is, for the legend.
        ax: Axes to draw on; by default those of a new figure.

    Returns:
        The axes: the mean KL of steps t = 2, ..., T, and in the legend their sum, the
        bound K with its standard error, and K with the chain's own last step.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: An argument is of another kind.
    """
    caller = "plot_bound"
    fields = ("step_kls", "K", "standard_error", "K_learned")
    checked_fields(caller, "bound", bound, fields, "variational_bound(...)")
    label = checked_label(caller, "label", label)
    if not isinstance(unit, str):
        raise TypeError(f"{caller}: unit must be a text, got {unit!r}.")
    name = "bound.step_kls"
    checked_array(caller, name, bound.step_kls, ndim=1, finite=False, empty=True)
    kls = np.asarray(bound.step_kls, dtype=float)
    total, error = (
        checked_real(caller, f"bound.{name}", getattr(bound, name), finite=False)
        for name in ("K", "standard_error")
    )

    axis = one_axes(caller, ax)
    own = float(bound.K_learned)
    text = (
        f"sum of steps {kls.sum():.2f}, K = {total:.2f} ± {error:.2f} {unit}\n"
        f"with the chain's own last step {own:.2f}"
    )
    axis.stairs(
        kls,
        np.arange(len(kls) + 1) + 1.5,
        baseline=0.0,
        label=text if label is None else f"{label}: {text}",
    )
    axis.set(
        xlabel="step of the chain: data left, noise right",
        ylabel=f"mean KL of a step ({unit})",
    )
    axis.set_ylim(bottom=0.0)
    axis.legend()
    return axis
