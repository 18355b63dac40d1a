r"""How many steps the probability flow takes: the error of its map in law.

Two exact laws, since a grid that serves one may fail the other: 25 modes in eight
dimensions, each a tenth as wide as the whole, and a Gaussian whose directions have
variances from 0.01 to 100, as the principal components of images and fields have.
4096 draws of noise are carried to data in some steps and in many; the sliced Wasserstein
distance (500 directions) between the two, as a share of the standard deviation, and for
the Gaussian the worst error of the deviation along a direction, which is known exactly.

    python benchmarks/flow_steps.py      # half a minute on two cores
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from record import machine, today

import numpyro_diffusion as nd

NUM_DRAWS, MANY = 4096, 400
WAYS = [
    *((diffrax.Heun(), num) for num in (10, 20, 40)),
    (diffrax.Bosh3(), 13),
    (diffrax.Tsit5(), 8),
]


def modes() -> nd.analytic.MixtureReverse:
    """25 narrow modes in eight dimensions."""
    rng = np.random.default_rng(0)
    means = rng.uniform(-1.7, 1.7, (25, 8))
    return nd.analytic.MixtureReverse(
        nd.GaussianForward(nd.schedules.cosine()),
        jnp.full(25, 1 / 25),
        jnp.asarray(means, jnp.float32),
        jnp.full((25, 8), 0.1, jnp.float32),
    )


def directions() -> nd.analytic.GaussianReverse:
    """A Gaussian with a variance of each size."""
    variances = np.geomspace(0.01, 100.0, 9)
    forward = nd.GaussianForward(nd.schedules.cosine())
    return nd.analytic.GaussianReverse(
        forward, jnp.zeros(9), jnp.asarray(np.diag(variances), jnp.float32)
    )


def carried(reverse: nd.AbstractReverse, size: int, solver: object, num: int):
    """Draws of noise as data."""
    flow = nd.ProbabilityFlow(num, solver=solver)  # pyright: ignore
    z = jax.random.normal(jax.random.key(0), (NUM_DRAWS, size))
    return np.asarray(jax.jit(jax.vmap(lambda z: flow.decode(reverse, z)))(z))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Sliced Wasserstein distance of order one, as a share of the deviation."""
    rng = np.random.default_rng(1)
    ways = rng.standard_normal((500, a.shape[1]))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    along = [np.sort(x @ ways.T, axis=0) for x in (a, b)]
    return float(np.mean(np.abs(along[0] - along[1]))) / float(np.sqrt(b.var(0).mean()))


def main() -> None:
    print(f"Run on {today()}, {machine()}.\n")
    print("| solver | steps | modes | directions | worst deviation of a direction |")
    print("|---|---|---|---|---|")
    many = {
        size: carried(reverse, size, diffrax.Tsit5(), MANY)
        for reverse, size in ((modes(), 8), (directions(), 9))
    }
    exact = np.sqrt(np.geomspace(0.01, 100.0, 9))
    z_scale = many[9].std(0) / exact
    for solver, num in WAYS:
        found = {
            size: carried(reverse, size, solver, num)
            for reverse, size in ((modes(), 8), (directions(), 9))
        }
        worst = float(np.max(np.abs(found[9].std(0) / exact / z_scale - 1.0)))
        print(
            f"| {type(solver).__name__} | {num} | {distance(found[8], many[8]):.2%} | "
            f"{distance(found[9], many[9]):.2%} | {worst:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
