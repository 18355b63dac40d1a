"""Dense layers that start where a saturating network can still learn."""

import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray


def glorot(in_features: int, out_features: int) -> float:
    """Standard deviation of a weight by Glorot and Bengio 2010, section 4.2.1.

    With it both the signal going through a stack of tanh layers and the gradient coming
    back keep about their size.
    """
    return math.sqrt(2 / (in_features + out_features))


def dense_layer(
    in_features: int,
    out_features: int,
    *,
    std: float,
    input_mean: ArrayLike = 0.0,
    key: PRNGKeyArray,
) -> eqx.nn.Linear:
    """A linear layer with weights drawn uniformly, whose bias takes out a known mean.

    Args:
        in_features: Number of inputs.
        out_features: Number of outputs.
        std: Standard deviation of a weight.
        input_mean: What the inputs are centred about, one number or one for each input:
            an input equal to it is mapped to zero.
        key: Random key, used once.

    Returns:
        The layer.
    """
    bound = std * math.sqrt(3)
    shape = (out_features, in_features)
    weight = jr.uniform(key, shape, minval=-bound, maxval=bound)
    layer = eqx.filter_eval_shape(eqx.nn.Linear, in_features, out_features, key=key)
    return eqx.tree_at(
        lambda layer: (layer.weight, layer.bias),
        layer,
        (weight, -weight @ jnp.broadcast_to(input_mean, in_features)),
    )
