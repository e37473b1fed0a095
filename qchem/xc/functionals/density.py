"""The spin-resolved density at points, in the variables that functionals are written in."""

import math
from collections.abc import Callable
from functools import cached_property

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .elementary import cbrt

RS_FACTOR = (3 / (4 * math.pi)) ** (1 / 3)  # Wigner-Seitz radius = RS_FACTOR rho^(-1/3)
SLATER = 0.75 * (6 / math.pi) ** (1 / 3)  # exchange of one spin = -SLATER rho_s^(4/3)
STIFFNESS = 4 / (9 * (2 ** (1 / 3) - 1))  # second derivative of f(zeta) at zeta = 0
THOMAS_FERMI = 0.3 * (6 * math.pi**2) ** (2 / 3)  # tau of one spin of a gas = factor rho_s^(5/3)

_TAU_FLOOR = 1e-20  # libxc's
_TAU_FLOOR_FLOAT32 = 1e-10  # below, the powers that second derivatives hold overflow


class _Reduced:
    """Dimensionless variables of one density with its `rho`, `sigma`, `tau` and `cbrt`."""

    rho: Float[Array, " npoint"]
    sigma: Float[Array, " npoint"] | None
    tau: Float[Array, " npoint"] | None
    cbrt: Float[Array, " npoint"]

    @cached_property
    def reduced(self) -> Float[Array, " npoint"]:
        """x² = sigma / rho^(8/3)."""
        # Not sigma / (rho cbrt)²: derivatives of that hold powers outside the range of float32.
        inverse = 1 / (self.rho * self.cbrt)
        return self.sigma * inverse * inverse

    @cached_property
    def kinetic(self) -> Float[Array, " npoint"]:
        """t = tau / rho^(5/3); `THOMAS_FERMI` in a homogeneous gas of one spin."""
        return self.tau / self.rho / self.cbrt**2

    @cached_property
    def pauli(self) -> Float[Array, " npoint"]:
        """t less the share of a single orbital, tau_W / rho^(5/3) with tau_W = sigma / (8 rho)."""
        return (self.tau - self.sigma / (8 * self.rho)) / self.rho / self.cbrt**2

    @cached_property
    def single_orbital(self) -> Float[Array, " npoint"]:
        """tau_W / tau: 0 where the density is flat, 1 where it is that of a single orbital."""
        return self.sigma / (8 * self.rho) / self.tau


class SpinChannel(_Reduced):
    """The electrons of one spin: density, |grad rho_s|², tau_s and what follows from them."""

    def __init__(
        self,
        rho: Float[Array, " npoint"],
        sigma: Float[Array, " npoint"] | None,
        tau: Float[Array, " npoint"] | None,
        threshold: float,
    ):
        self.rho = rho
        self.sigma = sigma
        self.tau = tau
        self.populated = rho > threshold

    @cached_property
    def cbrt(self) -> Float[Array, " npoint"]:
        """rho_s^(1/3)."""
        return cbrt(self.rho)

    @property
    def spin_scaling(self) -> float:
        """phi of these electrons alone: `SpinDensity.spin_scaling` at zeta = 1."""
        smallest = float(jnp.finfo(self.rho.dtype).eps)
        return (2 ** (2 / 3) + smallest ** (2 / 3)) / 2


class SpinDensity(_Reduced):
    """Spin densities and what describes their surroundings, kept off the edges as libxc 7 does.

    In a closed shell `alpha` and `beta` are one object, so that a formula is written once and
    common parts are computed once. Densities below the threshold, gradients below its power 8/3
    and tau below its own floor are raised to them, and a gradient is no greater than a single
    orbital has with this tau; derivatives pass straight through. Where the total is below the
    threshold, harmless numbers stand instead and `inside` is false.

    Args:
        rho: Total density if there is one row, else alpha and beta; bohr⁻³.
        sigma: grad rho · grad rho; with two spins the rows aa, ab, bb; bohr⁻⁸. None for LDA.
        tau: Kinetic energy density ½ Σ_i |grad psi_i|², hartree/bohr³, in the rows of rho. None
            below meta-GGA.
        threshold: Density below which the energy is zero, bohr⁻³.
    """

    polarized: bool
    inside: Bool[Array, " npoint"]
    alpha: SpinChannel
    beta: SpinChannel

    def __init__(
        self,
        rho: Float[Array, "nspin npoint"],
        sigma: Float[Array, "nsigma npoint"] | None,
        tau: Float[Array, "nspin npoint"] | None,
        threshold: float,
    ):
        self.polarized = rho.shape[0] == 2
        self.inside = (rho[0] + rho[1] if self.polarized else rho[0]) >= threshold
        self.sigma = self.tau = None

        def tame(x, low, high=jnp.inf):
            return jnp.where(self.inside, _clip(x, low, high), 1.0)

        ends = [tame(row, threshold) for row in rho]
        kinetic = same = [None] * len(ends)
        highest = [jnp.inf] * len(ends)
        if tau is not None:
            floor = _TAU_FLOOR_FLOAT32 if rho.dtype == jnp.float32 else _TAU_FLOOR
            kinetic = [tame(row, floor) for row in tau]
            highest = [8 * r * t for r, t in zip(ends, kinetic, strict=True)]
        if sigma is not None:
            floor = threshold ** (8 / 3)
            rows = zip(sigma[::2], highest, strict=True)
            same = [tame(row, floor, high) for row, high in rows]
        if not self.polarized:
            self.rho, self.sigma, self.tau = ends[0], same[0], kinetic[0]
            quarter = None if sigma is None else same[0] / 4
            half = None if tau is None else kinetic[0] / 2
            self.alpha = self.beta = SpinChannel(self.rho / 2, quarter, half, threshold)
            return
        self.alpha = SpinChannel(ends[0], same[0], kinetic[0], threshold)
        self.beta = SpinChannel(ends[1], same[1], kinetic[1], threshold)
        self.rho = self.alpha.rho + self.beta.rho
        if sigma is not None:
            mean = (same[0] + same[1]) / 2  # |grad rho_a ± grad rho_b|² cannot be negative
            mixed = jnp.where(self.inside, _clip(sigma[1], -mean, mean), 0.0)
            self.sigma = 2 * (mean + mixed)
        if tau is not None:
            self.tau = kinetic[0] + kinetic[1]

    @cached_property
    def cbrt(self) -> Float[Array, " npoint"]:
        """rho^(1/3) of the total density."""
        return cbrt(self.rho) if self.polarized else 2 ** (1 / 3) * self.alpha.cbrt

    @cached_property
    def rs(self) -> Float[Array, " npoint"]:
        """Wigner-Seitz radius, bohr."""
        return RS_FACTOR / self.cbrt

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


@jax.custom_jvp
def _clip(x, low, high):
    return jnp.clip(x, low, high)


@_clip.defjvp
def _(primals, tangents):
    # libxc's derivatives are those of the formula at the raised density, not zero.
    return _clip(*primals), tangents[0]
