"""A data source of one's own: events that are made while they are needed."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class GaussianStream:
    """An endless stream of events N(mean, scale^2); batch k follows from the key and k."""

    batch_size: int
    dim: int
    mean: float = 0.0
    scale: float = 1.0

    def __call__(self, key, step):
        noise = jax.random.normal(
            jax.random.fold_in(key, step), (self.batch_size, self.dim)
        )
        return self.mean + self.scale * noise
