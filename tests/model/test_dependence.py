"""What a program's values depend on, against moving one part and looking what changes."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax import lax

from numpyro_diffusion.model.dependence import SEVERAL, dependence

NUM = 4
X = jr.normal(jr.key(0), (NUM, 3))
LABELS = np.broadcast_to(np.arange(1, NUM + 1)[:, None], X.shape)
COLUMNS = jr.normal(jr.key(1), (3, 3))
ROWS = jr.normal(jr.key(2), (NUM, NUM))
KERNEL = jr.normal(jr.key(3), (1, 1, 2))
PICK = jnp.array([2, 0, 1, 1])
SPD = jax.vmap(lambda row: 4.0 * jnp.eye(3) + jnp.outer(row, row))


def scanned(step, x):
    """Rows x[:, 0] and x[:, 1] of all parts run through a loop of four steps."""
    return lax.scan(lambda c, u: (step(c, u), c), x[:, 1], jnp.arange(4.0))[1]


def looped(bound, x):
    body = lambda c: (c[0] * x, c[1] + 1)
    return lax.while_loop(lambda c: c[1] < bound, body, (x, 0.0))[0]


def convolved(x):
    return lax.conv_general_dilated(x[:, None], KERNEL, (1,), "SAME")


def pooled(window, x):
    return lax.reduce_window(x, -jnp.inf, lax.max, window, (1, 1), "VALID")


APART = {  # programs that keep the parts apart, which must be seen
    "entrywise": lambda x: jnp.exp(x) * 2.0 + x**2,
    "permuted": lambda x: x[jnp.array([2, 0, 1, 3]), 0],
    "picked": lambda x: x[PICK],
    "rolled": lambda x: jnp.roll(x, 1, 0),
    "reversed": lambda x: x[::-1],
    "sorted-within": lambda x: jnp.sort(x, 1),
    "cumulative-within": lambda x: jnp.cumsum(x, 1),
    "sum-within": lambda x: x.sum(1),
    "softmax-within": jax.nn.softmax,
    "median-within": lambda x: jnp.median(x, 1),
    "largest-within": lambda x: lax.top_k(x, 2)[0],
    "matmul-within": lambda x: x @ COLUMNS,
    "quadratic-form": lambda x: jnp.einsum("ni,ij,nj->n", x, COLUMNS, x),
    "outer-products": lambda x: jnp.einsum("ni,nj->nij", x, x),
    "contracted-left": lambda x: jnp.einsum("ni,aib->nab", x, jnp.ones((5, 3, 2))),
    "contracted-right": lambda x: jnp.einsum("aib,ni->abn", jnp.ones((5, 3, 2)), x),
    "nested": lambda x: jnp.einsum(
        "abi,bij->abj", x.reshape(2, 2, 3), jnp.ones((2, 3, 5))
    ),
    "where": lambda x: jnp.where(PICK[:, None] > 0, x, 0.0),
    "mask": lambda x: x[np.array([True, False, True, True])],
    "set": lambda x: x.at[0].set(0.0),
    "reshaped": lambda x: x.reshape(2, 6),
    "transposed": lambda x: x.T,
    "joined": lambda x: jnp.concatenate([x[1:], x[:1]]),
    "padded": lambda x: jnp.pad(x, ((1, 0), (0, 2))),
    "split": lambda x: jnp.split(x, 2)[1],
    "one-of-them": lambda x: jnp.full(3, x[1]),
    "nothing": lambda x: jnp.ones(3),
    "none-of-them": lambda x: x[:0].sum(0),
    "index-as-value": lambda x: jnp.take_along_axis(x, PICK[:, None] % 3, 1),
    "lookup": lambda x: jnp.interp(x, jnp.arange(3.0), jnp.arange(3.0) ** 2),
    "window": lambda x: lax.dynamic_slice(x, (1, 0), (2, 3)),
    "cholesky": lambda x: jnp.linalg.cholesky(SPD(x)),
    "solve": lambda x: jax.vmap(jnp.linalg.solve)(SPD(x), x),
    "fourier-within": lambda x: jnp.abs(jnp.fft.rfft(x)),
    "images": convolved,
    "pooled-within": lambda x: pooled((1, 2), x),
    "resized": lambda x: jax.image.resize(x, (NUM, 6), "linear"),
    "mapped": jax.vmap(lambda r: jnp.convolve(r, jnp.array([1.0, 2.0]))),
    "gradients": jax.vmap(jax.grad(lambda r: jnp.sum(jnp.sin(r) * r.mean()))),
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(x) * x.sum(1, keepdims=True)),
    "scan": lambda x: scanned(lambda c, u: c * x[:, 0] + u, x),
    "counted-loop": lambda x: looped(3, x),
    "loop-within": jax.vmap(lambda r: lax.fori_loop(0, 3, lambda i, c: c + r[i], 0.0)),
    "branches": lambda x: lax.cond(ROWS[0, 0] > 0, lambda v: v, lambda v: 2 * v, x),
}
TOGETHER = {  # programs that mix them, which must be seen all the more
    "sorted": lambda x: jnp.sort(x, 0),
    "cumulative": lambda x: jnp.cumsum(x, 0),
    "centred": lambda x: x - x.mean(0),
    "softmax": lambda x: jax.nn.softmax(x, 0),
    "median": lambda x: jnp.median(x, 0),
    "differences": lambda x: jnp.diff(x, axis=0),
    "matmul": lambda x: ROWS @ x,
    "gram": lambda x: x @ x.T,
    "added-up": lambda x: jnp.zeros((2, 3)).at[jnp.array([0, 1, 1, 0])].add(x),
    "segments": lambda x: jax.ops.segment_sum(x, jnp.array([0, 1, 2, 2]), 3),
    "solve": lambda x: jnp.linalg.solve(ROWS, x),
    "cholesky": lambda x: jnp.linalg.cholesky(x @ x.T + jnp.eye(NUM))[3],
    "fourier": lambda x: jnp.abs(jnp.fft.fft(x, axis=0)),
    "images": lambda x: convolved(x.T),
    "kernel": lambda x: lax.conv_general_dilated(x[:, None], x[None, :1], (1,), "SAME"),
    "pooled": lambda x: pooled((2, 1), x),
    "index-from-x": lambda x: x[jnp.argsort(x[:, 0])[0]] * x,
    "scan-over": lambda x: lax.scan(lambda c, u: (c + u, c), x[0], x)[1],
    "scan-carries": lambda x: scanned(lambda c, u: c[::-1] * c + u, x),
    "loop-bound": lambda x: looped(x[0, 0] * x[1, 0] + 2.0, x),
    "chosen-branch": lambda x: lax.cond(
        x[0, 0] > 0, lambda v: v * 2, lambda v: v[::-1], x
    ),
    "by-callback": lambda x: jax.pure_callback(
        lambda v: np.asarray(v)[::-1] * np.asarray(v), X, x
    ),
}


def changed(function, x):
    """Which values change with which part, by moving each of them; a last axis of parts."""
    moved = [x.at[k].set(jr.normal(jr.key(10 + k), (3,))) for k in range(NUM)]
    return np.stack(
        [np.asarray(function(other)) != np.asarray(function(x)) for other in moved], -1
    )


def missed(labels, changes):
    """How many dependences the labels deny."""
    parts = np.arange(1, NUM + 1)
    return np.sum(
        changes & (labels[..., None] != parts) & (labels != SEVERAL)[..., None]
    )


@pytest.mark.parametrize("name", APART)
def test_programs_that_keep_parts_apart(name):
    labels, changes = dependence(APART[name], X, LABELS), changed(APART[name], X)
    assert labels.shape == changes.shape[:-1]
    assert missed(labels, changes) == 0
    assert not np.any(labels == SEVERAL)
    assert np.all((labels >= 0) & (labels <= NUM))


@pytest.mark.parametrize("name", TOGETHER)
def test_programs_that_mix_parts(name):
    labels, changes = dependence(TOGETHER[name], X, LABELS), changed(TOGETHER[name], X)
    assert labels.shape == changes.shape[:-1]
    assert missed(labels, changes) == 0
    assert np.any(labels == SEVERAL)


def test_control_labels_of_another_program_are_found_wrong():
    """The labels of x do not serve x in another order, nor its sum."""
    for name in ("rolled", "reversed"):
        assert missed(LABELS, changed(APART[name], X)) > 0
    assert missed(LABELS, changed(TOGETHER["centred"], X)) > 0


@pytest.mark.parametrize("seed", range(4))
def test_random_compositions_are_sound(seed):
    """Chains of programs whose values have x's shape, in an order of luck."""
    programs = [APART[name] for name in ("entrywise", "rolled", "reversed", "set")]
    programs += [
        lambda x: x @ COLUMNS,
        lambda x: x.at[:2].multiply(x[2:]),
        lambda x: scanned(lambda c, u: c * x[:, 0] + u, x).T[:, :3],
    ]
    order = np.random.default_rng(seed).permutation(len(programs))

    def chain(x):
        for i in order:
            x = programs[i](x)
        return x

    labels = dependence(chain, X, LABELS)
    assert missed(labels, changed(chain, X)) == 0


def test_what_an_argument_holds_is_not_looked_at():
    """An index that is an argument may be any, inside of `jit` and outside alike."""
    function = lambda x, index: (x[index, 0], x[:, index])
    index = jnp.array([2, 0, 1])
    found = dependence(function, X, LABELS, index)
    assert np.all(found[0] == SEVERAL)
    np.testing.assert_array_equal(found[1], LABELS)
    inside = []
    jax.jit(lambda i: inside.append(dependence(function, X, LABELS, i)))(index)
    jax.tree.map(np.testing.assert_array_equal, inside[0], found)
    # A constant of the program is known in both places.
    jax.jit(lambda i: inside.append(dependence(APART["permuted"], X, LABELS)))(index)
    np.testing.assert_array_equal(inside[1], [3, 1, 2, 4])


def test_a_thousand_images_take_no_memory():
    """Labels that do not vary within an image are held once per image."""
    shape = (1000, 28, 28)
    labels = np.broadcast_to(np.arange(1, 1001)[:, None, None], shape)

    def function(x):
        y = lax.conv_general_dilated(
            x[..., None],
            jnp.ones((3, 3, 1, 2)),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = jax.nn.softplus(y).sum(-1).reshape(1000, 784) @ jnp.ones((784, 10))
        return jax.nn.log_softmax(y)

    found = dependence(function, jax.ShapeDtypeStruct(shape, float), labels)
    np.testing.assert_array_equal(found, np.broadcast_to(labels[:, :10, 0], (1000, 10)))
    assert found.strides[1] == 0
