"""Losses, denoising errors and bounds are drawn as they were measured."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.bound.records import Bound

plotting = nd.plotting
LOSSES = np.random.default_rng(1).random(23) + 0.5
LOOKS = np.array([0.9, 0.6, np.nan, 0.7])
RESULT = nd.FitResult(None, LOSSES, None, LOOKS)
SCHEDULE = nd.schedules.cosine()
FORWARD = nd.GaussianForward(SCHEDULE)
ERROR = nd.DenoisingError(jnp.array([0.25, 0.5, 1.0]), jnp.array([0.1, 0.2, 0.7]))


def data_of(line):
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def texts(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


# Training


def test_losses_their_running_mean_and_the_looks():
    axis = plotting.plot_training(RESULT, every=5, window=4)
    mean, raw, looks, best = axis.lines
    steps, values = data_of(raw)
    np.testing.assert_array_equal(steps, np.arange(1, 24))
    np.testing.assert_array_equal(values, LOSSES)
    naive = [LOSSES[max(0, i - 2) : i + 2].mean() for i in range(23)]
    np.testing.assert_allclose(data_of(mean)[1], naive)
    np.testing.assert_array_equal(data_of(looks), [[5, 10, 15, 20], LOOKS])
    np.testing.assert_array_equal(np.ravel(data_of(best)), [10, 0.6])
    assert texts(axis) == ["training, mean of 4 steps", "held-out"]
    assert axis.get_yscale() == "linear"


def test_training_without_looks_and_of_two_networks():
    alone = RESULT._replace(validation_losses=None)
    axis = plotting.plot_training(alone, log=True, label="small")
    again = plotting.plot_training(RESULT, every=5, log=True, label="large", ax=axis)
    assert again is axis
    assert axis.get_yscale() == "log"
    assert texts(axis) == [
        "small: training, mean of 23 steps",
        "large: training, mean of 23 steps",
        "large: held-out",
    ]


def test_a_monitor_of_another_rhythm_is_found_out():
    with pytest.raises(
        ValueError, match="plot_training: every must be that of the mon"
    ):
        plotting.plot_training(RESULT, every=4)


# Denoising error


def test_denoising_error_over_time():
    axis = plotting.plot_denoising_error(ERROR, label="mine")
    np.testing.assert_array_equal(data_of(axis.lines[0]), [ERROR.times, ERROR.values])
    assert texts(axis) == ["mine"]
    assert axis.get_yscale() == "log"
    assert "data at 0" in axis.get_xlabel()


def test_denoising_error_over_the_log_snr_with_a_gaussian_beside():
    """The closed form: the mean of v n / (a v + n) over variances v."""
    variances = jnp.array([0.5, 2.0])
    gaussian = nd.analytic.GaussianReverse(FORWARD, jnp.ones(2), jnp.diag(variances))
    axis = plotting.plot_denoising_error(ERROR, schedule=SCHEDULE, reference=gaussian)
    measured, known = axis.lines
    share = np.asarray(SCHEDULE.alpha_bar(jnp.array([0.25, 0.5])))
    log_snr = np.log(share / (1.0 - share))
    at, values = data_of(measured)
    # with a cosine no signal is left at time 1, or next to none
    np.testing.assert_allclose(at[:2], log_snr, atol=1e-12)
    np.testing.assert_array_equal(values[:2], ERROR.values[:2])
    noise = 1.0 - share[:, None]
    exact = np.mean(variances * noise / (share[:, None] * variances + noise), axis=1)
    np.testing.assert_allclose(data_of(known)[1][:2], exact)
    assert texts(axis) == ["measured", "exact error of GaussianReverse"]


def test_denoising_error_of_two_on_one_axes():
    axis = plt.subplots()[1]
    for label in ("one", "two"):
        assert plotting.plot_denoising_error(ERROR, label=label, ax=axis) is axis
    assert texts(axis) == ["one", "two"]


# Bound

PARTS = dict.fromkeys(Bound._fields, jnp.array(0.0)) | {
    "step_kls": jnp.array([3.0, 2.0, 0.5]),
    "K": jnp.array(-7.25),
    "standard_error": jnp.array(0.125),
    "entropy_last": jnp.array(1.0),
    "reconstruction": jnp.array(0.25),
}
BOUND = Bound(**PARTS)


def test_bound_has_a_step_for_each_term():
    axis = plotting.plot_bound(BOUND, unit="bits")
    (stairs,) = axis.patches
    values, edges, baseline = stairs.get_data()
    np.testing.assert_array_equal(values, [3.0, 2.0, 0.5])
    np.testing.assert_array_equal(edges, [1.5, 2.5, 3.5, 4.5])
    assert baseline == 0.0
    assert texts(axis) == [
        "sum of steps 5.50, K = -7.25 ± 0.12 bits\nwith the chain's own last step -4.25"
    ]
    assert axis.get_ylabel() == "mean KL of a step (bits)"


def test_bounds_of_two_and_of_one_step():
    axis = plotting.plot_bound(BOUND, label="first")
    single = BOUND._replace(step_kls=jnp.zeros(0))
    assert plotting.plot_bound(single, label="second", ax=axis) is axis
    assert [text.split(":")[0] for text in texts(axis)] == ["first", "second"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plotting.plot_bound(3.0), "plot_bound: bound must have step_kls, K"),
        (lambda: plotting.plot_bound(BOUND, ax=3), "plot_bound: ax must be an Axes"),
        (
            lambda: plotting.plot_denoising_error(None),
            "plot_denoising_error: error must have times, values",
        ),
        (
            lambda: plotting.plot_denoising_error(ERROR, reference=3),
            "plot_denoising_error: reference must have denoising_variance",
        ),
        (
            lambda: plotting.plot_denoising_error(ERROR, schedule=3),
            "plot_denoising_error: schedule must have alpha_bar, noise",
        ),
        (
            lambda: plotting.plot_training(3),
            "plot_training: result must have losses, validation_losses",
        ),
        (
            lambda: plotting.plot_training(RESULT, every=5, window=0),
            "plot_training: window must be a positive integer",
        ),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
