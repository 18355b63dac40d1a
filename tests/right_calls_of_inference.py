"""Right calls of priors, training, guidance, inference, data and files."""

import atexit
import gzip
import pathlib
import struct
import tempfile

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.handlers import seed
from numpyro.infer import MCMC, NUTS
from right_calls import (
    DATA,
    ERROR,
    FORWARD,
    GAUSS,
    GRID,
    KEY,
    LIKELIHOOD,
    PRIOR,
    SCALING,
    SCHEDULE,
    STACK,
    TRAINED,
    X,
    curvature_of,
    model,
    quadratic,
    row,
)

import numpyro_diffusion as nd

PATH = jnp.broadcast_to(STACK, (4, 1, 1, 2))
LAWS = nd.guidance.normal_stack(STACK, jnp.ones_like(STACK))
SWEEP = nd.infer.ParticleSweep(
    GAUSS, nd.guidance.Unguided(), lambda stack, _: quadratic(stack), 4, 0.5
)
SMC = nd.infer.TwistedSMC(model, num_particles=2)
RUNS = nd.diagnostics.CalibrationRuns(
    {"x": jax.random.normal(KEY, (20,))},
    {"y": jnp.zeros(20)},
    {"x": jax.random.normal(jax.random.key(1), (20, 9))},
)
POINTS = np.array([[0.0, 1.0], [1.0, 0.0]])


def folder():
    """Tiny data sets in the formats of MNIST and CIFAR-10, and a saved schedule."""
    holder = tempfile.TemporaryDirectory()
    atexit.register(holder.cleanup)
    found = pathlib.Path(holder.name)
    for part in ("train", "t10k"):
        images = struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 2) + bytes(range(8))
        labels = struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes([1, 2])
        for name, data in (("images-idx3", images), ("labels-idx1", labels)):
            with gzip.open(found / f"{part}-{name}-ubyte.gz", "wb") as file:
                file.write(data)
    record = bytes([3]) + bytes(range(256)) * 12
    for name in [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]:
        (found / name).write_bytes(record)
    nd.save(found / "schedule.nd", SCHEDULE)
    return found


FOLDER = folder()


def posterior():
    """A posterior with what `evidence_trace` reads, without a run."""
    found = nd.infer.TwistedSMCPosterior.__new__(nd.infer.TwistedSMCPosterior)
    found.ess, found.resampled = jnp.ones((4, 1)), jnp.zeros((3, 1), bool)
    found.log_evidence_path, found.log_weights = jnp.zeros((4, 1)), jnp.zeros((2, 1))
    return found


def guided(guidance):
    step = guidance.step(GAUSS, quadratic, STACK, t=0.5, s=0.25)
    return step.log_twist, step.proposal


def moved(guide):
    return guide.log_prob(GAUSS, quadratic, STACK, 0.5)


def seeded(program):
    return lambda **arguments: seed(program, KEY)(**arguments)


# ---- Priors, bounds, training
row(
    "DiffusionPrior",
    lambda prior: prior.sample(KEY),
    ("scaling", "sampler", "validate_args"),
    reverse=GAUSS,
    event_shape=(2,),
    num_steps=None,
    sampler=nd.samplers.Ancestral(2),
    flow=nd.ProbabilityFlow(2),
    scaling=SCALING,
    validate_args=False,
)
row("DiffusionPrior.sample", call=PRIOR.sample, key=KEY, sample_shape=(2,))
row("DiffusionPrior.log_prob", call=PRIOR.log_prob, value=X)
row("Likelihood", lambda found: found(X), model=model, site="x", args=(X,))
_CALL = {"reverse": GAUSS, "data": DATA, "num_steps": 2, "key": KEY, "unit": 1.0}
row(
    "variational_bound",
    None,
    ("steps_per_event",),
    batch_size=4,
    steps_per_event=1,
    **_CALL,
)
row("importance_log_prob", batch_size=4, **_CALL)
row(
    "continuous_bound",
    None,
    ("levels", "t_first"),
    reverse=GAUSS,
    data=DATA,
    key=KEY,
    levels=None,
    t_first=0.1,
    num_times=2,
    unit=1.0,
    batch_size=4,
)
row(
    "flow_bound",
    None,
    ("t_first", "flow"),
    reverse=GAUSS,
    data=np.array([[0.0, 1.0], [1.0, 1.0]]),
    key=KEY,
    levels=np.array([0.0, 1.0]),
    t_first=0.1,
    flow=nd.ProbabilityFlow(2),
    unit=1.0,
    batch_size=4,
)
row(
    "denoising_error",
    reverse=GAUSS,
    data=DATA,
    key=KEY,
    num_levels=2,
    num_samples=2,
    num_knots=2,
    num_components=1,
)
row(
    "calibrate",
    lambda prior: prior.reverse.error.values,
    prior=nd.DiffusionPrior(TRAINED, (2,), 3),
    data=DATA,
    key=KEY,
    num_levels=2,
    num_samples=2,
    num_knots=2,
    num_components=1,
)
row(
    "distill",
    lambda prior: prior.few_steps.error,
    ("contexts",),
    prior=nd.DiffusionPrior(TRAINED, (2,), 3),
    num_steps=1,
    key=KEY,
    num_pairs=16,
    num_train_steps=1,
    batch_size=2,
    learning_rate=0.01,
    metric="modes",
    progress_bar=False,
)
row(
    "fit",
    lambda found: (found.losses, found.reverse.error.values),
    (
        *("optimizer", "validation", "batch_size", "objective", "scaling"),
        *("monitor", "compute"),
    ),
    reverse=TRAINED,
    data=DATA,
    key=KEY,
    num_steps=1,
    batch_size=2,
    objective=nd.DenoisingLoss(),
    optimizer=optax.sgd(1e-3),
    scaling=SCALING,
    validation=DATA,
    num_error_levels=1,
    monitor=nd.Monitor(every=1),
    compute=nd.Compute(num_parts=2),
    progress_bar=False,
)
row("Monitor", None, ("patience", "callback"), every=2, patience=1, callback=print)
row("Compute", None, ("dtype", "devices"), num_parts=2, dtype="bfloat16", devices=None)
row("ContinuousLoss", first_noise=1e-4)
row("BoundLoss", num_steps=2, every_step=False)
row("DenoisingLoss", None, ("times", "weight"), times=lambda u: u, weight=lambda t: t)
row("forward_model", call=seeded(nd.forward_model), forward=FORWARD, x0=X, num_steps=2)
row(
    "reverse_model",
    call=seeded(nd.reverse_model),
    reverse=GAUSS,
    event_shape=(2,),
    num_steps=2,
)
row("samplers.Ancestral", lambda s: s.grid, ("times", "num_steps"), num_steps=3)
row("samplers.DDIM", lambda s: s.grid, ("times", "num_steps"), num_steps=3, eta=0.5)
row("samplers.HeunSampler", lambda s: s.grid, ("times", "num_steps"), num_steps=3)
row(
    "samplers.DPMSolver",
    lambda s: s.grid,
    ("times", "num_steps", "stochastic"),
    num_steps=3,
)
row(
    "samplers.PredictorCorrector",
    lambda s: s.grid,
    ("times", "num_steps"),
    num_steps=3,
    num_corrections=2,
    snr=0.2,
)
row("samplers.ancestral_sample", reverse=GAUSS, key=KEY, event_shape=(2,), grid=GRID)
row("samplers.denoised_draw", key=KEY, reverse=GAUSS, z=DATA, rho=0.5, grid=GRID)
row(
    "ProbabilityFlow",
    lambda flow: flow.decode(GAUSS, X),
    ("num_probes",),
    num_steps=2,
    angle_min=1e-3,
    num_probes=2,
    solver=diffrax.Heun(),
)
for _method in ("encode", "log_prob"):
    _call = getattr(nd.ProbabilityFlow(2, solver=diffrax.Heun()), _method)
    row(f"ProbabilityFlow.{_method}", call=_call, reverse=GAUSS, x=X)

# ---- Guidance
row("guidance.DPS", guided, best=1.0, step_size=1.0)
row("guidance.Unguided", guided, ("power",), power=1.0)
row("guidance.Averaged", num_draws=4, reliable=0.5)
row("guidance.ValueTilt", num_draws=2)
row("guidance.MeanShift", guided, guide=nd.guidance.ConstantGuide())
row("guidance.Product", guided, guide=nd.guidance.ConstantGuide())
row("guidance.ConstantGuide", moved)
row("guidance.TemperedGuide", moved)
row("guidance.ExpectedGuide", moved, matching=nd.guidance.MomentMatching())
row("guidance.Diagonal")
row("guidance.Measured")
row("guidance.Entrywise", lambda c: c(X[None, None]), variance=jnp.ones(2))
row("guidance.Isotropic", None, ("error",), error=ERROR)
row("guidance.Tweedie", lambda c: guided(nd.guidance.MomentMatching(c)), latest=0.9)
row(
    "guidance.MomentMatching",
    guided,
    ("determinant",),
    covariance=nd.guidance.Isotropic(),
    max_iterations=2,
    tolerance=1e-4,
    max_newton=2,
    determinant=False,
)
row("guidance.ModelLikelihood", log_prob=quadratic, expected=curvature_of)
row("guidance.default_guidance", reverse=GAUSS)
row("guidance.dot", a=STACK, b=STACK)
row("guidance.spread", scalars=jnp.ones(1), like=STACK)
row("guidance.moments", law=LAWS)
row("guidance.normal_stack", mean=STACK, variance=jnp.ones_like(STACK))
row("guidance.over_stack", lambda mapped: mapped(STACK), function=jnp.sin)
row("guidance.steps_remembered")
row("guidance.step_stack", reverse=GAUSS, x_t=STACK, t=0.5, s=0.25)
row("guidance.terminal_stack", reverse=GAUSS, shape=(1, 1, 2))
row("guidance.value_and_gradient", log_likelihood=quadratic, x=STACK)
row("guidance.curvature", log_likelihood=LIKELIHOOD, x=STACK, v=STACK)
row("guidance.draw_stack", key=KEY, laws=LAWS, shape=(1, 1, 2))
row(
    "guidance.guided_sample",
    key=KEY,
    reverse=GAUSS,
    guidance=nd.guidance.Unguided(),
    log_likelihood=quadratic,
    shape=(1, 1, 2),
    grid=GRID,
)
_BITS = nd.BernoulliForward(SCHEDULE)
row("guidance.likeliest", forward=_BITS, mean=jnp.full((1, 1, 2), 0.3))
row(
    "guidance.tilted_values",
    forward=_BITS,
    mean=jnp.full((1, 1, 2), 0.3),
    log_likelihood=quadratic,
)
row("handlers.diffusion_sites", model=model, paths=False)
row("handlers.guide", None, model=model, guidance=nd.guidance.DPS(1.0), site="x")

# ---- Inference
row(
    "FewStepMap",
    lambda found: found.decode(GAUSS, X),
    reverse=GAUSS,
    num_steps=2,
    error=0.1,
)
row("infer.FlowReparam", num_steps=2, solver=diffrax.Heun(), basis="cosines")
row("infer.reparam_diffusion", model=model, reparam=nd.infer.FlowReparam())
row(
    "infer.ParticleGibbs",
    None,
    ("site", "guidance", "independent_every"),
    model=model,
    num_particles=2,
    independent_every=2,
    refresh_share=0.5,
)
row(
    "infer.ParticleIndependence",
    None,
    ("site", "guidance"),
    model=model,
    num_particles=2,
)
row(
    "infer.ParticleMarginal",
    None,
    ("site", "guidance"),
    model=model,
    num_particles=2,
    target_accept=0.3,
)
row(
    "infer.TwistedSMC",
    None,
    ("site", "guidance", "batch_size"),
    model=model,
    site="x",
    num_particles=2,
    guidance=nd.guidance.Unguided(),
    batch_size=1,
    progress_bar=False,
)
row("infer.SplitGibbs", None, model=model, rho=0.1, initial_rho=1.0, inner=NUTS)
row(
    "infer.ParticleSweep",
    lambda sweep: sweep.start(KEY, (1, 1, 2)).log_weights,
    ("batch_size", "expected"),
    reverse=GAUSS,
    guidance=nd.guidance.Unguided(),
    log_likelihood=lambda stack, _: quadratic(stack),
    num_particles=2,
    resample_below=0.5,
    batch_size=1,
)
row("infer.run_sweep", key=KEY, sweep=SWEEP, shape=(1, 1, 2), grid=GRID)
row(
    "infer.conditional_smc",
    key=KEY,
    reverse=GAUSS,
    guidance=nd.guidance.Unguided(),
    log_likelihood=quadratic,
    path=PATH,
    grid=GRID,
    num_particles=2,
    resample_below=0.5,
)
row(
    "infer.independent_smc",
    key=KEY,
    reverse=GAUSS,
    guidance=nd.guidance.Unguided(),
    log_likelihood=quadratic,
    path=PATH,
    grid=GRID,
    num_particles=2,
    resample_below=0.5,
)
row(
    "infer.refresh_path",
    key=KEY,
    reverse=GAUSS,
    path=PATH,
    grid=GRID,
    num_paths=2,
    level=1,
)
row("infer.refresh_levels", num_steps=3)
row("infer.initial_draws", key=KEY, source=model, num_chains=2, constrained=True)
row("infer.evidence_trace", posterior=posterior())
row(
    "infer.evidence_runs",
    call=lambda key, smc, num_runs: nd.infer.evidence_runs(key, smc, num_runs, y=X),
    key=KEY,
    smc=SMC,
    num_runs=2,
)
row("infer.suggest", call=lambda model: nd.infer.suggest(model, y=X), model=model)


def normal_model(y=None):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


CHAIN = MCMC(NUTS(normal_model), num_warmup=1, num_samples=2, progress_bar=False)
CHAIN.run(KEY, X)
row("infer.stat_fields", kernel=CHAIN.sampler)
row(
    "infer.to_arviz",
    None,
    ("dims", "coords", "prior", "posterior_predictive"),
    result=CHAIN,
    dims={"x": ["coordinate"]},
    coords={"coordinate": ["a", "b"]},
    prior={"x": jnp.zeros((3, 2))},
    posterior_predictive={"y": jnp.zeros((2, 2))},
    log_likelihood=False,
)
row("infer.particles_needed", moved=np.array([1, 0, 1]), num_particles=2, target=0.9)

# ---- Diagnostics
row(
    "diagnostics.calibration_runs",
    key=KEY,
    simulate=lambda key: ({"x": jax.random.normal(key)}, {}),
    sample=lambda key, data: {"x": jax.random.normal(key, (3,))},
    num_simulations=2,
)
row(
    "diagnostics.model_simulator",
    lambda simulate: simulate(KEY),
    call=lambda model, observed: nd.diagnostics.model_simulator(model, observed),
    model=lambda: dist.Normal(0.0, 1.0),
    observed=(),
)
row("diagnostics.in_parallel", lambda mapped: mapped(X), function=jnp.sin)
row("diagnostics.in_sequence", lambda mapped: mapped(X), function=jnp.sin)
row("diagnostics.diffusion_score", reverse=GAUSS, x=X, angle=0.1)
row("diagnostics.posterior_score", model=model, draw={"x": X}, args=(X,), angle=0.1)
row("diagnostics.kernel_stein_discrepancy", draws=DATA, scores=-DATA, num_resamples=3)
row("diagnostics.expected_coverage", runs=RUNS)
row(
    "diagnostics.classifier_two_sample",
    key=KEY,
    first=DATA,
    second=DATA,
    width=2,
    num_steps=1,
)
row("diagnostics.simulation_based_calibration", runs=RUNS, num_bins=2)

# ---- Data and files
_LEVELS = np.arange(8).reshape(2, 2, 2)
row("datasets.Scaling", lambda s: s.standardise(X), shift=0.1, scale=2.0)
row("datasets.Scaling.fit", data=DATA)
row("datasets.Scaling.of_levels", levels=_LEVELS)
row(
    "datasets.ImageData.from_levels",
    train=_LEVELS,
    test=_LEVELS,
    train_labels=np.array([0, 1]),
    test_labels=np.array([0, 1]),
)
row("datasets.dequantise", levels=_LEVELS, key=KEY)
row("datasets.LeafLaw", lambda law: law.sample_hit(KEY, 2.0), r_min=1.0, r_max=2.0)
for _name in ("dead_leaves", "dead_leaves_levels"):
    row(f"datasets.{_name}", key=KEY, num=1, size=2, law=nd.datasets.LeafLaw())
row("datasets.digits", lambda found: found.test, ("key",), key=KEY)
row("datasets.textures", None, key=KEY, num_train=1, num_test=1, size=2)
for _name in ("mnist", "cifar10"):
    row(f"datasets.{_name}", None, ("key",), folder=FOLDER, key=KEY)
row("datasets.heartbeat", key=KEY, num=2)
row("datasets.heartbeat_patterns")
row("datasets.swiss_roll", key=KEY, num=2, noise=0.1)
row("datasets.swiss_roll_curve", phi=X, noise=0.1)
row("datasets.swiss_roll_scale", noise=0.1)
row("save", path=FOLDER / "saved.nd", obj=SCHEDULE, card={"data": "none"})
for _name in ("load", "read_card"):
    row(_name, path=FOLDER / "schedule.nd")
row("saving.register", cls=nd.schedules.Cosine)
row("load_pretrained", name="digits")
