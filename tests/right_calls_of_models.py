"""Right calls of schedules, processes and networks; see `wrong_arguments`."""

import jax.numpy as jnp
import numpy as np
from right_calls import (
    BITS,
    ERROR,
    FORWARD,
    GAUSS,
    KEY,
    OF_BITS,
    PATTERNS,
    SCHEDULE,
    TRAINED,
    Scaled,
    X,
    Z,
    row,
)

import numpyro_diffusion as nd


def curve(schedule):
    return schedule.alpha_bar(0.5), schedule.noise(0.5), schedule.time(0.5)


def drawn(forward):
    return forward.marginal(Z, 0.5).sample(KEY)


def stepped(reverse, x=X):
    step = reverse.step(x, t=0.5, s=0.25)
    return step.x0_hat, step.law.sample(KEY), reverse.denoising_variance(0.5)


def called(network):
    return network(X, jnp.array(0.5))


# ---- Schedules and processes
for _name in (
    "Cosine",
    "SignalLinear",
    "Straight",
    "cosine",
    "signal_linear",
    "straight",
):
    row(f"schedules.{_name}", curve)
for _name in ("Geometric", "geometric"):
    row(f"schedules.{_name}", curve, nsr_min=1e-4, nsr_max=1e4)
for _name in (
    *("LinearRate", "SubVariancePreserving"),
    *("variance_preserving", "sub_variance_preserving"),
):
    row(f"schedules.{_name}", curve, beta_min=0.1, beta_max=20.0)
row("schedules.variance_exploding", curve, sigma_min=0.01, sigma_max=50.0)
for _name in ("Power", "edm"):
    row(f"schedules.{_name}", curve, sigma_max=20.0, rho=3.0)
row(
    "schedules.ddpm", curve, num_steps=4, beta_start=0.1, beta_end=0.5, spacing="linear"
)
row("schedules.Tabulated", curve, signal=jnp.array([1, 0.5]), lost=jnp.array([0, 0.5]))
row("schedules.Learned", curve, beta_1=0.1, log_increments=jnp.array([0.1]))
row("schedules.learned", curve, num_steps=3, beta_1=0.1)
row("schedules.Monotone", curve, nsr_min=0.1, nsr_max=9.0, logits=jnp.array([0.1, 1]))
row("schedules.monotone", curve, nsr_min=0.1, nsr_max=9.0, num_pieces=2)
row("schedules.tabulated", curve, betas=[0.1, 0.2])
row("schedules.reference_code", curve, num_steps=5)
row("schedules.uniform_grid", num_steps=3)
for _schedule in (
    *(SCHEDULE, nd.schedules.signal_linear(), nd.schedules.geometric()),
    *(nd.schedules.tabulated([0.1, 0.2]), nd.schedules.learned(3, 0.1)),
    nd.schedules.monotone(0.1, 9.0, 2),
    *(nd.schedules.variance_preserving(), nd.schedules.sub_variance_preserving()),
    *(nd.schedules.edm(20.0, 3.0), nd.schedules.straight()),
):
    _name = f"schedules.{type(_schedule).__name__}"
    for _method in ("alpha_bar", "noise", "angle"):
        row(f"{_name}.{_method}", call=getattr(_schedule, _method), t=0.5)
    row(f"{_name}.time", call=_schedule.time, angle=0.5)
    for _method in ("kept", "beta"):
        row(f"{_name}.{_method}", call=getattr(_schedule, _method), s=0.25, t=0.5)
row("GaussianForward", drawn, schedule=SCHEDULE)
row("BernoulliForward", drawn, schedule=SCHEDULE, rate=0.3)
LETTERS = nd.CategoricalForward(SCHEDULE, 2)
MASKED = nd.AbsorbingForward(SCHEDULE, 2)
row(
    "CategoricalForward",
    None,
    ("rate",),
    schedule=SCHEDULE,
    num_values=2,
    rate=jnp.array([0.4, 0.6]),
)
row("AbsorbingForward", schedule=SCHEDULE, num_values=2)
for _forward, _x in ((FORWARD, X), (BITS, Z), (LETTERS, Z), (MASKED, Z)):
    _name = type(_forward).__name__
    _of = {"x_s": _x, "s": 0.25, "t": 0.5}
    row(f"{_name}.transition", call=_forward.transition, **_of)
    row(f"{_name}.marginal", call=_forward.marginal, x0=_x, t=0.5)
    _of = {"x_t": _x, "x0": _x, "s": 0.25, "t": 0.5}
    row(f"{_name}.posterior", call=_forward.posterior, **_of)
row(
    "DenoisingError",
    lambda e: (
        e(SCHEDULE, 0.5),
        e.given(SCHEDULE, X, 0.5),
        e.covariance(SCHEDULE, 0.5),
    ),
    ("knots", "table", "components"),
    times=ERROR.times,
    values=ERROR.values,
    knots=jnp.array([-1.0, 1.0]),
    table=jnp.array([[0.1, 0.2], [0.2, 0.3]]),
    components=nd.ErrorComponents(jnp.eye(2)[:1], jnp.array([[0.1], [0.3]])),
)
row("ErrorComponents", directions=jnp.eye(2)[:1], variances=jnp.array([[0.1], [0.3]]))
row("LogitPrediction")
row("LevelPrediction", levels=np.array([-1.0, 0.5, 1.0]))
SEEN = {"scale": "straight", "time": "t", "time_scale": 2.0, "time_shift": -1.0}
for _name in ("Data", "Velocity", "Epsilon", "Score"):
    row(f"{_name}Prediction", **SEEN)
row("FlowPrediction", **SEEN, to_data=True)
row("EDMPrediction", sigma_data=0.5)
row(
    "DenoisingReverse",
    stepped,
    ("error", "prediction"),
    forward=FORWARD,
    network=Scaled(jnp.array(0.1)),
    prediction=nd.VelocityPrediction(),
    error=ERROR,
)
row("analytic.GaussianReverse", stepped, forward=FORWARD, mean=X, covariance=jnp.eye(2))
row(
    "analytic.MixtureReverse",
    stepped,
    forward=FORWARD,
    weights=jnp.array([0.4, 0.6]),
    means=jnp.eye(2),
    scales=jnp.ones((2, 2)),
)
row(
    "analytic.PatternsReverse",
    lambda reverse: stepped(reverse, Z),
    forward=BITS,
    weights=PATTERNS.weights,
    patterns=PATTERNS.patterns,
)
for _reverse, _x in ((GAUSS, X), (TRAINED, X), (OF_BITS, Z)):
    _name = type(_reverse).__name__ + ("" if _reverse is not OF_BITS else "_of_bits")
    row(f"{_name}.transition", call=_reverse.transition, x_t=_x, t=0.5, s=0.25)
    row(f"{_name}.denoise", call=_reverse.denoise, x_t=_x, t=0.5)

# ---- Networks
row("networks.MLP", called, event_shape=(2,), width=2, depth=1, time_width=2, key=KEY)
row("networks.num_parameters", tree={"weight": jnp.ones(2)})
row(
    "networks.Transformer",
    called,
    event_shape=(2,),
    width=2,
    depth=1,
    num_heads=1,
    time_width=2,
    positions=True,
    key=KEY,
)
row(
    "networks.UNet",
    None,
    event_shape=(4, 4),
    width=2,
    multipliers=(1,),
    groups=1,
    time_width=2,
    key=KEY,
)
row(
    "networks.Spectral",
    called,
    event_shape=(2,),
    channels=2,
    depth=1,
    width=2,
    time_width=2,
    key=KEY,
)
row(
    "networks.Patched",
    lambda network: network(jnp.ones((2, 2)), jnp.array(0.5)),
    network=lambda x, t: x,
    event_shape=(2, 2),
    patch=2,
)
row(
    "networks.LevelLogits",
    called,
    network=lambda x, t: x,
    event_shape=(2,),
    num_levels=3,
    width=2,
    key=KEY,
)
row(
    "networks.Conditional",
    lambda network: network(X, jnp.array(0.5)),
    network=lambda x, t, context: x,
    example=X,
    context=X,
)
row(
    "networks.Applied",
    lambda network: network(X, jnp.array(0.5)),
    ("name",),
    function=lambda params, x, t: x + jnp.sum(params),
    params=jnp.array(2.0),
    name="a function",
)
row(
    "networks.register_function",
    None,
    name="a function",
    function=lambda params, x, t: x + jnp.sum(params),
    params=jnp.array(2.0),
)
row("networks.Conv", None, in_channels=1, out_channels=1, kernel_size=1, key=KEY)
row("networks.TimeEmbedding", lambda e: e(jnp.array(0.5)), width=2, key=KEY)
row(
    "paper2015.networks.BumpBasis",
    lambda b: b(jnp.array(0.5)),
    num=2,
    num_steps=3,
    relative_width=0.5,
)
row(
    "paper2015.networks.BumpReadout",
    lambda r: r(jnp.ones((1, 2, 3)), jnp.array(0.5)),
    basis=nd.paper2015.networks.BumpBasis(2, 3),
)
row("paper2015.networks.StepReadout", None, num_features=2, size=2, num_steps=3)
row(
    "paper2015.networks.MultiScaleConv",
    None,
    in_channels=1,
    out_channels=1,
    scales=1,
    kernel_size=1,
    key=KEY,
)
row(
    "paper2015.networks.MultiScaleNet",
    None,
    event_shape=(2, 2),
    scales=1,
    channels=1,
    depth=1,
    pixel_width=2,
    num_bumps=2,
    num_steps=3,
    key=KEY,
)
row(
    "paper2015.networks.RBFNet",
    called,
    ("centres", "num_outputs"),
    event_shape=(2,),
    num_units=2,
    num_steps=3,
    radius=0.5,
    centres=jnp.eye(2),
    key=KEY,
)
row(
    "paper2015.networks.SigmoidMLP",
    called,
    event_shape=(2,),
    width=2,
    depth=1,
    num_steps=3,
    key=KEY,
)
for _name in ("BitReadout", "PlainBitReadout", "PrintedReadout"):
    row(f"paper2015.{_name}")
row("paper2015.SquareRootReadout", scaled=True)
row("paper2015.ReferenceCodeReadout", num_steps=3)
row(
    "paper2015.KernelReverse",
    lambda r: r.step(X, t=1.0, s=0.5).law,
    ("error", "readout"),
    forward=nd.GaussianForward(nd.schedules.reference_code(2)),
    network=lambda x, t: 0.1 * jnp.stack([x, x]),
    num_steps=2,
    readout=nd.paper2015.SquareRootReadout(),
    learned_last_step=True,
    error=ERROR,
)

# ---- The paper's optima and windows
_UNITS = {"unit": 1.0}
_CHAIN = {"schedule": SCHEDULE, "num_steps": 3, **_UNITS}
row("paper2015.optimum.gaussian_bound", **_CHAIN, eigenvalues=[1.0, 0.5])
row("paper2015.optimum.gaussian_chain", **_CHAIN, eigenvalues=[1.0, 0.5])
row("paper2015.optimum.gaussian_entropy", eigenvalues=[1.0, 0.5], **_UNITS)
for _name in ("heartbeat_bound", "heartbeat_chain"):
    row(f"paper2015.optimum.{_name}", **_CHAIN, rate=0.2, period=2, repeats=1)
_POINTS = jnp.array([[0.0, 1.0], [1.0, 0.0]])
_MIXTURE = {"points": _POINTS, "scale": 0.1, "key": KEY, "num_samples": 4, **_UNITS}
row("paper2015.optimum.mixture_bound", schedule=SCHEDULE, num_steps=3, **_MIXTURE)
row("paper2015.optimum.mixture_entropy", **_MIXTURE)
row("paper2015.optimum.ceiling", forward=FORWARD, num_steps=3, **_UNITS)
row(
    "paper2015.optimum.reverse_entropy_bounds",
    forward=FORWARD,
    s=0.25,
    t=0.5,
    **_UNITS,
)
row(
    "paper2015.parzen.parzen_log_prob",
    events=_POINTS,
    samples=_POINTS,
    bandwidth=0.5,
    **_UNITS,
)
row(
    "paper2015.parzen.parzen_score",
    samples=_POINTS,
    validation=_POINTS,
    test=_POINTS,
    **_UNITS,
)
