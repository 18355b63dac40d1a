"""Settings shared by all tests: double precision, fresh keys."""

import jax
import pytest

jax.config.update("jax_enable_x64", True)


@pytest.fixture
def getkey():
    """A source of fresh keys, the same in every run."""
    state = [jax.random.key(5678)]

    def next_key():
        state[0], key = jax.random.split(state[0])
        return key

    return next_key
