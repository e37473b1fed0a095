"""The spin-resolved density at points, in the variables that functionals are written in."""

import math
from collections.abc import Callable
from functools import cached_property

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

RS_FACTOR = (3 / (4 * math.pi)) ** (1 / 3)  # Wigner-Seitz radius = RS_FACTOR rho^(-1/3)
SLATER = 0.75 * (6 / math.pi) ** (1 / 3)  # exchange of one spin = -SLATER rho_s^(4/3)
STIFFNESS = 4 / (9 * (2 ** (1 / 3) - 1))  # second derivative of f(zeta) at zeta = 0


class SpinChannel:
    """The electrons of one spin: density, |grad rho_s|² and what follows from them."""

    def __init__(
        self,
        rho: Float[Array, " npoint"],
        sigma: Float[Array, " npoint"] | None,
        threshold: float,
    ):
        self.rho = rho
        self.sigma = sigma
        self.populated = rho > threshold

    @cached_property
    def cbrt(self) -> Float[Array, " npoint"]:
        """rho_s^(1/3)."""
        return jnp.cbrt(self.rho)

    @cached_property
    def reduced(self) -> Float[Array, " npoint"]:
        """x_s² = sigma_ss / rho_s^(8/3)."""
        return _reduce(self.sigma, self.rho, self.cbrt)


class SpinDensity:
    """Spin densities and squared gradients, kept off the singular edges as libxc 7 does.

    In a closed shell `alpha` and `beta` are one object, so that a formula is written once and
    common parts are computed once. Densities below the threshold and gradients below its power
    8/3 are raised to it; derivatives pass straight through. Where the total is below the
    threshold, harmless numbers stand instead and `inside` is false.

    Args:
        rho: Total density if there is one row, else alpha and beta; bohr⁻³.
        sigma: grad rho · grad rho; with two spins the rows aa, ab, bb; bohr⁻⁸. None for LDA.
        threshold: Density below which the energy is zero, bohr⁻³.
    """

    polarized: bool
    inside: Bool[Array, " npoint"]
    rho: Float[Array, " npoint"]
    sigma: Float[Array, " npoint"] | None
    alpha: SpinChannel
    beta: SpinChannel

    def __init__(
        self,
        rho: Float[Array, "nspin npoint"],
        sigma: Float[Array, "nsigma npoint"] | None,
        threshold: float,
    ):
        self.polarized = rho.shape[0] == 2
        self.inside = (rho[0] + rho[1] if self.polarized else rho[0]) >= threshold
        self.sigma = None
        same = [None, None]

        def tame(x, low):
            return jnp.where(self.inside, _clip(x, low, jnp.inf), 1.0)

        if sigma is not None:
            floor = threshold ** (8 / 3)
            same = [tame(sigma[0], floor), tame(sigma[-1], floor)]
        if not self.polarized:
            self.rho, self.sigma = tame(rho[0], threshold), same[0]
            quarter = None if sigma is None else same[0] / 4
            self.alpha = self.beta = SpinChannel(self.rho / 2, quarter, threshold)
            return
        self.alpha = SpinChannel(tame(rho[0], threshold), same[0], threshold)
        self.beta = SpinChannel(tame(rho[1], threshold), same[1], threshold)
        self.rho = self.alpha.rho + self.beta.rho
        if sigma is not None:
            mean = (same[0] + same[1]) / 2  # |grad rho_a ± grad rho_b|² cannot be negative
            mixed = jnp.where(self.inside, _clip(sigma[1], -mean, mean), 0.0)
            self.sigma = 2 * (mean + mixed)

    @cached_property
    def cbrt(self) -> Float[Array, " npoint"]:
        """rho^(1/3) of the total density."""
        return jnp.cbrt(self.rho) if self.polarized else 2 ** (1 / 3) * self.alpha.cbrt

    @cached_property
    def rs(self) -> Float[Array, " npoint"]:
        """Wigner-Seitz radius, bohr."""
        return RS_FACTOR / self.cbrt

    @cached_property
    def reduced(self) -> Float[Array, " npoint"]:
        """x² = sigma / rho^(8/3), of the total density."""
        return _reduce(self.sigma, self.rho, self.cbrt)

    @cached_property
    def zeta(self) -> Float[Array, " npoint"]:
        """Polarization (rho_a - rho_b) / rho."""
        return (self.alpha.rho - self.beta.rho) / self.rho

    @cached_property
    def cbrt_one_plus_zeta(self) -> Float[Array, " npoint"]:
        """(1 + zeta)^(1/3)."""
        return self._cbrt_of_twice_the_fraction(self.alpha)

    @cached_property
    def cbrt_one_minus_zeta(self) -> Float[Array, " npoint"]:
        """(1 - zeta)^(1/3)."""
        return self._cbrt_of_twice_the_fraction(self.beta)

    @cached_property
    def spin_scaling(self) -> Float[Array, " npoint"] | float:
        """phi = ((1 + zeta)^(2/3) + (1 - zeta)^(2/3)) / 2."""
        if not self.polarized:
            return 1.0
        return (self.cbrt_one_plus_zeta**2 + self.cbrt_one_minus_zeta**2) / 2

    @cached_property
    def interpolation(self) -> Float[Array, " npoint"]:
        """f(zeta): 0 without, 1 with full polarization."""
        powers = self.cbrt_one_plus_zeta**4 + self.cbrt_one_minus_zeta**4
        return (powers - 2) / (2 ** (4 / 3) - 2)

    def exchange(
        self, enhancement: Callable[[SpinChannel], Float[Array, " npoint"] | float]
    ) -> Float[Array, " npoint"]:
        """Exchange energy per volume from the enhancement over Slater's, spin by spin."""

        def one(spin):
            energy = -SLATER * spin.rho * spin.cbrt * enhancement(spin)
            return jnp.where(spin.populated, energy, 0.0)

        return one(self.alpha) + one(self.beta) if self.polarized else 2 * one(self.alpha)

    def _cbrt_of_twice_the_fraction(self, spin):
        floor = float(jnp.finfo(self.rho.dtype).eps) ** (1 / 3)
        return jnp.maximum(2 ** (1 / 3) * spin.cbrt / self.cbrt, floor)


def _reduce(sigma, rho, cbrt):
    # Not sigma / (rho cbrt)²: derivatives of that hold powers outside the range of float32.
    inverse = 1 / (rho * cbrt)
    return sigma * inverse * inverse


@jax.custom_jvp
def _clip(x, low, high):
    return jnp.clip(x, low, high)


@_clip.defjvp
def _(primals, tangents):
    # libxc's derivatives are those of the formula at the raised density, not zero.
    return _clip(*primals), tangents[0]
