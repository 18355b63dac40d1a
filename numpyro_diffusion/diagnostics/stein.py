r"""Kernel Stein discrepancy: do draws have the law whose score is known?

For draws $x_i$ that should follow a law with score $s = \nabla \log p$,
$\frac{1}{n^2} \sum_{ij} k_p(x_i, x_j)$ estimates the square of a distance between the two
laws, where

$$k_p(x, y) = k\, s(x)^\top s(y) + s(x)^\top \nabla_y k + s(y)^\top \nabla_x k
+ \mathrm{tr}\, \nabla_x \nabla_y k, \qquad
k = \Big(1 + \frac{\lVert x - y \rVert^2}{\ell^2}\Big)^{-1/2}.$$

The score of a posterior under a diffusion prior is the prior's, from its denoiser at a
small noise level, and the gradient of the log likelihood: no truth, no simulation and no
normalising constant is needed.

Source: Gorham and Mackey 2017, arXiv:1703.01717, for the kernel; Chwialkowski et al. 2016,
arXiv:1602.02964, for the bootstrap.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_diffusion.checks import (
    LARGEST,
    checked_array,
    checked_callable,
    checked_instance,
    checked_integer,
    checked_real,
    checked_width,
    is_traced,
)
from numpyro_diffusion.model.likelihood import Likelihood
from numpyro_diffusion.model.sites import diffusion_site
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["diffusion_score", "kernel_stein_discrepancy", "posterior_score"]


def diffusion_score(
    reverse: AbstractReverse, x: Float[Array, "*event"], angle: ArrayLike
) -> Float[Array, "*event"]:
    r"""Score of the prior at a small noise level.

    That is $(\cos\theta\, E[x_0 \mid x_\theta = x] - x) / \sin^2\theta$.

    Args:
        reverse: A Gaussian reverse process.
        x: One event.
        angle: Noise level in radians: about the noise's standard deviation.

    Raises:
        TypeError: The process is not Gaussian.

    **Error:** of order `angle`$^2$ against the score of the data law, as long as `angle` is
    small against the width of its modes. A network's error is divided by `angle`$^2$.

    Source: Tweedie's formula; Efron 2011, JASA 106(496), eq. 2.8.
    """
    caller = "diffusion_score"
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    x = jnp.asarray(checked_array(caller, "x", x))
    angle = checked_array(caller, "angle", angle, shape="()", ndim=0, above=1e-18)
    if reverse.forward.values is not None:
        raise TypeError(
            "diffusion_score: only Gaussian diffusion has a score, got "
            f"{type(reverse.forward).__name__}."
        )
    t = reverse.forward.schedule.time(angle)
    return (jnp.cos(angle) * reverse.denoise(x, t) - x) / jnp.sin(angle) ** 2


def posterior_score(
    model: Callable,
    draw: Mapping[str, ArrayLike],
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    site: str | None = None,
    angle: float = 0.05,
) -> Float[Array, "..."]:
    """Gradient of the log posterior density by the value of a diffusion site.

    Args:
        model: A NumPyro model.
        draw: Values of all its latents, one of each; `jax.vmap` over draws. Names that
            are no latents are ignored.
        args: Positional arguments of the model, data included.
        kwargs: Keyword arguments of the model, data included.
        site: Name of the diffusion site; needed only if the model has several.
        angle: Noise level at which the prior's score is taken; see `diffusion_score`.

    Returns:
        The score, of the site's shape. All other latents are held at the draw's values,
        which makes it the block of the joint score that belongs to the site.

    Raises:
        ValueError: As `Likelihood`; or `site` has no value in `draw`.
    """
    checked_callable("posterior_score", "model", model, "a NumPyro model")
    for argument, value, kind in (
        ("draw", draw, Mapping),
        ("kwargs", {} if kwargs is None else kwargs, Mapping),
        ("args", args, tuple | list),
    ):
        if not isinstance(value, kind):
            named = "a tuple" if argument == "args" else "a mapping of names to values"
            raise TypeError(
                f"posterior_score: {argument} must be {named}, got {value!r}."
            )
    kwargs = dict(kwargs or {})
    name = diffusion_site(model, args, kwargs, site, "posterior_score")
    if name not in draw:
        raise ValueError(
            f"posterior_score: draw must have a value of {name!r}, got {sorted(draw)}."
        )
    others = {n: jnp.asarray(v) for n, v in draw.items() if n != name}
    likelihood = Likelihood(model, name, args, kwargs, others)
    x = jnp.asarray(draw[name])
    prior = likelihood.prior
    events = prior.standardised(x).reshape(-1, *prior.event_shape)
    of_prior = jax.vmap(lambda e: diffusion_score(prior.reverse, e, angle))(events)
    # Per unit of the site, not of the network.
    of_prior = of_prior.reshape(x.shape) / prior.width(jnp.ones((), x.dtype))
    score = of_prior + jax.grad(likelihood)(x)
    if not is_traced(score) and not np.all(np.isfinite(np.asarray(score))):
        raise ValueError(
            "posterior_score: draw, args and kwargs must give a finite score, got "
            f"{score}; do the data hold a NaN?"
        )
    return score


def kernel_stein_discrepancy(
    draws: Float[Array, "..."],
    scores: Float[Array, "..."],
    *,
    length_scale: float | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Any:
    """How far draws are from the law that has given scores at them.

    Args:
        draws: Nearly independent draws (thin a chain), in coordinates of comparable
            scale, shape (num_draws, dim).
        scores: Score of the law at each draw, as by `posterior_score`; same shape.
        length_scale: Of the kernel, in the units of the draws; by default the median
            distance between draws.
        num_resamples: Resamples of the wild bootstrap (random signs) for the law of the
            statistic if the draws are right.
        seed: Seed of the signs.

    Returns:
        An `xarray.Dataset` with `ksd` (the root of the statistic), its value under the
        bootstrap `ksd_null` along `resample`, and the `p_value`.

    Raises:
        ValueError: Shapes differ, values are not finite, or all draws are the same.

    **Limits:** a small shift takes many draws: 400 of them, shifted by 0.3 standard
    deviations in two dimensions, had p = 0.01. Draws that miss a mode altogether have the
    right score where they are; if the modes are far apart, it takes many draws to see
    that one is missing. Memory grows with the square of the number of draws.

    Source: Gorham and Mackey 2017, arXiv:1703.01717, with exponent -1/2; Chwialkowski et
    al. 2016, arXiv:1602.02964, section 4, for independent draws.

    **Example:**
        ```python
        score = lambda draw: nd.diagnostics.posterior_score(
            model, draw, (mask,), {"y": y}
        )
        scores = jax.vmap(score)(draws)
        found = nd.diagnostics.kernel_stein_discrepancy(draws["x"], scores)
        print(found["p_value"])
        ```
    """
    import xarray as xr

    caller = "kernel_stein_discrepancy"
    for argument, value in (("draws", draws), ("scores", scores)):
        checked_array(caller, argument, value, finite=False, empty=True)
    draws, scores = jnp.asarray(draws), jnp.asarray(scores)
    num_resamples = checked_integer(caller, "num_resamples", num_resamples)
    seed = checked_integer(caller, "seed", seed, -LARGEST)
    if length_scale is not None:
        checked_real(caller, "length_scale", length_scale, finite=False)
    if draws.shape != scores.shape or draws.ndim != 2:
        raise ValueError(
            "kernel_stein_discrepancy: draws and scores must both have shape (num_draws, "
            f"dim), got {draws.shape} and {scores.shape}."
        )
    if not bool(jnp.all(jnp.isfinite(draws)) & jnp.all(jnp.isfinite(scores))):
        raise ValueError(
            "kernel_stein_discrepancy: draws and scores must be finite, got infinity or "
            "not a number."
        )
    # Distances do not feel the mean, but their digits do.
    centred = draws - jnp.mean(draws, axis=0)
    distances = _distances(centred)
    if length_scale is None:
        pairs = jnp.triu_indices(len(draws), 1)
        length_scale = float(jnp.median(distances[pairs]))
    if not 0.0 < length_scale < math.inf:
        raise ValueError(
            "kernel_stein_discrepancy: length_scale must be positive and finite, got "
            f"{length_scale} (the median distance, if you gave none)."
        )
    checked_width(caller, "length_scale", length_scale)
    matrix = _stein_matrix(centred, scores, distances, length_scale)
    signs = jax.random.rademacher(
        jax.random.key(seed), (num_resamples, len(draws)), matrix.dtype
    )
    # The kernel is positive semi-definite; what is below zero is rounding.
    root = lambda total: np.sqrt(np.maximum(np.asarray(total), 0.0)) / len(draws)
    found = root(jnp.sum(matrix))
    null = root(jnp.sum((signs @ matrix) * signs, axis=1))
    return xr.Dataset(
        {
            "ksd": float(found),
            "ksd_null": ("resample", null),
            "p_value": float((1 + np.sum(null >= found)) / (1 + num_resamples)),
        },
        {"resample": np.arange(num_resamples)},
        {"length_scale": length_scale, "num_draws": len(draws)},
    )


def _distances(
    draws: Float[Array, "num_draws dim"],
) -> Float[Array, "num_draws num_draws"]:
    norms = jnp.sum(draws**2, axis=1)
    squares = norms[:, None] + norms[None, :] - 2.0 * draws @ draws.T
    return jnp.sqrt(jnp.maximum(squares, 0.0))  # rounding may leave a square of -1e-16


def _stein_matrix(
    draws: Float[Array, "num_draws dim"],
    scores: Float[Array, "num_draws dim"],
    distances: Float[Array, "num_draws num_draws"],
    length_scale: float,
) -> Float[Array, "num_draws num_draws"]:
    """k_p at all pairs of draws."""
    width, dim = length_scale**2, draws.shape[1]
    squares = distances**2 / width
    base = 1.0 + squares
    own = jnp.sum(scores * draws, axis=1)
    cross = scores @ draws.T
    # (s(x) - s(y)) . (x - y) for all pairs
    along = own[:, None] + own[None, :] - cross - cross.T
    return (
        base**-0.5 * (scores @ scores.T)
        + base**-1.5 * (along + dim) / width
        - 3.0 * base**-2.5 * squares / width
    )
