"""Every example in a docstring runs, as it is printed.

It runs where a reader stands: the usual imports, a model of a pair of numbers of which one
is seen, its prior and the data it was trained on. Chains are cut short.
"""

import ast
import importlib.metadata
import inspect
import pathlib
import re
import textwrap
import warnings

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.infer import MCMC, NUTS, Gibbs, Predictive

import numpyro_diffusion as nd

pytestmark = pytest.mark.gate
PACKAGE = pathlib.Path(nd.__file__).parent
FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
WANTED = [
    *("DiffusionPrior", "fit", "variational_bound"),
    *("importance_log_prob", "continuous_bound", "flow_bound", "save"),
    *("denoising_error", "calibrate", "distill"),
    *("load_pretrained", "TwistedSMC", "ParticleGibbs"),
    *("ParticleIndependence", "ParticleMarginal", "SplitGibbs"),
    *("FlowReparam", "whitened", "reparam_diffusion", "suggest"),
    *("initial_draws", "evidence_runs", "evidence_trace"),
    *("particles_needed", "guide", "diffusion_sites"),
    *("calibration_runs", "simulation_based_calibration", "expected_coverage"),
    *("kernel_stein_discrepancy", "Conditional", "Applied"),
    *("from_torch",),
]


def docstrings(path):
    """Of a file: of each class and function by its name, and of the file itself."""
    tree = ast.parse(path.read_text())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", path.stem), text


def blocks(text):
    """The code of a docstring's examples."""
    plain = "\n".join(line.rstrip() for line in text.splitlines())
    # Under "**Example:**" they are indented.
    parts = [plain, *re.findall(r"\*\*Example:\*\*\n((?:(?:    .*)?\n?)+)", plain)]
    found = [code for part in parts for code in FENCE.findall(textwrap.dedent(part))]
    assert len(found) == len(re.findall(r"```python", plain)), text
    return found


def examples():
    """All examples, by the name of what they are of, and a number from the second on."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, text in docstrings(path):
            for code in blocks(text):
                again = sum(known.split("-")[0] == name for known in found)
                found[f"{name}-{again + 1}" if again else name] = code
    return found


EXAMPLES = examples()


class Short(MCMC):
    """A few draws of each chain."""

    def __init__(self, kernel, *, num_warmup, num_samples, **more):
        more["progress_bar"] = False
        more.setdefault("chain_method", "sequential")
        super().__init__(kernel, num_warmup=2, num_samples=4, **more)


def beginning():
    """What the examples take for known."""
    key = jax.random.key(0)
    forward = nd.GaussianForward(nd.schedules.cosine())
    mlp = nd.networks.MLP((2,), width=8, depth=1, key=key)
    data = np.asarray(jax.random.normal(key, (256, 2)))
    reverse = nd.DenoisingReverse(forward, mlp)
    reverse = reverse.with_error(nd.denoising_error(reverse, data, key=key))
    prior = nd.DiffusionPrior(reverse, (2,), num_steps=4)

    def model(mask=True, y=None):
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        x = numpyro.sample("x", prior)
        with numpyro.handlers.mask(mask=mask):
            numpyro.sample("y", dist.Normal(x, sigma), obs=y)

    modules = {"nd": nd, "jax": jax, "jnp": jnp, "np": np, "az": az}
    numpyros = {"numpyro": numpyro, "dist": dist, "NUTS": NUTS, "Gibbs": Gibbs}
    own = {"key": key, "forward": forward, "network": mlp, "reverse": reverse}
    seen = {"mask": jnp.array([True, False]), "y": jnp.array([0.6, 0.0])}
    return {
        **modules,
        **numpyros,
        "MCMC": Short,
        "Predictive": Predictive,
        **own,
        **seen,
        "data": data,
        "prior": prior,
        "model": model,
        "mcmc": Short(NUTS(model), num_warmup=2, num_samples=4),
    }


def a_chain(names):
    marked = nd.handlers.diffusion_sites(names["model"])
    blocks = [(nd.infer.ParticleGibbs(marked, num_particles=4), ["x"])]
    names["kernel"] = Gibbs([*blocks, (NUTS(marked), None)])
    names["mcmc"] = Short(names["kernel"], num_warmup=2, num_samples=4)
    names["mcmc"].run(names["key"], names["mask"], y=names["y"])


def a_field(names):
    """A chain of fields whose mean is seen, and its draws for ArviZ."""
    mlp = nd.networks.MLP((2, 2), width=8, depth=1, key=names["key"])
    reverse = nd.DenoisingReverse(names["forward"], mlp, error=names["reverse"].error)
    prior = nd.DiffusionPrior(reverse, (2, 2), num_steps=4)

    def model(y=None):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x.mean(), 0.5), obs=y)

    kernel = nd.infer.ParticleGibbs(model, num_particles=4)
    mcmc = Short(kernel, num_warmup=2, num_samples=8)
    names.update(model=model, kernel=kernel, mcmc=mcmc, y=jnp.zeros(()))


def some_fields(names):
    values = np.asarray(jax.random.normal(names["key"], (2, 10, 2, 2)))
    variable = xr.Variable(("chain", "draw", "row", "column"), values)
    names["idata"] = xr.DataTree.from_dict({"posterior": xr.Dataset({"x": variable})})
    names["truth"] = names["y"] = jnp.zeros((2, 2))
    names["mask"] = jnp.eye(2, dtype=bool)


def images(names):
    names["images"] = np.asarray(jax.random.normal(names["key"], (8, 28, 28)))
    names["network"] = lambda x, t: 0.1 * x


def pairs(names):
    """A model without a network, which runs two hundred times."""

    def model(y=None):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    names.update(model=model, MCMC=MCMC)


def runs(names):
    truth, data = jax.random.normal(names["key"], (2, 200))
    noise = jax.random.normal(jax.random.key(1), (200, 19))
    draws = {"x": (data + truth)[:, None] / 2 + noise / np.sqrt(2)}
    names["runs"] = nd.diagnostics.CalibrationRuns(
        {"x": truth}, {"y": data + truth}, draws
    )


def draws(names):
    key = names["key"]
    names["draws"] = {
        "x": jax.random.normal(key, (20, 2)),
        "sigma": jnp.ones(20),
    }


def few_steps(names):
    names["nd"] = Quick()


class Quick:
    """The library, where `distill` is done after a few steps."""

    def __getattr__(self, name):
        if name != "distill":
            return getattr(nd, name)
        small = {"num_pairs": 1024, "num_train_steps": 4, "progress_bar": False}
        return lambda *args, **kwargs: nd.distill(*args, **kwargs, **small)


def flax(names):
    nnx = pytest.importorskip("flax.nnx")

    class Module(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 2, rngs=rngs)

        def __call__(self, x, t):
            return self.linear(x) * t

    names.update(nnx=nnx, module=Module(nnx.Rngs(0)))


def torch(names):
    pytest.importorskip("torchax")
    names["torch"] = pytest.importorskip("torch")


def contexts(names):
    """A process whose mean is a number that `reverse` is under."""
    mlp = nd.networks.MLP((8,), context_shape=(), width=8, key=names["key"])
    network = nd.networks.Conditional(mlp, jnp.zeros(()))
    error = names["reverse"].error
    names["reverse"] = nd.DenoisingReverse(names["forward"], network, error=error)
    names["y"] = jnp.zeros(8)


PREPARED = {
    "initial_draws": a_chain,
    "to_arviz": a_field,
    "stat_fields": a_field,
    "plot_posterior_grid": some_fields,
    "particles_needed": a_chain,
    "calibrate": images,
    "calibration_runs": pairs,
    "simulation_based_calibration": runs,
    "expected_coverage": runs,
    "kernel_stein_discrepancy": draws,
    "distill": few_steps,
    "Applied": flax,
    "from_torch": torch,
    "ParticleMarginal": contexts,
}

# Each compiles a chain or a run of particles for half a minute.
SLOW = {
    *("initial_draws", "suggest", "particles_needed", "ParticleMarginal"),
    *("stat_fields", "ParticleGibbs", "TwistedSMC", "ParticleIndependence"),
    *("FlowReparam", "whitened", "evidence_trace", "SplitGibbs"),
    *("kernel_stein_discrepancy",),
}


def runs_here(code):
    """Without the lines that say that they are for ArviZ 1.x, where it is 0.23."""
    if importlib.metadata.version("arviz").startswith("0."):
        lines = code.splitlines()
        return "\n".join(line for line in lines if "# ArviZ 1.x" not in line)
    return code


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in EXAMPLES
    ],
)
def test_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = beginning()
    PREPARED.get(name, lambda names: None)(names)
    with warnings.catch_warnings():
        # Chains of four draws, and a few particles, tell of themselves.
        warnings.simplefilter("ignore")
        exec(compile(runs_here(EXAMPLES[name]), name, "exec"), names)


def test_what_people_use_has_an_example():
    assert sorted(set(WANTED) - set(EXAMPLES)) == []
    assert {*PREPARED} | SLOW <= {*EXAMPLES}


def test_control_a_wrong_example_is_found():
    text = inspect.cleandoc(
        """Title.

        **Example:**
            ```python
            nd.infer.NoSuchKernel(model)
            ```

        Source: nobody.
        """
    )
    (code,) = blocks(text)
    with pytest.raises(AttributeError):
        exec(code, {"nd": nd, "model": None})
