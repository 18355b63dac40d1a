"""Gaussian diffusion."""

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num
from numpyro.distributions import constraints, kl_divergence

from numpyro_diffusion.checks import checked_instance
from numpyro_diffusion.forward.base import AbstractForward, check_events
from numpyro_diffusion.forward.schedule import AbstractSchedule

__all__ = ["GaussianForward", "factorised_normal"]


class GaussianForward(AbstractForward):
    """Gaussian diffusion that preserves unit variance.

    Attributes:
        schedule: The curve of the signal.
    """

    schedule: AbstractSchedule

    def __check_init__(self) -> None:
        checked_instance(
            "GaussianForward",
            "schedule",
            self.schedule,
            AbstractSchedule,
            "schedules.cosine()",
        )

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real

    def transition(
        self, x_s: Num[Array, "*event"], *, s: ArrayLike, t: ArrayLike
    ) -> dist.Distribution:
        check_events("GaussianForward.transition", {"s": s, "t": t}, x_s=x_s)
        kept, beta = self.schedule.kept(s=s, t=t), self.schedule.beta(s=s, t=t)
        return factorised_normal(jnp.sqrt(kept) * x_s, beta)

    def marginal(self, x0: Num[Array, "*event"], t: ArrayLike) -> dist.Distribution:
        check_events("GaussianForward.marginal", {"t": t}, x0=x0)
        return factorised_normal(
            jnp.sqrt(self.schedule.alpha_bar(t)) * x0, self.schedule.noise(t)
        )

    def bridge_coefficients(
        self, *, s: ArrayLike, t: ArrayLike
    ) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
        r"""$A, B, \tilde\sigma^2$ of $q(x_s|x_t,x_0) = N(A x_0 + B x_t, \tilde\sigma^2)$.

        `t` must be positive; at `s = 0` they are exactly 1, 0, 0.
        """
        kept, beta = self.schedule.kept(s=s, t=t), self.schedule.beta(s=s, t=t)
        noise_s, noise_t = self.schedule.noise(s), self.schedule.noise(t)
        on_x0 = jnp.sqrt(self.schedule.alpha_bar(s)) * (beta / noise_t)
        on_x_t = jnp.sqrt(kept) * (noise_s / noise_t)
        return on_x0, on_x_t, beta * (noise_s / noise_t)

    def posterior(
        self,
        x_t: Num[Array, "*event"],
        x0: Num[Array, "*event"],
        *,
        s: ArrayLike,
        t: ArrayLike,
    ) -> dist.Distribution:
        check_events("GaussianForward.posterior", {"s": s, "t": t}, x_t=x_t, x0=x0)
        on_x0, on_x_t, variance = self.bridge_coefficients(s=s, t=t)
        return factorised_normal(on_x0 * x0 + on_x_t * x_t, variance)

    def averaged_posterior(
        self,
        x_t: Num[Array, "*event"],
        x0_mean: Float[Array, "*event"],
        x0_variance: Float[Array, "*#event"] | Float[Array, ""] | float,
        *,
        s: ArrayLike,
        t: ArrayLike,
    ) -> dist.Distribution:
        caller = "GaussianForward.averaged_posterior"
        check_events(caller, {"s": s, "t": t}, x_t=x_t, x0_mean=x0_mean)
        on_x0, on_x_t, variance = self.bridge_coefficients(s=s, t=t)
        return factorised_normal(
            on_x0 * x0_mean + on_x_t * x_t, variance + on_x0**2 * x0_variance
        )

    def terminal(self, event_shape: tuple[int, ...]) -> dist.Distribution:
        return factorised_normal(jnp.zeros(event_shape), 1.0)

    def kl(self, q: dist.Distribution, p: dist.Distribution) -> Float[Array, ""]:
        if isinstance(p, dist.MultivariateNormal):
            # A full-covariance p (see `analytic`); NumPyro wants both in that form.
            scale = jnp.diag(jnp.sqrt(q.variance))
            q = dist.MultivariateNormal(q.mean, scale_tril=scale)
        return kl_divergence(q, p)


def factorised_normal(loc: Array, variance: ArrayLike) -> dist.Distribution:
    """A normal law with independent entries, of the event shape of `loc`."""
    scale = jnp.broadcast_to(jnp.sqrt(variance), loc.shape)
    # At t = 0 the width is exactly zero, which NumPyro's validation refuses.
    return dist.Normal(loc, scale, validate_args=False).to_event(loc.ndim)
