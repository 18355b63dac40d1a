r"""Expected coverage: do credible balls hold the truth as often as they say (TARP)?

For a sampler that is exact and any point $r$ chosen without knowledge of $\theta^*$, the
rank of the distance $d(\theta^*, r)$ among the $d(\theta_l, r)$ is uniform. The ball around
$r$ that holds a share $\alpha$ of the draws then holds the truth with probability $\alpha$.
A distance sees all dimensions at once, and so a wrong correlation that no rank of one
parameter shows.

Source: Lemos et al. 2023, arXiv:2302.03026.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from numpyro_diffusion.checks import (
    LARGEST,
    checked_callable,
    checked_instance,
    checked_integer,
)
from numpyro_diffusion.diagnostics.runs import CalibrationRuns, ranked, sizes

__all__ = ["expected_coverage"]


def expected_coverage(
    runs: CalibrationRuns,
    names: tuple[str, ...] | None = None,
    reference: Callable[[Array, Any], Mapping[str, Array]] | None = None,
    *,
    seed: int = 0,
) -> Any:
    """How often credible balls around random points cover the truth (TARP).

    Args:
        runs: What `calibration_runs` returned.
        names: Parameters that make up the point; by default all that the draws have.
            Each entry is divided by its standard deviation over the simulations.
        reference: Called with a key and one simulation's data; returns the centre of the
            balls, by name. By default the parameters of another simulation.
        seed: Seed of references, ties and transforms.

    Returns:
        An `xarray.Dataset` with `coverage` along `credibility` (equal to it if the sampler
        is exact) with its `standard_error`; `transform` along `simulation`, uniform if the
        sampler is exact; and the `p_value` of a Kolmogorov-Smirnov test of that.

    Raises:
        ValueError: A name is not among truth and draws, or a parameter does not vary.

    **Limits:** what it finds depends on the references. Those of other simulations, on
    all sides of the truth, find a wrong width (0.7 times the right one: p < 1e-10 with
    1000 simulations in two dimensions), but a shift averages out over them (by a fifth
    of the prior's standard deviation: p = 0.02 to 0.9), and of a wrong correlation little
    is left. A reference far away looks along its direction and finds both. If references
    do not depend on the data, a sampler that ignores the data and returns the prior
    passes; one that follows the data finds it.

    Source: Lemos et al. 2023, arXiv:2302.03026, algorithm 2.

    **Example:**
        ```python
        found = nd.diagnostics.expected_coverage(runs)
        print(found["p_value"])
        ```
    """
    import xarray as xr
    from scipy.stats import kstest

    caller = "expected_coverage"
    checked_instance(caller, "runs", runs, CalibrationRuns, "calibration_runs(...)")
    seed = checked_integer(caller, "seed", seed, -LARGEST)
    if reference is not None:
        checked_callable(caller, "reference", reference, "lambda key, data: ...")
    if not (names is None or isinstance(names, list | tuple)):
        raise TypeError(f"{caller}: names must be a tuple of names, got {names!r}.")
    num_simulations, _ = sizes(runs)
    names = tuple(n for n in runs.truth if n in runs.draws) if names is None else names
    absent = [n for n in names if n not in runs.truth or n not in runs.draws]
    if absent or not names:
        raise ValueError(
            "expected_coverage: names must be parameters that truth and draws have, got "
            f"{list(names)}."
        )
    reference_key, rank_key = jax.random.split(jax.random.key(seed))
    centres = _references(reference_key, runs, names, reference)
    truth = _flattened(runs.truth, names, 1)
    scale = jnp.std(truth, axis=0)
    if not bool(jnp.all(scale > 0.0)):
        raise ValueError(
            "expected_coverage: every entry of the parameters must vary between the "
            f"simulations, got standard deviations {np.asarray(scale)}."
        )
    draws = _flattened(runs.draws, names, 2)
    distance = lambda point, centre: jnp.linalg.norm((point - centre) / scale, axis=-1)
    _, transforms = ranked(
        rank_key, distance(truth, centres), distance(draws, centres[:, None])
    )
    credibility = np.linspace(0.0, 1.0, 51)
    error = np.sqrt(credibility * (1.0 - credibility) / num_simulations)
    return xr.Dataset(
        {
            "coverage": (
                "credibility",
                [np.mean(transforms <= c) for c in credibility],
            ),
            "standard_error": ("credibility", error),
            "transform": ("simulation", transforms),
            "p_value": float(kstest(transforms, "uniform").pvalue),
        },
        {"credibility": credibility, "simulation": np.arange(num_simulations)},
    )


def _references(
    key: Array,
    runs: CalibrationRuns,
    names: tuple[str, ...],
    reference: Callable | None,
) -> Float[Array, "num_simulations dim"]:
    num_simulations, _ = sizes(runs)
    if reference is None:
        # Another simulation's parameters: a cyclic shift never meets its own.
        order = jax.random.permutation(key, num_simulations)
        other = jnp.zeros_like(order).at[order].set(jnp.roll(order, 1))
        return _flattened(runs.truth, names, 1)[other]
    keys = jax.random.split(key, num_simulations)
    return _flattened(jax.vmap(reference)(keys, runs.data), names, 1)


def _flattened(
    values: Mapping[str, Array], names: tuple[str, ...], num_leading: int
) -> Float[Array, "*leading dim"]:
    parts = [
        jnp.reshape(values[n], (*values[n].shape[:num_leading], -1)) for n in names
    ]
    return jnp.concatenate(parts, axis=-1, dtype=jnp.result_type(float))
