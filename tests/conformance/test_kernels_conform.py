"""Kernels against NumPyro's customs; NumPyro's own show that the demands are fair."""

import pathlib
import re

import pytest
from kernel_cases import CONTROLS, OURS
from kernel_demands import DEMANDS
from kernel_table import REFUSED, TRIED, page

CASES = {**OURS, **CONTROLS}
BY_NAME = {demand.__name__: demand for demand in DEMANDS}
PAIRS = [(name, demand) for name, tried in TRIED.items() for demand in tried]
AT_THE_GATE = (
    *(("ParticleGibbs", demand) for demand in ("known_posterior", "vectorized_chains")),
    ("NUTS", "continuation"),
)
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "conformance_table.md"


def marked(pair):
    """A few at the gate; all of them would take half an hour of one core."""
    mark = pytest.mark.gate if pair in AT_THE_GATE else pytest.mark.slow
    return pytest.param(*pair, marks=mark)


# NumPyro donates the buffers of extra fields, which chains under vmap cannot reuse.
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
@pytest.mark.parametrize(("name", "demand"), [marked(pair) for pair in PAIRS])
def test_kernels_keep_the_customs_or_say_why_not(name, demand):
    refusal = REFUSED.get((demand, name))
    if refusal is None:
        BY_NAME[demand](CASES[name])
        return
    with pytest.raises((ValueError, AssertionError), match=re.escape(refusal)):
        BY_NAME[demand](CASES[name])


def test_every_kernel_and_custom_is_tried():
    assert set(TRIED) <= set(CASES)
    assert {demand for _, demand in PAIRS} == set(BY_NAME)


def test_the_page_is_that_of_the_table():
    """`python tests/conformance/kernel_table.py > docs/conformance_table.md` writes it."""
    assert PAGE.read_text() == page()
