import inspect
import types

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.saving import registry
from numpyro_diffusion.saving.archive import ArchiveError, read_archive, write_archive
from numpyro_diffusion.saving.registry import (
    entry_named,
    entry_of,
    misfit,
    register_exports,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "object.nd"


class AbstractShape(eqx.Module):
    """Abstract by its name: it has no method without a body."""

    size: float


class Square(AbstractShape):
    pass


class Circle(AbstractShape):
    pass


class Ghost(eqx.Module):
    eigenvalues: jax.Array

    def __init__(self, covariance):
        self.eigenvalues = jnp.linalg.eigvalsh(covariance)


def room(**names):
    """A module that exports what it is given."""
    module = types.ModuleType("room")
    vars(module).update(names)
    module.__all__ = list(names)
    return module


def test_what_a_room_exports_is_registered_and_nothing_else(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", {})
    inner = room(Square=Square)
    outer = room(
        inner=inner,
        AbstractShape=AbstractShape,
        Ghost=Ghost,
        Error=ArchiveError,
        make=lambda: Circle(1.0),
        constant=3.0,
        Scaling=nd.datasets.Scaling,
    )
    outer.Circle = Circle  # there, but not exported
    register_exports([outer])
    assert sorted(registry._REGISTRY) == ["Scaling", "Square"]
    assert entry_of(Square(1.0)).sort == "plain"
    assert entry_of(Circle(1.0)) is None


def test_two_exported_classes_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", {})
    other = type("Square", (AbstractShape,), {"__module__": "elsewhere"})
    with pytest.raises(ValueError, match=r"name Square is taken by .*test_registry"):
        register_exports([room(Square=Square), room(Square=other)])


ROOMS = [
    nd.samplers,
    nd.networks,
    nd.paper2015,
    nd.analytic,
    nd,
]
FINAL = {
    name: value
    for room in ROOMS
    for name, value in ((name, getattr(room, name)) for name in room.__all__)
    if inspect.isclass(value)
    and issubclass(value, eqx.Module)
    and not name.startswith("Abstract")
}


def test_there_are_classes_to_look_at():
    assert {"Ancestral", "GaussianReverse", "UNet", "KernelReverse"} <= set(FINAL)


# How one trains is no part of a prior.
TRAINING = {"BoundLoss", "Compute", "ContinuousLoss", "DenoisingLoss", "Monitor"}


@pytest.mark.parametrize("name", sorted(set(FINAL) - TRAINING))
def test_every_module_that_a_prior_may_hold_is_registered(name):
    assert misfit(FINAL[name]) is None
    assert entry_named(name).cls is FINAL[name]


def test_no_abstract_class_is_registered():
    assert [n for n in registry._REGISTRY if n.startswith("Abstract")] == []


# ---- Objects that no list names


GAUSSIAN = nd.GaussianForward(nd.schedules.cosine())
BITS = nd.BernoulliForward(nd.schedules.signal_linear(), 0.3)
COVARIANCE = np.array([[1.0, 0.999999], [0.999999, 1.0]])
EXACT = {
    "gaussian": nd.analytic.GaussianReverse(
        GAUSSIAN, jnp.array([0.5, -1.0]), jnp.asarray(COVARIANCE)
    ),
    "mixture": nd.analytic.MixtureReverse(
        GAUSSIAN,
        jnp.array([0.3, 0.7]),
        jnp.array([[-1.0, 0], [1, 1]]),
        jnp.ones((2, 2)),
    ),
    "patterns": nd.analytic.PatternsReverse(
        BITS, jnp.array([0.3, 0.7]), jnp.array([[0.0, 1.0], [1.0, 1.0]])
    ),
}


def test_every_exact_process_is_tried():
    classes = [
        c for c in nd.analytic.__all__ if inspect.isclass(getattr(nd.analytic, c))
    ]
    assert sorted(type(r).__name__ for r in EXACT.values()) == sorted(classes)


@pytest.mark.parametrize("name", EXACT)
def test_a_prior_of_an_exact_process_comes_back(path, name):
    """A Gaussian's was refused: the class keeps eigenvalues and takes a covariance."""
    prior = nd.DiffusionPrior(EXACT[name], (2,), 7)
    nd.save(path, prior)
    back = nd.load(path)
    same = eqx.tree_equal(prior.reverse, back.reverse)
    assert bool(same)
    key = jax.random.key(1)
    np.testing.assert_array_equal(back.sample(key, (5,)), prior.sample(key, (5,)))


def test_control_a_covariance_multiplied_out_is_another():
    reverse = EXACT["gaussian"]
    q, spectrum = reverse.eigenvectors, reverse.eigenvalues
    again = nd.analytic.GaussianReverse(GAUSSIAN, reverse.mean, (q * spectrum) @ q.T)
    assert not np.array_equal(again.eigenvalues, spectrum)


@pytest.mark.parametrize(
    "sampler",
    [
        nd.samplers.Ancestral(3),
        nd.samplers.Ancestral(times=[0.0, 0.1, 1.0]),
        nd.samplers.DDIM(3, 0.5),
        nd.samplers.HeunSampler(times=[0.0, 0.1, 1.0]),
        nd.samplers.DPMSolver(3, stochastic=True),
        nd.samplers.PredictorCorrector(3, num_corrections=2),
    ],
    ids=["uniform", "times", "ddim", "heun", "dpm", "corrector"],
)
@pytest.mark.parametrize(
    "scaling",
    [
        None,
        nd.datasets.Scaling(1.0, 2.0),
        nd.datasets.Scaling(np.array([1.0, 2.0]), np.float64(0.5)),
        nd.datasets.Scaling(jnp.zeros(2), jnp.array([1.0, 3.0])),
    ],
    ids=["none", "numbers", "numpy", "jax"],
)
def test_samplers_and_scalings_come_back(path, sampler, scaling):
    prior = nd.DiffusionPrior(EXACT["mixture"], (2,), sampler=sampler, scaling=scaling)
    nd.save(path, prior)
    back = nd.load(path)
    assert back.sampler == sampler
    assert type(back.scaling) is type(scaling)
    for a, b in zip(back.scaling or (), scaling or (), strict=True):
        assert type(a) is type(b)
        np.testing.assert_array_equal(a, b)


def test_every_explicit_solver_comes_back(path):
    for solver in (diffrax.Ralston(), diffrax.Midpoint(), diffrax.Dopri8()):
        nd.save(path, nd.ProbabilityFlow(solver=solver))
        assert type(nd.load(path).solver) is type(solver)


# ---- Advice that helps


def test_advice_for_a_class_that_cannot_be_registered(path):
    """Saving advised registering it, which was refused then."""
    message = (
        r"Ghost, which cannot be saved; Ghost has the fields eigenvalues but the "
        r"constructor arguments covariance\. .*`to_config\(self\) -> dict`"
    )
    with pytest.raises(TypeError, match=message):
        nd.save(path, Ghost(jnp.eye(2)))


def test_advice_for_a_network_of_another_library_holds(path, monkeypatch):
    """Equinox's own MLP: make it in a class of one's own, and register that."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    mlp = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    message = "does not keep its arguments .* in an Equinox module of your own"
    with pytest.raises(TypeError, match=message):
        nd.save(path, nd.DenoisingReverse(GAUSSIAN, mlp))

    @nd.saving.register
    class Mine(eqx.Module):
        mlp: eqx.nn.MLP
        width: int = eqx.field(static=True)

        def __init__(self, width, *, key):
            self.mlp = eqx.nn.MLP(2, 2, width, 1, key=key)
            self.width = width

        def __call__(self, x, t):
            return self.mlp(x) * t

    mine = Mine(4, key=jax.random.key(0))
    nd.save(path, nd.DenoisingReverse(GAUSSIAN, mine))
    back = nd.load(path).network
    np.testing.assert_array_equal(back(jnp.ones(2), 0.5), mine(jnp.ones(2), 0.5))


def test_advice_for_a_name_that_is_taken(path):
    other = type("Cosine", (AbstractShape,), {"__module__": "elsewhere"})
    with pytest.raises(TypeError, match=r"taken by .*\.Cosine: give the class another"):
        nd.save(path, other(1.0))


# ---- Classes in wrong places


def swapped(path, reverse, member, replacement):
    """Save a process, with another object in the place of one of its members."""
    nd.save(path, replacement)
    other = read_archive(path).header["object"]
    nd.save(path, reverse)
    header, arrays = read_archive(path)
    header["object"]["values"][member] = other
    write_archive(path, header, arrays)


REVERSE = nd.DenoisingReverse(
    GAUSSIAN, nd.networks.MLP((2,), width=4, depth=1, key=jax.random.key(0))
)


@pytest.mark.parametrize(
    ("member", "replacement", "needed"),
    [
        ("error", nd.schedules.cosine(), "DenoisingError"),
        ("forward", nd.schedules.cosine(), "AbstractForward"),
        ("forward", 3.0, "AbstractForward"),
        ("network", nd.schedules.cosine(), "Callable"),
        ("prediction", BITS, "AbstractPrediction"),
    ],
    ids=["error", "forward", "number", "network", "prediction"],
)
def test_an_object_in_a_wrong_place_is_named(path, member, replacement, needed):
    """A schedule as `error` was loaded, and the first draw failed."""
    swapped(path, REVERSE, member, replacement)
    message = rf"DenoisingReverse, whose {member} must be .*{needed}.*, got an object"
    with pytest.raises(ArchiveError, match=message):
        nd.load(path)


def test_an_object_in_its_place_is_loaded(path):
    swapped(path, REVERSE, "prediction", nd.DataPrediction())
    assert isinstance(nd.load(path).prediction, nd.DataPrediction)


def test_what_a_constructor_refuses_is_an_archive_error(path):
    nd.save(path, nd.DiffusionPrior(EXACT["mixture"], (2,), 7))
    header, arrays = read_archive(path)
    header["object"]["values"]["event_shape"] = {"tuple": [3]}
    write_archive(path, header, arrays)
    with pytest.raises(ArchiveError, match=r"a DiffusionPrior that cannot be made: .*"):
        nd.load(path)


def test_a_file_with_a_chain_of_no_end_is_refused(path):
    """It loaded, and the first draw asked for 24 GB."""
    nd.save(path, nd.DiffusionPrior(EXACT["mixture"], (2,), 7))
    header, arrays = read_archive(path)
    header["object"]["values"]["sampler"]["values"]["num_steps"] = 10**9
    write_archive(path, header, arrays)
    with pytest.raises(ArchiveError, match="num_steps must be at most 1000000"):
        nd.load(path)
