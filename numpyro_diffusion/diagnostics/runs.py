r"""Repeated simulations with known truth, and a sampler run on each.

Draw parameters from the prior and data given them, $\theta^* \sim p(\theta)$,
$y \sim p(y \mid \theta^*)$, and let a sampler draw $\theta_1, \ldots, \theta_L$ given $y$.
If the sampler is exact, the truth is one more draw of the same law: given $y$, all
$L + 1$ of them are exchangeable. Whatever is computed from them must not tell them apart.

Source: Cook, Gelman and Rubin 2006, JCGS 15(3).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpyro.handlers import seed, trace

from numpyro_diffusion.checks import (
    LARGEST,
    checked_callable,
    checked_instance,
    checked_integer,
    checked_key,
)

__all__ = [
    "CalibrationRuns",
    "calibration_runs",
    "in_parallel",
    "in_sequence",
    "model_simulator",
    "ranked",
    "sizes",
]


class CalibrationRuns(NamedTuple):
    """What `calibration_runs` returns; N simulations with L draws each.

    Attributes:
        truth: Parameters that the data were made with, each of shape (N, ...).
        data: The data, with leading dimension N.
        draws: The sampler's draws given the data, each of shape (N, L, ...).
    """

    truth: dict[str, Array]
    data: Any
    draws: dict[str, Array]


def model_simulator(
    model: Callable, observed: tuple[str, ...], *args: Any, **kwargs: Any
) -> Callable[[Array], tuple[dict[str, Array], dict[str, Array]]]:
    """The `simulate` of `calibration_runs` for a NumPyro model.

    Args:
        model: A NumPyro model that draws its data if it is given none.
        observed: Names of the sites that are data.
        *args: Positional arguments of the model.
        **kwargs: Keyword arguments of the model, without the data.

    Returns:
        A function of a key. It draws everything in the model and returns the values of
        all other sites (deterministic ones too), and the data, by name. A diffusion site
        is drawn by its reverse chain, or by the flow under `infer.reparam_diffusion`.

    Raises:
        ValueError: When called: a name in `observed` is no sample site.
    """
    checked_callable("model_simulator", "model", model, "a NumPyro model")
    is_names = isinstance(observed, list | tuple | set | frozenset)
    if not is_names or not all(isinstance(name, str) for name in observed):
        raise TypeError(
            f"model_simulator: observed must be a tuple of names, got {observed!r}."
        )

    def simulate(key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        sites = trace(seed(model, key)).get_trace(*args, **kwargs)
        values = {
            name: site["value"]
            for name, site in sites.items()
            if site["type"] in ("sample", "deterministic")
        }
        unknown = [name for name in observed if name not in values]
        if unknown:
            raise ValueError(
                "model_simulator: observed must name sites of the model, which are "
                f"{sorted(values)}, got {unknown}."
            )
        data = {name: values.pop(name) for name in observed}
        return values, data

    return simulate


def in_parallel(function: Callable) -> Callable:
    """Map over a leading dimension in one compiled call."""
    checked_callable("in_parallel", "function", function, "lambda key: ...")
    return jax.jit(jax.vmap(function))


def in_sequence(function: Callable) -> Callable:
    """Map over a leading dimension one by one, for what cannot be traced or batched."""
    checked_callable("in_sequence", "function", function, "lambda key: ...")

    def mapped(arguments: Array) -> Any:
        results = [function(argument) for argument in arguments]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    return mapped


def calibration_runs(
    key: Array,
    simulate: Callable[[Array], tuple[Mapping[str, Array], Any]],
    sample: Callable[[Array, Any], Mapping[str, Array]],
    num_simulations: int,
    method: Callable[[Callable], Callable] = in_parallel,
) -> CalibrationRuns:
    """Simulate parameters and data, and run a sampler on the data, many times.

    Args:
        key: Random key.
        simulate: Called with a key; returns parameters by name, and data.
        sample: Called with a key and data; returns draws by name, of shape (L, ...). They
            must be nearly independent of each other: thin a chain.
        num_simulations: Number N of repetitions.
        method: `in_parallel` or `in_sequence`.

    Returns:
        The parameters, the data and the draws.

    Raises:
        ValueError: `num_simulations` is not positive, or the sampler returns something
            else than finite draws of the parameters.

    **Example:**
        ```python
        def sample(key, data):
            mcmc = MCMC(
                NUTS(model),
                num_warmup=200,
                num_samples=990,
                thinning=10,
                progress_bar=False,
            )
            mcmc.run(key, **data)
            return mcmc.get_samples()


        simulate = nd.diagnostics.model_simulator(model, ("y",))
        runs = nd.diagnostics.calibration_runs(key, simulate, sample, 200)
        found = nd.diagnostics.simulation_based_calibration(runs)
        az.plot_ecdf_pit(found, sample_dims="simulation")  # ArviZ 1.x
        ```
    """
    caller = "calibration_runs"
    checked_key(caller, "key", key)
    checked_callable(caller, "simulate", simulate, "model_simulator(model, ('y',))")
    checked_callable(caller, "sample", sample, "lambda key, data: ...")
    checked_callable(caller, "method", method, "in_parallel")
    num_simulations = checked_integer(
        caller, "num_simulations", num_simulations, -LARGEST
    )
    if num_simulations < 1:
        raise ValueError(
            "calibration_runs: num_simulations must be positive, got "
            f"{num_simulations}."
        )

    def run(key: Array) -> CalibrationRuns:
        truth_key, chain_key = jax.random.split(key)
        truth, data = simulate(truth_key)
        return CalibrationRuns(dict(truth), data, dict(sample(chain_key, data)))

    runs = method(run)(jax.random.split(key, num_simulations))
    _check_runs(runs)
    return runs


def sizes(runs: CalibrationRuns) -> tuple[int, int]:
    """Numbers of simulations and draws."""
    checked_instance("sizes", "runs", runs, CalibrationRuns, "calibration_runs(...)")
    name = next(name for name in runs.truth if name in runs.draws)
    num_simulations, num_draws, *_ = runs.draws[name].shape
    return num_simulations, num_draws


def ranked(
    key: Array, truth: Array, draws: Array
) -> tuple[Int[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    r"""Ranks of the truth among the draws, and their uniform transforms.

    Args:
        key: Random key, for ties and transforms.
        truth: Scalars, shape (N, ...).
        draws: Scalars, shape (N, L, ...).

    Returns:
        Integers from 0 to L, ties broken at random, and
        $(\mathrm{rank} + u) / (L + 1)$ with $u$ uniform: exactly uniform on [0, 1] for an
        exact sampler. Both of the shape of `truth`.
    """
    tie_key, fill_key = jax.random.split(key)
    below = jnp.sum(draws < truth[:, None], axis=1)
    equal = jnp.sum(draws == truth[:, None], axis=1)
    ranks = below + jax.random.randint(tie_key, below.shape, 0, equal + 1)
    fill = jax.random.uniform(fill_key, below.shape)
    # Copies, since ArviZ 0.23 sorts in place, which JAX's own memory forbids.
    return np.array(ranks), np.array((ranks + fill) / (draws.shape[1] + 1))


def _check_runs(runs: CalibrationRuns) -> None:
    shared = [name for name in runs.truth if name in runs.draws]
    if not shared:
        raise ValueError(
            "calibration_runs: the sampler must return draws of the parameters "
            f"{sorted(runs.truth)}, got {sorted(runs.draws)}."
        )
    for name in shared:
        one, many = jnp.shape(runs.truth[name]), jnp.shape(runs.draws[name])
        if len(many) != len(one) + 1 or many[:1] + many[2:] != one:
            raise ValueError(
                f"calibration_runs: draws of {name!r} must have shape (num_draws, "
                f"{', '.join(map(str, one[1:]))}) each, got {many[1:]}."
            )
        # A comparison with not-a-number is false: ranks would be wrong in silence.
        finite = [
            bool(jnp.all(jnp.isfinite(v[name]))) for v in (runs.truth, runs.draws)
        ]
        if not all(finite):
            raise ValueError(
                f"calibration_runs: truth and draws of {name!r} must be finite, got "
                "infinity or not a number."
            )
