r"""Of what kind a model's likelihood is, seen at a few draws of the prior.

With $\ell(x) = \log p(y | x)$, gradient g and curvature H there: of a Gaussian likelihood
that is linear in x, $g(x) - g(x') = H (x - x')$ for any two points, with H never positive.
One without a slope depends on x and has g = 0 wherever one looks, or no g at all. One that
can be zero, or is undefined somewhere, is so at some draws of a prior that reaches there.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from numpyro.handlers import seed

from numpyro_diffusion.model.messengers import OmitPrior
from numpyro_diffusion.model.private import compute_log_probs
from numpyro_diffusion.prior import DiffusionPrior

__all__ = ["NOT_SEEN", "Kind", "LikelihoodKind", "kind_of_likelihood"]

# Rounding of sharp likelihoods in single precision is a hundred times smaller.
_TOLERANCE = 1e-3
_NUM_POINTS = 3


class Kind(enum.Enum):
    """What guidance can do with a likelihood."""

    GAUSSIAN = "Gaussian and linear in the site"
    SMOOTH = "differentiable and not Gaussian"
    FLAT = "without a slope"
    LIMITED = "zero or undefined in places"
    VALUES = "over finitely many values"


class LikelihoodKind(NamedTuple):
    """What was seen of a likelihood.

    Attributes:
        kind: Of which kind it is.
        couples: Whether its curvature couples entries of the sites, as sums and blurs do.
        sharpest: The standard deviation that the data alone leave of an entry at the
            least, in the network's units; infinite where they couple entries.
    """

    kind: Kind
    couples: bool = False
    sharpest: float = np.inf


NOT_SEEN = LikelihoodKind(Kind.GAUSSIAN)
"""Of sites that no data speak of: a constant, which has all derivatives."""


def kind_of_likelihood(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    priors: Mapping[str, DiffusionPrior],
    draws: Sequence[Mapping[str, Array]],
    others: Mapping[str, Array],
    speaking: Sequence[str],
) -> LikelihoodKind:
    """The kind of a likelihood.

    Args:
        model: A NumPyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        priors: The priors of its diffusion sites.
        draws: Values of the sites, and of real latents that lie between them and the data;
            derivatives are looked at in the first three.
        others: Values of all other latents.
        speaking: What depends on them: observed sites, and those latents.
    """

    def log_densities(values: Mapping[str, Array]) -> dict[str, Array]:
        bare = OmitPrior(model, select=lambda msg: msg["name"] in priors)
        values = {**others, **values}
        with seed(rng_seed=jax.random.key(0)):
            found, _ = compute_log_probs(bare, args, dict(kwargs), values)
        return {name: found[name] for name in speaking}

    evaluated = jax.jit(log_densities)
    at_draws = [evaluated(draw) for draw in draws]
    values = {name: np.asarray([at[name] for at in at_draws]) for name in at_draws[0]}
    if not all(np.all(np.isfinite(value)) for value in values.values()):
        return LikelihoodKind(Kind.LIMITED)
    if not all(prior.is_continuous for prior in priors.values()):
        return LikelihoodKind(Kind.VALUES)
    points, restored = _as_vectors(priors, draws[:_NUM_POINTS])
    of_vector = lambda u: log_densities(restored(u))
    try:
        slopes = _slopes(of_vector, points)
        bend = _curvature(of_vector, points[0])
    except (TypeError, ValueError, NotImplementedError):  # what JAX has no rule for
        return LikelihoodKind(Kind.FLAT)
    # Of a density that depends on the sites, no slope at any point is that of steps.
    if any(_is_flat([slope[name] for slope in slopes]) for name in values):
        return LikelihoodKind(Kind.FLAT)
    totals = [np.sum(list(slope.values()), axis=0) for slope in slopes]
    return _smooth(points, totals, bend)


def _as_vectors(
    priors: Mapping[str, DiffusionPrior], draws: Sequence[Mapping[str, Array]]
) -> tuple[list[Array], Callable[[Array], dict[str, Array]]]:
    """Draws in the networks' units, as one vector each; and the way back."""

    def changed(draw: Mapping[str, Array], change: Callable) -> dict[str, Array]:
        return {n: change(priors[n], v) if n in priors else v for n, v in draw.items()}

    standard = [changed(draw, DiffusionPrior.standardised) for draw in draws]
    unravel = ravel_pytree(standard[0])[1]
    restored = lambda u: changed(unravel(u), DiffusionPrior.restored)
    return [ravel_pytree(draw)[0] for draw in standard], restored


def _slopes(function: Callable, points: list[Array]) -> list[dict[str, np.ndarray]]:
    """The gradient of each density at each point."""
    slope = jax.jit(jax.jacrev(function))
    return [jax.tree.map(np.asarray, slope(u)) for u in points]


def _curvature(function: Callable, like: Array) -> Callable[[Array, Array], np.ndarray]:
    """Products of the curvature of all densities, at a point, with a vector."""
    slope = jax.grad(lambda u: sum(function(u).values(), jnp.zeros(())))
    bend = jax.jit(lambda u, v: jax.jvp(slope, (u,), (v,))[1])
    bend = bend.lower(like, like).compile()
    return lambda u, v: np.asarray(bend(u, v))


def _is_flat(slopes: list[np.ndarray]) -> bool:
    """Whether a density has no slope at any point."""
    return not (np.all(np.isfinite(slopes)) and np.any(slopes))


def _smooth(
    points: list[Array],
    slopes: list[np.ndarray],
    bend: Callable[[Array, Array], np.ndarray],
) -> LikelihoodKind:
    """Whether a likelihood with slopes is Gaussian, and what its curvature couples."""
    is_gaussian = True
    for (u, g), (v, h) in zip(
        zip(points, slopes, strict=True),
        zip(points[1:] + points[:1], slopes[1:] + slopes[:1], strict=True),
        strict=True,
    ):
        predicted = bend(u, v - u)
        is_gaussian &= _alike(h - g, predicted, np.abs(g) + np.abs(h))
        is_gaussian &= bool(predicted @ np.asarray(v - u) <= 0.0)
    diagonal = bend(points[0], jnp.ones_like(points[0]))
    probe = np.random.default_rng(1).uniform(1.0, 2.0, diagonal.shape)
    bent = bend(points[0], jnp.asarray(probe, points[0].dtype))
    couples = not _alike(bent, diagonal * probe, float(np.max(np.abs(bent))))
    information = 0.0 if couples else max(0.0, float(np.max(-diagonal)))
    sharpest = np.inf if information == 0.0 else information**-0.5
    kind = Kind.GAUSSIAN if is_gaussian else Kind.SMOOTH
    return LikelihoodKind(kind, couples, sharpest)


def _alike(found: np.ndarray, expected: np.ndarray, scale: np.ndarray | float) -> bool:
    return bool(np.all(np.abs(found - expected) <= _TOLERANCE * scale + 1e-12))
