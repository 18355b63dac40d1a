r"""The Fisher information of what a model observes.

Of an observation $y \sim p_\theta$ with $\theta = \theta(x)$, the curvature of
$\log p_{\theta(x)}(y)$ in x depends on y, and may be negative. Its expectation
$J^\top F(\theta) J$ is never negative: J is the Jacobian of $\theta$ and F the Fisher
information, the second derivative of the Kullback-Leibler divergence
$D(p_{\theta'} \| p_\theta)$ in $\theta$ at $\theta' = \theta$. So a family is known here
by its divergence, or by any function with the same second derivative there.

Families whose log density is linear in a statistic need no formula: up to a constant,
$D(p_{\theta'} \| p_\theta) = -\log p_\theta(E_{\theta'} y)$ if that statistic is y.

Families with tails heavier than a Gaussian's (Laplace, logistic, Student-t, Cauchy) are
left out on purpose. That an outlier hardly pulls is just what the expectation forgets:
ascents that follow the information crawl towards it.

Source: Amari 2016, Information Geometry and Its Applications,
doi:10.1007/978-4-431-55978-8, section 1.3; NumPyro's `kl_divergence` where there is one.
"""

from functools import singledispatch

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import kl_divergence
from numpyro.distributions.conjugate import NegativeBinomialLogits
from numpyro.distributions.distribution import MaskedDistribution
from numpyro.distributions.util import sum_rightmost

from numpyro_diffusion.model.private import mask_of, unvalidated

__all__ = ["divergence"]


@singledispatch
def divergence(
    fn: dist.Distribution, truth: dist.Distribution
) -> Float[Array, "*batch"] | None:
    r"""How a law differs from the true one of its family.

    Args:
        fn: The law, of batch shape `batch`.
        truth: The true one, of the same class and shape.

    Returns:
        $D(\text{truth} \| \text{fn})$ up to its value and slope at `fn = truth`, or None if
        the Fisher information of the family is not known here. For a negative binomial
        it is that on the mean alone.
    """
    return None


@divergence.register(dist.Normal)
@divergence.register(dist.MultivariateNormal)
@divergence.register(dist.Gamma)
@divergence.register(dist.Beta)
@divergence.register(dist.Dirichlet)
def _closed_form(fn: dist.Distribution, truth: dist.Distribution) -> Array:
    return kl_divergence(truth, fn)


@divergence.register(dist.BernoulliProbs)
@divergence.register(dist.BernoulliLogits)
@divergence.register(dist.BinomialProbs)
@divergence.register(dist.BinomialLogits)
@divergence.register(dist.Exponential)
@divergence.register(dist.Poisson)
def _linear(fn: dist.Distribution, truth: dist.Distribution) -> Array:
    # A mean is no count.
    return -jnp.asarray(unvalidated(fn).log_prob(truth.mean))


@divergence.register(dist.GammaPoisson)
def _negative_binomial(fn: dist.GammaPoisson, truth: dist.GammaPoisson) -> Array:
    # Linear in y as long as the concentration stays what it is.
    shape = jnp.asarray(truth.concentration)
    law = dist.GammaPoisson(shape, shape / jnp.asarray(fn.mean), validate_args=False)
    return -jnp.asarray(law.log_prob(truth.mean))


@divergence.register(NegativeBinomialLogits)
def _negative_binomial_logits(
    fn: NegativeBinomialLogits, truth: NegativeBinomialLogits
) -> Array:
    # Of its own, since the rate of its gamma law overflows where logits do not.
    law = NegativeBinomialLogits(truth.total_count, fn.logits, validate_args=False)
    return -jnp.asarray(law.log_prob(truth.mean))


@divergence.register(dist.CategoricalProbs)
def _categorical(fn: dist.CategoricalProbs, truth: dist.CategoricalProbs) -> Array:
    probs = jnp.asarray(fn.probs)
    # The second derivative of log p overflows below, where p itself tells nothing.
    is_seen = probs > jnp.sqrt(jnp.finfo(probs.dtype).tiny)
    log_probs = jnp.log(jnp.where(is_seen, probs, 1.0))
    return -jnp.sum(jnp.asarray(truth.probs) * log_probs, axis=-1)


@divergence.register(dist.CategoricalLogits)
def _categorical_logits(
    fn: dist.CategoricalLogits, truth: dist.CategoricalLogits
) -> Array:
    log_probs = jax.nn.log_softmax(jnp.asarray(fn.logits))
    return -jnp.sum(jax.nn.softmax(jnp.asarray(truth.logits)) * log_probs, axis=-1)


@divergence.register(dist.LogNormal)
def _log_normal(fn: dist.LogNormal, truth: dist.LogNormal) -> Array:
    return kl_divergence(truth.base_dist, fn.base_dist)


@divergence.register(dist.Independent)
def _independent(fn: dist.Independent, truth: dist.Independent) -> Array | None:
    found = divergence(fn.base_dist, truth.base_dist)
    return None if found is None else sum_rightmost(found, fn.reinterpreted_batch_ndims)


@divergence.register(dist.ExpandedDistribution)
def _expanded(
    fn: dist.ExpandedDistribution, truth: dist.ExpandedDistribution
) -> Array | None:
    found = divergence(fn.base_dist, truth.base_dist)
    return None if found is None else jnp.broadcast_to(found, fn.batch_shape)


@divergence.register(MaskedDistribution)
def _masked(fn: MaskedDistribution, truth: MaskedDistribution) -> Array | None:
    found = divergence(fn.base_dist, truth.base_dist)
    return None if found is None else jnp.where(mask_of(fn), found, 0.0)
