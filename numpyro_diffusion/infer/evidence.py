r"""How an estimate of the evidence came about, and how far it can be trusted.

Along the chain from noise to data, sequential Monte Carlo holds an estimate at every level:
the mean weight, with the twist in the place of the likelihood. Where the twist is good the
estimate is there from the start and stays; where it moves by nats from step to step, or
jumps at the end, weights are uneven and the number of particles has to make up for it.

Of $R$ independent estimates $\hat Z_r$ the mean is unbiased as each of them is; their
scatter is the error that no run can know of itself.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_diffusion.checks import checked_instance, checked_integer, checked_key
from numpyro_diffusion.infer._found import warn_undefined
from numpyro_diffusion.infer.twisted_smc import (
    TwistedSMC,
    TwistedSMCPosterior,
    unchecked_run,
)

__all__ = ["evidence_runs", "evidence_trace"]


def evidence_trace(posterior: TwistedSMCPosterior) -> Any:
    """The estimate of the evidence and the effective particles along the chain.

    Args:
        posterior: What `TwistedSMC.run` returned.

    Returns:
        An `xarray.Dataset` with `log_evidence` and `ess` along `step` (0 is noise, the
        last one the data) and `problem`, and `resampled`, which is false at the last step.
        `found["ess"].plot.line(x="step")` shows where the particles are lost.

    **Example:**
        ```python
        posterior = nd.infer.TwistedSMC(model, num_particles=256).run(key, mask, y=y)
        least = nd.infer.evidence_trace(posterior)["ess"].min("step")
        ```
    """
    import xarray as xr

    checked_instance(
        "evidence_trace",
        "posterior",
        posterior,
        TwistedSMCPosterior,
        "TwistedSMC(model).run(key)",
    )
    num_times, num_problems = posterior.ess.shape
    last = np.zeros((1, num_problems), bool)
    resampled = np.concatenate([np.asarray(posterior.resampled), last])
    dims = ["step", "problem"]
    return xr.Dataset(
        {
            "log_evidence": (dims, np.asarray(posterior.log_evidence_path)),
            "ess": (dims, np.asarray(posterior.ess)),
            "resampled": (dims, resampled),
        },
        {"step": np.arange(num_times), "problem": np.arange(num_problems)},
        {"num_particles": len(posterior.log_weights)},
    )


def evidence_runs(
    key: Array, smc: TwistedSMC, num_runs: int, *args: Any, **kwargs: Any
) -> Any:
    """Estimates of the evidence by independent runs, and their mean.

    Args:
        key: Random key.
        smc: The sampler.
        num_runs: Number R of runs, at least 2.
        *args: Positional arguments of its model.
        **kwargs: Keyword arguments of its model.

    Returns:
        An `xarray.Dataset` with `log_evidence` of each `run` and what it took its `error`
        for; `log_mean`, the log of the mean estimate, as it stands after each run; and
        `log_mean_error`, its standard error from the scatter of the runs (not a number if
        none of them found any evidence). The attribute `log_evidence_rest` is what belongs
        to no single problem, as in `TwistedSMCPosterior`. If the scatter is larger than
        the runs' own errors, or `log_mean` climbs with single runs, most runs have missed
        what matters.

    Raises:
        TypeError: `num_runs` is not an integer.
        ValueError: It is below 2: one run has no scatter.

    **Example:**
        ```python
        smc = nd.infer.TwistedSMC(model, num_particles=256)
        found = nd.infer.evidence_runs(key, smc, 8, mask, y=y)
        print(found["log_mean"][-1], found["log_mean_error"])
        ```
    """
    import xarray as xr

    num_runs = checked_integer("evidence_runs", "num_runs", num_runs, 2)
    checked_key("evidence_runs", "key", key)
    checked_instance("evidence_runs", "smc", smc, TwistedSMC, "TwistedSMC(model)")
    # A run that finds nothing is an estimate like others: zero.
    runs = [
        unchecked_run(smc, one, args, kwargs) for one in jax.random.split(key, num_runs)
    ]
    undefined = sum((run.num_undefined for run in runs), jnp.zeros((), int))
    warn_undefined("evidence_runs", undefined, num_runs * smc.num_particles)
    log_evidence = np.stack([np.asarray(run.log_evidence) for run in runs])
    error = np.stack([np.asarray(run.log_evidence_error) for run in runs])
    count = np.arange(1, num_runs + 1).reshape(-1, *(1,) * (log_evidence.ndim - 1))
    with np.errstate(
        invalid="ignore"
    ):  # runs that found nothing have log evidence -inf
        log_mean = np.logaddexp.accumulate(log_evidence, axis=0) - np.log(count)
        relative = np.exp(log_evidence - log_mean[-1])
    scatter = np.std(relative, axis=0, ddof=1) / np.sqrt(num_runs)
    inner = [f"plate_{i}" for i in range(log_evidence.ndim - 1)]
    dims = ["run", *inner]
    return xr.Dataset(
        {
            "log_evidence": (dims, log_evidence),
            "error": (dims, error),
            "log_mean": (dims, log_mean),
            "log_mean_error": (inner, scatter),
        },
        {"run": np.arange(num_runs)},
        {"log_evidence_rest": float(runs[0].log_evidence_rest)},
    )
