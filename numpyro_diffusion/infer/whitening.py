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
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.infer.util import log_density

from numpyro_diffusion.infer._flow_map import has_flow, latents
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
        ValueError: A latent has no value in `draw`, or a diffusion site lies in a plate.
    """
    noise = reparam.encode(model, draw, *args, **kwargs)
    names = latents(traced(model, args, kwargs, {}))
    values = {name: jnp.asarray(draw[name]) for name in names}
    sites = latents(traced(model, args, kwargs, values))
    priors = {name: unwrapped(site["fn"]) for name, site in sites.items()}
    moved = {name: prior for name, prior in priors.items() if has_flow(prior)}
    weighed = OmitPrior(model, select=lambda msg: msg["name"] in moved)
    found = {}
    for name, prior in moved.items():
        z = noise[f"{name}_base"]
        if z.shape != prior.event_shape:
            raise ValueError(
                f"FlowReparam.whitened: {name!r} must lie in no plate, got noise of shape "
                f"{z.shape} for events of shape {prior.event_shape}."
            )

        def log_likelihood(x: Array, name: str = name) -> Array:
            density, _ = log_density(weighed, args, kwargs, {**values, name: x})
            return jnp.asarray(density)

        decode = functools.partial(reparam.decode, prior)
        found[name] = leading_directions(decode, log_likelihood, z, num_directions)
    return found


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
        The map. Curvatures that are not positive, or no numbers, count as zero.
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
    rows = jnp.eye(size, dtype=z.dtype)
    if num < size:
        rows = jax.random.normal(jax.random.key(0), (num, size), z.dtype)
        for _ in range(_ROUNDS):
            rows = jnp.linalg.qr(curved_rows(rows).T)[0].T
    within = rows @ curved_rows(rows).T
    values, vectors = jnp.linalg.eigh(0.5 * (within + within.T))
    kept = slice(-min(num_directions, num), None)
    found = jnp.where(values[kept] > 0.0, values[kept], 0.0)
    return Whitening(vectors[:, kept].T @ rows, found, z.shape)
