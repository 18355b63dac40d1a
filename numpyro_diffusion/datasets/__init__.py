"""The data sets of the 2015 paper and of the examples; standardising and back.

| data set | what | source |
|---|---|---|
| `digits` | 8 x 8 handwritten digits | come with scikit-learn |

All but the bits are in standardised units. `ImageData.from_levels` makes the same of any
integer images.
"""

from numpyro_diffusion.datasets.digits import DIGITS_SCALING, Digits, digits
from numpyro_diffusion.datasets.image_data import ImageData
from numpyro_diffusion.datasets.scaling import Scaling, dequantise

__all__ = [
    "DIGITS_SCALING",
    "Digits",
    "ImageData",
    "Scaling",
    "dequantise",
    "digits",
]
