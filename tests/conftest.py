"""Settings shared by all tests: double precision, strict promotion, quick compilation."""

import contextlib
import ctypes
import gc
import os
import pathlib
import subprocess
import sys
import tempfile

# ArviZ 0.23 writes a file on its first import of a day, and two workers that do so at once
# break each other's collection: here the process that starts them is the first.
import arviz  # noqa: F401
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


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "promotes: mixes types on purpose, or draws bits, which NumPyro makes integers of",
    )


def pytest_unconfigure():
    _COMPILED.cleanup()


# Rooms that work on one event at a time. Above them stands NumPyro, which broadcasts and
# promotes as it goes: a multivariate normal law that is drawn from twice adds (2,) to
# (2, 2), and its samplers mix integers and floats.
_TESTS = pathlib.Path(__file__).parent
_STRICT = {"bound", "forward", "networks", "reverse", "samplers", "schedules"}


def _room(path):
    """The room of the package that a test file is about."""
    return path.relative_to(_TESTS).with_suffix("").parts[0].removeprefix("test_")


@pytest.fixture(autouse=True)
def _strict_promotion(request):
    """In lower rooms, ranks and types are promoted on purpose alone.

    What lines up by luck is wrong as soon as a batch has the length of an event; integers
    and floats, or floats of two widths, meet where a value was not meant to be there.
    """
    mixes = request.node.get_closest_marker("promotes") is not None
    if mixes or _room(request.path) not in _STRICT:
        yield
        return
    ranks, types = jax.numpy_rank_promotion, jax.numpy_dtype_promotion
    with ranks("raise"), types("strict"):
        yield


_STATUS = pathlib.Path("/proc/self/statm")
_ROOM = 2**30


def _memory():
    """Resident memory in bytes, where the system tells it."""
    if not _STATUS.exists():
        return _ROOM + 1
    return int(_STATUS.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.fixture(autouse=True)
def _programs_are_dropped():
    """A worker kept every program it had run, and grew to 4 GB.

    What is needed again is found among the compiled ones on disk.
    """
    yield
    if _memory() > _ROOM:
        jax.clear_caches()
        gc.collect()
        _give_back()


def _give_back():
    """Ask the C library to return what is free, which it would rather keep."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture
def getkey():
    """A source of fresh keys, the same in every run."""
    state = [jax.random.key(5678)]

    def next_key():
        state[0], key = jax.random.split(state[0])
        return key

    return next_key
