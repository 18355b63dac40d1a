r"""How a network is told the time.

A time $t \in [0, 1]$ becomes $\sin(\omega_k t)$ and $\cos(\omega_k t)$ at frequencies

$$\omega_k = \omega_{\max}^{k / (K - 1)}, \qquad k = 0, \ldots, K - 1,$$

from 1 to $\omega_{\max}$ radians per unit of time. A small network mixes these
features into one vector, from which every block takes its own scale and shift.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_diffusion.checks import checked_key, checked_real
from numpyro_diffusion.networks._common import check_size, dense, positive_int


class TimeEmbedding(eqx.Module):
    """A scalar time as a vector: fixed waves, then a network of two layers.

    The frequencies are no parameters: they are computed from two numbers, in the dtype
    of the time, whenever the embedding is called.

    Source: Ho et al. 2020, arXiv:2006.11239, appendix B, after Vaswani et al. 2017. The
    default `max_frequency` is theirs, whose time counts 1000 steps.

    Attributes:
        width: Length of the vector.
        num_frequencies: Number of frequencies.
        max_frequency: Largest frequency in radians per unit of time.
    """

    hidden: eqx.nn.Linear
    out: eqx.nn.Linear
    width: int = eqx.field(static=True)
    num_frequencies: int = eqx.field(static=True)
    max_frequency: float = eqx.field(static=True)

    def __init__(
        self,
        width: int = 128,
        *,
        num_frequencies: int = 32,
        max_frequency: float = 1000.0,
        key: PRNGKeyArray,
    ) -> None:
        """Draw the weights of the two layers.

        Args:
            width: Length of the vector.
            num_frequencies: Number of frequencies, each with a sine and a cosine.
            max_frequency: Largest frequency in radians per unit of time: times that are
                much closer than its inverse look alike.
            key: Random key, used once.

        Raises:
            ValueError: If a size is not a positive integer or `max_frequency` is not
                finite and at least 1.
        """
        self.width = positive_int("TimeEmbedding", "width", width)
        self.num_frequencies = positive_int(
            "TimeEmbedding", "num_frequencies", num_frequencies
        )
        max_frequency = checked_real(
            "TimeEmbedding", "max_frequency", max_frequency, finite=False
        )
        if not (math.isfinite(max_frequency) and max_frequency >= 1):
            raise ValueError(
                "TimeEmbedding: max_frequency must be finite and at least 1, got "
                f"{max_frequency}."
            )
        self.max_frequency = float(max_frequency)
        if max_frequency > 1e37:
            raise ValueError(
                "TimeEmbedding: max_frequency must be at most 1e37, which single precision "
                f"holds, got {max_frequency}."
            )
        widest = self.width * max(2 * self.num_frequencies, self.width)
        check_size(
            "TimeEmbedding",
            widest,
            width=self.width,
            num_frequencies=self.num_frequencies,
        )
        checked_key("TimeEmbedding", "key", key)
        hidden_key, out_key = jr.split(key)
        self.hidden = eqx.nn.Linear(2 * self.num_frequencies, width, key=hidden_key)
        self.out = eqx.nn.Linear(width, width, key=out_key)

    def features(self, t: Float[Array, ""]) -> Float[Array, " features"]:
        """The sines and then the cosines, from the lowest frequency to the highest.

        Args:
            t: Time in [0, 1].

        Returns:
            A vector of length `2 * num_frequencies`, in the dtype of `t`.
        """
        exponents = jnp.linspace(
            0, math.log(self.max_frequency), self.num_frequencies, dtype=t.dtype
        )
        phases = t * jnp.exp(exponents)
        return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)])

    def __call__(self, t: Float[Array, ""]) -> Float[Array, " width"]:
        """Embed one time.

        Args:
            t: Time in [0, 1].

        Returns:
            A vector of length `width`.

        Raises:
            ValueError: If `t` is not a scalar.
        """
        if t.shape != ():
            raise ValueError(
                f"TimeEmbedding: t must be a scalar, got shape {t.shape}. For a batch, "
                "use jax.vmap."
            )
        hidden = jax.nn.silu(dense(self.hidden, self.features(t)))
        return dense(self.out, hidden)


class FiLM(eqx.Module):
    """Scale and shift each feature by numbers that depend on the time.

    Source: Perez et al. 2017, arXiv:1709.07871; Nichol and Dhariwal 2021,
    arXiv:2102.09672, for its use after a normalisation.

    Attributes:
        scale: Gives the scale, less one, from the embedding.
        shift: Gives the shift from the embedding.
    """

    scale: eqx.nn.Linear
    shift: eqx.nn.Linear

    def __init__(self, time_width: int, width: int, *, key: PRNGKeyArray) -> None:
        """Draw the weights.

        Args:
            time_width: Length of the embedding.
            width: Number of features.
            key: Random key, used once.
        """
        scale_key, shift_key = jr.split(key)
        self.scale = eqx.nn.Linear(time_width, width, key=scale_key)
        self.shift = eqx.nn.Linear(time_width, width, key=shift_key)

    def __call__(
        self, h: Float[Array, "*space width"], embedding: Float[Array, " time_width"]
    ) -> Float[Array, "*space width"]:
        """Scale and shift the features of one event.

        Args:
            h: Features, on the last axis.
            embedding: What `TimeEmbedding` returns.

        Returns:
            An array of the shape of `h`.
        """
        embedding = jax.nn.silu(embedding)
        shape = (1,) * (h.ndim - 1) + (-1,)
        scale = 1 + dense(self.scale, embedding).reshape(shape)
        return h * scale + dense(self.shift, embedding).reshape(shape)
