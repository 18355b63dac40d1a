r"""Several diffusion priors as one reverse process.

Independent priors $p_1(x_1), \ldots, p_n(x_n)$ have a joint reverse process: it steps each
of them by its own law, on its own schedule, all in the same number of steps. Its event is
the vector of all their entries, and its schedule is a curve per entry, so that whatever
knows a Gaussian process by its coefficients works on it entry by entry. What ties the parts
together is the likelihood alone, through guidance and weights.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree
from numpyro.distributions import constraints

from numpyro_diffusion.forward import AbstractSchedule, GaussianForward
from numpyro_diffusion.reverse.base import AbstractReverse, ReverseStep, each
from numpyro_diffusion.reverse.components import LowRankCovariance

__all__ = ["JointReverse"]


class JointReverse(AbstractReverse):
    """The reverse process of independent Gaussian diffusion priors, side by side.

    Args:
        parts: The reverse process of each site; where it has contexts, under that of one
            event or one for each copy.
        event_shapes: The shape of one event of each.
        shapes: The shape of each site, which ends in its event's shape; what comes before
            counts copies.

    Raises:
        TypeError: A process is not over real numbers.
    """

    forward: GaussianForward
    parts: tuple[AbstractReverse, ...]
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    copies: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    own_axes: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        parts: Sequence[AbstractReverse],
        event_shapes: Sequence[tuple[int, ...]],
        shapes: Sequence[tuple[int, ...]],
    ) -> None:
        if any(part.forward.values is not None for part in parts):
            raise TypeError(
                "JointReverse: all priors must be over real numbers to move jointly, got "
                "bits; use one infer.ParticleGibbs block for each site."
            )
        self.parts = tuple(parts)
        self.shapes = tuple(shapes)
        self.copies = tuple(
            (math.prod(shape) // math.prod(event), *event)
            for event, shape in zip(event_shapes, shapes, strict=True)
        )
        self.own_axes = tuple(len(part.context_shape) for part in self.parts)
        schedules = tuple(part.forward.schedule for part in self.parts)
        self.forward = GaussianForward(_PerEntry(schedules, self._sizes))

    @property
    def context(self) -> PyTree[Array] | None:
        """Those of all parts; None if none has any."""
        found = tuple(part.context for part in self.parts)
        return None if all(context is None for context in found) else found

    @property
    def context_shape(self) -> tuple[int, ...]:
        for part, num_own in zip(self.parts, self.own_axes, strict=True):
            if part.context is not None:
                shape = part.context_shape
                return shape[: len(shape) - num_own]
        return ()

    def given(self, context: Any) -> "JointReverse":
        parts = tuple(
            part if one is None else part.given(one)
            for part, one in zip(self.parts, context, strict=True)
        )
        return eqx.tree_at(lambda joint: joint.parts, self, parts)

    @property
    def size(self) -> int:
        """Number of entries of all sites together."""
        return sum(self._sizes)

    def split(self, x: Float[Array, " size"]) -> list[Array]:
        """The values of the sites, each in its own shape."""
        pieces = _pieces(x, self._sizes)
        return [p.reshape(s) for p, s in zip(pieces, self.shapes, strict=True)]

    def joined(self, values: Sequence[Array]) -> Float[Array, " size"]:
        """The inverse of `split`."""
        return jnp.concatenate([value.reshape(-1) for value in values])

    def denoise(
        self, x_t: Float[Array, " size"], t: ArrayLike
    ) -> Float[Array, " size"]:
        return self.joined(self._of_parts(lambda part, x: part.denoise(x, t), x_t))

    def denoising_variance(self, t: ArrayLike) -> Float[Array, " size"]:
        """Each part's own, for each of its entries."""
        variances = [part.denoising_variance(t) for part in self.parts]
        return _repeated(variances, self._sizes)

    def entry_variance(
        self, x0_hat: Float[Array, " size"], t: ArrayLike
    ) -> Float[Array, " size"]:
        """Each part's own."""

        def of_part(part: AbstractReverse, x0: Array) -> Array:
            return jnp.broadcast_to(part.entry_variance(x0, t), x0.shape)

        return self.joined(self._of_parts(of_part, x0_hat))

    def covariance(self, t: ArrayLike) -> LowRankCovariance | None:
        """Each part's own, and nothing between copies and sites; None if none has any."""
        if all(part.covariance(t) is None for part in self.parts):
            return None
        rest, rows, excess, place = [], [], [], 0
        for part, shape, size in zip(self.parts, self.copies, self._sizes, strict=True):
            found, num_copies = part.covariance(t), shape[0]
            own = part.denoising_variance(t) if found is None else found.rest
            rest.append(jnp.broadcast_to(own, shape).reshape(-1))
            if found is not None:
                flat = found.directions.reshape(len(found.excess), -1)
                of_part = jnp.kron(jnp.eye(num_copies, dtype=flat.dtype), flat)
                ends = (place, self.size - place - size)
                rows.append(jnp.pad(of_part, ((0, 0), ends)))
                excess.append(jnp.tile(found.excess, num_copies))
            place += size
        return LowRankCovariance(
            jnp.concatenate(rest), jnp.concatenate(rows), jnp.concatenate(excess)
        )

    def check_width(self, caller: str) -> None:
        for part in self.parts:
            part.check_width(caller)

    def check_variance(self, caller: str) -> None:
        for part in self.parts:
            part.check_variance(caller)

    def step(
        self, x_t: Float[Array, " size"], *, t: ArrayLike, s: ArrayLike
    ) -> ReverseStep:
        steps = self._of_parts(lambda part, x: part.step(x, t=t, s=s), x_t)
        laws = tuple(step.law for step in steps)
        return ReverseStep(
            self.joined([step.x0_hat for step in steps]),
            _SideBySide(laws, self.copies, self.size),
        )

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    def _of_parts(self, function: Callable, x: Array) -> list[Any]:
        """A function of a part and one event, mapped over the copies of each part."""
        return [
            each(function, part)(piece.reshape(shape))
            for part, piece, shape in zip(
                self.parts, _pieces(x, self._sizes), self.copies, strict=True
            )
        ]


class _PerEntry(AbstractSchedule):
    """A curve per entry: each of some schedules, repeated for a number of entries."""

    schedules: tuple[AbstractSchedule, ...]
    sizes: tuple[int, ...] = eqx.field(static=True)

    def alpha_bar(self, t: ArrayLike) -> Float[Array, " size"]:
        return self._curves(lambda schedule: schedule.alpha_bar(t))

    def noise(self, t: ArrayLike) -> Float[Array, " size"]:
        return self._curves(lambda schedule: schedule.noise(t))

    def time(self, angle: ArrayLike) -> Float[Array, " size"]:
        return self._curves(lambda schedule: schedule.time(angle))

    def _curves(self, curve: Callable) -> Float[Array, " size"]:
        values = [curve(schedule) for schedule in self.schedules]
        if any(jnp.ndim(value) > 0 for value in values):
            raise ValueError(
                "JointReverse: one denoising error cannot serve several priors; use "
                "Isotropic() without `error`, which takes that of each of them."
            )
        return _repeated(values, self.sizes)


class _SideBySide(dist.Distribution):
    """Independent laws of consecutive pieces of one vector.

    Args:
        laws: For each piece the laws of its copies, with the copies' axis on their arrays.
        copies: For each piece the shape (num_copies, *event) of its values.
        size: Length of the vector.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    pytree_data_fields = ("laws",)
    pytree_aux_fields = ("copies",)

    def __init__(
        self,
        laws: tuple[dist.Distribution, ...],
        copies: tuple[tuple[int, ...], ...],
        size: int,
    ) -> None:
        self.laws, self.copies = laws, copies
        super().__init__((), (size,))

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    @property
    def mean(self) -> Float[Array, " size"]:
        return self._moment(lambda law: law.mean)

    @property
    def variance(self) -> Float[Array, " size"]:
        return self._moment(lambda law: law.variance)

    def _moment(self, moment: Callable) -> Float[Array, " size"]:
        parts = [jax.vmap(moment)(law).reshape(-1) for law in self.laws]
        return jnp.concatenate(parts)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        def one(key: Array) -> Array:
            keys = jax.random.split(key, len(self.laws))
            pieces = [
                jax.vmap(lambda law, key: law.sample(key))(
                    law, jax.random.split(key, shape[0])
                )
                for law, key, shape in zip(self.laws, keys, self.copies, strict=True)
            ]
            return jnp.concatenate([piece.reshape(-1) for piece in pieces])

        keys = jax.random.split(jnp.asarray(key), math.prod(sample_shape))
        return jax.vmap(one)(keys).reshape(*sample_shape, -1)

    def log_prob(
        self, value: Float[Array, " size"], intermediates: Any = None
    ) -> Float[Array, ""]:
        pieces = _pieces(value, [math.prod(shape) for shape in self.copies])
        log_probs = [
            jax.vmap(lambda law, x: law.log_prob(x))(law, piece.reshape(shape))
            for law, piece, shape in zip(self.laws, pieces, self.copies, strict=True)
        ]
        return sum((jnp.sum(part) for part in log_probs), jnp.zeros(()))


def _pieces(x: Array, sizes: Sequence[int]) -> list[Array]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return jnp.split(x, ends)


def _repeated(values: Sequence[Array], sizes: Sequence[int]) -> Float[Array, " size"]:
    return jnp.concatenate([jnp.full(n, v) for n, v in zip(sizes, values, strict=True)])
