"""A forward process of one's own: entries with K states forget which they are in."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

import numpyro_diffusion as nd


class CategoricalForward(nd.AbstractForward):
    """Keeps a state with probability alpha_bar, else draws one of K anew."""

    schedule: nd.schedules.AbstractSchedule
    num_states: int = eqx.field(static=True, default=3)

    @property
    def support(self):
        return constraints.integer_interval(0, self.num_states - 1)

    @property
    def values(self):
        return np.arange(self.num_states)

    def mean_shape(self, event_shape):
        return (*event_shape, self.num_states)

    def embed(self, x):
        return jax.nn.one_hot(x, self.num_states)

    def log_probabilities(self, mean):
        return jnp.log(mean)

    def mean_of(self, logits):
        return jax.nn.softmax(logits)

    def independent(self, mean):
        return dist.CategoricalProbs(mean).to_event(mean.ndim - 1)

    def transition(self, x_s, *, s, t):
        return self.independent(
            self._moved(self.embed(x_s), self.schedule.kept(s=s, t=t))
        )

    def marginal(self, x0, t):
        return self.independent(self._moved(self.embed(x0), self.schedule.alpha_bar(t)))

    def posterior(self, x_t, x0, *, s, t):
        return self.averaged_posterior(x_t, self.embed(x0), 0.0, s=s, t=t)

    def averaged_posterior(self, x_t, x0_mean, x0_variance, *, s, t):
        states = jnp.eye(self.num_states)
        given_x0 = self._moved(states, self.schedule.alpha_bar(s))  # q(x_s | x_0)
        towards = self._moved(states, self.schedule.kept(s=s, t=t))[
            :, x_t
        ]  # q(x_t | x_s)
        joint = given_x0 * jnp.moveaxis(towards, 0, -1)[..., None, :]
        bridges = joint / jnp.sum(joint, axis=-1, keepdims=True)
        return self.independent(jnp.sum(x0_mean[..., None] * bridges, axis=-2))

    def terminal(self, event_shape):
        shape = self.mean_shape(event_shape)
        return self.independent(jnp.full(shape, 1.0 / self.num_states))

    def kl(self, q, p):
        q, p = q.base_dist.probs, p.base_dist.probs
        return jnp.sum(jnp.where(q > 0.0, q * (jnp.log(q) - jnp.log(p)), 0.0))

    def _moved(self, mean, kept):
        return kept * mean + (1.0 - kept) / self.num_states
