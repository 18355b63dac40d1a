r"""Three ways to learn the flow's map in few calls, in the same time.

The fields of `few_steps.py`: eight points, a latent lengthscale. Each way starts at the
prior's own network and trains for as long as `nd.distill` took, whose pairs are solved in
that time too; compilation counts for the first only.

- Pairs (`nd.distill`; Luhman and Luhman 2021): noise and the draw that the flow carries it
  to, as a regression.
- Progressive distillation (Salimans and Ho 2022, arXiv:2202.00512): a chain of 32 steps
  teaches one of 16, that one of 8, and so on, each an equal share of the time; from noised
  data, with their weights max(1, SNR).
- Consistency distillation (Song et al. 2023, arXiv:2303.01469): the answer at an angle is
  that of a slow copy (0.95) one Heun step of the flow nearer to the data. One call only:
  with more it draws new noise between them, which is no map of `x_base`.

For each the root mean squared difference to the flow's map on new noise, in standard
deviations of the field, and the largest entry by which covariances of draws differ from the
flow's.

    python benchmarks/distillation.py            # some minutes, one core
    python benchmarks/distillation.py --quick    # a minute, tiny numbers

A whole run writes its table to docs/distillation_table.md.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from few_steps import LENGTHSCALES, NUM_POINTS, covariance, prior_of
from record import machine, today

import numpyro_diffusion as nd

DOCUMENT = Path(__file__).parents[1] / "docs" / "distillation_table.md"
FIRST_TEACHER, BATCH, CHUNK, RATE = 32, 256, 100, 1e-3
NUM_LEVELS, SLOWNESS = 40, 0.95  # of consistency distillation


def denoised(reverse: Any, x: jax.Array, angle: jax.Array, c: jax.Array) -> jax.Array:
    """The clean mean of one event under its context."""
    here = reverse.given(c)
    return here.denoise(x, here.forward.schedule.time(angle))


def step(x: jax.Array, x0_hat: jax.Array, start: jax.Array, end: jax.Array):
    """From one angle to a smaller one."""
    noise = (x - jnp.cos(start) * x0_hat) / jnp.sin(start)
    return jnp.cos(end) * x0_hat + jnp.sin(end) * noise


def noised(key: jax.Array, scale: jax.Array, angle: jax.Array) -> jax.Array:
    """A field of the process at an angle."""
    field_key, noise_key = jr.split(key)
    root = jnp.linalg.cholesky(covariance(scale[0]) + 1e-5 * jnp.eye(NUM_POINTS))
    x0 = root @ jr.normal(field_key, (NUM_POINTS,))
    noise = jr.normal(noise_key, (NUM_POINTS,))
    return jnp.cos(angle) * x0 + jnp.sin(angle) * noise


def progressive_loss(
    student: Any, teacher: Any, widest: jax.Array, num_steps: int, key: Any, scale: Any
) -> jax.Array:
    """One step of the student against two of the teacher, for one event."""
    place_key, key = jr.split(key)
    place = jr.randint(place_key, (), 1, num_steps + 1)
    start, middle, end = (
        widest * (place - back) / num_steps for back in (0.0, 0.5, 1.0)
    )
    x = noised(key, scale, start)
    half = step(x, denoised(teacher, x, start, scale), start, middle)
    goal = step(half, denoised(teacher, half, middle, scale), middle, end)
    # The clean mean with which one step comes there.
    ratio = jnp.sin(end) / jnp.sin(start)
    target = (goal - ratio * x) / (jnp.cos(end) - ratio * jnp.cos(start))
    weight = jnp.maximum(1.0, 1 / jnp.tan(start) ** 2)
    off = denoised(student, x, start, scale) - jax.lax.stop_gradient(target)
    return weight * jnp.mean(off**2)


def consistency_loss(
    student: Any, slow: Any, teacher: Any, widest: jax.Array, key: Any, scale: Any
) -> jax.Array:
    """The student's answer against the slow copy's one level below, for one event."""
    place_key, key = jr.split(key)
    place = jr.randint(place_key, (), 2, NUM_LEVELS + 1)
    start, end = widest * place / NUM_LEVELS, widest * (place - 1) / NUM_LEVELS
    x = noised(key, scale, start)

    def slope(x: jax.Array, angle: jax.Array) -> jax.Array:
        x0_hat = denoised(teacher, x, angle, scale)
        return (jnp.cos(angle) * x - x0_hat) / jnp.sin(angle)

    first = slope(x, start)
    second = slope(x + (end - start) * first, end)
    there = x + (end - start) * (first + second) / 2
    goal = jax.lax.stop_gradient(denoised(slow, there, end, scale))
    return jnp.mean((denoised(student, x, start, scale) - goal) ** 2)


def trained(
    reverse: Any, loss: Callable, scales: jax.Array, seconds: float, key: jax.Array
) -> Any:
    """A student after some seconds of `loss(student, slow copy, key, scale)`."""
    learned, fixed = eqx.partition(reverse, reverse.trainable())

    def make(num_steps: int) -> tuple[Any, Callable]:
        optimizer = optax.adam(optax.cosine_decay_schedule(RATE, num_steps))

        @eqx.filter_jit
        def chunk(learned: Any, slow: Any, state: Any, keys: jax.Array) -> Any:
            def one(carry: Any, key: jax.Array) -> tuple[Any, None]:
                learned, slow, state = carry
                row_key, key = jr.split(key)
                rows = scales[jr.randint(row_key, (BATCH,), 0, len(scales))]

                def total(learned: Any) -> jax.Array:
                    student = eqx.combine(learned, fixed)
                    of = lambda k, c: loss(student, eqx.combine(slow, fixed), k, c)
                    return jnp.mean(jax.vmap(of)(jr.split(key, BATCH), rows))

                updates, state = optimizer.update(
                    jax.grad(total)(learned), state, learned
                )
                learned = optax.apply_updates(learned, updates)
                slow = optax.incremental_update(learned, slow, 1 - SLOWNESS)
                return (learned, slow, state), None

            return jax.lax.scan(one, (learned, slow, state), keys)[0]

        return optimizer.init(learned), chunk

    # How many steps the time allows, from one chunk that is then forgotten; what compiles
    # is not counted.
    state, chunk = make(CHUNK)
    keys = jr.split(key, CHUNK)
    jax.block_until_ready(chunk(learned, learned, state, keys))
    begun = time.perf_counter()
    jax.block_until_ready(chunk(learned, learned, state, keys))
    num_chunks = max(1, int(seconds / (time.perf_counter() - begun)))
    state, chunk = make(num_chunks * CHUNK)
    carry = (learned, learned, state)
    for i in range(num_chunks):
        keys = jr.split(jr.fold_in(key, i), CHUNK)
        carry = jax.block_until_ready(chunk(*carry, keys))
    print(f"  {num_chunks * CHUNK} steps", flush=True)
    return eqx.combine(carry[0], fixed)


def progressive(
    reverse: Any, scales: jax.Array, num_steps: int, seconds: float
) -> nd.FewStepMap:
    """Chains of half as many steps, down to `num_steps`."""
    widest, count = reverse.forward.schedule.angle(1.0), FIRST_TEACHER
    stages = int(np.log2(FIRST_TEACHER // num_steps))
    for stage in range(stages):
        count, teacher = count // 2, reverse
        loss = lambda student, slow, key, scale, teacher=teacher, count=count: (
            progressive_loss(student, teacher, widest, count, key, scale)
        )
        reverse = trained(reverse, loss, scales, seconds / stages, jr.key(10 + stage))
    return nd.FewStepMap(reverse, num_steps)


def consistent(reverse: Any, scales: jax.Array, seconds: float) -> nd.FewStepMap:
    """A map in one call."""
    widest, teacher = reverse.forward.schedule.angle(1.0), reverse
    loss = lambda student, slow, key, scale: consistency_loss(
        student, slow, teacher, widest, key, scale
    )
    return nd.FewStepMap(trained(reverse, loss, scales, seconds, jr.key(20)), 1)


def compared(few_steps: nd.FewStepMap, prior: nd.DiffusionPrior, noise: jax.Array):
    """Differences of maps and of covariances to the flow's."""
    flow, maps, covariances = nd.infer.FlowReparam(50), [], []
    for scale in LENGTHSCALES:
        context = jnp.array([scale])
        theirs = flow.decode(prior.given(context), noise)
        reverse = few_steps.reverse.given(context)
        ours = jax.vmap(lambda z, reverse=reverse: few_steps.decode(reverse, z))(noise)
        maps.append(float(jnp.mean((ours - theirs) ** 2)))
        covariances.append(np.abs(np.cov(ours.T) - np.cov(theirs.T)).max())
    return np.sqrt(np.mean(maps)), max(covariances)


def main() -> None:
    """Train, teach in three ways, compare; print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    prior, scales = prior_of(100 if quick else 3000)
    reverse: Any = prior.reverse
    noise = jr.normal(jr.key(1), (1000 if quick else 50_000, NUM_POINTS))
    lines = [
        "| calls | learned from | difference of maps | of covariances | seconds |",
        "|---|---|---|---|---|",
    ]

    def note(calls: int, name: str, few_steps: nd.FewStepMap, seconds: float) -> None:
        off, covariances = compared(few_steps, prior, noise)
        lines.append(
            f"| {calls} | {name} | {off:.4f} | {covariances:.3f} | {seconds:.0f} |"
        )
        print(lines[-1], flush=True)

    for calls in (1, 2, 4):
        began = time.perf_counter()
        taught = nd.distill(
            prior,
            calls,
            key=jr.key(2),
            contexts=scales,
            num_pairs=64 if quick else 8192,
            num_train_steps=20 if quick else 5000,
            progress_bar=False,
        )
        seconds = time.perf_counter() - began
        assert taught.few_steps is not None
        note(calls, "pairs of the flow", taught.few_steps, seconds)
        began = time.perf_counter()
        found = progressive(reverse, scales, calls, seconds)
        note(calls, "half the steps, again", found, time.perf_counter() - began)
        if calls == 1:
            began = time.perf_counter()
            found = consistent(reverse, scales, seconds)
            note(calls, "consistency", found, time.perf_counter() - began)
    table = "\n".join(lines)
    if not quick:
        DOCUMENT.write_text(f"{table}\n\n{today()}, {machine()}.\n")


if __name__ == "__main__":
    main()
