"""How often a model is compiled, by counting how often it is traced."""

import functools
import gc
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import Unguided
from numpyro_diffusion.infer import _programs
from numpyro_diffusion.infer._programs import programs_of, traceable

FORWARD = nd.GaussianForward(nd.schedules.cosine())
REVERSE = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1))
PRIOR = nd.DiffusionPrior(REVERSE, (1,), num_steps=2)


def counted(traces):
    def model(y, scale=0.5, size=1):
        traces.append(0)
        with numpyro.plate("n", size):
            x = jnp.asarray(numpyro.sample("x", PRIOR))
            numpyro.sample("y", dist.Normal(x[:, 0], scale), obs=y)

    return model


def run(model, *args, guidance=Unguided(), num_particles=4, **kwargs):  # noqa: B008
    smc = nd.infer.TwistedSMC(model, num_particles=num_particles, guidance=guidance)
    posterior = smc.run(jr.key(0), *args, **kwargs)
    return posterior, posterior.get_samples()


@pytest.mark.gate
def test_equal_samplers_share_one_program():
    """A new sampler, or another number, once compiled twice anew and kept it all."""
    traces = []
    model = counted(traces)
    first, _ = run(model, 0.3, 0.5, guidance=Unguided(0.9))
    compiled = len(traces)
    second, _ = run(model, 0.7, scale=np.float64(0.5), guidance=Unguided(0.9))
    third, _ = run(model, 0.7, 0.6, guidance=Unguided(0.9))
    again = len(traces)
    run(model, 0.3, 0.6, guidance=Unguided(0.9))
    assert len(traces) == again
    evidences = {float(p.log_evidence[0]) for p in (first, second, third)}
    assert len(evidences) == 3
    # The controls: what makes another program does.
    run(model, 0.3, 0.5, guidance=Unguided(0.8))
    assert len(traces) >= again + compiled // 2
    before = len(traces)
    run(model, 0.3, 0.5, guidance=Unguided(0.8), num_particles=5)
    assert len(traces) > before


@pytest.mark.gate
def test_sizes_stay_sizes_also_as_numpys():
    traces = []
    model = counted(traces)
    y = jnp.array([0.3, 0.4])
    posterior, _ = run(model, y, size=np.int64(2))
    assert posterior.log_evidence.shape == (2,)
    before = len(traces)
    run(model, y, size=2)
    assert len(traces) == before


@pytest.mark.gate
def test_a_model_that_branches_on_a_number_is_compiled_with_it():
    def model(y, scale):
        x = jnp.asarray(numpyro.sample("x", PRIOR))
        numpyro.sample("y", dist.Normal(x[0], scale if scale > 0.0 else 1.0), obs=y)

    evidence = lambda scale: float(run(model, 0.3, scale)[0].log_evidence)
    assert evidence(-1.0) == evidence(1.0)
    assert evidence(0.5) != evidence(1.0)


@pytest.mark.gate
def test_programs_go_with_their_model():
    model = counted([])
    run(model, 0.3)
    programs, gone = weakref.ref(programs_of(model)), weakref.ref(model)
    kept = len(_programs._KEPT)
    del model
    gc.collect()
    assert gone() is None
    assert programs() is None
    assert len(_programs._KEPT) == kept - 1


SHIFT = 0.0


def test_a_value_around_the_model_that_was_bound_anew_is_seen(monkeypatch):
    def first(x):
        return x + SHIFT

    part = lambda model, args, kwargs: model(*args, **kwargs)
    call = lambda model: float(programs_of(model).call(part, (1.0,), {}))
    assert call(first) == 1.0
    monkeypatch.setitem(globals(), "SHIFT", 2.0)
    assert call(first) == 3.0
    step = 1.0
    second = lambda x: x + step
    wrapped = functools.partial(second)
    assert (call(second), call(wrapped)) == (2.0, 2.0)
    step = 5.0
    assert (call(second), call(wrapped)) == (6.0, 6.0)


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return self.scale * x


def test_an_attribute_of_the_model_that_was_bound_anew_is_seen():
    part = lambda model, args, kwargs: model(*args)
    call = lambda model: float(programs_of(model).call(part, (3.0,), {}))
    model = Scaled(2.0)
    shared, method = functools.partial(model), model.__call__
    assert (call(model), call(method), call(shared)) == (6.0, 6.0, 6.0)
    model.scale = 4.0
    assert (call(model), call(method)) == (12.0, 12.0)


def test_a_module_with_arrays_is_a_model():
    layer = eqx.nn.Linear(1, 1, key=jr.key(0))
    part = lambda model, args, kwargs: model(*args)
    x = jnp.ones(1)
    first, second = (programs_of(layer).call(part, (x,), {}) for _ in range(2))
    np.testing.assert_array_equal(first, layer(x))
    np.testing.assert_array_equal(first, second)


class Model:
    def __init__(self, traces):
        self.traces = traces

    def run(self, x):
        self.traces.append(0)
        return x


def test_methods_and_callables_that_take_no_weak_reference():
    traces = []
    model, other = Model(traces), Model(traces)
    part = lambda model, args, kwargs: model(*args)
    for _ in range(2):  # a bound method is another object each time
        assert float(programs_of(model.run).call(part, (2.0,), {})) == 2.0
    assert len(traces) == 1
    programs_of(other.run).call(part, (2.0,), {})
    assert len(traces) == 2
    assert float(programs_of(abs).call(part, (-2.0,), {})) == 2.0


def test_arguments_as_they_are_compiled():
    found = traceable({"a": 0.5, "b": np.float32(0.5), "c": [3, True, None, "s"]})
    assert found["a"].weak_type
    assert found["b"].dtype == jnp.float32
    assert found["c"] == [3, True, None, "s"]
    plain = traceable((np.int8(3), np.bool_(True), np.float32(0.5), 0.5), False)
    assert plain == (3, True, 0.5, 0.5)
    assert [type(value) for value in plain] == [int, bool, float, float]


def test_true_is_not_one():
    part = lambda model, args, kwargs: model(*args)
    kind = lambda flag: jnp.asarray(1.0 if flag is True else 2.0)
    programs = programs_of(kind)
    assert float(programs.call(part, (True,), {})) == 1.0
    assert float(programs.call(part, (1,), {})) == 2.0


def test_errors_of_a_model_are_its_own():
    def model(y):
        if y > 0:
            numpyro.sample("x", PRIOR)

    with pytest.raises(jax.errors.TracerBoolConversionError):
        run(model, jnp.array(0.3))
