"""Networks that are a function and a tree of parameters: of JAX, of Flax, of PyTorch."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from numpyro_diffusion.checks import checked_array, checked_callable

__all__ = ["Applied", "from_torch", "register_function"]

_FUNCTIONS: dict[str, tuple[Callable, Any]] = {}


class Applied(eqx.Module):
    """A function `(params, x, t)` as a network, with parameters that `fit` trains.

    For Flax NNX, whose modules come apart and together again:

    ```python
    graph, params = nnx.split(module, nnx.Param)
    function = lambda params, x, t: nnx.merge(graph, params)(x, t)
    network = nd.networks.Applied(function, params)
    ```

    One that takes a context, `(params, x, t, context)`, goes into `Conditional`. To be
    saved it wants a name, under which `register_function` has the function: a file brings
    no code.

    Attributes:
        function: Of the parameters, one event and the time, a number.
        params: A tree of arrays.
        name: Name under which the function is registered; None for one that is not saved.

    Raises:
        TypeError: `function` is none, `params` are no arrays of numbers, or `name` is no
            text; or, when it is saved, it has no name.
        ValueError: Parameters are not finite; or, when it is loaded, nobody has registered
            a function by its name.
    """

    function: Callable = eqx.field(static=True)
    params: PyTree[Array]
    name: str | None = eqx.field(static=True)

    def __init__(
        self, function: Callable, params: Any, name: str | None = None
    ) -> None:
        checked_callable("Applied", "function", function, "lambda params, x, t: ...")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"Applied: name must be a text or None, got {name!r}.")
        self.function, self.name = function, name
        if not jax.tree.leaves(params):
            raise TypeError(
                f"Applied: params must hold at least one array, got {params!r}."
            )
        for leaf in jax.tree.leaves(params):
            checked_array("Applied", "params", leaf, empty=True)
        self.params = jax.tree.map(jnp.asarray, params)

    def __call__(self, x: Array, t: Array, *context: Any) -> Array:
        """The function's answer for one event."""
        return self.function(self.params, x, t, *context)

    def to_config(self) -> dict[str, Any]:
        """Name, and parameters as a list of arrays, for `save`."""
        if self.name is None:
            raise TypeError(
                "Applied: a network that is saved must have a name, Applied(function, "
                "params, name=...), under which register_function(name, function, "
                "params) has its function, got None."
            )
        return {"name": self.name, "params": jax.tree.leaves(self.params)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Applied":
        """The inverse of `to_config`."""
        name, leaves = config["name"], list(config["params"])
        if name not in _FUNCTIONS:
            raise ValueError(
                f"Applied: a function must be registered by the name {name!r} before the "
                "file is read, register_function(name, function, params), got none."
            )
        function, like = _FUNCTIONS[name]
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(like)]
        found = [jnp.shape(leaf) for leaf in leaves]
        if shapes != found:
            raise ValueError(
                f"Applied: the parameters of {name!r} must have the shapes {shapes}, as "
                f"they were registered, got {found}."
            )
        params = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return cls(function, params, name)


def register_function(name: str, function: Callable, params: Any) -> None:
    """Make a function known to files by a name; a later one takes its place.

    Args:
        name: As in `Applied(..., name=...)`.
        function: The function.
        params: A tree of arrays like its parameters: structure and shapes count.

    Raises:
        TypeError: `name` is no text, or `function` none.
    """
    if not isinstance(name, str):
        raise TypeError(f"register_function: name must be a text, got {name!r}.")
    example = "lambda params, x, t: ..."
    checked_callable("register_function", "function", function, example)
    _FUNCTIONS[name] = function, params


def from_torch(
    module: Any, call: Callable | None = None, *, name: str | None = None
) -> Applied:
    """A PyTorch module as a network, by torchax, which runs its operations in JAX.

    Nothing of it is written anew, and nothing calls PyTorch afterwards: it is compiled,
    differentiated, mapped over and trained as any network. Buffers, as the means of batch
    normalisation, stay as they are. The module is set to evaluation mode. Tensors of its
    own are parameters, buffers or made in `forward`; others torchax refuses.

    Args:
        module: A `torch.nn.Module`.
        call: Of the module, one event and the time, as tensors; by default
            `lambda module, x, t: module(x[None], t[None])[0]`. An image of diffusers wants
            `lambda unet, x, t: unet(x[None], t[None]).sample[0]`.
        name: As in `Applied`. Registers the function by it.

    Returns:
        The network. **Error:** that of single precision, about 1e-6 of its output.

    Raises:
        ImportError: torchax or PyTorch is not installed (`numpyro-diffusion[torch]`).
        TypeError: `module` is no PyTorch module, or `call` no function.

    **Example:**
        ```python
        layers = torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 2)
        module = torch.nn.Sequential(*layers).eval()
        call = lambda module, x, t: module(torch.cat([x, t[None]]))
        network = nd.networks.from_torch(module, call)
        prediction = nd.EpsilonPrediction(time_scale=1000, time_shift=-1)
        forward = nd.GaussianForward(nd.schedules.ddpm())
        reverse = nd.DenoisingReverse(forward, network, prediction)
        ```
    """
    try:
        torch: Any = importlib.import_module("torch")
        torchax: Any = importlib.import_module("torchax")
    except ImportError as error:
        raise ImportError(
            "from_torch: PyTorch and torchax must be installed, as by pip install "
            f"'numpyro-diffusion[torch]', got: {error}."
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"from_torch: module must be a torch.nn.Module, got {module!r}."
        )
    if call is None:
        call = lambda module, x, t: module(x[None], t[None])[0]
    checked_callable("from_torch", "call", call, "lambda module, x, t: ...")
    one_event: Callable = call

    class OneEvent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Any, t: Any) -> Any:
            # Tensors that are made on the way are JAX's too.
            with torchax.default_env(), torch.device("jax"):
                return one_event(self.module, x, t)

    whole = OneEvent().eval()
    trained = {key for key, _ in whole.named_parameters()}
    params, function = torchax.extract_jax(whole)

    def applied(params: dict[str, Array], x: Array, t: Array) -> Array:
        held = {
            key: value if key in trained else jax.lax.stop_gradient(value)
            for key, value in params.items()
        }
        with warnings.catch_warnings():
            # PyTorch's integers are long, which JAX has only where it is asked to.
            warnings.filterwarnings("ignore", "Explicitly requested dtype int64")
            return function(held, (jnp.asarray(x), jnp.asarray(t)))

    if name is not None:
        register_function(name, applied, params)
    return Applied(applied, params, name)
