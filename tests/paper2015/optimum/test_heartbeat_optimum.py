"""Heartbeat optima against the published table and full enumeration of sequences."""

import itertools

import jax
import numpy as np
import pytest

from numpyro_diffusion import BITS
from numpyro_diffusion.paper2015.optimum import heartbeat_bound, heartbeat_chain
from numpyro_diffusion.schedules import cosine, geometric, signal_linear, tabulated


@pytest.mark.gate
@pytest.mark.parametrize(
    ("num_steps", "rate", "K", "total_kl", "entropy_first", "L", "valid"),
    [
        (2000, 0.2, -2.368335, 2.324398, 0.043937, -2.331166, 0.99362),
        (1000, 0.2, -2.408343, 2.326870, 0.081472, -2.340413, 0.98727),
        (500, 0.2, -2.481963, 2.331823, 0.150140, -2.358937, 0.97467),
        (200, 0.2, -2.679750, 2.346737, 0.333014, -2.414741, 0.93769),
        (100, 0.2, -2.973699, 2.371788, 0.601911, -2.508549, 0.87866),
        (50, 0.2, -3.497976, 2.422618, 1.075358, -2.699302, 0.76984),
        (2000, 0.5, -2.391423, 2.324382, 0.067041, -2.336361, 0.99005),
        (1000, 0.5, -2.450919, 2.326838, 0.124081, -2.350804, 0.98018),
        (200, 0.5, -2.850818, 2.346581, 0.504237, -2.466762, 0.90448),
    ],
)
def test_published_optima(num_steps, rate, K, total_kl, entropy_first, L, valid):
    """5 x 4 bits, `1 / (T - t + 1)`, in bits per sequence."""
    bound = heartbeat_bound(signal_linear(), num_steps, rate=rate, unit=BITS)
    chain = heartbeat_chain(signal_linear(), num_steps, rate=rate, unit=BITS)
    np.testing.assert_allclose(bound.K, K, atol=1e-6)
    np.testing.assert_allclose(np.sum(bound.step_kls), total_kl, atol=1e-6)
    np.testing.assert_allclose(bound.entropy_first, entropy_first, atol=1e-6)
    np.testing.assert_allclose(chain.L, L, atol=1e-6)
    np.testing.assert_allclose(chain.valid, valid, atol=6e-6)
    if (num_steps, rate) == (2000, 0.2):
        np.testing.assert_allclose(chain.valid_before, 0.99680, atol=6e-6)
    L_null = {0.2: -14.438562, 0.5: -20.0}[rate]
    np.testing.assert_allclose(bound.L_null, L_null, atol=1e-6)
    # neither rate needs a correction
    np.testing.assert_allclose(bound.correction, 0.0, atol=1e-12)
    # a learned last step costs nothing more: only the KLs are left
    assert -1e-4 < bound.reconstruction <= 0.0
    assert bound.K < bound.K_learned < chain.L_learned < -np.log2(5.0)
    assert bound.K < chain.L < chain.L_learned
    assert chain.valid < chain.valid_before < chain.valid_learned < 1.0


class Twin:
    """Every sequence of a small heartbeat, and the chain as matrices over them."""

    def __init__(self, schedule, num_steps, rate, period, repeats):
        self.T, self.rate, self.size = num_steps, rate, period * repeats
        self.states = np.array(list(itertools.product((0, 1), repeat=self.size)))
        self.patterns = np.tile(np.eye(period, dtype=int), repeats)
        self.a = np.array(schedule.alpha_bar(np.arange(num_steps + 1) / num_steps))

    def marginal(self, t):
        """P(bit = 1 | x_0), per pattern and bit."""
        return self.a[t] * self.patterns + (1.0 - self.a[t]) * self.rate

    def law(self, p):
        """Probabilities of all states (last axis) for factorised bits p."""
        p = p[..., None, :]
        return np.prod(np.where(self.states == 1, p, 1.0 - p), axis=-1)

    def transition(self, t):
        """q(x_t | x_{t-1}), rows x_{t-1}."""
        kept = self.a[t] / self.a[t - 1]
        return self.law(kept * self.states + (1.0 - kept) * self.rate)

    def phase_posterior(self, t):
        likelihood = self.law(self.marginal(t))
        return likelihood / likelihood.sum(0), likelihood.mean(0)

    def best(self, t):
        """P(x_{t-1} = 1 | x_t) of the best factorised kernel, per state and bit."""
        posterior, _ = self.phase_posterior(t)
        kept = self.a[t] / self.a[t - 1]
        u = self.marginal(t - 1)[:, None, :]
        up = kept + (1.0 - kept) * self.rate
        down = (1.0 - kept) * self.rate
        one = np.where(self.states == 1, up, 1.0 - up)
        zero = np.where(self.states == 1, down, 1.0 - down)
        bridge = u * one / (u * one + (1.0 - u) * zero)
        return np.einsum("ps,psb->sb", posterior, bridge)

    def edge(self):
        return self.a[1] * self.states + (1.0 - self.a[1]) * self.rate

    def kernels(self, *, learned):
        first = self.best(1) if learned else self.edge()
        return [first] + [self.best(t) for t in range(2, self.T + 1)]

    def elbo(self, kernels):
        """E [log p(x_T) + sum_t log p(x_{t-1} | x_t) / q(x_t | x_{t-1})]."""
        terminal = self.law(np.full(self.size, self.rate))
        laws = [self.law(self.patterns.astype(float)).mean(0)]
        laws += [self.phase_posterior(t)[1] for t in range(1, self.T + 1)]
        total = laws[-1] @ np.log(terminal)
        for t, f in enumerate(kernels, 1):
            forward = self.transition(t)
            joint = laws[t - 1][:, None] * forward
            reverse = self.law(f).T
            seen = joint > 0.0
            total += np.sum(joint[seen] * np.log(reverse[seen] / forward[seen]))
        return total

    def samples(self, kernels):
        law = self.law(np.full(self.size, self.rate))
        for f in reversed(kernels):
            law = law @ self.law(f)
        return law

    def valid(self, law):
        return sum(law[np.all(self.states == p, axis=1)][0] for p in self.patterns)

    def log_likelihood(self, law):
        logs = [np.log(law[np.all(self.states == p, axis=1)][0]) for p in self.patterns]
        return np.mean(logs)


SCHEDULES = {
    "linear": signal_linear(),
    "leftover": tabulated([0.1, 0.2, 0.3, 0.5]),
    "cosine": cosine(),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("period", "repeats", "rate"),
    [(3, 2, 1 / 3), (3, 2, 0.5), (2, 3, 0.3), (5, 1, 0.2), (3, 3, 0.2)],
)
def test_optima_by_enumeration(name, period, repeats, rate):
    """Rates other than 1 / period and 1/2 need the correction."""
    schedule, T = SCHEDULES[name], 4
    sizes = {"rate": rate, "period": period, "repeats": repeats}
    bound = heartbeat_bound(schedule, T, **sizes)
    chain = heartbeat_chain(schedule, T, **sizes)
    twin = Twin(schedule, T, rate, period, repeats)
    fixed, learned = twin.kernels(learned=False), twin.kernels(learned=True)
    np.testing.assert_allclose(bound.K + bound.correction, twin.elbo(fixed), atol=1e-11)
    np.testing.assert_allclose(
        bound.K_learned + bound.correction_learned, twin.elbo(learned), atol=1e-11
    )
    needs_none = rate in (1 / period, 0.5)
    assert (abs(bound.correction) < 1e-12) == needs_none
    # no other kernel does better
    for shift in (0.05, -0.05):
        other = [1.0 / (1.0 + (1.0 / f - 1.0) * np.exp(shift)) for f in learned]
        assert twin.elbo(other) < twin.elbo(learned) - 1e-6
    samples = twin.samples(fixed)
    np.testing.assert_allclose(chain.L, twin.log_likelihood(samples), atol=1e-11)
    np.testing.assert_allclose(chain.valid, twin.valid(samples), atol=1e-12)
    samples = twin.samples(learned)
    np.testing.assert_allclose(
        chain.L_learned, twin.log_likelihood(samples), atol=1e-11
    )
    np.testing.assert_allclose(chain.valid_learned, twin.valid(samples), atol=1e-12)
    before = twin.valid(twin.samples(fixed[1:]))
    np.testing.assert_allclose(chain.valid_before, before, atol=1e-12)
    # the null model, by enumeration as well
    null = twin.log_likelihood(twin.law(np.full(twin.size, rate)))
    np.testing.assert_allclose(bound.L_null, null, atol=1e-12)


def test_digits_survive_next_to_the_data():
    """A first step that loses 1e-12 of the signal: the entropies are tiny, not zero."""
    bound = heartbeat_bound(geometric(1e-12, 1e2), 50)
    loss = 1e-12 * np.expm1(np.log(1e14) / 50)
    p = np.array([0.8, 0.2]) * loss
    # one minus p would be off by 1e-4
    np.testing.assert_allclose(
        bound.entropy_first, [4, 16] @ (-p * np.log(p) + p), rtol=1e-6
    )
    assert np.all(bound.step_kls >= -1e-15)


def test_double_precision_whatever_jax_is_set_to():
    expected = heartbeat_bound(cosine(), 50), heartbeat_chain(cosine(), 50)
    with jax.enable_x64(False):
        got = heartbeat_bound(cosine(), 50), heartbeat_chain(cosine(), 50)
    assert got[0].K_learned == expected[0].K_learned
    assert got[1] == expected[1]


@pytest.mark.parametrize("function", [heartbeat_bound, heartbeat_chain])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": 0.0}, r"rate must lie in \(0, 1\), got 0.0"),
        ({"rate": 1.0}, r"rate must lie in \(0, 1\), got 1.0"),
        ({"rate": float("nan")}, r"rate must lie in \(0, 1\), got nan"),
        (
            {"period": 1},
            "period must be at least 2 and repeats at least 1, got period=1",
        ),
        ({"repeats": 0}, "got period=5 and repeats=0"),
    ],
)
def test_refuses(function, wrong, message):
    with pytest.raises(ValueError, match=f"{function.__name__}: .*{message}"):
        function(signal_linear(), 10, **wrong)
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 2"):
        function(signal_linear(), 1)
