"""Exchange of Handy and Cohen, Mol. Phys. 99, 403 (2001)."""

from jaxtyping import Array, Float

from .density import SLATER, SpinDensity

_A1, _A2, _GAMMA = 1.05151, 1.43169, 0.006


def gga_x_optx(density: SpinDensity) -> Float[Array, " npoint"]:
    """OPTX exchange, energy per volume."""

    def enhancement(spin):
        y = _GAMMA * spin.reduced
        return _A1 + _A2 / SLATER * (y / (1 + y)) ** 2

    return density.exchange(enhancement)
