"""What a model that was trained elsewhere must learn about itself."""

from typing import Any

from jaxtyping import Array

from numpyro_diffusion.checks import checked_instance
from numpyro_diffusion.prior import DiffusionPrior
from numpyro_diffusion.reverse import AbstractTrainableReverse
from numpyro_diffusion.training.error import denoising_error

__all__ = ["calibrate"]


def calibrate(
    prior: DiffusionPrior,
    data: Any,
    *,
    key: Array,
    num_levels: int = 50,
    num_samples: int = 4,
    num_knots: int = 0,
    num_components: int = 0,
) -> DiffusionPrior:
    """A prior whose steps are as wide as its network is wrong.

    A network says where the data are and not how well it knows that. `fit` measures it; for
    a network from elsewhere this does, on data like those that it has learned: a few
    hundred events that it was not trained on are enough. Particle methods and guidance
    refuse a prior without it.

    Args:
        prior: A prior of a process with a network.
        data: Events, shape `(num, *event_shape)`, in the prior's units; for a prior under
            contexts a tuple `(events, contexts)`.
        key: Random key.
        num_levels: As in `denoising_error`.
        num_samples: As in `denoising_error`.
        num_knots: As in `denoising_error`.
        num_components: As in `denoising_error`; a hundred for images.

    Returns:
        The same prior with the error that was measured.

    Raises:
        TypeError: `prior` is none, or its process has no network whose error could be
            measured, as those of `analytic`; or as `denoising_error`.
        ValueError: As `denoising_error`.

    Error: as that of `denoising_error`.

    **Example:**
        ```python
        forward = nd.GaussianForward(nd.schedules.ddpm())
        reverse = nd.DenoisingReverse(forward, network, nd.EpsilonPrediction())
        prior = nd.DiffusionPrior(reverse, (28, 28), num_steps=100)
        prior = nd.calibrate(prior, images, key=key, num_components=100)
        ```
    """
    example = "DiffusionPrior(reverse, (2,))"
    checked_instance("calibrate", "prior", prior, DiffusionPrior, example)
    reverse = prior.reverse
    if not isinstance(reverse, AbstractTrainableReverse):
        raise TypeError(
            "calibrate: prior must be of a process with a network, got one of "
            f"{type(reverse).__name__}, whose error is known."
        )
    error = denoising_error(
        reverse,
        data,
        key=key,
        num_levels=num_levels,
        num_samples=num_samples,
        num_knots=num_knots,
        num_components=num_components,
        scaling=prior.scaling,
    )
    config = {**prior.to_config(), "reverse": reverse.with_error(error)}
    return DiffusionPrior.from_config(config)
