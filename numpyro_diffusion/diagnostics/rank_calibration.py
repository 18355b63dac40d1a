r"""Simulation-based calibration: is the truth's rank among the draws uniform?

For a sampler that is exact, the rank of any scalar $f(\theta^*, y)$ among the
$f(\theta_l, y)$ is uniform on $\{0, \ldots, L\}$. A posterior that is too narrow piles the
ranks up at both ends, one that is too wide in the middle, one that is shifted at one end.

Source: Talts et al. 2018, arXiv:1804.06788.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from numpyro_diffusion.checks import (
    LARGEST,
    checked_instance,
    checked_integer,
)
from numpyro_diffusion.diagnostics.runs import CalibrationRuns, ranked, sizes

__all__ = ["simulation_based_calibration"]


def simulation_based_calibration(
    runs: CalibrationRuns,
    statistics: Mapping[str, Callable[[dict[str, Array], Any], Array]] | None = None,
    *,
    num_bins: int | None = None,
    seed: int = 0,
) -> Any:
    """Ranks of the truth among the draws, and tests of their uniformity.

    Args:
        runs: What `calibration_runs` returned.
        statistics: Functions of parameters (by name) and data, each for one draw; an
            array counts entry by entry. By default all parameters that the draws have. The
            log likelihood is a good one to add: it sees errors that no parameter does.
        num_bins: Bins of the chi-square test; must divide L + 1. By default the largest
            number that does and leaves ten simulations per bin.
        seed: Seed of the random numbers that break ties and turn ranks into transforms.

    Returns:
        An `xarray.DataTree` with one variable per statistic in each of three groups:
        `ranks` (integers from 0 to L) and `prior_sbc` (their transforms in (0, 1), where
        `arviz.plot_ecdf_pit` of ArviZ 1.x looks for them), both along the dimension
        `simulation`; and `p_values` along `test` (chi-square, Kolmogorov-Smirnov).
        With ArviZ 0.23: `arviz.plot_ecdf(found.prior_sbc.x.values,
        cdf=scipy.stats.uniform.cdf, difference=True)` for a scalar x. Of many p-values the
        smallest is to be compared with a level divided by their number.

    Raises:
        ValueError: `num_bins` does not divide L + 1, or no number of bins does.

    Source: Talts et al. 2018, arXiv:1804.06788, algorithm 2; Modrák et al. 2023,
    arXiv:2211.02383, for statistics that depend on the data.

    **Example:**
        ```python
        found = nd.diagnostics.simulation_based_calibration(runs)
        print(found["p_values"])
        ```
    """
    import xarray as xr

    caller = "simulation_based_calibration"
    checked_instance(caller, "runs", runs, CalibrationRuns, "calibration_runs(...)")
    seed = checked_integer(caller, "seed", seed, -LARGEST)
    if not (statistics is None or isinstance(statistics, Mapping)):
        raise TypeError(
            f"{caller}: statistics must be a mapping of names to functions, got "
            f"{statistics!r}."
        )
    if num_bins is not None:
        num_bins = checked_integer(caller, "num_bins", num_bins)
    num_simulations, num_draws = sizes(runs)
    num_bins = _checked_bins(num_bins, num_simulations, num_draws)
    if statistics is None:
        statistics = {
            name: (lambda values, data, name=name: values[name])
            for name in runs.truth
            if name in runs.draws
        }
    groups: dict[str, dict[str, Any]] = {"ranks": {}, "prior_sbc": {}, "p_values": {}}
    inner_coordinates: dict[str, Any] = {}
    for i, (name, statistic) in enumerate(statistics.items()):
        truth, draws = _evaluated(runs, statistic)
        key = jax.random.fold_in(jax.random.key(seed), i)
        ranks, transforms = ranked(key, truth, draws)
        inner = {f"{name}_dim_{j}": np.arange(n) for j, n in enumerate(truth.shape[1:])}
        inner_coordinates |= inner
        groups["ranks"][name] = (["simulation", *inner], ranks)
        groups["prior_sbc"][name] = (["simulation", *inner], transforms)
        tests = _uniformity(ranks, transforms, num_draws, num_bins)
        groups["p_values"][name] = (["test", *inner], tests)
    simulation = {"simulation": np.arange(num_simulations)}
    coordinates = {
        "ranks": simulation | inner_coordinates,
        "prior_sbc": simulation | inner_coordinates,
        "p_values": {"test": ["chi_square", "kolmogorov_smirnov"]} | inner_coordinates,
    }
    attributes = {"num_draws": num_draws, "num_bins": num_bins}
    return xr.DataTree.from_dict(
        {
            group: xr.Dataset(variables, coordinates[group], attributes)
            for group, variables in groups.items()
        }
    )


def _uniformity(
    ranks: np.ndarray, transforms: np.ndarray, num_draws: int, num_bins: int
) -> Float[np.ndarray, "2 ..."]:
    """p-values of the chi-square and Kolmogorov-Smirnov tests, entry by entry."""
    from scipy.stats import chisquare, kstest

    bins = ranks.reshape(len(ranks), -1) // ((num_draws + 1) // num_bins)
    columns = transforms.reshape(len(ranks), -1).T
    tests = [
        [chisquare(np.bincount(b, minlength=num_bins)).pvalue for b in bins.T],
        [kstest(column, "uniform").pvalue for column in columns],
    ]
    return np.array(tests).reshape(2, *ranks.shape[1:])


def _checked_bins(num_bins: int | None, num_simulations: int, num_draws: int) -> int:
    fitting = [n for n in range(2, num_draws + 2) if (num_draws + 1) % n == 0]
    if num_bins is not None and num_bins not in fitting:
        raise ValueError(
            "simulation_based_calibration: num_bins must divide the number of draws plus "
            f"one, {num_draws + 1}, got {num_bins}."
        )
    if num_bins is not None:
        return num_bins
    wide = [n for n in fitting if 10 * n <= num_simulations]
    if not wide:
        raise ValueError(
            "simulation_based_calibration: some number of bins must divide the number of "
            "draws plus one and leave ten simulations per bin, got "
            f"{num_draws} draws and {num_simulations} simulations; 19 or 99 draws divide "
            "well."
        )
    return wide[-1]


def _evaluated(runs: CalibrationRuns, statistic: Callable) -> tuple[Array, Array]:
    given_draws = jax.vmap(statistic, (0, None))
    truth = jax.vmap(statistic)(runs.truth, runs.data)
    return truth, jax.vmap(given_draws)(runs.draws, runs.data)
