"""One right call of everything exported, as cheap as can be; see `wrong_arguments`."""

import dataclasses
import inspect
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd

ROOMS = {
    "": nd,
    "schedules.": nd.schedules,
    "networks.": nd.networks,
    "samplers.": nd.samplers,
    "guidance.": nd.guidance,
    "infer.": nd.infer,
    "handlers.": nd.handlers,
    "diagnostics.": nd.diagnostics,
    "datasets.": nd.datasets,
    "analytic.": nd.analytic,
    "paper2015.": nd.paper2015,
    "paper2015.networks.": nd.paper2015.networks,
    "paper2015.optimum.": nd.paper2015.optimum,
    "paper2015.parzen.": nd.paper2015.parzen,
    "saving.": nd.saving,
    "plotting.": nd.plotting,
}

# What the library fills in itself, or what only carries other values.
RECORDS = (
    *("FitResult", "ReverseStep", "TiltedStep", "ParticleGibbsState"),
    "ParticleIndependenceState",
    "ParticleMarginalState",
    *(
        "SplitGibbsState",
        "TwistedSMCPosterior",
        "Suggestion",
        "CalibrationRuns",
        "TwoSampleTest",
        "ImageData",
        "Digits",
    ),
    *("Ceiling", "EntropyBounds", "EntropyEstimate", "GaussianChain", "HeartbeatChain"),
    *("OptimalBound", "ParzenScore", "LogLikelihood", "DataFileError"),
)


# Asks for an extra, and is tried where that is installed.
ELSEWHERE = ("from_torch",)


@dataclasses.dataclass(frozen=True)
class Row:
    """A right call.

    Attributes:
        call: What is called, by name of its arguments.
        arguments: Right values. Arguments that are left out get their defaults.
        use: What makes of the result something that could be a NaN, such as a draw.
        none_is_right: Arguments that may be None though their right value here is another.
        carries_nans: Whether it is arithmetic, where a NaN goes in and comes out, and
            which guidances need for likelihoods that are not finite.
    """

    call: Callable
    arguments: dict[str, Any]
    use: Callable | None = None
    none_is_right: tuple[str, ...] = ()
    carries_nans: bool = False


def exported():
    """Names of all callables that a table must hold: abstract ones and records are not."""
    names, seen = [], set()
    for prefix, room in ROOMS.items():
        for name in room.__all__:
            value = getattr(room, name)
            is_left_out = name.startswith("Abstract") or name in RECORDS + ELSEWHERE
            if inspect.ismodule(value) or not callable(value) or is_left_out:
                continue
            if id(value) not in seen:
                seen.add(id(value))
                names.append(prefix + name)
    return sorted(names)


class Scaled(eqx.Module):
    """The smallest network that can be trained."""

    factor: jax.Array

    def __call__(self, x, t):
        return self.factor * x * t


KEY = jax.random.key(0)
SCHEDULE = nd.schedules.cosine()
FORWARD = nd.GaussianForward(SCHEDULE)
BITS = nd.BernoulliForward(SCHEDULE)
X = jnp.array([0.3, -0.2])
Z = jnp.array([1, 0])
DATA = jax.random.normal(KEY, (4, 2))
GRID = jnp.linspace(0.0, 1.0, 4)
GAUSS = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(2), jnp.eye(2))
PATTERNS = nd.analytic.PatternsReverse(
    BITS, jnp.array([0.4, 0.6]), jnp.array([[0.0, 1.0], [1.0, 1.0]])
)
ERROR = nd.DenoisingError(jnp.array([0.5, 1.0]), jnp.array([0.1, 0.2]))
TRAINED = nd.DenoisingReverse(FORWARD, Scaled(jnp.array(0.1)), error=ERROR)
OF_BITS = nd.DenoisingReverse(BITS, lambda x, t: 0.1 * x)
PRIOR = nd.DiffusionPrior(GAUSS, (2,), 3)
STACK = X[None, None]
SCALING = nd.datasets.Scaling(0.1, 2.0)


def quadratic(stack):
    return -0.5 * jnp.sum((stack - 0.5) ** 2, axis=tuple(range(1, stack.ndim)))


def model(y=None):
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def curvature_of(stack, truth):
    return jnp.sum(quadratic(stack))


LIKELIHOOD = nd.guidance.ModelLikelihood(quadratic, curvature_of)
ROWS: dict[str, Row] = {}


# A density at a NaN is what NumPyro makes of it: outside of the support, with a warning if
# values are validated, else not a number.
ARITHMETIC = ("guidance.dot", "guidance.spread", "DiffusionPrior.log_prob")


def row(name, use=None, none_is_right=(), /, call=None, **arguments):
    """Add a row; without `call`, of what the name leads to."""
    call = operator.attrgetter(name)(nd) if call is None else call
    ROWS[name] = Row(call, arguments, use, none_is_right, name in ARITHMETIC)


# ---- Controls: functions that check nothing
CONTROLS = {
    "control.unchecked_name": Row(
        lambda value: value.forward, {"value": PRIOR.reverse}
    ),
    "control.unchecked_number": Row(lambda value: jnp.log(value), {"value": 0.5}),
}
