"""Is a sampler right? Checks that need no posterior known in closed form."""

from numpyro_diffusion.diagnostics.coverage import expected_coverage
from numpyro_diffusion.diagnostics.rank_calibration import simulation_based_calibration
from numpyro_diffusion.diagnostics.runs import (
    CalibrationRuns,
    calibration_runs,
    in_parallel,
    in_sequence,
    model_simulator,
)
from numpyro_diffusion.diagnostics.stein import (
    diffusion_score,
    kernel_stein_discrepancy,
    posterior_score,
)
from numpyro_diffusion.diagnostics.two_sample import (
    TwoSampleTest,
    classifier_two_sample,
)

__all__ = [
    "CalibrationRuns",
    "TwoSampleTest",
    "calibration_runs",
    "classifier_two_sample",
    "diffusion_score",
    "expected_coverage",
    "in_parallel",
    "in_sequence",
    "kernel_stein_discrepancy",
    "model_simulator",
    "posterior_score",
    "simulation_based_calibration",
]
