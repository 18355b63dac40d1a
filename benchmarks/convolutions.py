"""A 3 x 3 convolution and its gradient on one core of a CPU, written in several ways.

Four layers with SiLU between them, as in a U-Net: outputs alone, and the gradient of their
squares with respect to weights and input, each called on its own and five times inside
`lax.scan`. All ways compute the same (checked before anything is timed). Where PyTorch is
installed it does the same work with channels last, one thread; ratios are to the way that
the library takes.

    python benchmarks/convolutions.py          # a table, in ten minutes of one core
    python benchmarks/convolutions.py --quick  # two rounds
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timing
from jax import lax

from numpyro_diffusion.networks.conv import conv_lax, conv_patches, convolve

SIZES = [(64, 8, 32), (32, 16, 32), (16, 32, 24), (32, 16, 64)]
"""Images, side, channels."""
NUM_LAYERS, NUM_LOOPS = 4, 5


def padded(x: Any) -> Any:
    """With a frame of zeros."""
    return jnp.pad(x, ((1, 1), (1, 1), (0, 0)))


def conv_shifts(x: Any, weight: Any) -> Any:
    """Nine matrix products with shifted images, summed: no patches in memory."""
    height, width, _ = x.shape
    frame = padded(x)
    return sum(
        frame[i : i + height, j : j + width] @ weight[i, j]
        for i in range(3)
        for j in range(3)
    )


def conv_rows(x: Any, weight: Any) -> Any:
    """Three products with patches of one row each: a third of the patches' memory."""
    height, width, channels = x.shape
    frame = padded(x)
    wide = jnp.concatenate([frame[:, j : j + width] for j in range(3)], axis=-1)
    kernels = weight.reshape(3, 3 * channels, -1)
    return sum(wide[i : i + height] @ kernels[i] for i in range(3))


# F(2 x 2, 3 x 3) of Winograd: 16 products for four outputs in the place of 36.
B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)


def conv_winograd(x: Any, weight: Any) -> Any:
    """By Winograd's minimal filtering (Lavin and Gray 2016, arXiv:1509.09308)."""
    height, width, _ = x.shape
    frame = padded(x)
    tiles = jnp.stack(
        [
            jnp.stack(
                [frame[i : i + height : 2, j : j + width : 2] for j in range(4)], -1
            )
            for i in range(4)
        ],
        -2,
    )  # rows / 2, columns / 2, channels, 4, 4
    moved = jnp.einsum("ai,bj,hwcij->abhwc", B, B, tiles)
    kernels = jnp.einsum("ai,bj,ijco->abco", G, G, weight)
    product = jnp.einsum("abhwc,abco->abhwo", moved, kernels)
    found = jnp.einsum("pa,qb,abhwo->hpwqo", A, A, product)
    return found.reshape(height, width, -1)


def conv_planes(x: Any, weight: Any) -> Any:
    """XLA's convolution with channels first."""
    found = lax.conv_general_dilated(
        jnp.moveaxis(x, -1, 0)[None],
        jnp.transpose(weight, (3, 2, 0, 1)),
        (1, 1),
        "SAME",
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )[0]
    return jnp.moveaxis(found, 0, -1)


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "the library's": convolve,
    "XLA's, channels last": conv_lax,
    "XLA's, channels first": conv_planes,
    "one product with patches": conv_patches,
    "three products with rows of patches": conv_rows,
    "nine products with shifts": conv_shifts,
    "Winograd 2x2": conv_winograd,
}


def network(conv: Callable, weights: Any, x: Any) -> Any:
    """Four layers on a batch."""
    for weight in weights:
        x = jax.nn.silu(jax.vmap(conv, (0, None))(x, weight))
    return x


def tasks(conv: Callable, weights: Any, x: Any) -> dict[str, Callable[[], Any]]:
    """What is timed of one way."""
    forward = functools.partial(network, conv)
    loss = lambda weights, x: jnp.sum(forward(weights, x) ** 2)
    gradient = jax.grad(loss, (0, 1))

    def looped(step: Callable) -> Callable:
        body = lambda x, _: (0.5 * step(x) + 0.5 * x, None)
        return jax.jit(lambda x: lax.scan(body, x, length=NUM_LOOPS)[0])

    jitted, jitted_gradient = jax.jit(forward), jax.jit(gradient)
    loop = looped(lambda x: forward(weights, x))

    def one_step(weights: Any, x: Any) -> Any:
        by_weights, by_x = gradient(weights, x)
        weights = [w - 1e-6 * g for w, g in zip(weights, by_weights, strict=True)]
        return weights, by_x

    def train(carry: Any, _: None) -> tuple[Any, Any]:
        weights, by_x = one_step(*carry)
        return (weights, carry[1]), jnp.sum(by_x)

    training = jax.jit(lambda w, x: lax.scan(train, (w, x), length=NUM_LOOPS))
    return {
        "forward": lambda: jitted(weights, x),
        "forward, in a loop": lambda: loop(x),
        "gradient": lambda: jitted_gradient(weights, x),
        "gradient, in a loop": lambda: training(weights, x),
    }


def torch_tasks(weights: Any, x: Any) -> dict[str, Callable[[], Any]]:
    """The same in PyTorch, which has no loops of its own: as many calls."""
    import torch

    torch.set_num_threads(1)
    last = torch.channels_last
    of = lambda array, *axes: torch.tensor(np.transpose(np.asarray(array), axes))
    kernels = [of(w, 3, 2, 0, 1).to(memory_format=last) for w in weights]
    images = of(x, 0, 3, 1, 2).to(memory_format=last)

    def forward(kernels: Any, images: Any) -> Any:
        for kernel in kernels:
            images = torch.nn.functional.conv2d(images, kernel, padding=1)
            images = torch.nn.functional.silu(images)
        return images

    def outputs() -> Any:
        with torch.no_grad():
            return forward(kernels, images)

    def gradient() -> Any:
        inputs = [*(k.requires_grad_() for k in kernels), images.requires_grad_()]
        return torch.autograd.grad((forward(kernels, images) ** 2).sum(), inputs)

    again = lambda task: lambda: [task() for _ in range(NUM_LOOPS)]
    return {
        "forward": outputs,
        "forward, in a loop": again(outputs),
        "gradient": gradient,
        "gradient, in a loop": again(gradient),
    }


def check(weights: Any, x: Any) -> None:
    """All ways compute one function and one gradient."""
    right = jax.tree.leaves(_gradient(conv_lax, weights, x))
    for name, conv in WAYS.items():
        for found, wanted in zip(
            jax.tree.leaves(_gradient(conv, weights, x)), right, strict=True
        ):
            scale = float(jnp.abs(wanted).max())
            if not np.allclose(found, wanted, rtol=0.0, atol=2e-4 * scale):
                raise AssertionError(f"{name} computes something else")


def _gradient(conv: Callable, weights: Any, x: Any) -> Any:
    loss = lambda weights, x: jnp.sum(network(conv, weights, x) ** 2)
    return jax.jit(jax.grad(loss, (0, 1)))(weights, x)


def main(quick: bool = False) -> None:
    timing.use_one_core()
    try:
        import torch

        has_torch = bool(torch.__version__)
    except ImportError:
        has_torch = False
    timing.describe(["jax", "numpy", *(["torch"] if has_torch else [])])
    for num, side, channels in SIZES[: 1 if quick else None]:
        key, *keys = jax.random.split(jax.random.key(0), NUM_LAYERS + 1)
        shape, scale = (3, 3, channels, channels), (9 * channels) ** -0.5
        weights = [scale * jax.random.normal(k, shape) for k in keys]
        x = jax.random.normal(key, (num, side, side, channels))
        check(weights, x)
        of_ways = {name: tasks(conv, weights, x) for name, conv in WAYS.items()}
        if has_torch:
            of_ways["PyTorch"] = torch_tasks(weights, x)
        print(f"\n**{num} images of {side} x {side} with {channels} channels**\n")
        kinds = list(next(iter(of_ways.values())))
        print("| | " + " | ".join(kinds) + " |")
        print("|---|" + "---|" * len(kinds))
        columns = []
        for kind in kinds:
            functions = {name: found[kind] for name, found in of_ways.items()}
            columns.append(timing.measure(functions, 2 if quick else 7))
        for name in of_ways:
            cells = [_cell(name, times) for times in columns]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def _cell(name: str, times: dict[str, list[float]]) -> str:
    """Milliseconds of the library's way, and ratios to it of the others."""
    if name == "the library's":
        return f"{1e3 * statistics.median(times[name]):.1f} ms"
    pairs = zip(times[name], times["the library's"], strict=True)
    return f"{statistics.median(a / b for a, b in pairs):.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    main(**vars(parser.parse_args()))
