"""The replication of Sohl-Dickstein et al. 2015, a wing of its own.

Its reverse process (`KernelReverse` and the readouts), its networks, the exact optima of
its experiments and its Parzen windows.
"""

from numpyro_diffusion.paper2015 import networks, optimum, parzen
from numpyro_diffusion.paper2015.kernel_reverse import KernelReverse
from numpyro_diffusion.paper2015.readouts import (
    AbstractReadout,
    BitReadout,
    PlainBitReadout,
    PrintedReadout,
    ReferenceCodeReadout,
    SquareRootReadout,
)

__all__ = [
    "AbstractReadout",
    "BitReadout",
    "KernelReverse",
    "PlainBitReadout",
    "PrintedReadout",
    "ReferenceCodeReadout",
    "SquareRootReadout",
    "networks",
    "optimum",
    "parzen",
]
