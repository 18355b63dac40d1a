"""Diffusion of K values against tables of probabilities, multiplied and enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpyro import handlers
from value_chains import Factorised, chain_law, states_of

import numpyro_diffusion as nd

K = 3
RATE = np.array([0.5, 0.2, 0.3])
SCHEDULES = [nd.schedules.signal_linear(), nd.schedules.cosine()]
every_schedule = pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=["linear", "cosine"]
)
every_kind = pytest.mark.parametrize("kind", ["uniform", "rate", "absorbing"])
TIMES = [(0.2, 0.6), (0.5, 0.55), (0.3, 1.0), (0.0, 0.4)]
every_time = pytest.mark.parametrize(("s", "t"), TIMES)


def forward_of(kind, schedule):
    if kind == "absorbing":
        return nd.AbsorbingForward(schedule, K)
    return nd.CategoricalForward(
        schedule, K, jnp.array(RATE) if kind == "rate" else None
    )


def table(kind, kept):
    """P[a, b] of a step from a to b: K values, or K and a mask."""
    if kind == "absorbing":
        matrix = kept * np.eye(K + 1)
        matrix[:, K] += 1.0 - kept
        return matrix
    rate = RATE if kind == "rate" else np.full(K, 1 / K)
    return kept * np.eye(K) + (1.0 - kept) * rate


def step_table(kind, schedule, s, t):
    return table(kind, float(schedule.alpha_bar(t)) / float(schedule.alpha_bar(s)))


def probs(law):
    return np.asarray(law.base_dist.probs)


@every_kind
@every_schedule
@every_time
def test_steps_and_marginals_are_rows_of_their_tables(kind, schedule, s, t):
    forward = forward_of(kind, schedule)
    expected = step_table(kind, schedule, s, t)
    states = jnp.arange(len(expected))
    found = probs(forward.transition(states, s=s, t=t))
    np.testing.assert_allclose(found, expected, atol=1e-14)
    found = probs(forward.marginal(jnp.arange(K), t))
    np.testing.assert_allclose(
        found, table(kind, float(schedule.alpha_bar(t)))[:K], atol=1e-14
    )
    terminal = probs(forward.terminal((2,)))
    assert terminal.shape == (2, len(expected))
    np.testing.assert_allclose(terminal[0] @ expected, terminal[0], atol=1e-14)


@every_kind
@every_schedule
@every_time
def test_bridges_follow_by_bayes_rule(kind, schedule, s, t):
    forward = forward_of(kind, schedule)
    to_s = table(kind, float(schedule.alpha_bar(s)))[:K]
    step = step_table(kind, schedule, s, t)
    mean = np.array([0.2, 0.5, 0.3])
    for x_t in range(step.shape[1]):
        joint = to_s * step[:, x_t]
        evidence = joint.sum(1)
        for x0 in np.flatnonzero(evidence > 0):
            law = forward.posterior(jnp.array([x_t]), jnp.array([x0]), s=s, t=t)
            expected = joint[x0] / evidence[x0]
            np.testing.assert_allclose(probs(law)[0], expected, atol=1e-13)
        if not evidence.any():
            continue  # nothing leads here
        # What an unmasked entry was is known.
        known = kind == "absorbing" and x_t < K
        of_x0 = np.eye(K)[x_t] if known else mean
        law = forward.averaged_posterior(
            jnp.array([x_t]), jnp.array(of_x0)[None], 0.0, s=s, t=t
        )
        bridges = np.divide(
            joint,
            evidence[:, None],
            out=np.zeros_like(joint),
            where=evidence[:, None] > 0,
        )
        np.testing.assert_allclose(probs(law)[0], of_x0 @ bridges, atol=1e-13)


@every_kind
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_evidence_is_the_likelihood_of_each_value(kind, t):
    schedule = nd.schedules.signal_linear()
    forward = forward_of(kind, schedule)
    likelihood = table(kind, float(schedule.alpha_bar(t)))[:K]
    for x_t in range(likelihood.shape[1]):
        if likelihood[:, x_t].sum() == 0.0:
            continue
        found = forward.decode(forward.evidence(jnp.array([x_t]), t))[0]
        expected = likelihood[:, x_t] / likelihood[:, x_t].sum()
        np.testing.assert_allclose(found, expected, atol=1e-14)


def test_bits_are_the_case_of_two_values():
    schedule = nd.schedules.cosine()
    two = nd.CategoricalForward(schedule, 2, jnp.array([0.7, 0.3]))
    bits = nd.BernoulliForward(schedule, 0.3)
    x_t, x0 = jnp.array([0, 1, 1]), jnp.array([1, 1, 0])
    pairs = [
        (two.marginal(x0, 0.4), bits.marginal(x0, 0.4)),
        (two.transition(x0, s=0.2, t=0.4), bits.transition(x0, s=0.2, t=0.4)),
        (two.posterior(x_t, x0, s=0.2, t=0.4), bits.posterior(x_t, x0, s=0.2, t=0.4)),
    ]
    for of_two, of_bits in pairs:
        np.testing.assert_allclose(probs(of_two)[:, 1], of_bits.mean, rtol=1e-13)
        np.testing.assert_allclose(of_two.entropy(), of_bits.entropy(), rtol=1e-12)
    kl = two.kl(pairs[2][0], pairs[0][0])
    np.testing.assert_allclose(kl, bits.kl(pairs[2][1], pairs[0][1]), rtol=1e-12)


def test_what_is_impossible_costs_infinity_and_what_neither_has_nothing():
    forward = nd.AbsorbingForward(nd.schedules.signal_linear(), K)
    masked = jnp.array([K])
    bridge = forward.posterior(masked, jnp.array([1]), s=0.2, t=0.5)
    guess = lambda mean: forward.averaged_posterior(
        masked, jnp.array([mean]), 0.0, s=0.2, t=0.5
    )
    found = forward.kl(bridge, guess([0.0, 0.25, 0.75]))
    np.testing.assert_allclose(found, 0.6 * np.log(4.0), rtol=1e-12)
    assert forward.kl(bridge, guess([0.5, 0.0, 0.5])) == np.inf
    assert guess([0.5, 0.0, 0.5]).log_prob(jnp.array([1])) < -1e300
    assert guess([0.5, 0.0, 0.5]).entropy() > 0.0


def test_gradients_are_finite_where_probabilities_are_zero():
    forward = nd.AbsorbingForward(nd.schedules.signal_linear(), K)
    x_t = jnp.array([K, 0])
    bridge = forward.posterior(x_t, jnp.array([1, 0]), s=0.2, t=0.5)

    def kl(output):
        mean = forward.decode(output + forward.evidence(x_t, 0.5))
        return forward.kl(
            bridge, forward.averaged_posterior(x_t, mean, 0.0, s=0.2, t=0.5)
        )

    output = jnp.array([[0.3, -0.2, 0.1], [0.0, 1.0, 2.0]])
    check_grads(kl, (output,), order=1, modes=["rev"])
    assert np.all(np.asarray(jax.grad(kl)(output))[1] == 0.0)  # nothing to be learned


PATTERNS = jnp.array([[0, 1], [2, 2], [1, 0], [2, 0]])
WEIGHTS = jnp.array([0.1, 0.4, 0.3, 0.2])


def law_of_x0(reverse, num_steps):
    """By the events, as tuples."""
    events = map(tuple, np.asarray(states_of(reverse.forward, 2)).tolist())
    return dict(zip(events, chain_law(reverse, 2, num_steps), strict=True))


def data_law():
    rows = map(tuple, np.asarray(PATTERNS).tolist())
    return dict(zip(rows, np.asarray(WEIGHTS), strict=True))


@pytest.mark.gate
@every_kind
def test_the_exact_chain_of_any_length_has_the_data_law(kind):
    forward = forward_of(kind, nd.schedules.signal_linear())
    exact = nd.analytic.PatternsReverse(forward, WEIGHTS, PATTERNS)
    law = law_of_x0(exact, 3)
    for state, probability in law.items():
        assert abs(probability - data_law().get(state, 0.0)) < 1e-12
    # control: independent entries are not the law
    law = law_of_x0(Factorised(exact), 3)
    assert max(abs(p - data_law().get(s, 0.0)) for s, p in law.items()) > 0.03


@pytest.mark.gate
@every_kind
def test_the_bound_is_that_of_enumeration(kind):
    """Each term's mean over all x_t, against KLs of whole tables."""
    forward = forward_of(kind, nd.schedules.signal_linear())
    reverse = Factorised(nd.analytic.PatternsReverse(forward, WEIGHTS, PATTERNS))
    x0, num_steps, states = PATTERNS[1], 4, states_of(forward, 2)
    probability = lambda law: np.exp(np.asarray(jax.vmap(law.log_prob)(states)))

    @jax.jit
    @jax.vmap
    def of_step(x_t, t, s):
        rows = lambda law: jnp.exp(jax.vmap(law.log_prob)(states))
        return (
            nd.bound.step_kl(reverse, x0, x_t, t=t, s=s, key=jax.random.key(0)),
            rows(forward.posterior(x_t, x0, s=s, t=t)),
            rows(reverse.transition(x_t, t=t, s=s)),
        )

    total = first_term = 0.0
    for k in range(2, num_steps + 1):
        t, s = k / num_steps, (k - 1) / num_steps
        times = jnp.full(len(states), t), jnp.full(len(states), s)
        weights = probability(forward.marginal(x0, t))
        seen = weights > 0
        kls, q, p = (np.asarray(found)[seen] for found in of_step(states, *times))
        ratios = np.log(np.where(q > 0, q, 1.0) / np.where(q > 0, p, 1.0))
        np.testing.assert_allclose(kls, np.sum(q * ratios, axis=1), atol=1e-10)
        total += weights[seen] @ kls
        first_term = total if k == 2 else first_term
    at_first = probability(forward.marginal(x0, 1 / num_steps))
    last = lambda x_t: reverse.transition(x_t, t=1 / num_steps, s=0.0).log_prob(x0)
    seen = at_first > 0
    exact_bound = at_first[seen] @ np.asarray(jax.vmap(last)(states))[seen] - total
    bound = nd.variational_bound(
        reverse, jnp.tile(x0, (20_000, 1)), num_steps=num_steps, key=jax.random.key(1)
    )
    z = (float(bound.K_learned) - exact_bound) / float(bound.standard_error_learned)
    assert abs(z) < 4.5  # by luck once in 150,000
    # control: the first step of the sum left out
    wrong = exact_bound + first_term
    assert abs(float(bound.K_learned) - wrong) > 9 * bound.standard_error_learned
    assert exact_bound < np.log(law_of_x0(reverse, num_steps)[tuple(x0.tolist())])


@pytest.mark.gate
def test_the_bound_of_a_masked_process_ends_in_its_own_last_step():
    forward = nd.AbsorbingForward(nd.schedules.cosine(), K)
    exact = nd.analytic.PatternsReverse(forward, WEIGHTS, PATTERNS)
    key = jax.random.key(0)
    bound = nd.variational_bound(exact, PATTERNS, num_steps=5, key=key, unit=nd.BITS)
    np.testing.assert_allclose(bound.K_learned, bound.K, rtol=1e-12)
    assert np.isfinite(bound.K)
    np.testing.assert_allclose(bound.K, np.mean(bound.pointwise), rtol=1e-12)
    assert bound.L_null == -np.inf
    # All trajectories of an exact process weigh the same.
    found = nd.importance_log_prob(exact, PATTERNS, num_steps=5, num_samples=8, key=key)
    np.testing.assert_allclose(found.log_prob, np.log(WEIGHTS), rtol=1e-10)
    np.testing.assert_allclose(found.ess, 8.0, rtol=1e-10)


@pytest.mark.promotes
@pytest.mark.parametrize("num_values", [256, 300])
def test_bytes_are_what_integers_are(num_values):
    """A byte holds no mask beside 256 values, and counts no further than 255."""
    schedule = nd.schedules.signal_linear()
    x0 = jnp.array([0, 44, 255])
    for forward in (
        nd.AbsorbingForward(schedule, num_values),
        nd.CategoricalForward(schedule, num_values),
    ):
        expected = probs(forward.marginal(x0, 0.5))
        found = probs(forward.marginal(x0.astype(jnp.uint8), 0.5))
        np.testing.assert_array_equal(found, expected)
        likely = found[0, :num_values] > 0.4
        np.testing.assert_array_equal(likely, np.arange(num_values) == 0)
        reverse = nd.DenoisingReverse(forward, lambda x, t: 0.0 * x)
        losses = [
            reverse.loss(x, jnp.array([0, 1, 2]), jnp.array(0.5))
            for x in (x0, x0.astype(jnp.uint8))
        ]
        assert losses[0] == losses[1]
    grid = nd.schedules.uniform_grid(4)
    forward = nd.AbsorbingForward(schedule, num_values)
    path = nd.forward.noising_path(
        jax.random.key(0), forward, x0.astype(jnp.uint8), grid
    )
    assert np.all(np.asarray(path[-1]) == num_values)
    np.testing.assert_array_equal(path[0], x0)
    program = handlers.seed(nd.forward_model, jax.random.key(0))
    assert np.all(
        np.asarray(program(forward, x0.astype(jnp.uint8), 4))[-1] == num_values
    )


@every_kind
def test_a_step_of_no_length_stays(kind):
    forward = forward_of(kind, nd.schedules.signal_linear())
    x = jnp.array([0, 2])
    for time in (0.0, 0.4):
        law = forward.posterior(x, x, s=time, t=time)
        np.testing.assert_allclose(probs(law)[:, :K], np.eye(K)[[0, 2]], atol=1e-12)


@pytest.mark.parametrize("row", [[np.nan, 0.5, 0.5], [0.0, 0.0, 0.0], [-0.5, 0.5, 1.0]])
def test_what_are_no_probabilities_is_no_law(row):
    """Not a law that draws zeros."""
    rows = jnp.array([row, [0.2, 0.3, 0.5]])
    with pytest.raises(ValueError, match="invalid logits"):  # NumPyro's validation
        nd.forward.factorised_categorical(rows)
    law_of = lambda rows: nd.forward.factorised_categorical(rows).base_dist
    log_probs = jax.jit(lambda rows: law_of(rows).log_prob(jnp.array([0, 2])))(rows)
    assert np.isnan(log_probs[0])
    np.testing.assert_allclose(log_probs[1], np.log(0.5), rtol=1e-12)


@every_kind
def test_an_event_that_no_pattern_fits_counts_for_the_nearest(kind):
    forward = forward_of(kind, nd.schedules.signal_linear())
    words = jnp.array([[0, 0, 0, 0], [1, 1, 1, 1]])
    exact = nd.analytic.PatternsReverse(forward, jnp.array([0.9, 0.1]), words)
    assert np.isfinite(exact.denoise(jnp.array([0, 0, 1, 1]), 0.0)).all()
    # Three entries of the second, one of the first: at t = 0 nothing is forgotten.
    found = exact.denoise(jnp.array([0, 1, 1, 1]), 0.0)
    np.testing.assert_allclose(found, np.eye(K)[[1, 1, 1, 1]], atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: nd.CategoricalForward(c, 1), "num_values must be an integer of"),
        (lambda c: nd.AbsorbingForward(c, 1), "num_values must be an integer of"),
        (
            lambda c: nd.CategoricalForward(c, 3, jnp.array([0.5, 0.5])),
            r"rate must have shape \(3,\), got \(2,\)",
        ),
        (
            lambda c: nd.CategoricalForward(c, 2, jnp.array([0.5, 0.6])),
            "rate must sum to one",
        ),
        (
            lambda c: nd.AbsorbingForward(nd.schedules.geometric(), 3),
            "schedule must leave no signal at t = 1",
        ),
        (
            lambda c: nd.CategoricalForward(c, 3).marginal(jnp.array([3]), 0.5),
            "x0 must hold integers from 0 to 2, got values from 3 to 3",
        ),
        (
            lambda c: nd.AbsorbingForward(c, 3).transition(
                jnp.array([4]), s=0.1, t=0.5
            ),
            "x_s must hold integers from 0 to 3, got values from 4 to 4",
        ),
        (
            lambda c: nd.CategoricalForward(c, 3).averaged_posterior(
                jnp.array([0]), jnp.ones(3) / 3, 0.0, s=0.1, t=0.5
            ),
            r"x0_mean must have shape \(1, 3\), got \(3,\)",
        ),
    ],
)
def test_what_is_no_process_of_values_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(nd.schedules.cosine())


def test_data_with_a_mask_are_refused():
    forward = nd.AbsorbingForward(nd.schedules.cosine(), K)
    with pytest.raises(ValueError, match=r"made of the values \[0, 1, 2\]"):
        forward.check("fit: data", np.array([[0, 3]]))
