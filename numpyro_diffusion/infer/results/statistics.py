"""What kernels tell of their work: which fields of a state, and their names in ArviZ."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import Gibbs
from numpyro.infer.hmc import HMC
from numpyro.infer.mcmc import MCMC, MCMCKernel

from numpyro_diffusion.checks import checked_instance

__all__ = ["chain_statistics", "stat_fields"]

# As ArviZ calls what Hamiltonian kernels tell.
_NAMES = {
    "accept_prob": "acceptance_rate",
    "num_steps": "n_steps",
    "adapt_state.step_size": "step_size",
    "potential_energy": "lp",
}
_OF_HMC = ("accept_prob", "num_steps", "potential_energy", "energy", "diverging")
_BLOCK = re.compile(r"block_states\.(\d+)\.(.+)")


def stat_fields(kernel: MCMCKernel) -> tuple[str, ...]:
    """Which fields of a kernel's state say how well it works.

    Args:
        kernel: Any kernel; of `numpyro.infer.Gibbs`, all blocks are asked.

    Returns:
        Names for `MCMC.run(..., extra_fields=)`. Of this library's kernels: how often they
        move, renew their trajectory at each level and accept, and their effective numbers
        of particles; of NUTS and HMC what ArviZ's plots of energies read.

    Raises:
        TypeError: `kernel` is no kernel.

    **Example:**
        ```python
        mcmc.run(key, y, extra_fields=nd.infer.stat_fields(kernel))
        nd.infer.to_arviz(mcmc)["sample_stats"]
        ```
    """
    checked_instance(
        "stat_fields", "kernel", kernel, MCMCKernel, "infer.ParticleGibbs(model)"
    )
    if isinstance(kernel, Gibbs):
        return tuple(
            f"block_states.{i}.{name}"
            for i, (block, _) in enumerate(kernel.blocks)
            for name in stat_fields(block)
        )
    if isinstance(kernel, HMC):
        return _OF_HMC
    own = getattr(kernel, "stat_dims", None)
    if own is None:
        return tuple(n for n in kernel.default_fields if n != kernel.sample_field)
    return tuple(own)


def chain_statistics(
    mcmc: MCMC,
) -> tuple[dict[str, np.ndarray], dict[str, Sequence[str]]]:
    """All extra fields of a finished run by their names in ArviZ, and their dimensions.

    Fields of a block of `Gibbs` drop the block's place where no other has the name.
    """
    fields = {}
    for path, value in mcmc.get_extra_fields(group_by_chain=True).items():
        block, name = _place(path)
        for inner, array in _arrays(name, value).items():
            fields[block, inner] = array
    counts = Counter(name for _, name in fields)
    values, dims = {}, {}
    for (block, name), array in fields.items():
        called = _NAMES.get(name, name)
        if counts[name] > 1:
            called = f"{called}_{block}"
        # ArviZ holds the log density; NumPyro its negative.
        values[called] = -array if name == "potential_energy" else array
        kernel = mcmc.sampler
        if isinstance(kernel, Gibbs) and block is not None:
            kernel = kernel.blocks[block][0]
        own = getattr(kernel, "stat_dims", {}).get(name)
        if own is not None:
            dims[called] = own
    return values, dims


def _place(path: str) -> tuple[int | None, str]:
    """The block that a field is of, and its name there."""
    match = _BLOCK.fullmatch(path)
    return (int(match[1]), match[2]) if match else (None, path)


def _arrays(name: str, value: Any) -> dict[str, np.ndarray]:
    """The arrays of a field, which may be a dictionary or a state of its own."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        parts = [_arrays(f"{name}.{inner}", v) for inner, v in value.items()]
        return {n: array for part in parts for n, array in part.items()}
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return {}
    return {name: np.asarray(value)}
