r"""Coordinates of a flow's noise in which its posterior is round.

Where data are many and precise, the posterior of the noise z behind a field is far from
round: directions that the data see are narrow, the others as wide as before. With A minus
the curvature of the log likelihood in z, the posterior is about Gaussian with the
precision I + A, and in coordinates w with

$$z = (I + A)^{-1/2}\, w \approx w + \sum_k
\left((1 + \lambda_k)^{-1/2} - 1\right) u_k u_k^\top w$$

its covariance is about I. A few eigenvectors of A are enough: where $\lambda_k$ is below
one the data say less than the prior. The map is linear, so that nothing but the
coordinates changes.

$A = J^\top H J$ with the Jacobian J of the flow and minus the Hessian H of the log
likelihood in its output, both at one draw; the curvature of the flow itself is left out
(Gauss-Newton). Its eigenvectors are found by subspace iteration, without matrices.

Source: Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithm 4.4, for the
eigenvectors; Cui, Law and Marzouk 2016, arXiv:1411.3688, for such coordinates in MCMC.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.distributions.distribution import MaskedDistribution
from numpyro.infer.util import log_density

from numpyro_diffusion.infer._flow_map import checked_prior, has_flow, latents
from numpyro_diffusion.model.messengers import OmitPrior, unwrapped
from numpyro_diffusion.model.sites import traced

__all__ = ["WhitenedNormal", "Whitening", "leading_directions"]

# Directions that are found beside those that are kept, and rounds of the iteration.
_MORE, _ROUNDS = 16, 2
# Directions that go through the flow together.
_TOGETHER = 64


class Whitening(eqx.Module):
    """The linear map of coordinates to noise, of one site.

    Attributes:
        directions: At right angles and of length one, shape (num_directions, size).
        curvatures: What the data say along each, in precisions of the prior, positive,
            shape (num_directions,).
        shape: Shape of the site's noise.
    """

    directions: Float[Array, "num_directions size"]
    curvatures: Float[Array, " num_directions"]
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, w: Float[Array, "*site"]) -> Float[Array, "*site"]:
        """The noise at some coordinates."""
        return self._stretched(w, 1.0 / jnp.sqrt(1.0 + self.curvatures))

    def inverse(self, z: Float[Array, "*site"]) -> Float[Array, "*site"]:
        """The coordinates of some noise."""
        return self._stretched(z, jnp.sqrt(1.0 + self.curvatures))

    @property
    def log_det(self) -> Float[Array, ""]:
        """Log determinant of the map."""
        return -0.5 * jnp.sum(jnp.log1p(self.curvatures))

    def _stretched(self, x: Array, by: Array) -> Array:
        flat = x.reshape(-1)
        along = (by - 1.0).astype(x.dtype) * (self.directions.astype(x.dtype) @ flat)
        return (flat + along @ self.directions.astype(x.dtype)).reshape(x.shape)


class WhitenedNormal(dist.Distribution):
    """The law of coordinates whose noise is standard normal.

    Args:
        whitening: Their map to the noise.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    pytree_data_fields = ("whitening",)

    def __init__(
        self, whitening: Whitening, *, validate_args: bool | None = None
    ) -> None:
        self.whitening = whitening
        super().__init__((), whitening.shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        z = jax.random.normal(key, sample_shape + self.event_shape)
        flat = z.reshape(-1, *self.event_shape)
        return jax.vmap(self.whitening.inverse)(flat).reshape(z.shape)

    def log_prob(self, value: Array) -> Array:
        flat = value.reshape(-1, *self.event_shape)
        z = jax.vmap(self.whitening)(flat).reshape(len(flat), -1)
        normal = jnp.sum(dist.Normal().log_prob(z), axis=-1)
        front = value.shape[: value.ndim - len(self.event_shape)]
        return (normal + self.whitening.log_det).reshape(front)


def whitenings(
    reparam: Any,
    model: Callable,
    draw: Mapping[str, ArrayLike],
    args: tuple,
    kwargs: dict[str, Any],
    num_directions: int,
) -> dict[str, Whitening]:
    """The maps of all diffusion sites of a model, each on its own.

    Args:
        reparam: A `FlowReparam` without any.
        model: The model, before its reparameterisation.
        draw: Values of all its latents.
        args: Positional arguments of the model.
        kwargs: Its keyword arguments.
        num_directions: Directions that are told apart at most.

    Raises:
        ValueError: There is no diffusion site, one is masked or is not one event, a latent
            has no value in `draw` or one of another shape, or the likelihood's curvature
            there is no number.
    """
    sites = latents(traced(model, args, kwargs, {}))
    for name, site in sites.items():
        shape, got = jnp.shape(site["value"]), jnp.shape(draw.get(name, site["value"]))
        if got != shape:
            raise ValueError(
                f"FlowReparam.whitened: draw must hold one draw, {name!r} of shape "
                f"{shape}, got {got}."
            )
    noise = reparam.encode(model, draw, *args, **kwargs)
    values = {name: jnp.asarray(draw[name]) for name in sites}
    sites = latents(traced(model, args, kwargs, values))
    moved = {
        name: prior
        for name, site in sites.items()
        if has_flow(prior := unwrapped(site["fn"]))
    }
    if not moved:
        raise ValueError(
            "FlowReparam.whitened: the model must have a latent diffusion site over real "
            f"numbers, before any reparameterisation, got the latents {list(sites)}."
        )
    seeded = handlers.seed(model, jax.random.key(0))  # as `encode`, for what it draws
    weighed = OmitPrior(seeded, select=lambda msg: msg["name"] in moved)
    found = {}
    for name, prior in moved.items():
        if isinstance(sites[name]["fn"], MaskedDistribution):
            checked_prior(name, sites[name]["fn"])
        z = noise[f"{name}_base"]
        if z.shape != prior.event_shape:
            raise ValueError(not_one_event(name, z.shape, prior.event_shape))

        def log_likelihood(x: Array, name: str = name) -> Array:
            density, _ = log_density(weighed, args, kwargs, {**values, name: x})
            return jnp.asarray(density)

        decode = functools.partial(reparam.decode, prior)
        found[name] = leading_directions(decode, log_likelihood, z, num_directions)
        if not np.all(np.isfinite(found[name].directions)):
            raise ValueError(
                "FlowReparam.whitened: draw must be a place where the log likelihood has "
                f"second derivatives in {name!r}, some are infinite or no numbers there."
            )
    return found


def not_one_event(
    name: str, shape: tuple[int, ...], event_shape: tuple[int, ...]
) -> str:
    """The sentence on a site that is several events."""
    return (
        f"FlowReparam.whitened: {name!r} must be one event, in no plate, without a "
        "sample_shape and under one context, got noise of shape "
        f"{shape} for events of shape {event_shape}."
    )


@eqx.filter_jit
def leading_directions(
    decode: Callable[[Array], Array],
    log_likelihood: Callable[[Array], Array],
    z: Float[Array, "*site"],
    num_directions: int,
) -> Whitening:
    """Directions in which the data say most of the noise.

    Args:
        decode: The flow's map of the site's noise to its value.
        log_likelihood: Of the value.
        z: The noise at which both are linearised.
        num_directions: How many are wanted; no more than the noise has entries.

    Returns:
        The map. Curvatures that are not positive count as zero.
    """
    size = z.size
    num = min(size, num_directions + _MORE)
    x, forth = jax.linearize(decode, z)
    back = jax.linear_transpose(forth, z)
    _, bend = jax.linearize(jax.grad(log_likelihood), x)

    def curved(v: Array) -> Array:
        (pulled,) = back(-bend(forth(v.reshape(z.shape))))
        return pulled.reshape(-1)

    curved_rows = lambda rows: jax.lax.map(curved, rows, batch_size=_TOGETHER)
    is_whole = num == size
    rows = jnp.eye(size, dtype=z.dtype)
    if not is_whole:
        rows = jax.random.normal(jax.random.key(0), (num, size), z.dtype)
    applied, lowest = curved_rows(rows), 0.0
    for _ in range(0 if is_whole else _ROUNDS):
        # Largest, and not largest in size: what is negative is brought to zero.
        rows = jnp.linalg.qr((applied - lowest * rows).T)[0].T
        applied = curved_rows(rows)
        lowest = jnp.minimum(jnp.linalg.eigvalsh(_symmetric(rows @ applied.T))[0], 0.0)
    values, vectors = jnp.linalg.eigh(_symmetric(rows @ applied.T))
    kept = slice(-min(num_directions, num), None)
    found = jnp.where(values[kept] > 0.0, values[kept], 0.0)
    return Whitening(vectors[:, kept].T @ rows, found, z.shape)


def _symmetric(matrix: Float[Array, "num num"]) -> Float[Array, "num num"]:
    return 0.5 * (matrix + matrix.T)
