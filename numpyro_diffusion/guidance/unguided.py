"""The prior's own chain, for likelihoods without derivatives, and as a control."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Num

from numpyro_diffusion.checks import checked_real
from numpyro_diffusion.guidance.base import (
    AbstractGuidance,
    LogLikelihood,
    TiltedStep,
    Time,
    finite,
    step_stack,
)
from numpyro_diffusion.guidance.values import likeliest
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["Unguided"]


class Unguided(AbstractGuidance):
    r"""Propose from the prior; the data speak through the weights alone.

    The likelihood is evaluated at the denoised event and never differentiated, so that
    it may be of any kind, discontinuous ones included. Weights pay for it: this takes
    many more particles than guidance, and drawn without weights it gives the prior.

    Attributes:
        power: The twist is $\log \psi_t = \bar\alpha(t)^{power} \log p(y | \hat x_0)$ (for
            bits at their likelier values): 0 at the noise, the likelihood at the data.
            None for no twist before the data. Where the likelihood is exactly zero, or no
            number, the twist is one: particles that may still come right are not killed
            before the data.

    Raises:
        TypeError: `power` is neither None nor a number.
        ValueError: It is negative or not finite.
    """

    power: float | None = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        if self.power is not None and checked_real("Unguided", "power", self.power) < 0:
            raise ValueError(f"Unguided: power must not be negative, got {self.power}.")

    def step(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        *,
        t: Time,
        s: Time,
    ) -> TiltedStep:
        x0_hat, law = step_stack(reverse, x_t, t, s)
        if self.power is None:
            return TiltedStep(law, law, jnp.zeros(len(x_t)))
        if reverse.forward.values is not None:
            x0_hat = likeliest(reverse.forward, x0_hat)
        # The mean is for processes whose entries have schedules of their own.
        trust = jnp.mean(reverse.forward.schedule.alpha_bar(t)) ** self.power
        return TiltedStep(law, law, trust * finite(log_likelihood(x0_hat)))
