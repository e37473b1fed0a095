"""Local exchange."""

from jaxtyping import Array, Float

from .density import SpinDensity


def lda_x(density: SpinDensity) -> Float[Array, " npoint"]:
    """Exchange of the homogeneous electron gas, energy per volume.

    Dirac, Proc. Camb. Phil. Soc. 26, 376 (1930); Bloch, Z. Phys. 57, 545 (1929).
    """
    return density.exchange(lambda spin: 1.0)
