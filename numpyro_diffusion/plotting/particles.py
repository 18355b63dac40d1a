"""How a run of sequential Monte Carlo went: effective particles and evidence."""

from typing import Any

import numpy as np
from jaxtyping import Float

from numpyro_diffusion.checks import checked_array
from numpyro_diffusion.plotting.figures import checked_fields, grid_of_axes

__all__ = ["plot_smc"]

_CALLER = "plot_smc"
# More problems than this are drawn in one colour and without names.
_MOST_NAMED = 8


def plot_smc(posterior: Any, *, axes: Any = None) -> np.ndarray:
    """Draw the effective number of particles and the evidence, from noise to data.

    Where the left lines fall, particles are lost: a dot says that the step resampled.
    Where the right lines move by nats from step to step, or jump at the end, the twist
    was far from what came, and the number of particles has to make up for it.

    Args:
        posterior: What `TwistedSMC.run` returned.
        axes: Two axes to draw on; by default those of a new figure.

    Returns:
        The axes, shape (1, 2). Each problem, an element of the plates around the site, has
        a line in both; at the end of the right one stands the final estimate with its
        standard error. Estimates of nothing, minus infinity, are gaps.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: An argument is of another kind.
    """
    fields = ("ess", "resampled", "log_evidence_path", "log_weights")
    fields += ("log_evidence", "log_evidence_error")
    checked_fields(
        _CALLER, "posterior", posterior, fields, "TwistedSMC(model).run(key)"
    )
    ess, path = (_lines(posterior, name) for name in ("ess", "log_evidence_path"))
    resampled = np.asarray(posterior.resampled, dtype=bool)
    num_particles, num_problems = np.shape(posterior.log_weights)
    final, error = (
        np.ravel(np.asarray(value, dtype=float))
        for value in (posterior.log_evidence, posterior.log_evidence_error)
    )

    grid = grid_of_axes(_CALLER, axes, 1, 2, (4.8, 3.4))
    particles, evidence = grid[0]
    steps = np.arange(len(ess))
    is_named = num_problems <= _MOST_NAMED
    for i in range(num_problems):
        style = {"linewidth": 1.2 if is_named else 0.6}
        style |= {"color": f"C{i}" if is_named else "C0"}
        particles.plot(steps, ess[:, i], **style)
        at = np.flatnonzero(resampled[:, i])
        dots = {"markersize": 3, "color": style["color"]}
        particles.plot(at, ess[at, i], "o", label="" if i else "resampled", **dots)
        evidence.plot(steps, path[:, i], label=f"problem {i}", **style)
        evidence.errorbar(
            steps[-1], final[i], error[i], fmt="s", markersize=3, color=style["color"]
        )
    particles.axhline(num_particles, color="0.5", linestyle=":")
    particles.set(
        xlabel="step: noise left, data right",
        ylabel=f"effective number of {num_particles} particles",
        ylim=(0.0, 1.05 * num_particles),
    )
    evidence.set(
        xlabel="step: noise left, data right", ylabel="log evidence so far (nats)"
    )
    particles.legend()
    if 1 < num_problems <= _MOST_NAMED:
        evidence.legend()
    return grid


def _lines(posterior: Any, name: str) -> Float[np.ndarray, "num_times num_problems"]:
    """A column for each problem; what is infinite is no number, and a gap."""
    value = getattr(posterior, name)
    checked_array(
        _CALLER,
        f"posterior.{name}",
        value,
        shape="(num_times, num_problems)",
        ndim=2,
        finite=False,
    )
    array = np.asarray(value, dtype=float)
    return np.where(np.isfinite(array), array, np.nan)
