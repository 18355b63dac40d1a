"""Chains of few entries with few values, by tables of all their states."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd


class Factorised(nd.AbstractReverse):
    """The denoiser of an exact process, with averaged bridges: a network's best."""

    exact: nd.analytic.PatternsReverse

    @property
    def forward(self):
        return self.exact.forward

    def denoise(self, x_t, t):
        return self.exact.denoise(x_t, t)

    def denoising_variance(self, t):
        return self.exact.denoising_variance(t)


def states_of(forward, length):
    """All noisy events, in the order of their digits."""
    largest = int(forward.noisy_support.upper_bound)
    return jnp.array(list(itertools.product(range(largest + 1), repeat=length)))


def chain_law(reverse, length, num_steps):
    """Of each of `states_of` at t = 0: a product of tables, from the terminal law down."""
    states = states_of(reverse.forward, length)
    terminal = reverse.forward.terminal((length,))
    law = np.exp(np.asarray(jax.vmap(terminal.log_prob)(states)))

    @jax.jit
    @jax.vmap
    def rows(x_t, t, s):
        return jnp.exp(jax.vmap(reverse.transition(x_t, t=t, s=s).log_prob)(states))

    for k in range(num_steps, 0, -1):
        times = (jnp.full(len(states), j / num_steps) for j in (k, k - 1))
        found = np.asarray(rows(states, *times))
        law = law @ np.where((law > 0.0)[:, None], found, 0.0)  # what is ever reached
    np.testing.assert_allclose(law.sum(), 1.0, rtol=1e-12)
    return law
