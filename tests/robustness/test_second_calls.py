"""How many programs calls of the same shapes compile, and what they keep."""

import jax
import jax.numpy as jnp
import pytest
import second_calls


@pytest.fixture(scope="module")
def calls():
    return second_calls.calls()


@pytest.mark.gate
@pytest.mark.parametrize(("name", "again"), second_calls.COMPILED_AGAIN.items())
def test_second_calls_compile_what_is_pinned(calls, name, again):
    cost = second_calls.cost(calls[name])
    assert cost.first >= again
    assert (cost.second, cost.third) == (again, again)
    assert cost.bytes <= 0


def test_control_what_is_compiled_and_kept_is_counted():
    kept = []

    def wasteful(number):
        kept.append(jax.jit(lambda x: x + number)(jnp.zeros(100)))
        return kept[-1]

    cost = second_calls.cost(wasteful)
    assert cost.second >= 1
    assert (cost.third, cost.arrays) == (1, 1)
    assert cost.bytes == kept[-1].nbytes
