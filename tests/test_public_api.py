"""The names a user types (design.md) exist and can be called."""

import functools

import pytest

import numpyro_diffusion as nd

NAMES = [
    "GaussianForward",
    "BernoulliForward",
    "DenoisingReverse",
    "DiffusionPrior",
    "Likelihood",
    "fit",
    "forward_model",
    "load",
    "load_pretrained",
    "reverse_model",
    "save",
    "variational_bound",
    "importance_log_prob",
    "guidance.MomentMatching",
    "guidance.MeanShift",
    "guidance.Product",
    "guidance.Tweedie",
    "handlers.diffusion_sites",
    "handlers.guide",
    "diagnostics.expected_coverage",
    "diagnostics.kernel_stein_discrepancy",
    "diagnostics.simulation_based_calibration",
    "infer.FlowReparam",
    "infer.ParticleGibbs",
    "infer.SplitGibbs",
    "infer.TwistedSMC",
    "networks.MLP",
    "networks.UNet",
    "schedules.cosine",
    "schedules.geometric",
    "schedules.signal_linear",
]


@pytest.mark.parametrize("name", NAMES)
def test_name_is_callable(name):
    assert callable(functools.reduce(getattr, name.split("."), nd))


@pytest.mark.parametrize(
    "module",
    [nd, nd.diagnostics, nd.guidance, nd.handlers, nd.infer, nd.schedules],
    ids=str,
)
def test_all_is_true(module):
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing
    assert sorted(set(module.__all__)) == sorted(module.__all__)
