"""What sampling costs beyond its network calls.

    python benchmarks/sampling.py

Each row is a ratio to the floor measured in the same run: a compiled loop that makes the
same number of network calls and nothing else. Targets: ancestral sampling at most 1.05 x,
guidance and TwistedSMC at most 1.15 x, a Gibbs sweep of ParticleGibbs at most 1.10 x (its
two passes are in the floor), a NUTS step beside a diffusion site that does not depend on
the network, a chain of 1000 steps that compiles in at most 1.20 x the time of one of 10.

A small batch shows what each step costs whatever it computes, a large one what is left of
it where the network does the work.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpyro.infer import NUTS, Predictive
from numpyro.infer.gibbs import conditioned, with_conditioning
from timing import clock, describe, measure, report, use_one_core

import numpyro_diffusion as nd

FLOOR = "floor: network calls"


def network_calls(network, shape, num_steps, repeats=1):
    """A compiled loop of network calls on a batch, each fed the last one's output."""
    x = jax.random.normal(jax.random.key(0), shape)
    times = jnp.tile(nd.schedules.uniform_grid(num_steps)[1:], repeats)
    # Weights are arguments, as they are to the library: XLA must not fold them in.
    arrays, static = eqx.partition(network, eqx.is_array)

    @jax.jit
    def run(arrays, x, times):
        network = eqx.combine(arrays, static)
        step = lambda x, t: (jax.vmap(lambda x: network(x, t))(x), None)
        return jax.lax.scan(step, x, times)[0]

    return lambda: run(arrays, x, times)


def linearised_calls(network, shape, counts):
    """A compiled loop: step k linearises the network, and applies that counts[k] times."""
    x = jax.random.normal(jax.random.key(0), shape)
    arrays, static = eqx.partition(network, eqx.is_array)

    @jax.jit
    def run(arrays, x, times, counts):
        network = eqx.combine(arrays, static)

        def step(x, inputs):
            t, count = inputs
            call = jax.vmap(lambda x: network(x, t))
            output, jvp = jax.linearize(call, x)
            return jax.lax.fori_loop(0, count, lambda _, v: jvp(v), output), None

        return jax.lax.scan(step, x, (times, counts))[0]

    times = nd.schedules.uniform_grid(len(counts))[1:]
    return lambda: run(arrays, x, times, jnp.asarray(counts))


class Counted(nd.guidance.AbstractCovariance):
    """Tweedie's covariance, which counts its applications at each time."""

    calls: Counter = eqx.field(static=True)

    def step(self, reverse, x_t, *, t, s):
        step, apply = nd.guidance.Tweedie().step(reverse, x_t, t=t, s=s)

        def note(v, t):
            self.calls.update([round(float(np.ravel(t)[0]), 6)])
            return v

        def counted(v):
            # What nobody uses, as the twist of a guided draw, is not computed: the count is
            # a part of the result, or the compiler would keep both.
            shape = jax.ShapeDtypeStruct(v.shape, v.dtype)
            return apply(
                jax.pure_callback(note, shape, v, t, vmap_method="broadcast_all")
            )

        return step, counted


def applications(draw: Callable, guidance: nd.guidance.MomentMatching) -> list[int]:
    """How often each step of a guided chain applies the covariance, in the order of time.

    Chains side by side iterate as long as one of them does, and are counted as one.

    Args:
        draw: Runs the chain, given the guidance.
        guidance: With Tweedie's covariance.
    """
    calls = Counter()
    counting = dataclasses.replace(guidance, covariance=Counted(calls))
    jax.block_until_ready(draw(counting))
    jax.effects_barrier()
    return [calls[t] for t in sorted(calls)]


def observed(prior, y):
    """A model: one event of the prior, seen with noise."""
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(len(prior.event_shape)), obs=y)
    return x


def prior_draws(name, prior, num_events):
    """Called from Python, and as a part of a compiled program."""
    network, shape = prior.reverse.network, prior.event_shape
    inside = jax.jit(lambda prior, key: prior.sample(key, (num_events,)))
    times = measure(
        {
            FLOOR: network_calls(network, (num_events, *shape), prior.num_steps),
            "DiffusionPrior.sample": lambda: prior.sample(
                jax.random.key(2), (num_events,)
            ),
            "the same inside jax.jit": lambda: inside(prior, jax.random.key(2)),
        }
    )
    report(f"{name}: {num_events} draws, {prior.num_steps} steps", times, FLOOR)


def gibbs_sweep(name, prior, num_events, num_particles=16):
    """A sweep over `num_events / num_particles` problems: as many calls as two chains."""
    network, shape = prior.reverse.network, prior.event_shape
    num_problems = num_events // num_particles

    def model(prior, y):
        with numpyro.plate("n", num_problems):
            observed(prior, y)

    y = jnp.zeros((num_problems, *shape))
    kernel = nd.infer.ParticleGibbs(model, num_particles=num_particles)
    state = kernel.init(jax.random.key(3), 0, None, (prior, y), {})
    sweep = jax.jit(lambda state, prior: kernel.sample(state, (prior, y), {}))
    times = measure(
        {
            FLOOR: network_calls(network, (num_events, *shape), prior.num_steps, 2),
            "ParticleGibbs sweep": lambda: sweep(state, prior),
        }
    )
    title = f"{num_problems} problems, {num_particles} particles"
    report(f"{name}: {title}, {prior.num_steps} steps", times, FLOOR)


def smc_run(name, prior, num_particles):
    """One run of `TwistedSMC` on one problem."""
    network, shape = prior.reverse.network, prior.event_shape
    y = jnp.zeros(shape)
    smc = nd.infer.TwistedSMC(observed, num_particles=num_particles)
    times = measure(
        {
            FLOOR: network_calls(network, (num_particles, *shape), prior.num_steps),
            "TwistedSMC.run": lambda: smc.run(jax.random.key(5), prior, y).log_evidence,
        }
    )
    report(f"{name}: {num_particles} particles, {prior.num_steps} steps", times, FLOOR)


def guided_draws(name, prior, num_events):
    """`guide` under `Predictive`, without and with derivatives of the network."""
    network, shape = prior.reverse.network, (num_events, *prior.event_shape)
    y = jnp.zeros(prior.event_shape)

    def draw(guidance, prior=prior):
        model = nd.handlers.guide(observed, guidance)
        draws = Predictive(model, num_samples=num_events, parallel=True)
        return draws(jax.random.key(4), prior, y)["x"]

    def compiled(guidance):
        run = jax.jit(lambda prior: draw(guidance, prior))
        return lambda: run(prior)

    plain, tweedie = (
        nd.guidance.MomentMatching(),
        nd.guidance.MomentMatching(nd.guidance.Tweedie()),
    )
    title = f"{name}: {num_events} guided draws, {prior.num_steps} steps"
    times = measure(
        {
            FLOOR: network_calls(network, shape, prior.num_steps),
            "Predictive(guide(model)) in jax.jit": compiled(plain),
        }
    )
    report(title, times, FLOOR)

    counts = applications(draw, tweedie)
    floor = "floor: network linearised and applied"
    times = measure(
        {
            floor: linearised_calls(network, shape, counts),
            "with Tweedie() in jax.jit": compiled(tweedie),
        },
        rounds=5,
    )
    each = sum(counts) / len(counts)
    report(f"{title}, Tweedie: {each:.1f} products per step", times, floor)


def guide_called_anew(name, prior, num_events=64):
    """Outside of `jax.jit`, `Predictive` traces and compiles a model at every call."""
    y = jnp.zeros(prior.event_shape)
    draws = Predictive(
        nd.handlers.guide(observed), num_samples=num_events, parallel=True
    )
    inside = jax.jit(lambda prior: draws(jax.random.key(4), prior, y))
    floor = "Predictive(guide(model)) in jax.jit"
    times = measure(
        {
            floor: lambda: inside(prior),
            "called from Python": lambda: draws(jax.random.key(4), prior, y),
        },
        rounds=3,
    )
    report(f"{name}: {num_events} guided draws, called anew", times, floor)


def nuts_block(priors: dict[str, nd.DiffusionPrior], num_events=8, num_steps=200):
    """NUTS steps for the latents beside a diffusion site, given a new value each time."""
    values = jax.random.normal(jax.random.key(5), (num_steps, num_events, 2))
    y = jax.random.normal(jax.random.key(6), (num_events, 2))

    def steps(prior, mark):
        def model(y):
            shift = numpyro.sample("shift", dist.Normal(0, 1).expand([2]).to_event(1))
            scale = numpyro.sample("scale", dist.HalfNormal(1.0))
            with numpyro.plate("n", num_events):
                x = numpyro.sample("x", prior)
                numpyro.sample("y", dist.Normal(x + shift, scale).to_event(1), obs=y)

        # As `Gibbs` runs its blocks: the other blocks' values travel as arguments.
        kernel = NUTS(
            conditioned(nd.handlers.diffusion_sites(model) if mark else model),
            step_size=0.2,
            adapt_step_size=False,
            adapt_mass_matrix=False,
        )
        given = lambda x: with_conditioning(None, {"x": x})
        start = {"shift": jnp.zeros(2), "scale": jnp.zeros(())}  # unconstrained
        state = kernel.init(jax.random.key(7), 0, start, (y,), given(values[0]))

        @jax.jit
        def run(state, values):
            def step(state, x):
                state = kernel.refresh(state, (y,), given(x))
                state = kernel.sample(state, (y,), given(x))
                return state, state.num_steps

            return jax.lax.scan(step, state, values)[1]

        return lambda: run(state, values)

    small, large = priors
    floor = f"{small}, marked"
    times = measure(
        {
            floor: steps(priors[small], mark=True),
            f"{large}, marked": steps(priors[large], mark=True),
            f"{small}, not marked": steps(priors[small], mark=False),
        },
        rounds=5,
    )
    leapfrogs = float(jnp.mean(steps(priors[small], mark=True)()))
    title = f"{num_steps} NUTS steps beside {num_events} events"
    report(f"{title}, {leapfrogs:.1f} leapfrogs each", times, floor)


def compilation(name, reverse, event_shape, num_events=64, rounds=7):
    """Tracing and compiling a chain, with nothing left in JAX's caches."""
    times: dict[str, list[float]] = {f"{n} steps": [] for n in (10, 100, 1000)}
    for _ in range(rounds):
        for title, seconds in times.items():
            jax.clear_caches()
            prior = nd.DiffusionPrior(reverse, event_shape, int(title.split()[0]))
            key = jax.random.key(0)
            start = clock()
            jax.jit(lambda key, p=prior: p.sample(key, (num_events,))).lower(
                key
            ).compile()
            seconds.append(clock() - start)
    report(f"{name}: compiling a chain", times, "10 steps")


def dense_prior(width, num_steps, error):
    """A prior in two dimensions whose network has no layer that is zero."""
    network = nd.networks.MLP((2,), width=width, depth=3, key=jax.random.key(1))
    flat, restore = ravel_pytree(eqx.filter(network, eqx.is_array))
    noise = 0.02 * jax.random.normal(jax.random.key(8), flat.shape)
    network = eqx.combine(restore(flat + noise), network)
    forward = nd.GaussianForward(nd.schedules.cosine())
    reverse = nd.DenoisingReverse(forward, network, error=error)
    return nd.DiffusionPrior(reverse, (2,), num_steps), flat.size


def main(num_steps: int = 50) -> None:
    digits = nd.load_pretrained("digits")
    error = digits.reverse.error
    dense, size = dense_prior(128, num_steps, error)
    large, large_size = dense_prior(800, num_steps, error)
    unet = nd.DiffusionPrior(digits.reverse, digits.event_shape, num_steps)
    describe(["jax", "equinox", "numpyro"])
    for name, prior, num_events in [
        ("MLP 3x128 on 2-D", dense, 64),
        ("MLP 3x128 on 2-D", dense, 1024),
        ("U-Net of the digits prior", unet, 64),
    ]:
        prior_draws(name, prior, num_events)
        gibbs_sweep(name, prior, num_events)
        smc_run(name, prior, num_events)
        guided_draws(name, prior, num_events)
    guide_called_anew("MLP 3x128 on 2-D", dense)
    times_larger = f"{large_size / size:.0f} times larger"
    nuts_block({"MLP 3x128": dense, f"MLP {times_larger}": large})
    compilation("MLP 3x128 on 2-D", dense.reverse, (2,))
    compilation("U-Net of the digits prior", unet.reverse, unet.event_shape)


if __name__ == "__main__":
    use_one_core()
    main()
