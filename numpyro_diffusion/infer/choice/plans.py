"""What to run: for each end of the decision the settings, and the code that uses them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from numpyro.infer import NUTS, DiscreteGibbs, Gibbs, Predictive

from numpyro_diffusion.guidance import Averaged, MomentMatching, Tweedie
from numpyro_diffusion.infer.choice.recipes import Call, Name, Statement
from numpyro_diffusion.infer.choice.traits import Traits
from numpyro_diffusion.infer.flow_reparam import FlowReparam, reparam_diffusion
from numpyro_diffusion.infer.particle_gibbs import ParticleGibbs
from numpyro_diffusion.infer.particle_marginal import ParticleMarginal
from numpyro_diffusion.infer.twisted_smc import TwistedSMC
from numpyro_diffusion.model.messengers import OmitPrior
from numpyro_diffusion.model.sites import is_diffusion_site

__all__ = ["PLANS", "Plan", "guidance_call"]

_CHAINS = {"num_warmup": 500, "num_samples": 500, "num_chains": 4}
_SIDE_BY_SIDE = {"chain_method": Name("jax.vmap")}
_MODEL = Name("model")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A way to run a model.

    Attributes:
        settings: Of a model, by name; what is None is left to the kernel.
        statements: The code, of a model and its settings, up to the kernel or sampler.
        target: The name of the kernel or sampler in it.
        runs: How it is run: "mcmc", or "smc" and "predictive", which are no kernels.
    """

    settings: Callable[[Traits, Any], dict[str, Any]]
    statements: Callable[[Traits, Mapping[str, Any]], list[Statement]]
    target: str = "kernel"
    runs: str = "mcmc"


def guidance_call(key: str) -> Call | None:
    """The guidance at an end of its tree; None for a kernel's own choice."""
    if key == "averaged":
        return Call("nd.guidance.Averaged", Averaged)
    if key == "tweedie":
        covariance = Call("nd.guidance.Tweedie", Tweedie)
        return Call("nd.guidance.MomentMatching", MomentMatching, (covariance,))
    return None


def _marked(model: Callable) -> Callable:
    # As `handlers.diffusion_sites`, which stands on the same floor.
    return OmitPrior(model, select=is_diffusion_site)


def _given(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Those of some settings that say something."""
    return {n: settings[n] for n in names if settings.get(n) is not None}


def _blocks(blocks: list[tuple[Call, list[str] | None]]) -> Call:
    """A kernel of one block, or a Gibbs sampler of several."""
    if len(blocks) == 1:
        return blocks[0][0]
    return Call("Gibbs", Gibbs, (blocks,))


def _numpyros_blocks(
    model: Name, names: tuple[str, ...], traits: Traits
) -> list[tuple[Call, list[str] | None]]:
    """Blocks of NumPyro's kernels for latents beside the sites."""
    discrete = [n for n in names if n in traits.discrete or n in traits.endless]
    found: list[tuple[Call, list[str] | None]] = []
    if discrete:
        found.append((Call("DiscreteGibbs", DiscreteGibbs, (model,)), discrete))
    if len(names) > len(discrete):
        found.append((Call("NUTS", NUTS, (model,)), None))
    return found


def _plain_settings(traits: Traits, guidance: Any) -> dict[str, Any]:
    return {**_CHAINS, **_SIDE_BY_SIDE}


def _plain(traits: Traits, settings: Mapping[str, Any]) -> list[Statement]:
    return [
        Statement("kernel", _blocks(_numpyros_blocks(_MODEL, traits.latents, traits)))
    ]


def _draws(traits: Traits, settings: Mapping[str, Any]) -> list[Statement]:
    call = Call("Predictive", Predictive, (_MODEL,), _given(settings, "num_samples"))
    return [Statement("predictive", call)]


def _flow_settings(traits: Traits, guidance: Any) -> dict[str, Any]:
    is_field = traits.num_entries >= 64 and len(traits.event_shape) > 1
    return {
        "num_steps": None if traits.is_distilled else 20,
        "basis": "cosines" if is_field else None,
        **_CHAINS,
        **_SIDE_BY_SIDE,
    }


def _flow(traits: Traits, settings: Mapping[str, Any]) -> list[Statement]:
    arguments = _given(settings, "num_steps", "basis")
    reparam = Call("nd.infer.FlowReparam", FlowReparam, (), arguments)
    call = Call("nd.infer.reparam_diffusion", reparam_diffusion, (_MODEL, reparam))
    model = Name("flow_model")
    rest = tuple(name for name in traits.latents if name in traits.discrete)
    # Noise behind the sites is always left for NUTS.
    blocks = [
        *_numpyros_blocks(model, rest, traits),
        (Call("NUTS", NUTS, (model,)), None),
    ]
    return [Statement("flow_model", call), Statement("kernel", _blocks(blocks))]


def _marginal_settings(traits: Traits, guidance: Any) -> dict[str, Any]:
    return {
        "num_particles": 128,
        "guidance": guidance,
        "num_warmup": 500,
        "num_samples": 2000,
        "num_chains": 4,
        **_SIDE_BY_SIDE,
    }


def _marginal(traits: Traits, settings: Mapping[str, Any]) -> list[Statement]:
    model = Name("marked")
    arguments = _given(settings, "num_particles", "guidance")
    block = Call("nd.infer.ParticleMarginal", ParticleMarginal, (model,), arguments)
    rest = tuple(name for name in traits.beside if name in traits.continuous)
    own = [*traits.sites, *(n for n in traits.latents if n not in rest)]
    blocks = [(block, own), *_numpyros_blocks(model, rest, traits)]
    return [_marking(), Statement("kernel", _blocks(blocks))]


def _marking() -> Statement:
    return Statement("marked", Call("nd.handlers.diffusion_sites", _marked, (_MODEL,)))


def _smc_settings(traits: Traits, guidance: Any) -> dict[str, Any]:
    needs_many = guidance is not None and guidance.function is Averaged
    num_particles = 4096 if needs_many else 2048 if traits.latents else 1024
    is_large = traits.num_entries * num_particles > 2**20
    return {
        "num_particles": num_particles,
        "guidance": guidance,
        "batch_size": 256 if is_large else None,
    }


def _smc(traits: Traits, settings: Mapping[str, Any]) -> list[Statement]:
    arguments = _given(settings, "num_particles", "guidance", "batch_size")
    call = Call("nd.infer.TwistedSMC", TwistedSMC, (_MODEL,), arguments)
    return [Statement("smc", call)]


def _gibbs_settings(traits: Traits, guidance: Any) -> dict[str, Any]:
    # Whole runs are taken where the evidence scatters little, as components let it.
    whole_runs = traits.has_components
    return {
        "num_particles": 16,
        "guidance": guidance,
        "independent_every": 1 if whole_runs else None,
        "refresh_share": 0.0 if whole_runs else None,
        "num_warmup": 200,
        "num_samples": 500,
        "num_chains": 4,
        **_SIDE_BY_SIDE,
    }


def _gibbs(traits: Traits, settings: Mapping[str, Any]) -> list[Statement]:
    model = Name("marked")
    arguments = _given(
        settings, "num_particles", "guidance", "independent_every", "refresh_share"
    )

    def block(names: list[str]) -> tuple[Call, list[str] | None]:
        site = {} if len(traits.sites) == 1 else {"site": names}
        arguments_here = {**site, **arguments}
        call = Call("nd.infer.ParticleGibbs", ParticleGibbs, (model,), arguments_here)
        return call, names

    groups = [[*traits.sites]] if traits.moves_jointly else [[n] for n in traits.sites]
    blocks = [block(names) for names in groups]
    blocks += _numpyros_blocks(model, traits.latents, traits)
    return [_marking(), Statement("kernel", _blocks(blocks))]


PLANS = {
    "plain": Plan(_plain_settings, _plain),
    "draws": Plan(
        lambda traits, guidance: {"num_samples": 1000},
        _draws,
        "predictive",
        "predictive",
    ),
    "flow": Plan(_flow_settings, _flow),
    "marginal": Plan(_marginal_settings, _marginal),
    "smc": Plan(_smc_settings, _smc, "smc", "smc"),
    "gibbs": Plan(_gibbs_settings, _gibbs),
}
"""By the key of the decision's end."""
