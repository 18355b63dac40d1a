"""How single primitives of JAX carry labels from operands to results.

See `dependence` for what labels mean. Here an array of labels whose stride along an axis
is zero is constant along it, and NumPy's views keep it so: the labels of a thousand images
take no more memory than a thousand numbers.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex

import jax
import numpy as np
from jax import lax

__all__ = [
    "RULES",
    "SEVERAL",
    "Labels",
    "collapsed",
    "is_zero",
    "joined",
    "one_label",
]

SEVERAL = np.iinfo(np.int32).max
"""The label of what depends on more than one part."""

Labels = np.ndarray
"""Labels of an array, integers of its shape."""

Rule = Callable[[Any, list[Labels], list[Callable[[], Any]]], Sequence[Labels]]
"""Of an equation, its operands' labels and what is known of their numbers.

The labels that it returns broadcast to the shapes of the results.
"""


def joined(*labels: Labels) -> Labels:
    """The join of labels of one shape, or of shapes that broadcast."""
    shape = np.broadcast_shapes(*(one.shape for one in labels))
    total, *rest = map(_thin, labels)
    for one in rest:
        same = (one == 0) | (one == total)
        total = np.where(total == 0, one, np.where(same, total, SEVERAL))
    return np.broadcast_to(total, shape)


def spread(labels: Labels, axes: Iterable[SupportsIndex]) -> Labels:
    """Join along some axes, and give the result to all entries along them."""
    thin, axes = _thin(labels), tuple(axes)
    high = np.max(thin, axis=axes, keepdims=True, initial=0)
    low = np.where(thin == 0, SEVERAL, thin)
    low = np.min(low, axis=axes, keepdims=True, initial=SEVERAL)
    total = np.where((high == 0) | (low == high), high, SEVERAL)
    return np.broadcast_to(total, labels.shape)


def collapsed(labels: Labels, axes: Iterable[SupportsIndex]) -> Labels:
    """Joined along some axes, which keep one entry."""
    axes = tuple(axes)
    shape = tuple(1 if i in axes else n for i, n in enumerate(labels.shape))
    if labels.size == 0:
        return np.zeros(shape, np.int32)
    return spread(labels, axes)[(..., *(slice(0, n) for n in shape))]


def one_label(*labels: Labels) -> Labels:
    """The join of everything, for operands whose entries may reach anywhere."""
    return joined(*(collapsed(one, range(one.ndim)).reshape(()) for one in labels))


def is_zero(labels: Labels) -> bool:
    """Whether nothing depends on any part."""
    return not _thin(labels).any()


def _thin(labels: Labels) -> Labels:
    """One entry along each axis on which the labels are constant by their strides."""
    constant = [stride == 0 for stride in labels.strides]
    return labels[(..., *(slice(0, 1) if one else slice(None) for one in constant))]


# What works entry by entry, and what moves entries.


def _entrywise(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
    return [joined(*labels)]


def _each(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
    return labels


def _moved(move: Callable[[Labels, dict[str, Any]], Labels]) -> Rule:
    """The rule of a primitive of one operand that NumPy has too."""
    return lambda eqn, labels, known: [move(labels[0], eqn.params)]


def _sliced(labels: Labels, params: dict[str, Any]) -> Labels:
    strides = params["strides"] or (1,) * labels.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return labels[tuple(slice(*bound) for bound in bounds)]


def _broadcast_in_dim(labels: Labels, params: dict[str, Any]) -> Labels:
    shape = [1] * len(params["shape"])
    for axis, length in zip(params["broadcast_dimensions"], labels.shape, strict=True):
        shape[axis] = length
    return labels.reshape(shape)


def _concatenate(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
    return [np.concatenate(labels, axis=eqn.params["dimension"])]


def _split(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
    ends = np.cumsum(eqn.params["sizes"])[:-1]
    return np.split(labels[0], ends, axis=eqn.params["axis"])


def _pad(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
    operand, padding = labels
    with jax.ensure_compile_time_eval():
        return [np.asarray(lax.pad(operand, padding, eqn.params["padding_config"]))]


# Indices.


def _gather(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
    params, index, operand = eqn.params, known[1](), labels[0]
    dims = params["dimension_numbers"]
    if index is None:
        # Whatever it picks has the label of all that it may pick; so has what zero picks.
        operand = spread(operand, dims.start_index_map)
        index = np.zeros(eqn.invars[1].aval.shape, np.int32)
    sizes, mode = params["slice_sizes"], params["mode"]
    with jax.ensure_compile_time_eval():
        found = lax.gather(operand, index, dims, sizes, mode=mode, fill_value=0)
    return [joined(np.asarray(found), _picking(labels[1], dims, eqn.outvars[0]))]


def _picking(labels: Labels, dims: lax.GatherDimensionNumbers, var: Any) -> Labels:
    """What the rows of an index give to the results that each of them picks."""
    rows, shape = collapsed(labels, (labels.ndim - 1,)), [1] * var.aval.ndim
    kept = [axis for axis in range(len(shape)) if axis not in dims.offset_dims]
    for axis, length in zip(kept, rows.shape[:-1], strict=True):
        shape[axis] = length
    return rows.reshape(shape)


def _dynamic_slice(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
    operand, index = labels[0], []
    sizes = eqn.params["slice_sizes"]
    for axis, (size, start) in enumerate(zip(sizes, known[1:], strict=True)):
        length = operand.shape[axis]
        at = 0 if size == length else start()
        if at is None:
            operand, at = spread(operand, (axis,)), 0
        at = int(np.clip(at, 0, length - size))
        index.append(slice(at, at + size))
    return [joined(operand[tuple(index)], *labels[1:])]


def _dynamic_update_slice(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
    operand, update, *starts = labels
    lengths = zip(operand.shape, update.shape, strict=True)
    axes = [axis for axis, (whole, part) in enumerate(lengths) if whole != part]
    return [joined(operand, collapsed(update, axes), *starts)]


def _scatter(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
    """For `scatter` and those that add, multiply and so on: old and new are joined."""
    (operand, indices, update), index = labels, known[1]()
    if index is None:
        return [joined(operand, one_label(indices, update))]
    dims, mode = eqn.params["dimension_numbers"], eqn.params["mode"]
    low = np.where(update == 0, SEVERAL, update)
    nothing = np.zeros(operand.shape, np.int32)
    with jax.ensure_compile_time_eval():
        high = lax.scatter_max(nothing, index, np.asarray(update), dims, mode=mode)
        low = lax.scatter_min(nothing + SEVERAL, index, low, dims, mode=mode)
    high, low = np.asarray(high), np.asarray(low)
    found = np.where((high == 0) | (low == high), high, SEVERAL)
    return [joined(operand, found)]


# What joins along axes.


def _reduction(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
    params, num = eqn.params, len(eqn.outvars)
    axes = tuple(params["axes"] if "axes" in params else params["dimensions"])
    total = np.squeeze(collapsed(joined(*labels[:num]), axes), axes)
    return [joined(total, *labels[num:])] * num


def _along(parameter: str) -> Rule:
    """The rule of what mixes along one axis, whose length may change."""

    def rule(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
        axis = range(labels[0].ndim)[eqn.params.get(parameter, -1)]
        return [collapsed(joined(*labels), (axis,))] * len(eqn.outvars)

    return rule


def _last_axes(count: Callable[[Any], int]) -> Rule:
    """The rule of what mixes the last axes, and maps over the others."""

    def rule(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
        mixed = count(eqn)
        batch = joined(
            *(
                collapsed(one, range(one.ndim - mixed, one.ndim)).reshape(
                    one.shape[: one.ndim - mixed]
                )
                for one in labels
            )
        )
        ones = [(1,) * (var.aval.ndim - batch.ndim) for var in eqn.outvars]
        return [batch.reshape(batch.shape + one) for one in ones]

    return rule


def _window(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
    lengths = zip(
        eqn.params["window_dimensions"],
        eqn.params["padding"],
        labels[0].shape,
        eqn.outvars[0].aval.shape,
        strict=True,
    )
    untouched = [w == 1 and tuple(p) == (0, 0) and n == m for w, p, n, m in lengths]
    return [collapsed(labels[0], [i for i, u in enumerate(untouched) if not u])]


def _dot_general(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
    parts, num_free = [], []
    for one, contracted, batch in zip(
        labels, *eqn.params["dimension_numbers"], strict=True
    ):
        free = [a for a in range(one.ndim) if a not in (*batch, *contracted)]
        kept = collapsed(one, contracted).transpose(*batch, *free, *contracted)
        parts.append(kept.reshape(kept.shape[: len(batch) + len(free)]))
        num_free.append(len(free))
    left, right = parts
    left = left.reshape(*left.shape, *[1] * num_free[1])
    of_batch = right.ndim - num_free[1]
    shape = (*right.shape[:of_batch], *[1] * num_free[0], *right.shape[of_batch:])
    return [joined(left, right.reshape(shape))]


def _convolution(eqn: Any, labels: list[Labels], known: list) -> list[Labels]:
    """Images stay apart; what the kernel depends on reaches all of them."""
    dims, (images, kernel) = eqn.params["dimension_numbers"], labels
    if eqn.params["batch_group_count"] != 1:
        return [one_label(*labels)]
    axis, shape = dims.lhs_spec[0], [1] * images.ndim
    shape[dims.out_spec[0]] = images.shape[axis]
    rest = [other for other in range(images.ndim) if other != axis]
    return [joined(collapsed(images, rest).reshape(shape), one_label(kernel))]


_BY_NAMES: dict[str, Rule] = {
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt
    ceil clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq
    eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag
    integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul ne neg
    nextafter not or polygamma population_count pow random_gamma_grad real
    reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub
    tan tanh xor zeta
    """: _entrywise,
    "device_put optimization_barrier": _each,
    "broadcast_in_dim": _moved(_broadcast_in_dim),
    "reshape": _moved(lambda labels, params: labels.reshape(params["new_sizes"])),
    "rev": _moved(lambda labels, params: np.flip(labels, params["dimensions"])),
    "slice": _moved(_sliced),
    "squeeze": _moved(lambda labels, params: np.squeeze(labels, params["dimensions"])),
    "transpose": _moved(lambda labels, params: labels.transpose(params["permutation"])),
    "concatenate": _concatenate,
    "split": _split,
    "pad": _pad,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    """
    scatter scatter-add scatter-mul scatter-min scatter-max scatter-sub scatter_add
    scatter_mul scatter_min scatter_max scatter_sub
    """: _scatter,
    """
    argmax argmin reduce reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
    reduce_xor
    """: _reduction,
    "cumlogsumexp cummax cummin cumprod cumsum top_k": _along("axis"),
    "sort": _along("dimension"),
    "reduce_window_max reduce_window_min reduce_window_sum": _window,
    "cholesky eig eigh lu qr svd triangular_solve": _last_axes(lambda eqn: 2),
    "fft": _last_axes(lambda eqn: len(eqn.params["fft_lengths"])),
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
}
RULES = {name: rule for names, rule in _BY_NAMES.items() for name in names.split()}
"""By the names of JAX's primitives. A name that a release of JAX does not have does no
harm; one that it adds is taken to mix all."""
