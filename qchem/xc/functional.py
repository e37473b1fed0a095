"""Exchange-correlation functionals by name."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .functionals.density import SpinDensity
from .names import FunctionalTerms, parse
from .registry import COMPONENTS, FUNCTIONALS, component

__all__ = ["COMPONENTS", "FUNCTIONALS", "Functional"]

# Below this the powers of the density that second derivatives hold leave the range of float32.
_FLOAT32_THRESHOLD = 1e-8


class Functional(eqx.Module):
    """Exchange and correlation as a sum of components, exact exchange and nonlocal correlation.

    Attributes:
        name: As it was given.
        exchange_fraction: Of exact exchange with the full interaction 1/r.
        components: Weights and names of energy densities.
        attenuated_fraction: Of exact exchange with an attenuated interaction.
        omega: Of that interaction, bohr⁻¹: erf(omega r)/r if positive, erfc(|omega| r)/r if
            negative.
        nonlocal_correlation: Weight, b and C of each VV10 term.
        dispersion: "d3bj" or "d4", and the name of its parameters; None without.
    """

    name: str = eqx.field(static=True)
    exchange_fraction: float = eqx.field(static=True)
    components: tuple[tuple[float, str], ...] = eqx.field(static=True)
    attenuated_fraction: float = eqx.field(static=True, default=0.0)
    omega: float = eqx.field(static=True, default=0.0)
    nonlocal_correlation: tuple[tuple[float, float, float], ...] = eqx.field(
        static=True, default=()
    )
    dispersion: tuple[str, str] | None = eqx.field(static=True, default=None)

    @classmethod
    def from_name(cls, name: str) -> "Functional":
        """The functional of this name, or of an expression in the names of its parts.

        Args:
            name: In either case: a whole functional ("b3lyp"), "exchange,correlation"
                ("b88,lyp"), sums of either with factors ("0.5*hf + 0.5*b88, lyp"), libxc's
                identifiers or their numbers ("hyb_gga_xc_b3lyp", "402"). Exact exchange is "hf",
                of long range "lr_hf(omega)", of short range "sr_hf(omega)"; nonlocal correlation
                is "vv10(b; C)"; a dispersion correction is added by "-d3bj" or "-d4" at the end.

        Raises:
            FunctionalNotFoundError: if a name is not known.
        """
        terms: FunctionalTerms = parse(name)
        return cls(name, *terms)

    @property
    def ingredients(self) -> str:
        """What the energy density depends on: "none", or the highest rung among its components:
        "lda" (rho), "gga" (rho and sigma) or "mgga" (rho, sigma and tau)."""
        present = {part.removeprefix("hyb_").split("_")[0] for _, part in self.components}
        return next((rung for rung in ("mgga", "gga", "lda") if rung in present), "none")

    def energy_density(
        self,
        rho: Float[Array, "nspin npoint"],
        sigma: Float[Array, "nsigma npoint"] | None = None,
        tau: Float[Array, "nspin npoint"] | None = None,
    ) -> Float[Array, " npoint"]:
        """Energy per volume without exact exchange, hartree/bohr³.

        Finite with its first and second derivatives for any density; exactly zero below the
        threshold of each component (in float32 at least 1e-8).

        Args:
            rho: Total density if there is one row, else alpha and beta; bohr⁻³.
            sigma: grad rho · grad rho, bohr⁻⁸: one row, or aa, ab, bb. Not used by an LDA.
            tau: ½ Σ_i |grad psi_i|² in the rows of rho, hartree/bohr³. Used by meta-GGAs alone.
        """
        floor = _FLOAT32_THRESHOLD if rho.dtype == jnp.float32 else 0.0
        thresholds = [max(component(part).threshold, floor) for _, part in self.components]
        densities = {t: SpinDensity(rho, sigma, tau, t) for t in sorted(set(thresholds))}
        energy = jnp.zeros_like(rho[0])
        for (weight, part), threshold in zip(self.components, thresholds, strict=True):
            density = densities[threshold]
            value = component(part).energy_density(density)
            energy = energy + weight * jnp.where(density.inside, value, 0.0)
        return energy
