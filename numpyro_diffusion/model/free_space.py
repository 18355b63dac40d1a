"""The latents beside the diffusion sites, as real numbers, and their priors' density."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.distributions import biject_to
from numpyro.handlers import substitute

from numpyro_diffusion.model.sites import traced

__all__ = ["FreeSpace"]


class FreeSpace:
    """Coordinates in which some latents of a model may move anywhere.

    Continuous latents pass through the bijection of their support to real numbers, which
    may depend on other latents; discrete ones stay as they are. The diffusion sites, which
    these latents must not depend on, are held at zero.

    Args:
        model: A NumPyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        names: The latents, neither diffusion sites nor observed.
        held: Those of them that stay where they are, as discrete ones do.
    """

    def __init__(
        self,
        model: Callable,
        args: tuple,
        kwargs: Mapping[str, Any],
        names: Collection[str],
        held: Collection[str] = (),
    ) -> None:
        self._model, self._args, self._kwargs = model, args, dict(kwargs)
        # Most models have no others, and are not run to find that out.
        sites = traced(model, args, kwargs, {}) if names else {}
        self._names = sorted(names)
        is_discrete = lambda name: sites[name]["fn"].support.is_discrete
        can_move = lambda name: name not in held and not is_discrete(name)
        self._free = [name for name in self._names if can_move(name)]

    @property
    def is_empty(self) -> bool:
        """Whether no latent can move."""
        return not self._free

    def free(self, values: Mapping[str, Array]) -> dict[str, Float[Array, "..."]]:
        """Coordinates of those that can move, among the latents' values."""
        sites = traced(self._model, self._args, self._kwargs, values)
        return {
            name: biject_to(sites[name]["fn"].support).inv(values[name])
            for name in self._free
        }

    def check_enumerable(self, caller: str) -> None:
        """Refuse latents that neither move freely nor have finitely many values.

        Args:
            caller: Who asks, for the error.

        Raises:
            ValueError: There is one.
        """
        sites = traced(self._model, self._args, self._kwargs, {})
        for name in self._names:
            law = sites[name]["fn"]
            finite = law.has_enumerate_support and law.event_dim == 0
            if name not in self._free and not finite:
                raise ValueError(
                    f"{caller}: the discrete latent {name!r} must have finitely many "
                    f"numbers as its values, got {law}; give it a block of its own."
                )

    def other_values(self, key: Array, values: Mapping[str, Array]) -> dict[str, Array]:
        """Values of those that cannot move freely, drawn evenly from their support."""
        names = [name for name in self._names if name not in self._free]
        if not names:
            return {}
        sites = traced(self._model, self._args, self._kwargs, values)
        found = {}
        for i, name in enumerate(names):
            law, value = sites[name]["fn"], jnp.asarray(values[name])
            support = law.enumerate_support(expand=False).reshape(-1)
            draw_key = jax.random.fold_in(key, i)
            chosen = jax.random.randint(draw_key, value.shape, 0, len(support))
            found[name] = support[chosen].astype(value.dtype)
        return found

    def restored(
        self, free: Mapping[str, Array], values: Mapping[str, Array]
    ) -> tuple[dict[str, Array], Float[Array, ""]]:
        """Values of all the latents, and the log density of their priors.

        Args:
            free: Coordinates.
            values: Values of the latents that stay; others are not looked at.

        Returns:
            The values, and the log density with respect to the coordinates.
        """
        held = {n: v for n, v in values.items() if n not in free}
        jacobians = {}

        def placed(msg: dict[str, Any]) -> Array | None:
            if msg["name"] not in free or msg["type"] != "sample":
                return None
            transform = biject_to(msg["fn"].support)
            value = transform(free[msg["name"]])
            jacobians[msg["name"]] = transform.log_abs_det_jacobian(
                free[msg["name"]], value
            )
            return value

        model = substitute(self._model, substitute_fn=placed)
        sites = traced(model, self._args, self._kwargs, held)
        log_prob = jnp.zeros(())
        for name in self._names:
            log_prob = log_prob + _log_prob(sites[name])
        for value in jacobians.values():
            log_prob = log_prob + jnp.sum(value)
        found = {name: jnp.asarray(sites[name]["value"]) for name in self._names}
        return jax.tree.map(_like, found, dict(values)), log_prob


def _log_prob(msg: Mapping[str, Any]) -> Float[Array, ""]:
    """The log density that NumPyro counts for a site."""
    total = jnp.sum(msg["fn"].log_prob(msg["value"]))
    return total if msg["scale"] is None else total * msg["scale"]


def _like(found: Array, value: Array) -> Array:
    return found.astype(jnp.asarray(value).dtype)
