"""Occupied orbitals of a Fock matrix, differentiable wherever there is a gap."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qchem import canonical_orthogonalizer, diagonalize

GAP = 1e-8  # hartree; orbitals that come closer are treated as if they did not mix
SMALLEST_GAP = 0.02  # hartree; a smaller one, or a negative, would make estimates meaningless


def orbitals(
    fock: Float[Array, "nspin nao nao"], overlap: Float[Array, "nao nao"]
) -> tuple[Float[Array, "nspin nao nmo"], Float[Array, "nspin nmo"]]:
    """Orthonormal orbitals FC = SCe and their energies, hartree, ascending; not differentiable.

    Functions lost to linear dependence are the last columns, zero, with infinite energy.
    """
    fock, overlap = jax.lax.stop_gradient((fock, overlap))
    x, kept = canonical_orthogonalizer(overlap)
    # Spin by spin: batched LAPACK calls can wait for each other on a CPU (jaxlib 0.10).
    solved = [diagonalize(0.5 * (m + m.T), kept) for m in (x.T @ f @ x for f in fock)]
    return jnp.stack([x @ vectors for _, vectors in solved]), jnp.stack([e for e, _ in solved])


def occupied_orbitals(
    fock: Float[Array, "nspin nao nao"],
    overlap: Float[Array, "nao nao"],
    mo_coeff: Float[Array, "nspin nao nmo"],
    mo_energy: Float[Array, "nspin nmo"],
    nocc: tuple[int, ...],
) -> Float[Array, "nspin nao nocc"]:
    """Occupied orbitals times the root of their occupation, with derivatives in F and S.

    The density matrix of the lowest orbitals is a smooth function of F and S where occupied and
    virtual energies differ, whatever the degeneracies within either:

        dC_i = sum_a C_a (dF_ai - e_i dS_ai)/(e_i - e_a) - 1/2 sum_j C_j dS_ji

    up to rotations among the occupied orbitals. So the derivative is right for whatever depends on
    the density matrix alone, in forward and reverse mode.

    Args:
        fock, overlap: F and S; what follows depends on positions and parameters through these.
        mo_coeff, mo_energy: Their `orbitals`.
        nocc: Number of occupied orbitals of each spin; the smaller is padded with zeros.
    """
    mo_coeff, mo_energy = jax.lax.stop_gradient((mo_coeff, mo_energy))
    columns = []
    for spin, n in enumerate(nocc):
        occupied = _occupied(n, fock[spin], overlap, mo_coeff[spin], mo_energy[spin])
        columns.append(jnp.pad(occupied, ((0, 0), (0, max(nocc) - n))))
    return jnp.stack(columns) * (2 / len(nocc)) ** 0.5


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _occupied(nocc, fock, overlap, mo_coeff, mo_energy):
    return mo_coeff[:, :nocc]


@_occupied.defjvp
def _occupied_jvp(nocc, primals, tangents):
    _, _, mo_coeff, mo_energy = primals
    dfock, doverlap = tangents[:2]
    occupied, energy = mo_coeff[:, :nocc], mo_energy[:nocc]
    gap = mo_energy[None, nocc:] - energy[:, None]
    apart = gap > GAP
    inverse = jnp.where(apart, 1 / jnp.where(apart, gap, 1), 0)
    change = dfock @ occupied - (doverlap @ occupied) * energy[None, :]
    mixing = (mo_coeff[:, nocc:].T @ change) * inverse.T
    tangent = -mo_coeff[:, nocc:] @ mixing
    tangent = tangent - 0.5 * occupied @ (occupied.T @ doverlap @ occupied)
    return occupied, tangent


def semicanonical(
    fock: Float[Array, "nspin nao nao"],
    mo_coeff: Float[Array, "nspin nao nmo"],
    nocc: tuple[int, ...],
) -> tuple[Float[Array, "nspin nao nmo"], Float[Array, "nspin nmo"]]:
    """Orbitals of the same density that diagonalize F within occupied and within virtual ones.

    Args:
        fock: Of the density of the occupied orbitals; not differentiable.
        mo_coeff: Orthonormal; columns of zeros, where there are any, come last.
        nocc: Number of occupied orbitals of each spin.

    Returns:
        The orbitals and their energies, hartree; infinite for columns of zeros.
    """
    fock, mo_coeff = jax.lax.stop_gradient((fock, mo_coeff))
    spins = []
    for f, c, n in zip(fock, mo_coeff, nocc):
        blocks = [_diagonal_block(f, part) for part in (c[:, :n], c[:, n:]) if part.shape[1]]
        spins.append([jnp.concatenate(parts, axis=-1) for parts in zip(*blocks)])
    mo_coeff, mo_energy = zip(*spins)
    return jnp.stack(mo_coeff), jnp.stack(mo_energy)


def _diagonal_block(fock, orbitals):
    exists = jnp.any(orbitals != 0, axis=0)
    block = orbitals.T @ fock @ orbitals
    energies, rotation = diagonalize(0.5 * (block + block.T), exists)
    return orbitals @ rotation, energies


def largest_residual(
    fock: Float[Array, "nspin nao nao"],
    mo_coeff: Float[Array, "nspin nao nmo"],
    nocc: tuple[int, ...],
) -> Float[Array, ""]:
    """Largest element of the occupied-virtual block of F, hartree: zero at the minimum."""
    blocks = [c[:, :n].T @ f @ c[:, n:] for f, c, n in zip(fock, mo_coeff, nocc)]
    zero = jnp.zeros((), fock.dtype)
    return jnp.max(jnp.stack([jnp.max(jnp.abs(b), initial=0) if b.size else zero for b in blocks]))


def error_estimate(
    fock: Float[Array, "nspin nao nao"],
    mo_coeff: Float[Array, "nspin nao nmo"],
    mo_energy: Float[Array, "nspin nmo"],
    nocc: tuple[int, ...],
) -> Float[Array, ""]:
    """What rotating occupied into virtual orbitals would gain to second order, hartree.

    sum_s occupation sum_ia |F_ia|^2 / (e_a - e_i): the minimum of the energy's quadratic model
    with the diagonal of the orbital Hessian, (10.8.5) of Helgaker, Jørgensen & Olsen (2000)
    without its two-electron part.

    Args:
        fock: Of the density of the occupied orbitals.
        mo_coeff, mo_energy: Its `semicanonical` orbitals.
        nocc: Number of occupied orbitals of each spin.
    """
    total = jnp.zeros((), fock.dtype)
    for f, c, e, n in zip(fock, mo_coeff, mo_energy, nocc):
        gap = jnp.maximum(e[None, n:] - e[:n, None], SMALLEST_GAP)
        total = total + jnp.sum((c[:, :n].T @ f @ c[:, n:]) ** 2 / gap)
    return total * (2 / len(nocc))
