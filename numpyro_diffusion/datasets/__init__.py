"""The data sets of the 2015 paper and of the examples; standardising and back.

| data set | what | source |
|---|---|---|
| `swiss_roll` | points near a spiral in the plane | generated, exact law |
| `heartbeat` | 20 bits with period five | generated, exact law |
| `dead_leaves` | discs that occlude one another | generated, exact law |
| `textures` | patches of grass, gravel and brick | come with scikit-image |
| `digits` | 8 x 8 handwritten digits | come with scikit-learn |
| `mnist` | 28 x 28 handwritten digits | a folder of the user's |
| `cifar10` | 32 x 32 x 3 photographs | a folder of the user's |

All but the bits are in standardised units. `ImageData.from_levels` makes the same of any
integer images.
"""

from numpyro_diffusion.datasets.cifar10_images import cifar10
from numpyro_diffusion.datasets.digit_images import DIGITS_SCALING, Digits, digits
from numpyro_diffusion.datasets.files import DataFileError
from numpyro_diffusion.datasets.image_data import ImageData
from numpyro_diffusion.datasets.leaf_images import (
    DEAD_LEAVES_SCALING,
    LeafLaw,
    dead_leaves,
    dead_leaves_levels,
)
from numpyro_diffusion.datasets.mnist_images import mnist
from numpyro_diffusion.datasets.scaling import Scaling, dequantise
from numpyro_diffusion.datasets.texture_images import TEXTURES, textures
from numpyro_diffusion.datasets.toy import (
    SWISS_ROLL_CENTRE,
    SWISS_ROLL_NOISE,
    SWISS_ROLL_PHI,
    heartbeat,
    heartbeat_patterns,
    swiss_roll,
    swiss_roll_curve,
    swiss_roll_scale,
)

__all__ = [
    "DEAD_LEAVES_SCALING",
    "DIGITS_SCALING",
    "SWISS_ROLL_CENTRE",
    "SWISS_ROLL_NOISE",
    "SWISS_ROLL_PHI",
    "TEXTURES",
    "DataFileError",
    "Digits",
    "ImageData",
    "LeafLaw",
    "Scaling",
    "cifar10",
    "dead_leaves",
    "dead_leaves_levels",
    "dequantise",
    "digits",
    "heartbeat",
    "heartbeat_patterns",
    "mnist",
    "swiss_roll",
    "swiss_roll_curve",
    "swiss_roll_scale",
    "textures",
]
