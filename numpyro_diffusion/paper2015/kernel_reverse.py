r"""The 2015 paper's reverse process: steps learned as perturbations of the forward kernel.

A chain of $T$ steps has times $k / T$. A network sees $x_t$ and the step and returns
*coefficients* $z$; a readout makes of them the law of the next step,

| readout | law of $x_s$ given $x_t$, with $\beta$ the step's share of lost signal |
|---|---|
| `SquareRootReadout` | $N\big((x_t - m)\sqrt{1 - \Sigma} + m,\ \Sigma\big)$, $m = z^\mu / \sqrt\beta$, $\Sigma = \sigma(z^\Sigma + \sigma^{-1}(\beta))$ |
| `PrintedReadout` | the same with $1 - \Sigma$ for its root and $m = z^\mu$, as the paper prints it |
| `ReferenceCodeReadout` | $N\big(\sqrt{1 - \beta}\,x_t + \sqrt\beta\, z^\mu,\ \sigma(z^\Sigma / \sqrt T + \sigma^{-1}(\beta))\big)$ |
| `BitReadout` | $P(x_s = 1) = \sigma\big(z + \sigma^{-1}((1 - \beta) x_t + \beta \rho)\big)$ |
| `PlainBitReadout` | $P(x_s = 1) = \sigma(z)$ |

with $\sigma$ the logistic function. At $z = 0$ all but `PrintedReadout` and
`PlainBitReadout` are the forward kernel, run backwards.

The last step, from $x_1$ to $x_0$, is that kernel and not learned, unless asked for.

Source: Sohl-Dickstein et al. 2015, section 2.2, table App.1, appendix B.2 and eq. 62-65.
"""  # noqa: E501

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import (
    checked_callable,
    checked_instance,
    checked_num_steps,
)
from numpyro_diffusion.forward import (
    AbstractForward,
    as_float,
)
from numpyro_diffusion.paper2015.readouts import (
    AbstractReadout,
    BitReadout,
    SquareRootReadout,
    is_of_bits,
)
from numpyro_diffusion.reverse import (
    AbstractTrainableReverse,
    DenoisingError,
    ReverseStep,
    unmeasured,
)
from numpyro_diffusion.reverse.predictions import check_unit_variance

__all__ = ["KernelReverse"]


class KernelReverse(AbstractTrainableReverse):
    r"""A reverse chain of `num_steps` steps, each learned on its own.

    It knows the steps of its chain and no others: `step(x_t, t, s)` is meant for
    neighbouring times k / T, and samplers, bounds and `DiffusionPrior` must use the same
    `num_steps`.

    `denoise` finds E[x_0 | x_t] from the mean m of the step: the bridge gives
    $m = A \hat x_0 + B x_t$. A short step says little about x_0, so that errors of m are
    multiplied by 1 / A; for bits the result is limited to [0, 1].

    Args:
        forward: The forward process.
        network: Any callable `(x_t, t) -> coefficients` on one event: shape (2, *event)
            for Gaussian, `event` for Bernoulli diffusion.
        num_steps: Steps T of the chain.
        readout: By default `SquareRootReadout` or `BitReadout`.
        learned_last_step: Whether the step to t = 0 is the network's as well. The paper's
            is the forward kernel run backwards, which leaves noise of variance 2 beta_1
            in each draw.
        error: Measured denoising error, for guidance; `fit` measures it.

    Raises:
        ValueError: `num_steps` is less than 2, or more than a million.
        TypeError: The readout does not fit the forward process.
    """

    forward: AbstractForward
    network: Callable
    num_steps: int = eqx.field(static=True)
    readout: AbstractReadout
    learned_last_step: bool = eqx.field(static=True)
    error: DenoisingError | None

    def __init__(
        self,
        forward: AbstractForward,
        network: Callable,
        num_steps: int,
        *,
        readout: AbstractReadout | None = None,
        learned_last_step: bool = False,
        error: DenoisingError | None = None,
    ) -> None:
        caller = "KernelReverse"
        checked_instance(
            caller, "forward", forward, AbstractForward, "GaussianForward(schedule)"
        )
        checked_callable(caller, "network", network, "paper2015.networks.RBFNet(...)")
        num_steps = checked_num_steps(caller, num_steps, minimum=2)
        if error is not None:
            checked_instance(
                caller, "error", error, DenoisingError, "denoising_error(...)"
            )
        if readout is None:
            readout = BitReadout() if is_of_bits(forward) else SquareRootReadout()
        checked_instance(
            caller, "readout", readout, AbstractReadout, "SquareRootReadout()"
        )
        if not readout.fits(forward):
            raise TypeError(
                f"KernelReverse: {type(readout).__name__} does not fit "
                f"{type(forward).__name__}; BitReadout and PlainBitReadout are for "
                "Bernoulli diffusion, the others for Gaussian."
            )
        self.forward = forward
        self.network = network
        self.num_steps = num_steps
        self.readout = readout
        self.learned_last_step = learned_last_step
        self.error = error

    @property
    def chain_length(self) -> int:
        return self.num_steps

    @property
    def learns_last_step(self) -> bool:
        return self.learned_last_step

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.readout.shape(event_shape)

    def output(self, x_t: Num[Array, "*event"], t: ArrayLike) -> Float[Array, "..."]:
        x_t = as_float(x_t)
        return self.network(x_t, jnp.asarray(t, x_t.dtype))

    def check_data(self, caller: str, data: np.ndarray) -> None:
        self.forward.check(caller, data)
        if self.forward.values is None:
            check_unit_variance(caller, data)

    def loss(
        self, x0: Num[Array, "*event"], x_t: Num[Array, "*event"], t: ArrayLike
    ) -> Float[Array, ""]:
        raise NotImplementedError(
            "KernelReverse: it is trained by the bound of its chain, "
            f"BoundLoss({self.num_steps}), and has no denoising loss."
        )

    def denoise(
        self, x_t: Num[Array, "*event"], t: ArrayLike
    ) -> Float[Array, "*event"]:
        t = jnp.asarray(t)
        return self.step(x_t, t=t, s=jnp.maximum(t - 1.0 / self.num_steps, 0.0)).x0_hat

    def check_variance(self, caller: str) -> None:
        # The laws have a width of their own, from the readout.
        if self.error is None and self.forward.takes_variance:
            raise unmeasured(caller, self)

    def step(
        self, x_t: Num[Array, "*event"], *, t: ArrayLike, s: ArrayLike
    ) -> ReverseStep:
        x_t, t = as_float(x_t), jnp.asarray(t)
        # No step starts at the data. Guides ask for E[x_0 | x_0] all the same.
        start = jnp.where(t > 0, t, 1.0 / self.num_steps)
        coefficients = self.output(x_t, start)
        x0_hat = jnp.where(t > 0, self._denoised(coefficients, x_t, start), x_t)
        kernel = self.forward.transition(x_t, s=s, t=t)
        beta = self.forward.schedule.beta(s=s, t=t)
        learned = self.readout.law(coefficients, kernel, x_t, beta)
        if self.learned_last_step:
            return ReverseStep(x0_hat, learned)
        is_last = t < 1.5 / self.num_steps
        law = jax.tree.map(
            lambda fixed, free: jnp.where(is_last, fixed, free),
            self.readout.fixed(kernel),
            learned,
        )
        return ReverseStep(x0_hat, law)

    def _denoised(
        self, coefficients: Float[Array, "..."], x_t: Array, t: Array
    ) -> Float[Array, "*event"]:
        """The x_0 whose bridge has the mean of the chain's own step from t.

        Of no other step: the coefficients say nothing about a longer one, which `step` is
        asked for where only the denoiser matters.
        """
        s = jnp.maximum(t - 1.0 / self.num_steps, 0.0)
        kernel, beta = (
            self.forward.transition(x_t, s=s, t=t),
            self.forward.schedule.beta(s=s, t=t),
        )
        mean = self.readout.law(coefficients, kernel, x_t, beta).mean
        at_zero = self.forward.posterior(x_t, jnp.zeros_like(x_t), s=s, t=t).mean
        at_one = self.forward.posterior(x_t, jnp.ones_like(x_t), s=s, t=t).mean
        x0_hat = (mean - at_zero) / (at_one - at_zero)
        return jnp.clip(x0_hat, 0.0, 1.0) if is_of_bits(self.forward) else x0_hat
