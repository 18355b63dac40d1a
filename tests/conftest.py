"""Settings shared by all tests: double precision, quick compilation, fresh keys."""

import os
import subprocess
import sys
import tempfile

import jax
import pytest

# Nearly all of the suite's time goes into compiling programs that run for milliseconds.
# Without XLA's emitters of fused loops, and with LLVM's first level of optimisation, that
# takes half as long. To test the code that users run, set XLA_FLAGS yourself (empty will
# do).
_QUICK = ("--xla_cpu_use_fusion_emitters=false", "--xla_backend_optimization_level=1")


def _is_known(flag):
    """Whether XLA has this flag in this release: at one that it has not, it aborts."""
    code = "import jax; jax.devices()"
    environment = {**os.environ, "XLA_FLAGS": flag}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True
    )
    return run.returncode == 0


# Workers of pytest-xdist inherit what is found here.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = " ".join(filter(_is_known, _QUICK))
jax.config.update("jax_enable_x64", True)
# A program that is traced again, as loops outside of `jit` are at each call, need not be
# compiled again. Each process has a directory of its own: JAX does not lock it.
_COMPILED = tempfile.TemporaryDirectory(prefix="numpyro-diffusion-tests-")
jax.config.update("jax_compilation_cache_dir", _COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def pytest_unconfigure():
    _COMPILED.cleanup()


@pytest.fixture
def getkey():
    """A source of fresh keys, the same in every run."""
    state = [jax.random.key(5678)]

    def next_key():
        state[0], key = jax.random.split(state[0])
        return key

    return next_key
