"""What NumPyro's users write around a site, and what a diffusion site must do there.

Each case is built twice, on the prior N(0.5, 1) as a diffusion model and as NumPyro's own
normal law. Under the same handlers both must have the same sites and the same density; that
NumPyro's own law passes is the control that the demand is fair. The likelihood that the
particle kernels read off the diffusion model must be that density without the prior's.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from tiny_models import SIGMA, Y

WORKS = ""


@dataclasses.dataclass(frozen=True)
class Written:
    """One way to write a model.

    Attributes:
        made: Makes the model of a prior.
        latents: Values of all latents but `x`.
        site: Name of the diffusion site.
        shape: Shape of its value.
        args: Arguments of the model.
        kernels: What particle kernels say, by which they refuse; empty if they work.
    """

    made: Callable[[dist.Distribution], Callable]
    latents: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"b": 0.3})
    site: str = "x"
    shape: tuple[int, ...] = (1,)
    args: tuple = (Y,)
    kernels: str = WORKS


def offset(prior):
    def model(y=None):
        x = numpyro.sample("x", prior)
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.deterministic("twice", 2.0 * x)
        numpyro.sample("y", dist.Normal(x + b, SIGMA).to_event(1), obs=y)

    return model


def with_site(law_of_b=None, before=None, around=None, after=None):
    """A model with one thing changed."""

    def made(prior):
        def model(y=None):
            x = numpyro.sample("x", prior) if before is None else before(prior)
            law = dist.Normal(0.0, 1.0) if law_of_b is None else law_of_b()
            b = numpyro.sample("b", law)
            if after is not None:
                after(x, b)
            observed = dist.Normal(x + b, SIGMA).to_event(1)
            if around is None:
                numpyro.sample("y", observed, obs=y)
            else:
                with around():
                    numpyro.sample("y", observed, obs=y)

        return model

    return made


def under(handler):
    return lambda prior: handler(offset(prior))


def with_param(prior):
    def model(y=None):
        x = numpyro.sample("x", prior)
        b = numpyro.param("b", 0.3)
        numpyro.sample("y", dist.Normal(x + b, SIGMA).to_event(1), obs=y)

    return model


def centred(prior):
    def model(y=None):
        x = numpyro.sample("x", prior)
        b = numpyro.sample("b", dist.Normal(x[0], 2.0))
        numpyro.sample("y", dist.Normal(x + b, SIGMA).to_event(1), obs=y)

    return handlers.reparam(model, config={"b": LocScaleReparam(0.0)})


def transformed_other(prior):
    moved = dist.transforms.AffineTransform(1.0, 2.0)
    made = with_site(lambda: dist.TransformedDistribution(dist.Normal(0.0, 1.0), moved))
    return handlers.reparam(made(prior), config={"b": TransformReparam()})


def plated(prior):
    def model(y=None):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", prior)
            numpyro.sample("y", dist.Normal(x + b, SIGMA).to_event(1), obs=y)

    return model


def subsampled_data(prior):
    def model(y=None):
        x = numpyro.sample("x", prior)
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 6, subsample_size=3):
            batch = numpyro.subsample(y, 0)
            numpyro.sample("y", dist.Normal(x[0] + b, SIGMA), obs=batch)

    return model


def subsampled_site(prior):
    def model(y=None):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 6, subsample_size=3):
            x = numpyro.sample("x", prior)
            numpyro.sample("y", dist.Normal(x + b, SIGMA).to_event(1), obs=y)

    return model


def switched(prior):
    def model(y=None):
        x = numpyro.sample("x", prior)
        s = numpyro.sample("b", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(x + s, SIGMA).to_event(1), obs=y)

    return model


def within_scan(prior):
    def model(y=None):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))

        def step(carry, _):
            x = numpyro.sample("x", prior)
            return carry + x, x

        total, _ = scan(step, jnp.zeros(1), None, length=2)
        numpyro.sample("y", dist.Normal(total + b, SIGMA).to_event(1), obs=y)

    return model


def imputed(prior):
    def model(y=None):
        x = numpyro.sample("x", prior)
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        law = dist.Normal(jnp.stack([x[0], x[0] + b]), SIGMA)
        numpyro.sample("y", law, obs=y, obs_mask=jnp.array([True, False]))

    return model


def of_shape(prior):
    return numpyro.sample("x", prior, sample_shape=(3,)).sum(0)


THREE = jnp.array([[1.6], [0.2], [-0.4]])
KEY = jax.random.key(0)
DRAWN_B = handlers.trace(
    handlers.seed(lambda: numpyro.sample("b", dist.Normal(0.0, 1.0)), KEY)
).get_trace()
MODELS = {
    "nothing around it": Written(offset),
    "`seed`": Written(under(lambda m: handlers.seed(m, KEY))),
    "`substitute` of another latent": Written(
        under(lambda m: handlers.substitute(m, {"b": 0.3}))
    ),
    "`condition` on the data": Written(
        under(lambda m: handlers.condition(m, {"y": Y})), args=()
    ),
    "`condition` on another latent": Written(
        under(lambda m: handlers.condition(m, {"b": 0.3})), {}
    ),
    "`do` on another latent": Written(under(lambda m: handlers.do(m, {"b": 0.3}))),
    "`scope`": Written(
        under(lambda m: handlers.scope(m, "a")), {"a/b": 0.3}, site="a/x"
    ),
    "`block` of a seeded latent": Written(
        lambda prior: handlers.block(
            handlers.seed(offset(prior), KEY), hide_fn=lambda site: site["name"] == "b"
        ),
        {},
    ),
    "`mask` around the data": Written(
        with_site(around=lambda: handlers.mask(mask=False))
    ),
    "`mask` around the whole model": Written(
        under(lambda m: handlers.mask(m, mask=jnp.array(True))),
        kernels="must not be masked; mask the likelihood",
    ),
    "`scale` around the data": Written(
        with_site(around=lambda: handlers.scale(scale=2.0))
    ),
    "`scale` around the whole model": Written(
        under(lambda m: handlers.scale(m, scale=2.0)),
        kernels="scale the likelihood alone, by `handlers.scale`",
    ),
    "`lift` of a parameter": Written(
        lambda prior: handlers.lift(with_param(prior), {"b": dist.Normal(0.0, 1.0)})
    ),
    "`numpyro.param` beside it": Written(with_param),
    "`infer_config`": Written(
        under(lambda m: handlers.infer_config(m, lambda site: {"note": 1}))
    ),
    "`replay` of another latent": Written(
        under(lambda m: handlers.replay(m, DRAWN_B)), {"b": DRAWN_B["b"]["value"]}
    ),
    "`LocScaleReparam` of a latent that follows": Written(
        centred, {"b_decentered": 0.3}
    ),
    "`TransformReparam` of another latent": Written(transformed_other, {"b_base": 0.3}),
    "in a plate": Written(plated, shape=(3, 1), args=(THREE,)),
    "beside a plate that is subsampled": Written(
        subsampled_data,
        {"b": 0.3, "n": jnp.arange(3)},
        args=(jnp.arange(6.0),),
        kernels="give all data, or run NUTS or SVI",
    ),
    "in a plate that is subsampled": Written(
        subsampled_site,
        {"b": 0.3, "n": jnp.arange(3)},
        shape=(3, 1),
        args=(THREE,),
        kernels="give all data, or run NUTS or SVI",
    ),
    "with `sample_shape`": Written(with_site(before=of_shape), shape=(3, 1)),
    "expanded, to one event": Written(
        with_site(
            before=lambda prior: numpyro.sample("x", prior.expand([3]).to_event(1)).sum(
                0
            )
        ),
        shape=(3, 1),
    ),
    "its prior masked": Written(
        with_site(
            before=lambda prior: numpyro.sample("x", prior.mask(jnp.array(True)))
        ),
        kernels="must not be masked; mask the likelihood",
    ),
    "its prior transformed": Written(
        with_site(
            before=lambda prior: numpyro.sample(
                "x",
                dist.TransformedDistribution(
                    prior, dist.transforms.AffineTransform(0.0, 2.0)
                ),
            )
        ),
        kernels="TransformedDistribution of one: sample the prior itself",
    ),
    "in `contrib.control_flow.scan`": Written(
        within_scan, shape=(2, 1), kernels="scan, into which no kernel can look"
    ),
    "`numpyro.factor` of it": Written(
        with_site(after=lambda x, b: numpyro.factor("tilt", -jnp.sum(x**2) * b))
    ),
    "`numpyro.deterministic` of it": Written(
        with_site(after=lambda x, b: numpyro.deterministic("sum", x + b))
    ),
    "an improper prior beside it": Written(
        with_site(lambda: dist.ImproperUniform(dist.constraints.real, (), ()))
    ),
    "a bounded latent beside it": Written(with_site(lambda: dist.HalfNormal(1.0))),
    "a discrete latent beside it": Written(switched, {"b": 1}),
    "`obs_mask`": Written(
        imputed, {"b": 0.3, "y_unobserved": jnp.array([0.2, 0.4])}, args=(jnp.ones(2),)
    ),
    "`prng_key` in the model": Written(
        with_site(after=lambda x, b: numpyro.prng_key())
    ),
}
