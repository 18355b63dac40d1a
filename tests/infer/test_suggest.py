"""Which kernel `suggest` takes for which model, and whether its code runs and is right."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import scale
from numpyro.infer import MCMC
from reference import mean_z_scores

import numpyro_diffusion as nd
from numpyro_diffusion.infer.choice.decision import GUIDANCE, KERNEL, Leaf, nodes
from numpyro_diffusion.infer.choice.suggestion import Suggestion

FORWARD = nd.GaussianForward(nd.schedules.cosine())
TIMES, STEPS = jnp.arange(1, 11) / 10, 4
UNIT = nd.DiffusionPrior(
    nd.analytic.GaussianReverse(FORWARD, jnp.zeros(2), jnp.eye(2)), (2,), STEPS
)
BITS = nd.DiffusionPrior(
    nd.analytic.PatternsReverse(
        nd.BernoulliForward(nd.schedules.signal_linear()),
        jnp.array([0.4, 0.6]),
        jnp.array([[0, 1, 1], [1, 0, 1]]),
    ),
    (3,),
    STEPS,
)
LETTERS = nd.DiffusionPrior(
    nd.analytic.PatternsReverse(
        nd.AbsorbingForward(nd.schedules.signal_linear(), 3),
        jnp.array([0.4, 0.6]),
        jnp.array([[0, 1, 2], [2, 0, 1]]),
    ),
    (3,),
    STEPS,
)


def left(t):
    """Variance of x_0 given x_t, of N(c, 1) in each entry."""
    return FORWARD.schedule.noise(t)


def denoiser(x, t, c=0.0):
    kept = jnp.sqrt(FORWARD.schedule.alpha_bar(t))
    return (c + kept * (x - kept * c)).astype(x.dtype)


def trained(shape=(2,), error=True, network=denoiser, **arguments):
    """A prior with a network's looks, of N(c, 1) in each entry."""
    measured = nd.DenoisingError(TIMES, jax.vmap(left)(TIMES)) if error else None
    reverse = nd.DenoisingReverse(FORWARD, network, nd.DataPrediction(), measured)
    if "sampler" not in arguments:
        arguments["num_steps"] = STEPS
    return nd.DiffusionPrior(reverse, shape, **arguments)


def with_components(shape=(2,)):
    prior = trained(shape)
    data = np.asarray(jax.random.normal(jax.random.key(0), (64, *shape)))
    error = nd.denoising_error(
        prior.reverse, data, key=jax.random.key(1), num_components=2
    )
    return nd.DiffusionPrior(prior.reverse.with_error(error), shape, STEPS)


def steered(c):
    """Under a context, a number."""
    network = nd.networks.Conditional(denoiser, jnp.zeros(()))
    return trained(network=network, context=jnp.asarray(c, float))


def known(y, prior=UNIT, sigma=0.5):
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)


def unknown(y, prior=UNIT):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(x, sigma).to_event(x.ndim), obs=y)


def half_seen(y):
    x = numpyro.sample("x", UNIT)
    law = dist.Normal(x, 0.5).mask(jnp.array([True, False]))
    numpyro.sample("y", law.to_event(1), obs=y)


def summed(y):
    x = numpyro.sample("x", UNIT)
    numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=y)


def shared_scale(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("events", len(y)):
        x = numpyro.sample("x", UNIT)
        numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)


def counted(y):
    x = numpyro.sample("x", UNIT)
    numpyro.sample("y", dist.Poisson(jnp.exp(x)).to_event(1), obs=y)


def heavy(y):
    x = numpyro.sample("x", UNIT)
    numpyro.sample("y", dist.Laplace(x, 1.0).to_event(1), obs=y)


def flipped(seen, flips=0.1):
    x = numpyro.sample("x", BITS)
    law = dist.BernoulliProbs(flips + (1 - 2 * flips) * x)
    numpyro.sample("seen", law.to_event(1), obs=seen)


def flipped_unknown(seen):
    flips = numpyro.sample("flips", dist.Uniform(0.0, 0.5))
    flipped(seen, flips)


def read(seen):
    text = numpyro.sample("text", LETTERS)
    read_as = dist.CategoricalProbs(0.1 + 0.7 * jax.nn.one_hot(text, 3))
    numpyro.sample("seen", read_as.to_event(1), obs=seen)


def checksum(total):
    x = numpyro.sample("x", BITS)
    numpyro.factor("sum", jnp.where(x[0] + 2 * x[1] == total, 0.0, -jnp.inf))


def in_box(y):
    x = numpyro.sample("x", UNIT)
    numpyro.factor("inside", jnp.where(jnp.all(x > -0.5), 0.0, -jnp.inf))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def thresholded(y):
    x = numpyro.sample("x", UNIT)
    probs = jnp.where(x.sum() > 0.3, 0.9, 0.2)
    numpyro.sample("y", dist.BernoulliProbs(probs), obs=y)


def called_back(y):
    """A simulator that JAX cannot look into."""
    x = numpyro.sample("x", UNIT)
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    seen = jax.pure_callback(np.tanh, shape, x, vmap_method="expand_dims")
    numpyro.sample("y", dist.Normal(seen, 1.0).to_event(1), obs=y)


def under_number(y):
    c = numpyro.sample("c", dist.Normal(0.0, 1.0))
    x = numpyro.sample("x", steered(c))
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def under_class(y):
    kind = numpyro.sample("kind", dist.Categorical(jnp.array([0.3, 0.7])))
    x = numpyro.sample("x", steered(2.0 * kind))
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def under_class_and_noise(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    kind = numpyro.sample("kind", dist.Categorical(jnp.array([0.3, 0.7])))
    x = numpyro.sample("x", steered(2.0 * kind))
    numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)


def shifted(y, thresholds=False):
    """A prior that depends on a latent by its mean."""
    shift = numpyro.sample("shift", dist.Normal(0.0, 0.3))
    reverse = nd.analytic.GaussianReverse(FORWARD, jnp.stack([shift] * 2), jnp.eye(2))
    x = numpyro.sample("x", nd.DiffusionPrior(reverse, (2,), STEPS))
    seen = jnp.where(x > 0.0, 1.0, 0.0) if thresholds else x
    numpyro.sample("y", dist.Normal(seen, 0.5).to_event(1), obs=y)


def two(y, other=UNIT, sigma=0.3):
    a, b = numpyro.sample("a", UNIT), numpyro.sample("b", other)
    numpyro.sample("y", dist.Normal(a + b, sigma).to_event(1), obs=y)


def two_unknown(y):
    two(y, sigma=numpyro.sample("sigma", dist.HalfNormal(1.0)))


def two_of_bits(y):
    a, b = numpyro.sample("a", BITS), numpyro.sample("b", BITS)
    numpyro.sample("y", dist.Normal(a + b, 0.5).to_event(1), obs=y)


def coarse_to_fine(y):
    coarse = numpyro.sample("coarse", UNIT)
    fine = numpyro.sample("fine", steered(coarse[0]))
    numpyro.sample("y", dist.Normal(fine, 0.5).to_event(1), obs=y)


def regression(y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(slope, 1.0), obs=y)


def mixture_alone(y):
    kind = numpyro.sample("kind", dist.Bernoulli(0.5))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(slope + kind, 1.0), obs=y)


def subsampled(y):
    x = numpyro.sample("x", UNIT)
    with numpyro.plate("data", 10, subsample_size=len(y)):
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)


def improper(y):
    support = dist.constraints.real
    base = numpyro.sample("base", dist.ImproperUniform(support, (), ()))
    x = numpyro.sample("x", UNIT)
    numpyro.sample("y", dist.Normal(x + base, 0.5).to_event(1), obs=y)


def labelled(y):
    label = numpyro.sample("label", dist.Bernoulli(0.5))
    x = numpyro.sample("x", UNIT)
    numpyro.sample("y", dist.Normal(x + label, 0.5).to_event(1), obs=y)


def many_labels(y):
    x = numpyro.sample("x", UNIT)
    with numpyro.plate("data", len(y)):
        label = numpyro.sample("label", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(x[0] + label, 0.5), obs=y)


def many_labels_and_noise(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    x = numpyro.sample("x", UNIT)
    with numpyro.plate("data", len(y)):
        label = numpyro.sample("label", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(x[0] + label, sigma), obs=y)


def endless(y):
    number = numpyro.sample("number", dist.Poisson(2.0))
    x = numpyro.sample("x", UNIT)
    numpyro.sample("y", dist.Normal(x + number, 0.5).to_event(1), obs=y)


def endless_and_improper(y):
    number = numpyro.sample("number", dist.Poisson(2.0))
    improper(y - number)


def between(y):
    x = numpyro.sample("x", UNIT)
    z = numpyro.sample("z", dist.Normal(x, 0.1).to_event(1))
    numpyro.sample("y", dist.Poisson(jnp.exp(z)).to_event(1), obs=y)


def between_bits(y):
    x = numpyro.sample("x", BITS)
    z = numpyro.sample("z", dist.Normal(x, 0.5).to_event(1))
    numpyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)


def follows(y):
    """What nobody has seen of the site is no other latent."""
    known(y)
    x = numpyro.sample("x2", UNIT)
    numpyro.sample("next", dist.Normal(x, 1.0).to_event(1))


def scaled(y):
    with scale(scale=2.0):
        x = numpyro.sample("x", UNIT)
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def unmasked(y):
    with numpyro.handlers.mask(mask=False):
        x = numpyro.sample("x", UNIT)
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def transformed(y):
    affine = dist.transforms.AffineTransform(1.0, 2.0)
    x = numpyro.sample("x", dist.TransformedDistribution(UNIT, affine))
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def of(model, **fixed):
    """A model with some arguments given."""

    def made(y):
        return model(y, **fixed)

    return made


Y, THREE, ROWS = jnp.array([0.4, -1.0]), jnp.array([1, 0, 1]), jnp.ones((3, 2))
SMC, GIBBS, FLOW = "TwistedSMC", "ParticleGibbs", "NUTS through FlowReparam"
DISTILLED = trained(few_steps=nd.FewStepMap(trained().reverse, 2))
DRAWS_ONLY = trained(sampler=nd.samplers.DPMSolver(STEPS))
IMAGE = trained((16, 16))
SERVED = {
    "noise that is known": (known, Y, SMC, "nothing but the site"),
    "missing and masked": (half_seen, jnp.array([0.4, jnp.nan]), SMC, "as good as"),
    "a sum": (summed, 0.7, SMC, "Tweedie's covariance"),
    "noise that is unknown": (unknown, Y, GIBBS, "`sigma` moves beside"),
    "a scale that elements share": (shared_scale, ROWS, GIBBS, "plate 'events' .3."),
    "counts": (counted, jnp.array([1, 3]), SMC, "nothing but the site"),
    "heavy tails": (heavy, Y, SMC, "nothing but the site"),
    "bits with flips": (flipped, THREE, SMC, "finitely many values"),
    "flips unknown": (flipped_unknown, THREE, GIBBS, "`flips` moves beside"),
    "masked letters": (read, THREE, SMC, "each entry's probabilities"),
    "a checksum": (checksum, 2, SMC, "a twist averaged over draws"),
    "a hard limit": (in_box, Y, SMC, "zero or undefined in places"),
    "yes or no": (thresholded, 1, SMC, "without a slope"),
    "a simulator": (called_back, Y, SMC, "without a slope"),
    "a number for context": (under_number, Y, FLOW, "depends on `c`"),
    "a class for context": (under_class, Y, "ParticleMarginal", "`kind`: given"),
    "a class, and noise": (under_class_and_noise, Y, "ParticleMarginal", "`kind`"),
    "a prior that is shifted": (shifted, Y, FLOW, "depends on `shift`"),
    "two sites": (two, Y, SMC, "sources of a sum"),
    "two sites, noise": (two_unknown, Y, GIBBS, "move in one block"),
    "two sites, two grids": (
        *(of(two, other=nd.DiffusionPrior(UNIT.reverse, (2,), 6)), Y),
        *(GIBBS, "a block of its own"),
    ),
    "two sites of bits": (two_of_bits, jnp.ones(3), GIBBS, "a block of its own"),
    "coarse to fine": (coarse_to_fine, Y, FLOW, "depends on `coarse`"),
    "a distilled prior": (of(unknown, prior=DISTILLED), Y, FLOW, "few network calls"),
    "no site": (regression, 0.3, "NUTS", "no latent comes from"),
    "no site, a label": (mixture_alone, 0.3, "NUTS", "no latent comes from"),
    "an improper latent": (improper, Y, GIBBS, "`base` moves beside"),
    "a label": (labelled, Y, SMC, "`label` can be drawn"),
    "many labels": (many_labels, jnp.ones(6), GIBBS, "`label` moves beside"),
    "many labels, noise": (many_labels_and_noise, jnp.ones(6), GIBBS, "`sigma`"),
    "an endless number": (endless, Y, SMC, "`number` can be drawn"),
    "a latent between": (between, jnp.array([1, 2]), FLOW, "`z` lies between"),
    "a latent between bits": (between_bits, jnp.ones(3), GIBBS, "`z` moves beside"),
    "what follows": (follows, Y, SMC, "nothing but the site"),
    "components": (of(unknown, prior=with_components()), Y, GIBBS, "whole runs"),
    "many entries": (
        *(of(unknown, prior=IMAGE), jnp.ones((16, 16))),
        *(FLOW, "256 entries .* cosine modes"),
    ),
    "nothing observed": (unknown, None, "Predictive", "nothing is observed"),
}
UNSERVED = {
    "no measured error": (of(known, prior=trained(error=False)), Y, r"nd\.calibrate"),
    "no chain": (of(known, prior=DRAWS_ONLY), Y, r"Ancestral\(num_steps\)"),
    "a subsampled plate": (
        subsampled,
        jnp.ones(4),
        r"4 of 10 .*leave subsample_size out",
    ),
    "missing data": (known, jnp.array([1.0, jnp.nan]), "NaN in 1 of 2"),
    "a scaled prior": (scaled, Y, "must not be scaled"),
    "a masked prior": (unmasked, Y, "must not be masked"),
    "steps, and a shift": (of(shifted, thresholds=True), Y, "more than its context"),
    "a transformed prior": (transformed, Y, "TransformReparam"),
    "nothing to infer": (of(lambda y: None), Y, "nothing to infer"),
    "neither way": (endless_and_improper, Y, "refuses the model"),
}
FOUND = {}


def found(name):
    """What is suggested for a model of the table, once."""
    if name not in FOUND:
        model, y, *_ = {**SERVED, **UNSERVED}[name]
        FOUND[name] = nd.infer.suggest(model, y)
    return FOUND[name]


@pytest.mark.gate
@pytest.mark.parametrize("name", SERVED)
def test_kernel_and_reason(name):
    *_, kernel, reason = SERVED[name]
    suggestion = found(name)
    assert (suggestion.name, suggestion.missing) == (kernel, None)
    assert re.search(reason, " ".join(suggestion.reasons))
    assert kernel in repr(suggestion)
    assert suggestion.code in repr(suggestion).replace("\n  ", "\n") + "\n"


@pytest.mark.gate
@pytest.mark.parametrize("name", UNSERVED)
def test_what_is_missing(name):
    suggestion = found(name)
    assert suggestion.name is None
    assert suggestion.code == ""
    assert re.search(UNSERVED[name][2], str(suggestion.missing))
    assert str(suggestion.missing) in repr(suggestion)
    with pytest.raises(ValueError, match="a kernel must serve the model"):
        suggestion.kernel()


TINY = {"num_warmup": 2, "num_samples": 4, "num_chains": 2, "num_particles": 8}


quiet = pytest.mark.filterwarnings("ignore:Some donated buffers")


def ran(suggestion, model, y, changes):
    """The names that the code leaves, run as it is printed."""
    small = {n: v for n, v in changes.items() if n in suggestion.settings}
    names = {"model": model, "y": y}
    for parameter in ("seen", "total"):
        names[parameter] = y
    code = suggestion.with_settings(**small).code
    exec(compile(code, "suggested", "exec"), names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_the_code_runs_as_printed(name, capsys):
    model, y, *_ = SERVED[name]
    suggestion = found(name)
    with warnings.catch_warnings():
        # Eight particles lose nearly all, and three draws tell nothing of their error.
        warnings.simplefilter("ignore")
        names = ran(suggestion, model, y, TINY)
    draws = names["mcmc"].get_samples() if "mcmc" in names else names["draws"]
    latents = {*suggestion.traits.sites, *suggestion.traits.latents}
    assert latents <= {name.removesuffix("_base") for name in draws}
    for value in draws.values():
        assert np.all(np.isfinite(value))
    assert type(suggestion.kernel()) is type(
        names.get("kernel", names.get("smc", names.get("predictive")))
    )


@pytest.mark.gate
def test_mcmc_is_what_the_code_builds():
    mcmc = found("noise that is unknown").mcmc(num_warmup=7, num_samples=9)
    assert isinstance(mcmc, MCMC)
    assert (mcmc.num_warmup, mcmc.num_samples, mcmc.num_chains) == (7, 9, 4)
    with pytest.raises(ValueError, match="must be an MCMC kernel, got TwistedSMC"):
        found("counts").mcmc()
    with pytest.raises(ValueError, match=r"must be among .*, got \['speed'\]"):
        found("counts").with_settings(speed=3)


def test_wrong_models():
    with pytest.raises(TypeError, match="suggest: model must be a function"):
        nd.infer.suggest(int)
    for paths in (False, True):
        marked = nd.handlers.diffusion_sites(known, paths=paths)
        with pytest.raises(ValueError, match="suggest: model must be the plain"):
            nd.infer.suggest(marked, Y)


def test_arguments_without_names():
    suggestion = nd.infer.suggest(lambda *args, **kwargs: known(*args), Y, more=1)
    assert "smc.run(jax.random.key(0), *args, **kwargs)" in suggestion.code


# Posteriors that are known, by the code that is printed.


def means(suggestion, model, y, **changes):
    names = ran(suggestion, model, y, changes)
    draws = names["mcmc"].get_samples() if "mcmc" in names else names["draws"]
    return {name: np.asarray(value, float) for name, value in draws.items()}


@pytest.mark.gate
def test_code_for_a_gaussian_gives_its_posterior():
    """x ~ N(0, 1) under noise of 0.5: mean 0.8 y, variance 0.2. 5 standard errors."""
    fine = nd.DiffusionPrior(UNIT.reverse, (2,), 40)
    model = of(known, prior=fine)
    suggestion = nd.infer.suggest(model, Y)
    x = means(suggestion, model, Y, num_particles=4096)["x"]
    error = np.sqrt(0.2 / 4096) * 2.0  # of particles that are resampled
    assert np.all(np.abs(x.mean(0) - 0.8 * Y) < 5 * error)
    np.testing.assert_allclose(x.var(0), 0.2, atol=5 * 0.2 * np.sqrt(2 / 4096) * 2)
    # control: the same code for another noise scale
    wrong = of(known, prior=fine, sigma=1.0)
    off = means(suggestion, wrong, Y, num_particles=4096)["x"].mean(0)
    assert np.all(np.abs(off - 0.8 * Y) > 5 * error)


@pytest.mark.gate
def test_code_for_two_modes_gives_their_weights():
    """Modes at -2 and 2 of variance 0.1, seen at y = 0.1 under noise of 1."""
    modes, variance, y = jnp.array([[-2.0], [2.0]]), 0.1, jnp.array([0.1])
    reverse = nd.analytic.MixtureReverse(
        FORWARD, jnp.array([0.3, 0.7]), modes, jnp.full((2, 1), variance)
    )
    model = of(known, prior=nd.DiffusionPrior(reverse, (1,), 40), sigma=1.0)
    x = means(nd.infer.suggest(model, y), model, y, num_particles=4096)["x"]
    seen = np.exp(-0.5 * (0.1 - np.array([-2.0, 2.0])) ** 2 / (1.0 + variance))
    exact = 0.7 * seen[1] / (0.3 * seen[0] + 0.7 * seen[1])
    error = 2.0 * np.sqrt(exact * (1 - exact) / 4096)
    assert abs(np.mean(x > 0.0) - exact) < 5 * error
    assert abs(0.7 - exact) > 5 * error  # control: the prior's weight


@quiet
@pytest.mark.gate
def test_code_for_a_context_gives_its_posterior():
    """c ~ N(0, 1), x ~ N(c, 1), y ~ N(x, 0.5) twice: c has variance 1 / (1 + 2 / 1.25)."""
    suggestion = found("a number for context")
    draws = means(suggestion, under_number, Y, num_warmup=300, num_samples=1000)
    variance = 1.0 / (1.0 + 2.0 / 1.25)
    mean = variance * float(Y.sum()) / 1.25
    z = mean_z_scores(draws["c"], mean)
    assert np.all(np.abs(z) < 5.0)
    np.testing.assert_allclose(draws["c"].var(), variance, rtol=0.15)
    assert np.all(np.abs(mean_z_scores(draws["c"], 0.0)) > 5.0)  # control: its prior


# The trees


def test_every_end_has_a_plan_or_a_sentence():
    from numpyro_diffusion.infer.choice.plans import PLANS

    ends = {node.key for node in nodes(KERNEL) if isinstance(node, Leaf)}
    assert ends == {*PLANS, "mend"}


@pytest.mark.gate
def test_every_end_is_reached():
    """By the models of the table: no rule is dead."""
    reached = {found(name).name for name in SERVED}
    ends = {n.title for n in nodes(KERNEL) if isinstance(n, Leaf) and n.key != "mend"}
    assert reached == ends
    asked = {q for name in SERVED for q in found(name).questions}
    asked |= {q for name in UNSERVED for q in found(name).questions}
    texts = {n.text for n in nodes(KERNEL) if not isinstance(n, Leaf)}
    assert asked == {(text, answer) for text in texts for answer in (True, False)}
    guides = [found(name).settings.get("guidance") for name in SERVED]
    assert {str(g.name) for g in guides if g is not None} == {
        "nd.guidance.Averaged",
        "nd.guidance.MomentMatching",
    }
    assert len([n for n in nodes(GUIDANCE) if isinstance(n, Leaf)]) == 4


@pytest.mark.gate
@pytest.mark.parametrize(
    ("name", "kind", "couples"),
    [
        ("noise that is known", "GAUSSIAN", False),
        ("missing and masked", "GAUSSIAN", False),
        ("a sum", "GAUSSIAN", True),
        ("counts", "SMOOTH", False),
        ("heavy tails", "SMOOTH", False),
        ("two sites", "GAUSSIAN", True),
        ("bits with flips", "VALUES", False),
        ("a checksum", "LIMITED", False),
        ("a hard limit", "LIMITED", False),
        ("yes or no", "FLAT", False),
        ("a simulator", "FLAT", False),
    ],
)
def test_kind_of_likelihood(name, kind, couples):
    seen = found(name).traits.likelihood
    assert (seen.kind.name, seen.couples) == (kind, couples)


@pytest.mark.gate
def test_sharp_data_ask_for_more_steps():
    sharp = nd.infer.suggest(of(known, sigma=0.01), Y)
    (sentence,) = [line for line in sharp.preparations if "num_steps=" in line]
    steps = int(re.search(r"num_steps=(\d+)", sentence)[1])
    width = float(jnp.tan(FORWARD.schedule.angle(1.0 / steps)))
    assert 0.01 < width < 0.02 * 1.01
    assert not any("num_steps=" in s for s in found("noise that is known").preparations)


def test_a_suggestion_is_frozen():
    assert isinstance(found("counts"), Suggestion)
    with pytest.raises(AttributeError):
        found("counts").name = "luck"
