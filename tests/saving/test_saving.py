import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.core import Tracer

from numpyro_diffusion.saving import load, read_card, register, registry, save
from numpyro_diffusion.saving.archive import ArchiveError, read_archive, write_archive


@register
class Curve(eqx.Module):
    """Plain: fields are what the constructor takes."""

    rate: Any
    label: str | None = None
    steps: tuple = eqx.field(static=True, default=())

    def __check_init__(self):
        if isinstance(self.rate, float) and self.rate == -1.0:
            raise ValueError("Curve: rate must not be -1.")


@register
class Pair(eqx.Module):
    """Plain, with a constructor of its own and a callable field."""

    curve: Curve
    network: Callable

    def __init__(self, curve, network=None):
        self.curve = curve
        self.network = lambda x: x if network is None else network
        if network is not None:
            self.network = network


@register
class Net(eqx.Module):
    """Network: hyperparameters and a key."""

    layers: list
    scale: jax.Array
    frequencies: np.ndarray
    gain: float
    activation: Callable
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    bias: bool = eqx.field(static=True)

    def __init__(self, width, *, depth=2, bias=True, key):
        keys = jr.split(key, depth)
        self.layers = [eqx.nn.Linear(width, width, bias, key=k) for k in keys]
        self.scale = jnp.ones(())
        self.frequencies = np.arange(4.0)
        self.gain = 2.0
        self.activation = lambda x: jnp.tanh(x)
        self.width, self.depth, self.bias = width, depth, bias

    def __call__(self, x, t):
        for layer in self.layers:
            x = self.activation(layer(x)) * self.gain
        return x * self.scale * t + self.frequencies.sum()


@register
class Prior:
    """Config: no Equinox module at all."""

    def __init__(self, reverse, shape, *, extra=None):
        self.reverse, self.shape, self.extra = reverse, shape, extra

    def to_config(self):
        return {"reverse": self.reverse, "shape": self.shape, "extra": self.extra}

    @classmethod
    def from_config(cls, config):
        return cls(config["reverse"], config["shape"], extra=config["extra"])


@register
@dataclasses.dataclass(frozen=True)
class Record:
    """Plain, and a dataclass of Python's own."""

    x: Any


@dataclasses.dataclass
class Stranger:
    x: Any


def bits(array):
    return np.asarray(array).dtype, np.shape(array), np.asarray(array).tobytes()


def assert_same(a, b):
    """Same structure, types and bits; functions are only asked to be functions."""
    assert type(a) is type(b)
    if isinstance(a, (jax.Array, np.ndarray, np.generic)):
        assert bits(a) == bits(b)
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif hasattr(a, "to_config"):
        assert_same(list(a.to_config().values()), list(b.to_config().values()))
    elif not callable(a):
        assert repr(a) == repr(b)  # NaN equals itself, 0.0 is not -0.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "object.nd"


def round_trip(path, obj):
    save(path, obj)
    back = load(path)
    assert_same(obj, back)
    return back


VALUES = [
    None,
    True,
    3,
    2**80,
    0.1,
    -0.0,
    5e-324,
    float("nan"),
    float("-inf"),
    "α \n",
    (),
    [],
    (1, (2.0, [None, "x"]), [(), []]),
    np.float64(0.1),
    np.int8(3),
    np.arange(6, dtype=np.int32).reshape(2, 3),
    np.zeros((2, 0), np.float16),
    np.array(True),
    jnp.array(0.25, jnp.float32),
    jnp.arange(3, dtype=jnp.bfloat16),
    (jnp.ones(2), [np.ones(2)]),
    Curve(0.5),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: str(v)[:20])
def test_values_come_back(path, value):
    round_trip(path, Record(value))
    round_trip(path, value)


def test_plain_class_comes_back(path):
    back = round_trip(path, Curve(jnp.array([0.1, 0.2]), "x", (2, 3)))
    assert back.steps == (2, 3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16, jnp.int32])
def test_network_comes_back_with_its_dtype(path, getkey, dtype):
    """The tests run in double precision; a float32 network must stay float32."""
    net = jax.tree.map(
        lambda x: x.astype(dtype) if isinstance(x, jax.Array) else x,
        Net(5, depth=3, bias=False, key=getkey()),
    )
    back = round_trip(path, net)
    assert back.layers[2].weight.dtype == dtype
    assert (back.width, back.depth, back.bias) == (5, 3, False)
    x = jnp.ones(5, dtype)
    np.testing.assert_array_equal(back(x, 0.5), net(x, 0.5))


def test_trained_leaves_are_what_comes_back(path, getkey):
    net = eqx.tree_at(lambda n: n.scale, Net(2, key=getkey()), jnp.array(jnp.nan))
    assert bool(jnp.isnan(round_trip(path, net).scale))


def test_loading_a_network_draws_no_numbers(path, getkey, monkeypatch):
    save(path, Net(2, key=getkey()))
    concrete = []
    split = jr.split

    def spy(key, num):
        concrete.append(not isinstance(key, Tracer))
        return split(key, num)

    monkeypatch.setattr(jr, "split", spy)
    load(path)
    assert concrete
    assert not any(concrete)


def test_nested_objects_of_every_sort_come_back(path, getkey):
    pair = Pair(Curve((0.5, np.ones(2)), None), Net(3, key=getkey()))
    other = Pair(Curve(1), Net(2, depth=1, key=getkey()))
    extra = [Record(other), (Prior(other, (3,)), None)]
    round_trip(path, Prior(pair, (3,), extra=extra))


def test_network_takes_objects_and_arrays_as_hyperparameters(path, getkey):
    """The array `weight` is a hyperparameter and a leaf: neither may hide the other."""

    @register
    class Nested(eqx.Module):
        curve: Curve
        weight: jax.Array
        activation: Callable | None

        def __init__(self, curve, weight, activation=None, *, key):
            self.curve, self.weight, self.activation = curve, weight, activation

    args = Curve(0.5, "x", (1,)), jnp.arange(3)
    round_trip(path, Nested(*args, key=getkey()))
    round_trip(path, Nested(*args, Net(2, key=getkey()), key=getkey()))
    with pytest.raises(TypeError, match=r"Nested\.activation is the function tanh"):
        save(path, Nested(*args, jnp.tanh, key=getkey()))


# ---- What cannot be saved


def test_unregistered_class_is_named(path):
    message = (
        r"save: Prior\.reverse\[1\] is an object of class .*\.Stranger, which cannot "
        r"be saved; .*register it with `numpyro_diffusion\.saving\.register`"
    )
    with pytest.raises(TypeError, match=message):
        save(path, Prior((1, Stranger(2)), ()))
    assert not path.exists()


def test_class_of_a_registered_name_is_still_a_stranger(path):
    @dataclasses.dataclass
    class Curve:
        rate: float

    with pytest.raises(TypeError, match=r"<locals>\.Curve, which cannot be saved"):
        save(path, Curve(0.5))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x, "<lambda>"),
        (jnp.tanh, "tanh"),
        (jax.nn.relu, "relu"),
        (len, "len"),
        (jax.jit(lambda x: x), "<lambda>"),
    ],
    ids=["lambda", "jax", "custom_jvp", "builtin", "jit"],
)
def test_function_is_named(path, function, name):
    message = rf"Pair\.network is the function {name}, .*Equinox module and register it"
    with pytest.raises(TypeError, match=message):
        save(path, Pair(Curve(1), function))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (1j, "builtins.complex"),
        ({1: "a"}, "builtins.dict"),
        (int, "builtins.type"),
        (object(), "builtins.object"),
    ],
    ids=["complex", "dict", "type", "object"],
)
def test_other_values_are_refused(path, value, what):
    with pytest.raises(TypeError, match=rf"Record\.x is an object of class {what}"):
        save(path, Record(value))


def test_key_and_object_array_are_refused(path):
    with pytest.raises(TypeError, match=r"'Record\.x' must have .* got key<fry>"):
        save(path, Record(jr.key(0)))
    with pytest.raises(TypeError, match=r"'Record\.x' must have .* got object"):
        save(path, Record(np.array([None])))


@pytest.mark.parametrize(
    ("where", "new", "message"),
    [
        (lambda n: n.gain, 3.0, r"leaf \.gain of Net must be .* 2\.0, got 3\.0"),
        (
            lambda n: n.layers[0].weight,
            jnp.ones((2, 5)),
            r"\.layers\[0\]\.weight .* shape \(2, 2\), got an array of shape \(2, 5\)",
        ),
        (lambda n: n.layers[1].bias, None, r"\.layers\[1\]\.bias .* got None"),
        (lambda n: n.layers[1].bias, 0.5, r"\.layers\[1\]\.bias .* got 0\.5"),
    ],
    ids=["number", "shape", "none", "no array"],
)
def test_network_that_would_not_come_back_is_refused(path, getkey, where, new, message):
    net = eqx.tree_at(where, Net(2, key=getkey()), new)
    with pytest.raises(ValueError, match=message):
        save(path, net)


# ---- Registering


def test_taken_name_is_refused():
    class Curve(eqx.Module):
        pass

    with pytest.raises(ValueError, match="the name Curve is taken by test_saving"):
        register(Curve)


def test_registering_again_is_fine():
    assert register(Curve) is Curve


def test_class_defined_again_at_the_same_place_takes_over(monkeypatch):
    """As in a notebook whose cell is run twice."""
    monkeypatch.setattr(registry, "_REGISTRY", {})

    def define():
        cls = dataclasses.make_dataclass("Cell", ["x"])
        cls.__module__ = "__main__"
        return register(cls)

    first, second = define(), define()
    assert first is not second
    assert registry._REGISTRY["Cell"].cls is second


class NoDataclass:
    def __init__(self, x):
        self.x = x


class OtherFields(eqx.Module):
    eigenvalues: jax.Array

    def __init__(self, covariance):
        self.eigenvalues = jnp.linalg.eigvalsh(covariance)


class LosesWidth(eqx.Module):
    weight: jax.Array

    def __init__(self, width, *, key):
        self.weight = jr.normal(key, (width,))


class TakesAnything(eqx.Module):
    weight: jax.Array

    def __init__(self, **kwargs):
        self.weight = kwargs["weight"]


class KeyButNoModule:
    def __init__(self, *, key):
        pass


class HalfConfig:
    def to_config(self):
        return {}


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NoDataclass, "NoDataclass is no dataclass .*to_config.*from_config"),
        (OtherFields, "fields eigenvalues but the constructor arguments covariance"),
        (LosesWidth, "LosesWidth does not keep its arguments width as fields"),
        (TakesAnything, "TakesAnything is no dataclass with named"),
        (dataclasses.dataclass(KeyButNoModule), "takes a key but is no Equinox module"),
        (HalfConfig, "has only one of to_config and from_config"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_class_of_no_known_sort_is_refused(cls, message):
    with pytest.raises(TypeError, match=message):
        register(cls)
    assert cls.__name__ not in registry._REGISTRY


# ---- Loading what does not fit


def edit(path, change):
    """Rewrite the description of the object, with a checksum that is right."""
    header, arrays = read_archive(path)
    change(header["object"], arrays)
    write_archive(path, header, arrays)


def test_class_that_is_not_registered_is_named(path, monkeypatch):
    save(path, Prior(Curve(1), ()))
    rest = {n: e for n, e in registry._REGISTRY.items() if n != "Curve"}
    monkeypatch.setattr(registry, "_REGISTRY", rest)
    message = (
        r"object\.nd holds an object of class Curve, which is not registered: import "
        r"the module that defines it, or register it with"
    )
    with pytest.raises(ArchiveError, match=message):
        load(path)


def test_class_that_changed_its_sort_is_named(path):
    save(path, Curve(1))
    edit(path, lambda node, arrays: node.update(sort="network"))
    with pytest.raises(ArchiveError, match=r"Curve as a network class, .* is a plain"):
        load(path)


def test_renamed_field_is_named(path):
    save(path, Curve(1))
    edit(path, lambda node, arrays: node["values"].update(speed=2))
    edit(path, lambda node, arrays: node["values"].pop("rate"))
    message = (
        r"object\.nd does not fit the class test_saving\.Curve, whose arguments "
        r"are label, rate, steps: missing from the file are rate, unknown to the class "
        r"are speed"
    )
    with pytest.raises(ArchiveError, match=message):
        load(path)


def test_renamed_hyperparameter_is_named(path, getkey):
    save(path, Net(2, key=getkey()))
    edit(path, lambda node, arrays: node["values"].update(heads=2))
    with pytest.raises(ArchiveError, match=r"missing .* \(none\), unknown .* heads"):
        load(path)


def test_argument_that_came_later_takes_its_default(path):
    save(path, Curve(1, "x"))
    edit(path, lambda node, arrays: node["values"].pop("label"))
    assert load(path).label is None


def test_constructor_still_checks(path):
    save(path, Curve(1))
    edit(path, lambda node, arrays: node["values"].update(rate=-1.0))
    with pytest.raises(ValueError, match="rate must not be -1"):
        load(path)


def test_other_leaves_are_named(path, getkey):
    save(path, Net(2, key=getkey()))
    edit(
        path,
        lambda node, arrays: node["leaves"].update(
            {".size": node["leaves"].pop(".scale")}
        ),
    )
    message = r"Net has other leaves .* missing .* \.scale, unknown .* are \.size"
    with pytest.raises(ArchiveError, match=message):
        load(path)


def test_other_shape_is_named(path, getkey):
    save(path, Net(2, key=getkey()))
    name = "Net(.layers[0].weight)"
    edit(path, lambda node, arrays: arrays.update({name: np.ones((3, 2))}))
    message = (
        r"the network Net must have shape \(2, 2\) at the leaf \.layers\[0\]\.weight, "
        r"the file has \(3, 2\)"
    )
    with pytest.raises(ArchiveError, match=message):
        load(path)


def test_leaf_that_is_no_array_is_named(path, getkey):
    save(path, Net(2, key=getkey()))
    edit(path, lambda node, arrays: node["leaves"].update({".scale": 1.0}))
    with pytest.raises(ArchiveError, match=r"shape \(\) at the leaf .* has None"):
        load(path)


@pytest.mark.parametrize(
    "node",
    [
        {},
        {"float": "1e5"},
        {"tuple": 3},
        {"array": "nowhere", "as": "jax"},
        {"class": "Curve"},
        {"class": ["Curve"], "sort": "plain", "values": {}, "leaves": {}},
        [1, 2],
    ],
    ids=str,
)
def test_description_of_no_sense_is_refused(path, node):
    write_archive(path, {"kind": "checkpoint", "object": node}, {})
    with pytest.raises(ArchiveError, match="must describe its object by values"):
        load(path)


@pytest.mark.parametrize("read", [load, read_card])
@pytest.mark.parametrize("header", [{"kind": "training state"}, {}], ids=str)
def test_archive_of_another_kind_is_named(path, read, header):
    write_archive(path, header, {})
    message = f"must hold an object saved by .* got .* {header.get('kind')!r}"
    with pytest.raises(ArchiveError, match=message):
        read(path)


def test_the_state_of_a_training_run_is_named_for_what_it_is(path):
    """`fit(checkpoint=...)` and `save` write archives both, and the names are alike."""
    write_archive(path, {"kind": "training state"}, {})
    message = r"of kind 'training state', the state of .* `fit\(.*checkpoint=.* resumes"
    with pytest.raises(ArchiveError, match=message):
        load(path)


@pytest.mark.parametrize("read", [load, read_card])
def test_file_that_is_no_archive_is_named(path, read):
    with pytest.raises(FileNotFoundError):
        read(path)
    path.write_bytes(b"\x80\x04\x95 pickle")
    with pytest.raises(ArchiveError, match="is not a numpyro_diffusion archive"):
        read(path)


def test_file_names_no_code(path):
    """Neither a module's path nor a built-in is ever looked up."""
    for name in ("os.system", "builtins.eval", "eval", "test_saving.Stranger"):
        node = {"class": name, "sort": "plain", "values": {"x": "1"}, "leaves": {}}
        write_archive(path, {"kind": "checkpoint", "object": node}, {})
        with pytest.raises(ArchiveError, match=f"class {name}, which is not regist"):
            load(path)


def test_double_precision_is_not_lost_in_silence(path):
    save(path, Record((np.ones(1), jnp.ones(1, jnp.float32))))
    with jax.enable_x64(False):
        load(path)
    save(path, Record(jnp.ones(1)))
    with (
        jax.enable_x64(False),
        pytest.raises(
            ArchiveError, match=r"Record\.x is float64, .* turn into float32"
        ),
    ):
        load(path)


# ---- Cards and processes


def test_card_comes_back(path):
    card = {"data": "digits", "bound": -1.5, "shape": [8, 8]}
    save(path, Curve(1), card=card)
    assert read_card(path) == card
    save(path, Curve(1))
    assert read_card(path) == {}


def test_card_that_is_not_json_leaves_the_old_file(path):
    save(path, Curve(1))
    with pytest.raises(TypeError, match="made of JSON types"):
        save(path, Curve(2), card={"date": object()})
    assert load(path).rate == 1


def test_header_is_readable_and_names_the_library(path):
    save(path, Curve(jnp.ones(2)))
    header = read_archive(path).header
    assert header["kind"] == "checkpoint"
    assert isinstance(header["library_version"], str)
    assert json.loads(json.dumps(header)) == header


@pytest.mark.gate
def test_file_is_read_in_another_process(path):
    """In single precision, where this one has double."""
    save(path, (jnp.arange(3, dtype=jnp.float32), "x"))
    code = (
        "import sys; from numpyro_diffusion.saving import load; "
        "array, text = load(sys.argv[1]); print(array.dtype, array.tolist(), text)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "float32 [0.0, 1.0, 2.0] x"
