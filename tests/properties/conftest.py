"""How many cases the properties are tried on.

Each run tries the same few. With the environment variable `PROPERTY_EXAMPLES=1000`, as many
new ones: each property counts its own.
"""

import os

from hypothesis import HealthCheck, Phase, settings

_NUM = os.environ.get("PROPERTY_EXAMPLES")
settings.register_profile(
    "here",
    max_examples=int(_NUM or 15),
    derandomize=_NUM is None,
    deadline=None,  # a first case may compile
    database=None,
    phases=set(Phase) - {Phase.explain},  # which runs a failing case many times more
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("here")
