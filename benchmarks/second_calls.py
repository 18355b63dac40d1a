"""What a second call of the same shapes costs: programs compiled, arrays and memory kept.

Programs are counted by JAX's own monitoring, those found in its cache on disk included. The
second call has other numbers: another key, other data. For MCMC it is another run of the
same `MCMC` object, since NumPyro's own kernels compile anew for another.
"""

import functools
import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import fuzzing
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd

_COMPILED = "/jax/core/compile/backend_compile_duration"
# Programs of a second call, and of every later one. Each `fit` compiles its own step, which
# holds its objective and its optimiser; those of MCMC are counted and not pinned.
COMPILED_AGAIN = {
    **dict.fromkeys(("sample", "log_prob", "variational_bound", "TwistedSMC.run"), 0),
    "fit": 1,
}
_SEEN: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: _SEEN.append(event) if event == _COMPILED else None
)


class Cost(NamedTuple):
    """What a first and a second call cost.

    Attributes:
        first: Programs compiled by the first call.
        second: By the second.
        third: By the third.
        arrays: Arrays that live on after the third call and did not after the second.
        bytes: Their size.
    """

    first: int
    second: int
    third: int
    arrays: int
    bytes: int


def cost(call: Callable[[int], Any]) -> Cost:
    """Call with the numbers 0, 1 and 2, which stand for keys and data."""
    programs, kept = [], []
    for number in range(3):
        before = len(_SEEN)
        jax.block_until_ready(call(number))
        programs.append(len(_SEEN) - before)
        gc.collect()
        arrays = jax.live_arrays()
        kept.append((len(arrays), sum(a.nbytes for a in arrays)))
    (_, before, after) = kept
    return Cost(*programs, after[0] - before[0], after[1] - before[1])


def prior_and_model() -> tuple[nd.DiffusionPrior, Callable]:
    """A Gaussian prior in two dimensions, and a model that sees it through noise."""
    forward = nd.GaussianForward(nd.schedules.cosine())
    reverse = nd.analytic.GaussianReverse(forward, jnp.zeros(2), jnp.eye(2))
    prior = nd.DiffusionPrior(reverse, (2,), num_steps=3)

    def model(y: Any) -> None:
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    return prior, model


def calls() -> dict[str, Callable[[int], Any]]:
    """What is called, by name."""
    prior, model = prior_and_model()
    key, data = jax.random.key, lambda n: jnp.array([0.3, -0.2]) + 0.1 * n
    chain = lambda kernel: MCMC(kernel, num_warmup=2, num_samples=2, progress_bar=False)
    chains = {
        "MCMC(ParticleGibbs)": chain(nd.infer.ParticleGibbs(model, num_particles=4)),
        "MCMC(NUTS), FlowReparam": chain(
            NUTS(
                nd.infer.reparam_diffusion(model, nd.infer.FlowReparam(3)),
                max_tree_depth=1,
            )
        ),
    }

    def sampled(mcmc: MCMC, n: int) -> Any:
        mcmc.run(key(n), data(n))
        return mcmc.get_samples()

    smc = lambda n: nd.infer.TwistedSMC(model, num_particles=4).run(key(n), data(n))
    bound = lambda n: nd.variational_bound(
        prior.reverse, data(n)[None], num_steps=3, key=key(n)
    )
    return {
        "sample": lambda n: prior.sample(key(n), (2,)),
        "log_prob": lambda n: prior.log_prob(data(n)),
        "variational_bound": lambda n: jax.tree.leaves(bound(n)),
        "TwistedSMC.run": lambda n: smc(n).log_evidence,
        **{name: functools.partial(sampled, mcmc) for name, mcmc in chains.items()},
        "fit": lambda n: fuzzing.tiny_fit(key=key(n)).losses,
    }
