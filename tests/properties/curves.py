"""Schedules of any settings, and times.

What is drawn makes the schedule when it is called: JAX must not run while cases are drawn.
"""

import functools

import numpy as np
from hypothesis import strategies as st

from numpyro_diffusion import schedules


def _between(low, high):
    return st.floats(low, high)


def _table(betas):
    return functools.partial(schedules.tabulated, np.array(betas))


def _made(make, *settings):
    return st.tuples(*settings).map(lambda found: functools.partial(make, *found))


schedule = st.one_of(
    st.just(schedules.cosine),
    st.just(schedules.signal_linear),
    st.just(schedules.straight),
    _made(schedules.geometric, _between(1e-6, 1e-2), _between(1.0, 1e6)),
    _made(schedules.variance_preserving, _between(0.01, 0.9), _between(1.0, 30.0)),
    _made(schedules.sub_variance_preserving, _between(0.01, 0.9), _between(1.0, 30.0)),
    _made(schedules.edm, _between(1.0, 200.0), _between(1.0, 8.0)),
    st.lists(_between(1e-4, 0.95), min_size=4, max_size=4).map(_table),
)
time = st.floats(0.0, 1.0)
# At the end of some schedules no signal is left: no share of nothing can be kept.
start = st.floats(0.0, 0.99)
