r"""DDIM: steps whose noise is chosen, from the deterministic to the ancestral.

With $\epsilon = (x_t - \cos\theta_t\, \hat x_0) / \sin\theta_t$ a step goes to
$\cos\theta_s\, \hat x_0 + \sqrt{\sin^2\theta_s - \sigma^2}\, \epsilon$ and adds noise of
variance $\sigma^2 = \eta^2 \tilde\sigma^2$, where $\tilde\sigma^2$ is the variance of the
bridge between $x_t$ and a known $x_0$.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num, PyTree

from numpyro_diffusion.checks import checked_share
from numpyro_diffusion.forward import AbstractForward, factorised_normal
from numpyro_diffusion.reverse import AbstractReverse, LowRankCovariance
from numpyro_diffusion.samplers.ancestral import ancestral_sample
from numpyro_diffusion.samplers.grids import AbstractGaussianSampler, checked_steps

__all__ = ["DDIM"]


class DDIM(AbstractGaussianSampler):
    """DDIM's steps, as noisy as `eta` says.

    With `eta=0` draws are a deterministic map of their noise, which is the probability
    flow's in the limit of many steps. With any other it is a chain, which particle kernels
    take for the prior; as in all chains of this library a step is averaged over what x_0
    may be, by the measured denoising error, where the original takes it to be its mean.
    With `eta=1` it is `Ancestral`.

    Args:
        num_steps: Steps of the uniform grid, and network calls.
        eta: Share of the ancestral noise, from 0 to 1.
        times: Another grid, in place of `num_steps`: increasing times from 0 to 1.

    Raises:
        TypeError: `eta` is not a number.
        ValueError: `eta` is not between 0 and 1, `num_steps` is not a positive integer, or
            `times` do not increase from 0 to 1 or do not fit it; in `DiffusionPrior`, the
            process is not Gaussian, or knows one chain only.

    **Error:** first order in the step.

    Source: Song et al. 2021, arXiv:2010.02502, eq. 12 and 16.
    """

    num_steps: int = eqx.field(static=True)
    eta: float = eqx.field(static=True)
    times: tuple[float, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        num_steps: int | None = None,
        eta: float = 0.0,
        times: Sequence[float] | None = None,
    ) -> None:
        self.num_steps, self.times = checked_steps("DDIM", num_steps, times)
        self.eta = float(checked_share("DDIM", "eta", eta))

    @property
    def is_chain(self) -> bool:
        return self.eta > 0.0

    def process(self, reverse: AbstractReverse) -> AbstractReverse:
        return _Steps(reverse, self.eta)

    def sample(
        self, key: Array, reverse: AbstractReverse, event_shape: tuple[int, ...]
    ) -> Num[Array, "*event"]:
        if self.is_chain:
            chain = self.process(reverse)
            return ancestral_sample(key, chain, event_shape, self.grid)
        grid, forward = self.grid, reverse.forward
        x = jnp.asarray(forward.terminal(event_shape).sample(key))

        def step(x: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
            t, s = ends
            x0_hat = reverse.denoise(x, t)
            on_x0, on_x_t, _ = _factors(forward, 0.0, t=t, s=s)
            return (on_x0 * x0_hat + on_x_t * x).astype(x.dtype), None

        return jax.lax.scan(step, x, (grid[1:], grid[:-1]), reverse=True)[0]


class _Steps(AbstractReverse):
    """Another process's denoiser under DDIM's steps."""

    base: AbstractReverse
    eta: float = eqx.field(static=True)

    def __init__(self, base: AbstractReverse, eta: float) -> None:
        self.base, self.eta = base, eta

    @property
    def forward(self) -> AbstractForward:
        return self.base.forward

    def denoise(self, x_t: Num[Array, "*event"], t: ArrayLike) -> Float[Array, "..."]:
        return self.base.denoise(x_t, t)

    def denoising_variance(self, t: ArrayLike) -> Float[Array, ""]:
        return self.base.denoising_variance(t)

    def entry_variance(
        self, x0_hat: Float[Array, "..."], t: ArrayLike
    ) -> Float[Array, "..."]:
        return self.base.entry_variance(x0_hat, t)

    def covariance(self, t: ArrayLike) -> LowRankCovariance | None:
        return self.base.covariance(t)

    def law_given(
        self,
        x_t: Num[Array, "*event"],
        x0_hat: Float[Array, "..."],
        *,
        t: ArrayLike,
        s: ArrayLike,
        variance: Float[Array, "..."] | None = None,
    ) -> dist.Distribution:
        variance = self.entry_variance(x0_hat, t) if variance is None else variance
        on_x0, on_x_t, added = _factors(self.forward, self.eta, t=t, s=s)
        mean = (on_x0 * x0_hat + on_x_t * x_t).astype(x_t.dtype)
        # What is uncertain about x_0 widens the step, the last one above all.
        return factorised_normal(mean, added + on_x0**2 * variance)

    @property
    def context(self) -> PyTree[Array] | None:
        return self.base.context

    @property
    def context_shape(self) -> tuple[int, ...]:
        return self.base.context_shape

    def given(self, context: Any) -> "_Steps":
        return _Steps(self.base.given(context), self.eta)

    def of_one_event(self) -> "_Steps":
        return _Steps(self.base.of_one_event(), self.eta)

    def check_width(self, caller: str) -> None:
        self.base.check_width(caller)

    def check_variance(self, caller: str) -> None:
        self.base.check_variance(caller)


def _factors(
    forward: Any, eta: float, *, t: ArrayLike, s: ArrayLike
) -> tuple[Array, Array, Array]:
    """Factors of the denoised mean and of x_t in a step's mean, and the noise it adds."""
    schedule = forward.schedule
    _, on_x_t, bridge = forward.bridge_coefficients(s=s, t=t)
    # The root of noise(s) - added, over that of noise(t), without a difference.
    share = (1.0 - eta**2) * bridge / schedule.noise(t)
    on_noise = jnp.sqrt(on_x_t**2 + share)
    kept_s, kept_t = (jnp.sqrt(schedule.alpha_bar(u)) for u in (s, t))
    return kept_s - on_noise * kept_t, on_noise, eta**2 * bridge
