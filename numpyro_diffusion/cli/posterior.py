r"""The posterior of an event under a prior, given some of its entries with noise.

$$x \sim p, \qquad \sigma \sim \mathrm{HalfNormal}(s) \text{ or known}, \qquad
y_i \sim N(x_i, \sigma_i^2) \text{ where the mask is 1.}$$

Draws are those of independent runs of `TwistedSMC`, each a chain of the result, so that
R-hat compares runs; or of chains of `ParticleGibbs`, beside `NUTS` if the noise is unknown,
with runs of `TwistedSMC` for the evidence alone.

Each run's estimate of the evidence is unbiased, and so is their mean. Of its error the
runs tell twice: by what each of them takes its own for, and by their scatter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Gibbs
from scipy.special import logsumexp

import numpyro_diffusion as nd
from numpyro_diffusion.cli.observation import Observation

__all__ = ["Evidence", "Found", "Settings", "by_gibbs", "by_smc"]


class Settings(NamedTuple):
    """How much work is done."""

    num_chains: int
    num_warmup: int
    num_samples: int
    num_particles: int
    gibbs_particles: int
    progress_bar: bool


class Evidence(NamedTuple):
    """The log evidence of the model, in nats.

    Attributes:
        log_evidence: Log of the mean of the runs' unbiased estimates.
        error: Its standard error, from what the runs say of themselves.
        scatter: The same, from how far the runs are apart.
        least_share: Lowest share of the particles that carried the weight, at any step.
    """

    log_evidence: float
    error: float
    scatter: float
    least_share: float


class Found(NamedTuple):
    """Posterior draws and evidence.

    Attributes:
        draws: By name, shape (num_chains, num_samples, ...).
        stats: Of the sampler, shape (num_chains, num_samples, ...).
        evidence: Of the model.
    """

    draws: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    evidence: Evidence


def by_smc(
    prior: nd.DiffusionPrior,
    seen: Observation,
    scale: float | None,
    key: jax.Array,
    settings: Settings,
) -> Found:
    """Draws and evidence by independent runs of `TwistedSMC`.

    Args:
        prior: The prior.
        seen: The observation.
        scale: Of the half-normal prior of the noise's standard deviation; `None` where
            the observation says it.
        key: Random key.
        settings: How much work is done.
    """
    run_key, choice_key = jax.random.split(key)
    runs = _runs(_model(prior, seen, scale), seen, run_key, settings)
    draws = []
    for one, chosen in zip(runs, jax.random.split(choice_key, len(runs)), strict=True):
        # Draws of a run come in the order of their ancestors, as a chain does not.
        rows = jax.random.permutation(chosen, settings.num_particles)
        rows = rows[: settings.num_samples]
        draws.append({k: np.asarray(v)[rows] for k, v in one.get_samples().items()})
    stacked = {name: np.stack([one[name] for one in draws]) for name in draws[0]}
    return Found(stacked, {}, _evidence(runs))


def by_gibbs(
    prior: nd.DiffusionPrior,
    seen: Observation,
    scale: float | None,
    key: jax.Array,
    settings: Settings,
) -> Found:
    """Draws by chains of `ParticleGibbs`, evidence by `TwistedSMC`.

    Arguments as of `by_smc`; `NUTS` draws a noise that is unknown.
    """
    chain_key, run_key = jax.random.split(key)
    unmarked = _model(prior, seen, scale)
    model = nd.handlers.diffusion_sites(unmarked)
    blocks: list[Any] = [
        (nd.infer.ParticleGibbs(model, num_particles=settings.gibbs_particles), ["x"])
    ]
    if scale is not None:
        blocks.append((NUTS(model), None))
    mcmc = MCMC(
        Gibbs(blocks),
        num_warmup=settings.num_warmup,
        num_samples=settings.num_samples,
        num_chains=settings.num_chains,
        chain_method="sequential",
        progress_bar=settings.progress_bar,
    )
    fields = ("block_states.0.moved", "block_states.0.ess")
    mcmc.run(chain_key, seen.mask, y=seen.y, extra_fields=fields)
    plain = lambda found: {
        name.rpartition(".")[2]: np.asarray(value) for name, value in found.items()
    }
    runs = _runs(unmarked, seen, run_key, settings)
    return Found(
        plain(mcmc.get_samples(group_by_chain=True)),
        plain(mcmc.get_extra_fields(group_by_chain=True)),
        _evidence(runs),
    )


def _model(
    prior: nd.DiffusionPrior, seen: Observation, scale: float | None
) -> Callable:
    size = len(prior.event_shape)

    def model(mask: Any, y: Any) -> None:
        sigma: Any = seen.noise
        if scale is not None:
            sigma = numpyro.sample("noise", dist.HalfNormal(scale))
        front = jnp.shape(y)[: jnp.ndim(y) - size]

        def observed() -> None:
            x = numpyro.sample("x", prior)
            pixels = dist.Normal(x, sigma).mask(mask).to_event(size)
            numpyro.sample("y", pixels, obs=y)

        if not front:
            observed()
            return
        with numpyro.plate("event", *front):
            observed()

    return model


def _runs(
    model: Callable, seen: Observation, key: jax.Array, settings: Settings
) -> list[Any]:
    smc = nd.infer.TwistedSMC(
        model,
        num_particles=settings.num_particles,
        progress_bar=settings.progress_bar,
    )
    keys = jax.random.split(key, settings.num_chains)
    return [smc.run(one, seen.mask, y=seen.y) for one in keys]


def _evidence(runs: list[Any]) -> Evidence:
    """Of independent runs; problems of their own, as of several events, multiply."""
    stack = lambda name: np.stack(
        [np.ravel(np.asarray(getattr(run, name), float)) for run in runs]
    )
    logs, errors = stack("log_evidence"), stack("log_evidence_error")
    mean = logsumexp(logs, axis=0) - np.log(len(runs))
    relative = np.exp(logs - mean)
    error = np.sqrt(np.sum((relative * errors) ** 2, axis=0)) / len(runs)
    scatter = np.std(relative, axis=0, ddof=1) / np.sqrt(len(runs))
    shares = [np.min(np.asarray(run.ess)) / len(run.log_weights) for run in runs]
    return Evidence(
        float(np.sum(mean)) + float(runs[0].log_evidence_rest),
        float(np.sqrt(np.sum(error**2))),
        float(np.sqrt(np.sum(scatter**2))),
        float(min(shares)),
    )
