"""A schedule from a list of betas, and the two of the 2015 paper's record."""

import jax.numpy as jnp
import numpy as np

from numpyro_diffusion.schedules import AbstractSchedule


class TableSchedule(AbstractSchedule):
    """Exact on the grid k / T and meant for nothing else."""

    signal: np.ndarray
    lost: np.ndarray

    @classmethod
    def of(cls, betas):
        betas = np.asarray(betas)
        signal = np.concatenate([[1.0], np.cumprod(1.0 - betas)])
        # 1 - a_t = (1 - a_s) + a_s beta: no digit is lost near the data
        lost = np.concatenate([[0.0], np.cumsum(signal[:-1] * betas)])
        return cls(signal, lost)

    def _at(self, table, t):
        return jnp.asarray(table)[
            jnp.rint(jnp.asarray(t) * (len(table) - 1)).astype(int)
        ]

    def alpha_bar(self, t):
        return self._at(self.signal, t)

    def noise(self, t):
        return self._at(self.lost, t)

    def time(self, angle):
        raise NotImplementedError


def reference_code(num_steps=1000):
    """The released code's fixed schedule."""
    smallest = np.full(num_steps, 1e-6)
    smallest[0] += 0.001
    base = 1.0 / np.linspace(num_steps, 2.0, num_steps)
    return TableSchedule.of(smallest + base * (1.0 - smallest - 1e-5))


def signal_linear_from(beta_1, num_steps):
    """1 / (T - t + 1), but for the first step."""
    betas = 1.0 / (num_steps - np.arange(num_steps))
    betas[0] = beta_1
    return TableSchedule.of(betas)
