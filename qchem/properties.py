"""Gradient, dipole moment and spin of given orbitals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.fitted_jk import Fit
from qchem.integrals.moments import packed_dipole, packed_moment, unpack
from qchem.integrals.pairs import npair, pair_distributions
from qchem.scf.hamiltonian import Hamiltonian, Method
from qchem.scf.orbitals import (
    OVERLAP_THRESHOLD,
    density_matrix,
    slope_of_kept_space,
    slope_of_orthonormality,
    spin_square,
)
from qchem.scf.solve import SCFResult

AnyArray = Array | np.ndarray


def gradient(
    method: Method,
    positions: Float[Array, "natom 3"],
    factor: Float[Array, "nspin nao nocc"],
    fitted: tuple[Fit, ...] | None = None,
    of_overlap: Float[Array, "nao nao"] | None = None,
) -> Float[Array, "natom 3"]:
    """dE/dR of a converged energy, hartree/bohr.

    All that moves with the nuclei is differentiated: integrals, grid, overlap. The orbitals are
    held except for what keeps them orthonormal, since the energy is stationary in them. At an
    electronic temperature the derivative is that of the free energy, which is what is stationary.

    Args:
        method, positions: What was calculated.
        factor: Occupied orbitals times the roots of their occupation, which is whole unless
            `of_overlap` is given.
        fitted, of_overlap: As `Method.energy` takes them; the latter spares the part of the work
            that a converged Fock matrix has done.
    """
    factor = jax.lax.stop_gradient(factor)
    return jax.grad(method.energy)(positions, factor, fitted, of_overlap)


def known_after(
    method: Method, hamiltonian: Hamiltonian, scf: SCFResult, options: Mapping[str, Any]
) -> tuple[tuple[Fit, ...] | None, Float[Array, "nao nao"]]:
    """`fitted` and `of_overlap` for the gradient of what an SCF with these options has found."""
    threshold = options.get("overlap_threshold", OVERLAP_THRESHOLD)
    matrices = hamiltonian.overlap, scf.fock, scf.dm
    of_space = jax.lax.cond(
        jnp.any(jnp.isinf(scf.mo_energy)),
        lambda *x: slope_of_kept_space(*x, threshold),
        lambda overlap, *_: jnp.zeros_like(overlap),
        *matrices,
    )
    of_orbitals = slope_of_orthonormality(scf.fock, scf.mo_coeff, scf.mo_occ)
    return method.known_fitted(hamiltonian), of_orbitals + of_space


def moments(
    method: Method, positions: Float[Array, "natom 3"], factor: Float[Array, "nspin nao nocc"]
) -> tuple[Float[Array, 3], Float[Array, ""]]:
    """Dipole moment about the origin of the coordinates, e bohr, and <S^2>."""
    pairs, size = pair_distributions(method.basis, method.pairs, positions), npair(method.basis.nao)
    overlap = packed_moment(pairs, size, (0, 0, 0), jnp.zeros(3, positions.dtype))
    packed = jnp.stack([overlap, *packed_dipole(pairs, size)])
    overlap, *dipole = unpack(packed, method.basis.nao)
    dm = density_matrix(factor)
    charges = jnp.asarray(method.charges, positions.dtype)
    moment = dipole_moment(charges, positions, jnp.stack(dipole), dm)
    return moment, spin_square(factor, overlap)


def dipole_moment(
    charges: Float[AnyArray, " natom"],
    positions: Float[AnyArray, "natom 3"],
    matrices: Float[AnyArray, "3 nao nao"],
    dm: Float[AnyArray, "nspin nao nao"],
) -> Float[AnyArray, " 3"]:
    """Dipole moment about the origin of the dipole matrices, e bohr; of either kind of arrays."""
    electrons = (matrices * dm.sum(axis=0)[None]).sum(axis=(1, 2))
    return charges @ positions - electrons
