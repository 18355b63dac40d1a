r"""A guidance of one's own: one gradient of the likelihood, as far as it should go.

Take $x_0 | x_t$ for $N(\hat x_0, r^2(t))$ and the observed entries for known up to
Gaussian noise of precision $\lambda$. With the gradient g of $\log p(y | x_0)$ at
$\hat x_0$,

$$E[x_0 | x_t, y] = \hat x_0 + \kappa g, \qquad \log p(y | x_t) = \log p(y | \hat x_0) +
\frac{\kappa}{2} \lVert g \rVert^2 + \text{const}, \qquad
\kappa = \frac{r^2}{1 + \lambda r^2}.$$
"""

import numpyro_diffusion as nd


class Pull(nd.guidance.AbstractGuidance):
    r"""Pull the denoised event to the data. Differentiates no network, solves nothing.

    Attributes:
        precision: $\lambda$, one over the variance of the noise of an observation.
    """

    precision: float

    def start(self, reverse, log_likelihood, shape):
        law = nd.guidance.terminal_stack(reverse, shape)
        return law, law

    def step(self, reverse, log_likelihood, x_t, *, t, s):
        x0_hat, law = nd.guidance.step_stack(reverse, x_t, t, s)
        fit, pull = nd.guidance.value_and_gradient(log_likelihood, x0_hat)
        variance = reverse.denoising_variance(t)
        gain = variance / (1.0 + self.precision * variance)
        given = nd.guidance.over_stack(lambda x, x0: reverse.law_given(x, x0, t=t, s=s))
        proposal = given(x_t, x0_hat + gain * pull)
        log_twist = fit + 0.5 * gain * nd.guidance.dot(pull, pull)
        return nd.guidance.TiltedStep(law, proposal, log_twist)
