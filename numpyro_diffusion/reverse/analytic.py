r"""Reverse processes known in closed form: the truth that everything is held against.

If data are Gaussian, a Gaussian mixture or a finite set of patterns, the reversal
of the forward process is known exactly: the denoiser and the transition $p(x_s \mid
x_t)$ of any step size. A chain of these transitions returns the data law for any number
of steps, up to what the schedule leaves of the signal at t = 1.

Events are vectors, of shape (dim,); patterns may have any shape.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import (
    checked_array,
    checked_instance,
    checked_weights,
    is_traced,
)
from numpyro_diffusion.forward import (
    AbstractForward,
    BernoulliForward,
    GaussianForward,
)
from numpyro_diffusion.forward.base import check_events
from numpyro_diffusion.reverse.base import AbstractReverse, ReverseStep

__all__ = ["GaussianReverse", "MixtureReverse", "PatternsReverse"]

# Log likelihood of an entry that a pattern cannot have become: of an x_t that fits none,
# those count that fit it in the most entries.
_MISFIT = -1000.0

_GAUSSIAN_FIELDS = ("forward", "mean", "eigenvalues", "eigenvectors")


class GaussianReverse(AbstractReverse):
    """Exact reversal for data with law N(mean, covariance).

    Args:
        forward: The forward process.
        mean: Shape (dim,).
        covariance: Shape (dim, dim), symmetric and positive definite.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: Mean or covariance are not finite or of these shapes, or the covariance
            is not symmetric or has an eigenvalue that is not positive. Inside of `jit` only
            shapes are known.
    """

    forward: GaussianForward
    mean: Float[Array, " dim"]
    eigenvalues: Float[Array, " dim"]
    eigenvectors: Float[Array, "dim dim"]

    def __init__(
        self,
        forward: GaussianForward,
        mean: Float[Array, " dim"],
        covariance: Float[Array, "dim dim"],
    ) -> None:
        caller = "GaussianReverse"
        _check_forward(caller, forward, GaussianForward)
        checked_array(caller, "mean", mean, shape="(dim,)", ndim=1)
        dim = jnp.shape(mean)[0]
        checked_array(caller, "covariance", covariance, finite=False)
        _check_shapes(caller, covariance=(covariance, (dim, dim)))
        known = None if is_traced(covariance) else np.asarray(covariance)
        if known is not None and not np.allclose(
            known, known.T, rtol=1e-3, atol=1e-5, equal_nan=True
        ):
            raise ValueError(
                f"GaussianReverse: covariance must be symmetric, got {known}."
            )
        self.forward = forward
        self.mean = mean
        # Also inside of a traced model, where what is known can still be checked.
        with jax.ensure_compile_time_eval():
            self.eigenvalues, self.eigenvectors = jnp.linalg.eigh(covariance)
        is_known = not is_traced(self.eigenvalues)
        if is_known and not np.all(np.asarray(self.eigenvalues) > 0.0):  # NaN fails too
            raise ValueError(
                "GaussianReverse: covariance must be positive definite, its smallest "
                f"eigenvalue is {np.min(self.eigenvalues)}."
            )

    def to_config(self) -> dict[str, Any]:
        """What `save` keeps: the covariance as it is held, by its eigenvectors."""
        return {name: getattr(self, name) for name in _GAUSSIAN_FIELDS}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GaussianReverse":
        """The inverse of `to_config`, for `load`.

        To the last bit: a covariance multiplied out and taken apart again would be
        rounded, and one that is nearly singular might not be positive definite any more.
        """
        forward, mean, *spectrum = (config[name] for name in _GAUSSIAN_FIELDS)
        white = cls(forward, mean, jnp.eye(len(mean)))
        where = lambda reverse: (reverse.eigenvalues, reverse.eigenvectors)
        return eqx.tree_at(where, white, tuple(spectrum))

    def marginal(self, t: ArrayLike) -> dist.Distribution:
        """The exact law of x_t; at `t = 0` the law of the data."""
        kept, noise = self.forward.schedule.alpha_bar(t), self.forward.schedule.noise(t)
        return dist.MultivariateNormal(
            jnp.sqrt(kept) * self.mean,
            covariance_matrix=self._matrix(kept * self.eigenvalues + noise),
        )

    def denoise(self, x_t: Num[Array, " dim"], t: ArrayLike) -> Float[Array, " dim"]:
        _check_event(self, x_t, t, self.mean)
        kept, noise = self.forward.schedule.alpha_bar(t), self.forward.schedule.noise(t)
        residual = self.eigenvectors.T @ (x_t - jnp.sqrt(kept) * self.mean)
        gain = jnp.sqrt(kept) * self.eigenvalues / (kept * self.eigenvalues + noise)
        return self.mean + self.eigenvectors @ (gain * residual)

    def denoising_variance(self, t: ArrayLike) -> Float[Array, ""]:
        return jnp.mean(self._denoising_eigenvalues(t))

    def step(
        self, x_t: Num[Array, " dim"], *, t: ArrayLike, s: ArrayLike
    ) -> ReverseStep:
        _check_times(self, x_t, t=t, s=s)
        on_x0, on_x_t, variance = self.forward.bridge_coefficients(s=s, t=t)
        spectrum = variance + on_x0**2 * self._denoising_eigenvalues(t)
        x0_hat = self.denoise(x_t, t)
        law = dist.MultivariateNormal(
            on_x0 * x0_hat + on_x_t * x_t, covariance_matrix=self._matrix(spectrum)
        )
        return ReverseStep(x0_hat, law)

    def _denoising_eigenvalues(self, t: ArrayLike) -> Float[Array, " dim"]:
        kept, noise = self.forward.schedule.alpha_bar(t), self.forward.schedule.noise(t)
        return self.eigenvalues * noise / (kept * self.eigenvalues + noise)

    def _matrix(self, spectrum: Float[Array, " dim"]) -> Float[Array, "dim dim"]:
        return (self.eigenvectors * spectrum[None, :]) @ self.eigenvectors.T


class MixtureReverse(AbstractReverse):
    """Exact reversal for a mixture of Gaussians with diagonal covariances.

    Its transitions are mixtures themselves.

    Attributes:
        forward: The forward process.
        weights: Shape (num_components,), positive, summing to one.
        means: Shape (num_components, dim).
        scales: Standard deviations, shape (num_components, dim), positive.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: A shape is another one, or a number is out of range.
    """

    forward: GaussianForward
    weights: Float[Array, " num_components"]
    means: Float[Array, "num_components dim"]
    scales: Float[Array, "num_components dim"]

    def __check_init__(self) -> None:
        caller = "MixtureReverse"
        _check_forward(caller, self.forward, GaussianForward)
        checked_weights(caller, "weights", self.weights)
        shape = "(num_components, dim)"
        checked_array(caller, "means", self.means, shape=shape, ndim=2)
        checked_array(caller, "scales", self.scales, shape=shape, ndim=2, above=0.0)
        num, dim = len(self.weights), jnp.shape(self.means)[1]
        _check_shapes(
            caller, means=(self.means, (num, dim)), scales=(self.scales, (num, dim))
        )

    def marginal(self, t: ArrayLike) -> dist.Distribution:
        """The exact law of x_t; at `t = 0` the law of the data."""
        kept = self.forward.schedule.alpha_bar(t)
        return _mixture(
            jnp.log(self.weights), jnp.sqrt(kept) * self.means, self._variances(t)
        )

    def denoise(self, x_t: Num[Array, " dim"], t: ArrayLike) -> Float[Array, " dim"]:
        log_weights, means, _ = self._given(x_t, t)
        return jax.nn.softmax(log_weights) @ means

    def denoising_variance(self, t: ArrayLike) -> Float[Array, ""]:
        """The variance within components, averaged: what is left once the mode is known.

        The share between components has no closed form; near the data it vanishes.
        """
        noise = self.forward.schedule.noise(t)
        within = self.scales**2 * noise / self._variances(t)
        return jnp.mean(self.weights @ within)

    def step(
        self, x_t: Num[Array, " dim"], *, t: ArrayLike, s: ArrayLike
    ) -> ReverseStep:
        _check_times(self, x_t, t=t, s=s)
        on_x0, on_x_t, variance = self.forward.bridge_coefficients(s=s, t=t)
        log_weights, means, variances = self._given(x_t, t)
        law = _mixture(
            log_weights,
            on_x0 * means + on_x_t * x_t[None, :],
            variance + on_x0**2 * variances,
        )
        return ReverseStep(jax.nn.softmax(log_weights) @ means, law)

    def _variances(self, t: ArrayLike) -> Float[Array, "num_components dim"]:
        schedule = self.forward.schedule
        return schedule.alpha_bar(t) * self.scales**2 + schedule.noise(t)

    def _given(self, x_t: Array, t: ArrayLike) -> tuple[Array, Array, Array]:
        """Log weights, means and variances of the components of x_0 given x_t."""
        _check_event(self, x_t, t, self.means[0])
        alpha = jnp.sqrt(self.forward.schedule.alpha_bar(t))
        noise, total = self.forward.schedule.noise(t), self._variances(t)
        residual = x_t[None, :] - alpha * self.means
        log_weights = jnp.log(self.weights) - 0.5 * jnp.sum(
            residual**2 / total + jnp.log(total), axis=1
        )
        means = self.means + alpha * self.scales**2 / total * residual
        return log_weights, means, self.scales**2 * noise / total


class PatternsReverse(AbstractReverse):
    """Exact reversal for data that are one of finitely many patterns: of bits, of letters.

    Its transitions are mixtures, over the patterns, of factorised bridges. What no pattern
    can have become, as a chain of independent entries can, is taken for those that it fits
    in the most entries.

    Attributes:
        forward: The forward process, whose entries take finitely many values.
        weights: Shape (num_patterns,), positive, summing to one.
        patterns: Events, shape (num_patterns, *event).

    Raises:
        TypeError: An argument is of another kind, or the process is over real numbers.
        ValueError: A shape is another one, the weights are not positive and one in all, or
            a pattern has entries that the process cannot carry.
    """

    forward: AbstractForward
    weights: Float[Array, " num_patterns"]
    patterns: Num[Array, "num_patterns *event"]

    def __check_init__(self) -> None:
        caller = "PatternsReverse"
        _check_forward(caller, self.forward, AbstractForward, BernoulliForward)
        if self.forward.values is None:
            raise TypeError(
                f"{caller}: forward must be a process whose entries take finitely many "
                f"values, got {type(self.forward).__name__}."
            )
        checked_weights(caller, "weights", self.weights)
        patterns = self.patterns
        shape = "(num_patterns, *event)"
        checked_array(caller, "patterns", patterns, shape=shape, least_ndim=2)
        shape = (len(self.weights), *jnp.shape(patterns)[1:])
        _check_shapes(caller, patterns=(patterns, shape))
        if not is_traced(patterns):
            self.forward.check(f"{caller}: patterns", np.asarray(patterns))

    def denoise(self, x_t: Num[Array, "*event"], t: ArrayLike) -> Float[Array, "..."]:
        return self._mean(self._log_weights(x_t, t))

    def denoising_variance(self, t: ArrayLike) -> Float[Array, ""]:
        """An upper bound: the variance of an entry under the data law, averaged."""
        mean = jnp.tensordot(self.weights, self.forward.embed(self.patterns), 1)
        return jnp.mean(mean * (1.0 - mean))

    def step(
        self, x_t: Num[Array, "*event"], *, t: ArrayLike, s: ArrayLike
    ) -> ReverseStep:
        _check_times(self, x_t, t=t, s=s)
        log_weights = self._log_weights(x_t, t)
        seen = jnp.broadcast_to(x_t, self.patterns.shape)
        bridges: Any = self.forward.posterior(seen, self.patterns, s=s, t=t)
        law = dist.MixtureSameFamily(
            dist.Categorical(logits=log_weights), bridges.base_dist.to_event(x_t.ndim)
        )
        return ReverseStep(self._mean(log_weights), law)

    def _mean(self, log_weights: Array) -> Float[Array, "..."]:
        embedded = self.forward.embed(self.patterns)
        return jnp.tensordot(jax.nn.softmax(log_weights), embedded, 1)

    def _log_weights(self, x_t: Array, t: ArrayLike) -> Float[Array, " num_patterns"]:
        _check_event(self, x_t, t, self.patterns[0])
        told = self.forward.evidence(x_t, t)
        fits = -jax.vmap(lambda p: self.forward.cross_entropy(p, told))(self.patterns)
        entries = tuple(range(1, fits.ndim))
        return jnp.log(self.weights) + jnp.sum(jnp.maximum(fits, _MISFIT), entries)


def _check_forward(
    caller: str, forward: Any, kind: type, example: type | None = None
) -> None:
    name = (kind if example is None else example).__name__
    checked_instance(caller, "forward", forward, kind, f"{name}(schedule)")


def _check_shapes(caller: str, **arrays: tuple[Any, tuple[int, ...]]) -> None:
    """Refuse arrays, given with the shapes that they must have, of other shapes."""
    for name, (array, shape) in arrays.items():
        if jnp.shape(array) != shape:
            raise ValueError(
                f"{caller}: {name} must have shape {shape}, got {jnp.shape(array)}."
            )


def _check_event(reverse: AbstractReverse, x_t: Any, t: Any, like: Array) -> None:
    """Refuse what is not one event of the shape of `like`, and a time."""
    _check_times(reverse, x_t, t=t)
    _check_shapes(type(reverse).__name__, x_t=(x_t, like.shape))


def _check_times(reverse: AbstractReverse, x_t: Any, **times: Any) -> None:
    check_events(type(reverse).__name__, times, x_t=x_t)


def _mixture(log_weights: Array, means: Array, variances: Array) -> dist.Distribution:
    components = dist.Normal(means, jnp.sqrt(variances)).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=log_weights), components)
