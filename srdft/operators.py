"""Operators of a density, and the blocks of shell pairs by which models mix them."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qchem import Functional, Hamiltonian, InputError, density_matrix
from srdft.family import MoleculeFamily

Kind = tuple[int, int]  # atomic number, index of the shell among those of the element


class BlockClasses(eqx.Module):
    """Classes of shell pairs: what shares a learned number.

    A class is an unordered pair of shells (element, index), on one atom or on two. One table serves
    all families of a run.

    Attributes:
        keys: Each class: both kinds of shells, the smaller first, and whether they share the atom.
        shells: Of each element: l of each shell, so that other bases are noticed.
    """

    keys: tuple[tuple[Kind, Kind, bool], ...] = eqx.field(static=True)
    shells: tuple[tuple[int, tuple[int, ...]], ...] = eqx.field(static=True)

    @classmethod
    def build(cls, families: Sequence[MoleculeFamily]) -> BlockClasses:
        """The classes that occur in the families.

        Raises:
            InputError: No family, or two with different shells on the same element.
        """
        if not families:
            raise InputError("a model needs at least one family; none was given.")
        shells: dict[int, tuple[int, ...]] = {}
        keys = set()
        for family in families:
            for number, momenta in _element_shells(family).items():
                if shells.setdefault(number, momenta) != momenta:
                    raise InputError(
                        f"family {family.name!r} has shells of l = {momenta} on atomic number "
                        f"{number}, another family l = {shells[number]}; the families of one model "
                        "share one basis set."
                    )
            keys |= {key for row in _keys(family) for key in row}
        return cls(tuple(sorted(keys)), tuple(sorted(shells.items())))

    @property
    def size(self) -> int:
        """Number of classes."""
        return len(self.keys)

    def index(self, family: MoleculeFamily) -> Int[np.ndarray, "nshell nshell"]:
        """Class of each pair of shells of a family.

        Raises:
            InputError: The family has pairs that the model was not built for.
        """
        place = {key: n for n, key in enumerate(self.keys)}
        rows = _keys(family)
        known = dict(self.shells)
        missing = {key for row in rows for key in row if key not in place}
        if missing or any(known[z] != l for z, l in _element_shells(family).items()):
            raise InputError(
                f"the model was not built for family {family.name!r}: it does not know all of its "
                "pairs of shells. Give all families, with one basis set, when the model is built."
            )
        return np.array([[place[key] for key in row] for row in rows], dtype=np.int32)


def _element_shells(family):
    found: dict[int, tuple[int, ...]] = {}
    for atom, number in enumerate(family.numbers):
        found[number] = tuple(shell.l for shell in family.shells if shell.atom == atom)
    return found


def _kinds(family: MoleculeFamily) -> list[Kind]:
    return [(family.numbers[shell.atom], shell.index) for shell in family.shells]


def _keys(family):
    kinds = _kinds(family)
    return [
        [(min(a, b), max(a, b), shell.atom == other.atom) for b, other in zip(kinds, family.shells)]
        for a, shell in zip(kinds, family.shells)
    ]


def shell_order(family: MoleculeFamily) -> Int[np.ndarray, "nshell nshell"]:
    """1 where the first shell of a pair is of the smaller kind, -1 where of the larger, else 0."""
    kinds = _kinds(family)
    return np.array([[(a < b) - (a > b) for b in kinds] for a in kinds], dtype=np.int32)


def shell_of_ao(family: MoleculeFamily) -> Int[np.ndarray, " nao"]:
    """The shell of each AO."""
    sizes = [shell.size for shell in family.shells]
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


# Each operator grows with this power of a shell's energy.
_POWERS = {
    "overlap": 0,
    "kinetic": 1,
    "attraction": 1,
    "coulomb": 1,
    "exchange": 1,
    "xc": 1,
    "density": 0,
    "next density": 0,
    "fock density": 1,
    "fock next density": 1,
    "fock squared": 2,
    "change": 0,
}


def operator_names(functional: Functional) -> tuple[str, ...]:
    """The operators that a model mixes, as far as the functional has them."""
    absent = set()
    if not (functional.exchange_fraction or functional.attenuated_fraction):
        absent.add("exchange")
    if functional.ingredients == "none":
        absent.add("xc")
    return tuple(name for name in _POWERS if name not in absent)


def operator_scales(
    family: MoleculeFamily, names: tuple[str, ...], kinetic: Float[Array, "nao nao"]
) -> Float[Array, "nop nao nao"]:
    """Factors that bring blocks of core and valence shells to about the same size.

    (u_a u_b)^(-power) with u_a = sqrt(1 + T_aa): the energy of a shell grows as its kinetic
    energy, which depends on no position; averaged over the shell's AOs.
    """
    ao = jnp.asarray(shell_of_ao(family))
    sizes = jnp.asarray([shell.size for shell in family.shells], kinetic.dtype)
    of_shell = jnp.zeros_like(sizes).at[ao].add(jax.lax.stop_gradient(jnp.diag(kinetic))) / sizes
    root = jnp.sqrt(1 + of_shell)[ao]
    size = root[:, None] * root[None, :]
    return jnp.stack([size ** -_POWERS[name] for name in names])


def operators(
    hamiltonian: Hamiltonian,
    factor: Float[Array, "nspin nao nfactor"],
    fock: Float[Array, "nspin nao nao"],
    next_factor: Float[Array, "nspin nao nocc"],
    change: Float[Array, "nspin nao nao"],
) -> Float[Array, "nspin nop nao nao"]:
    """Symmetric operators made of a density P and of its Fock matrix F; see `operator_names`.

    S, T, V, J[P], K[P], V_xc[P], SPS, SP'S, FPS + SPF, FP'S + SP'F, F S^-1 F, with P' the density
    of the orbitals of F; and the change of F in the step before.

    Args:
        hamiltonian: At the geometry.
        factor: P = factor factor^T of each spin.
        fock: F[P].
        next_factor: P' = next_factor next_factor^T.
        change: F[P] less the Fock matrix that P comes from.
    """
    overlap, kinetic, hcore = hamiltonian.overlap, hamiltonian.kinetic, hamiltonian.hcore
    coulomb = hamiltonian.jk.coulomb(jnp.sum(density_matrix(factor), axis=0))
    exchange = hamiltonian.exchange(factor)
    lower = jnp.linalg.cholesky(overlap)
    spins = []
    for spin, f in enumerate(fock):
        parts = [overlap, kinetic, hcore - kinetic, coulomb]
        rest = f - hcore - coulomb
        if exchange is not None:
            parts.append(exchange[spin])
            rest = rest + exchange[spin]
        if hamiltonian.xc is not None:
            parts.append(rest)
        halves = [(c[spin], overlap @ c[spin]) for c in (factor, next_factor)]
        parts += [half @ half.T for _, half in halves]
        products = [(f @ c) @ half.T for c, half in halves]
        parts += [product + product.T for product in products]
        root = jax.lax.linalg.triangular_solve(lower, f, left_side=True, lower=True)
        spins.append(jnp.stack([*parts, root.T @ root, change[spin]]))
    return jnp.stack(spins)


def mix(
    weights: Float[Array, "nspin nop nshell nshell"],
    operators: Float[Array, "nspin nop nao nao"],
    ao: Int[np.ndarray, " nao"],
) -> Float[Array, "nspin nao nao"]:
    """Sum of the operators, each block of shells multiplied by its weight."""
    total = jnp.zeros_like(operators[:, 0])
    for k in range(operators.shape[1]):
        total = total + weights[:, k][:, ao[:, None], ao[None, :]] * operators[:, k]
    return total
