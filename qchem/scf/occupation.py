"""Occupation of orbitals at an electronic temperature: Fermi and Dirac's distribution."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qchem.scf.orbitals import Nocc, counts

_BISECTIONS = 100  # more than the bits of a float64


def fermi_occupation(
    mo_energy: Float[Array, "nspin nmo"], nocc: Nocc, temperature: float
) -> Float[Array, "nspin nmo"]:
    """Occupation numbers at an electronic temperature, electrons of each spin conserved.

    f = 1 / (1 + exp((e - mu) / kT)), times two in a closed shell; Mermin, Phys. Rev. 137, A1441
    (1965). The chemical potential mu of each spin channel is found by bisection.

    Args:
        mo_energy: Hartree; infinite for orbitals that do not exist.
        nocc: Number of electrons in each spin channel, of pairs in a closed shell.
        temperature: kT, hartree.
    """
    exists = jnp.isfinite(mo_energy)
    margin = 100 * temperature
    wanted = jnp.asarray(counts(nocc), mo_energy.dtype)
    low = jnp.min(jnp.where(exists, mo_energy, jnp.inf), axis=1) - margin
    high = jnp.max(jnp.where(exists, mo_energy, -jnp.inf), axis=1) + margin

    def occupation(mu):
        return jax.nn.sigmoid((mu[:, None] - mo_energy) / temperature)

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        few = jnp.sum(occupation(middle), axis=1) < wanted
        return jnp.where(few, middle, low), jnp.where(few, high, middle)

    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    return occupation(0.5 * (low + high)) * (2 / len(nocc))


def entropy(mo_occ: Float[Array, "nspin nmo"]) -> Float[Array, ""]:
    """Entropy of independent electrons, in units of Boltzmann's constant.

    The free energy, which is what the orbitals minimize at a temperature, is E - kT times it.
    """
    full = 2 / mo_occ.shape[0]
    filled = jnp.clip(mo_occ / full, 0, 1)
    entr = jax.scipy.special.entr
    return full * jnp.sum(entr(filled) + entr(1 - filled))
