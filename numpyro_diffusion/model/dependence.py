r"""Which parts of a value each entry of a function of it depends on.

Give every entry of an array a label: 0 where it depends on no part of the value, k >= 1
where on part k alone, `SEVERAL` where on more than one. Labels form a lattice: two join to
the larger of them if one is 0 or both are equal, and to `SEVERAL` else. So a program runs
on labels as it does on numbers, one primitive after the other: what works entry by entry
joins the labels of its operands; what moves entries moves labels; sums along an axis join
along it; loops run until their labels stay. An index that is a constant of the program is
followed; of one that is not, all that it may pick is joined. What has no rule joins all of
its operands.

The labels are an upper bound for any numbers: what is told apart is independent, and what
is independent may be called dependent (`x - x` depends on x).

Source: dependence by abstract interpretation is Cousot and Cousot 1977,
doi:10.1145/512950.512973.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import Literal
from jaxtyping import Array, Int, PyTree

from numpyro_diffusion.model.dependence_rules import (
    RULES,
    SEVERAL,
    Labels,
    collapsed,
    is_zero,
    joined,
    one_label,
)

__all__ = ["SEVERAL", "dependence"]

CALLS = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
}
"""Primitives that run a program on their operands, and where they keep it."""


class _Value(NamedTuple):
    """What is known of a variable: its labels, and its numbers if they are constant."""

    labels: Labels
    known: Callable[[], Any]


def _unknown() -> None:
    return None


def dependence(
    function: Callable, x: Any, labels: Int[np.ndarray, "..."], *others: Any
) -> PyTree[Int[np.ndarray, "..."]]:
    """The labels of a function's values, given those of its first argument.

    Read off the program that JAX traces; nothing is computed but indices.

    Args:
        function: Of `x` and `others`, its values arrays.
        x: An array, or its shape and dtype.
        labels: Of the entries of `x`, integers of its shape, 0 or the number of a part.
        others: Further arguments. They belong to no part, and their values are not looked
            at, so that it does not matter whether they are known yet.

    Returns:
        Labels of the function's values, integers of their shapes. Views: not to be written
        to.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(x, *others)
    given = [_Value(np.asarray(labels, np.int32), _unknown)]
    given += [
        _Value(_nowhere(var.aval.shape), _unknown) for var in program.jaxpr.invars[1:]
    ]
    found = [value.labels for value in _run(program, given)]
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _nowhere(shape: tuple[int, ...]) -> Labels:
    return np.broadcast_to(np.int32(0), shape)


def _run(program: Any, inputs: Sequence[_Value]) -> list[_Value]:
    """Interpret a program, closed or open, on labels."""
    jaxpr, constants = (
        getattr(program, "jaxpr", program),
        getattr(program, "consts", ()),
    )
    env = dict(zip(jaxpr.constvars, map(_constant, constants), strict=True))
    env.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> _Value:
        return _constant(atom.val) if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        outputs = _apply(eqn, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _constant(value: Any) -> _Value:
    """A constant of the program; under `jit` it may be an argument, as yet unknown."""
    known = _unknown if isinstance(value, Tracer) else lambda: value
    return _Value(_nowhere(np.shape(value)), known)


def _apply(eqn: Any, inputs: list[_Value]) -> list[_Value]:
    name, labels = eqn.primitive.name, [value.labels for value in inputs]
    shapes = [var.aval.shape for var in eqn.outvars]
    if name in CALLS:
        return _run(eqn.params[CALLS[name]], inputs)
    if (
        name == "call_hi_primitive"
    ):  # of JAX 0.12 on: a program that is not spelt out yet
        return _run(_spelt_out(eqn), inputs)
    if all(map(is_zero, labels)):
        numbers = functools.cache(lambda: _evaluated(eqn, inputs))
        return [
            _Value(_nowhere(shape), lambda i=i: (numbers() or {}).get(i))
            for i, shape in enumerate(shapes)
        ]
    if name in PROGRAMS:
        outputs = PROGRAMS[name](eqn, inputs)
    elif name in RULES:
        outputs = RULES[name](eqn, labels, [value.known for value in inputs])
    else:
        outputs = [one_label(*labels)] * len(shapes)
    return [
        _Value(np.broadcast_to(one, shape), _unknown)
        for one, shape in zip(outputs, shapes, strict=True)
    ]


def _evaluated(eqn: Any, inputs: Sequence[_Value]) -> dict[int, Array] | None:
    """The numbers behind constants, if all operands are; indices are made this way."""
    numbers = [value.known() for value in inputs]
    if any(one is None for one in numbers):
        return None
    with jax.ensure_compile_time_eval():
        found = eqn.primitive.bind(*numbers, **eqn.params)
    return dict(enumerate(found if eqn.primitive.multiple_results else [found]))


def _spelt_out(eqn: Any) -> Any:
    """The program behind a primitive of a higher level."""
    given = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    lower = lambda *values: eqn.primitive.to_lojax(*values, **eqn.params)
    return jax.make_jaxpr(lower)(*given)


def _lengths(params: Any) -> tuple[int, int]:
    """How many constants and carried values a scan has."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()  # from JAX 0.12 on
    return len(list(constants)), len(list(carry))


def _scan(eqn: Any, inputs: list[_Value]) -> list[Labels]:
    params = eqn.params
    num_consts, num_carry = _lengths(params)
    constants = inputs[:num_consts]
    carry = [value.labels for value in inputs[num_consts : num_consts + num_carry]]
    # One step stands for all: it may see what any of them does.
    rows = [
        _Value(np.squeeze(collapsed(value.labels, (0,)), 0), _unknown)
        for value in inputs[num_consts + num_carry :]
    ]

    def step(carry: list[Labels]) -> list[Labels]:
        given = [*constants, *(_Value(one, _unknown) for one in carry), *rows]
        return [value.labels for value in _run(params["jaxpr"], given)]

    carry, found = _until_it_stays(step, carry)
    return [*carry, *found[num_carry:]]


def _while(eqn: Any, inputs: list[_Value]) -> list[Labels]:
    params = eqn.params
    split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    of_test, of_body = inputs[: split[0]], inputs[split[0] : split[1]]

    def step(carry: list[Labels]) -> list[Labels]:
        values = [_Value(one, _unknown) for one in carry]
        test = _run(params["cond_jaxpr"], [*of_test, *values])[0].labels
        found = _run(params["body_jaxpr"], [*of_body, *values])
        # How often the body runs shows in all that it carries.
        return [joined(value.labels, test) for value in found]

    carry = [value.labels for value in inputs[split[1] :]]
    return _until_it_stays(step, carry)[0]


def _until_it_stays(
    step: Callable[[list[Labels]], list[Labels]], carry: list[Labels]
) -> tuple[list[Labels], list[Labels]]:
    """The least labels that a loop keeps, and what its step gives at them."""
    while True:
        found = step(carry)
        wider = [joined(a, b) for a, b in zip(carry, found, strict=False)]
        if all(map(np.array_equal, carry, wider)):
            return carry, found
        carry = wider


def _cond(eqn: Any, inputs: list[_Value]) -> list[Labels]:
    chosen, operands = inputs[0].labels, inputs[1:]
    branches = [_run(branch, operands) for branch in eqn.params["branches"]]
    return [
        joined(chosen, *(value.labels for value in values))
        for values in zip(*branches, strict=True)
    ]


def _linear_solve(eqn: Any, inputs: list[_Value]) -> list[Labels]:
    lengths = eqn.params["const_lengths"]
    start = lengths.matvec + lengths.vecmat
    constants = inputs[start : start + lengths.solve]
    right_side = inputs[-len(eqn.outvars) :]
    solved = _run(eqn.params["jaxprs"].solve, [*constants, *right_side])
    return [value.labels for value in solved]


PROGRAMS = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "custom_linear_solve": _linear_solve,
}
"""Rules of primitives that run programs of their own."""
