"""Right calls of pictures; see `wrong_arguments`."""

import types

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from right_calls import ERROR, GAUSS, KEY, SCHEDULE, row

import numpyro_diffusion as nd
from numpyro_diffusion.bound.records import Bound

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def closed(drawn):
    """Hundreds of figures would fill the memory."""
    plt.close("all")
    return drawn


DRAWS = jax.random.normal(KEY, (3, 2, 4, 4))
PARTS = dict.fromkeys(Bound._fields, jnp.array(1.0))
BOUND = Bound(**{**PARTS, "step_kls": jnp.array([0.5, 0.2])})
RUN = types.SimpleNamespace(
    ess=np.ones((3, 1)),
    resampled=np.ones((2, 1), bool),
    log_evidence_path=np.zeros((3, 1)),
    log_weights=np.zeros((4, 1)),
    log_evidence=np.zeros(()),
    log_evidence_error=np.ones(()),
)
RUNS = nd.diagnostics.CalibrationRuns(
    {"x": jax.random.normal(KEY, (40,))},
    jnp.zeros(40),
    {"x": jax.random.normal(jax.random.key(1), (40, 3))},
)

row(
    "plotting.plot_posterior_grid",
    closed,
    ("row_labels", "mask", "truth", "data", "limits"),
    draws=DRAWS,
    truth=DRAWS[0],
    data=DRAWS[1],
    mask=np.ones((4, 4), bool),
    limits=(0.0, 1.0),
    row_labels=("a", "b"),
)
row(
    "plotting.plot_trajectory",
    closed,
    ("times", "limits"),
    path=DRAWS[:, 0],
    times=jnp.array([0.0, 0.5, 1.0]),
    limits=(0.0, 1.0),
)
row("plotting.plot_bound", closed, bound=BOUND)
row(
    "plotting.plot_denoising_error",
    closed,
    ("schedule", "reference"),
    error=ERROR,
    schedule=SCHEDULE,
    reference=GAUSS,
)
row("plotting.plot_smc", closed, posterior=RUN)
row(
    "plotting.plot_ranks",
    closed,
    calibration=nd.diagnostics.simulation_based_calibration(RUNS),
)
row(
    "plotting.plot_coverage",
    closed,
    coverage=nd.diagnostics.expected_coverage(RUNS),
)
row(
    "plotting.plot_training",
    closed,
    result=nd.FitResult(None, np.ones(4), None, np.ones(2)),
    every=2,
)
