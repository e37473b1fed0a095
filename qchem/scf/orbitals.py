"""Orbitals and density matrices: orthonormalization, occupation, spin."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qchem.errors import InputError

OVERLAP_THRESHOLD = 1e-6  # PySCF's: overlap eigenvalues below it are linear dependences


class Occupied(eqx.Module):
    """Numbers of occupied orbitals that are data, so that one program serves several molecules.

    It may stand wherever a tuple of numbers, `nocc`, does; that one is part of the program.

    Attributes:
        count: Number of occupied orbitals in each spin channel.
        width: Columns that a factor has; not less than any count.
    """

    count: Int[Array | np.ndarray, " nspin"]
    width: int = eqx.field(static=True)

    def __len__(self) -> int:
        return self.count.shape[0]


Nocc = tuple[int, ...] | Occupied


def counts(nocc: Nocc) -> Int[Array | np.ndarray, " nspin"]:
    """The numbers as an array."""
    return nocc.count if isinstance(nocc, Occupied) else np.asarray(nocc, np.int32)


def width(nocc: Nocc) -> int:
    """Number of columns of a factor."""
    return nocc.width if isinstance(nocc, Occupied) else max(nocc)


def is_occupied(nocc: Nocc, nmo: int) -> Bool[Array | np.ndarray, "nspin nmo"]:
    """Which of the orbitals, sorted, are occupied."""
    number = counts(nocc)
    return np.arange(nmo, dtype=number.dtype)[None, :] < number[:, None]


def canonical_orthogonalizer(
    overlap: Float[Array | np.ndarray, "nao nao"], threshold: float = OVERLAP_THRESHOLD
) -> tuple[Float[Array, "nao nmo"], Bool[Array, " nmo"]]:
    """Matrix X of orthonormal combinations of AOs, X^T S X = 1, linear dependences removed.

    Canonical orthogonalization, X = U s^(-1/2), (3.169) of Szabo & Ostlund (1989). The shape does
    not depend on the data: nmo is nao, and a direction that is removed is a column of zeros.

    Args:
        overlap: S.
        threshold: Directions with eigenvalues of S at or below it are removed. Raised to what the
            dtype resolves.

    Returns:
        X, with removed columns first (eigenvalues ascend), and a mask of the columns kept.
    """
    eigenvalues, vectors = jnp.linalg.eigh(jnp.asarray(overlap))
    kept = _are_kept(eigenvalues, threshold)
    scale = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, eigenvalues, 1)), 0)
    return vectors * scale[None, :], kept


def _are_kept(eigenvalues, threshold):
    resolved = 10 * jnp.finfo(eigenvalues.dtype).eps * eigenvalues[-1]
    return eigenvalues > jnp.maximum(threshold, resolved)


def slope_of_orthonormality(
    fock: Float[Array | np.ndarray, "nspin nao nao"],
    mo_coeff: Float[Array | np.ndarray, "nspin nao nmo"],
    mo_occ: Float[Array | np.ndarray, "nspin nmo"],
) -> Float[Array | np.ndarray, "nao nao"]:
    """dE/dS of orbitals that change only to stay orthonormal, hartree; NumPy's of NumPy's arrays.

    -sum_ij (n_i n_j)^(1/2) C_i F_ij C_j^T: minus the energy-weighted density matrix of converged
    orbitals, -DFD of a spin with whole occupation (that of `reorthonormalize`).
    """
    xp = np if isinstance(mo_coeff, np.ndarray) else jnp
    product = partial(xp.einsum, **({} if xp is np else {"precision": "highest"}))
    inner = product("sai,sab->sib", mo_coeff, fock)
    inner = product("sib,sbj->sij", inner, mo_coeff)
    factor = mo_coeff * xp.sqrt(mo_occ)[:, None]
    return -product("saj,sbj->ab", product("sai,sij->saj", factor, inner), factor)


def slope_of_kept_space(
    overlap: Float[Array | np.ndarray, "nao nao"],
    fock: Float[Array | np.ndarray, "nspin nao nao"],
    dm: Float[Array | np.ndarray, "nspin nao nao"],
    threshold: float = OVERLAP_THRESHOLD,
) -> Float[Array, "nao nao"]:
    """dE/dS by way of the directions that `canonical_orthogonalizer` keeps, hartree.

    The energy is a minimum among orbitals of these alone. With S = V s V^T they turn into those
    left out, d, by V_d^T dS V_r / (s_r - s_d), to which the energy's slope is 2 V_d^T F D V_r.
    """
    eigenvalues, vectors = jnp.linalg.eigh(jnp.asarray(overlap))
    kept = _are_kept(eigenvalues, threshold)
    crossing = ~kept[:, None] & kept[None]
    gap = jnp.where(crossing, eigenvalues[None] - eigenvalues[:, None], 1)
    product = jnp.einsum("sab,sbc->ac", jnp.asarray(fock), jnp.asarray(dm), precision="highest")
    slope = jnp.einsum("ad,ab,br->dr", vectors, product, vectors, precision="highest")
    slope = jnp.where(crossing, 2 * slope / gap, 0)
    return symmetrized(jnp.einsum("ad,dr,br->ab", vectors, slope, vectors, precision="highest"))


def diagonalize(
    fock: Float[Array, "nmo nmo"], kept: Bool[Array, " nmo"]
) -> tuple[Float[Array, " nmo"], Float[Array, "nmo nmo"]]:
    """Orbital energies, ascending, and orbitals of a Fock matrix in an orthonormal basis.

    Args:
        fock: Symmetric; rows and columns that are not kept must be zero.
        kept: Directions that exist. The others come last.

    Returns:
        Energies, hartree, infinite for directions that do not exist; orbitals in columns.
    """
    bound = jnp.max(jnp.sum(jnp.abs(fock), axis=0))  # no eigenvalue exceeds it (Gershgorin)
    beyond = jnp.where(kept, jnp.zeros_like(bound), 1 + 2 * bound)
    energies, vectors = jnp.linalg.eigh(fock + jnp.diag(beyond))
    exists = jnp.arange(kept.size) < jnp.sum(kept)
    return jnp.where(exists, energies, jnp.inf), vectors


def occupation_numbers(nocc: Nocc, nmo: int, dtype: jnp.dtype) -> Float[Array, "nspin nmo"]:
    """Occupation of orbitals sorted by energy: 2 or 0 for a closed shell, else 1 or 0.

    Args:
        nocc: Number of occupied orbitals in each spin channel.
        nmo: Number of orbitals.
        dtype: Of the result.
    """
    check_occupation(nocc, nmo)
    full = jnp.asarray(2 / len(nocc), dtype)
    return jnp.where(is_occupied(nocc, nmo), full, jnp.zeros_like(full))


def check_occupation(nocc: Nocc, nmo: int) -> None:
    """Refuse numbers of occupied orbitals that `nmo` orbitals cannot hold, unless they are data."""
    if isinstance(nocc, Occupied):
        return
    if len(nocc) not in (1, 2):
        raise InputError(
            f"nocc = {nocc} names {len(nocc)} spin channels; give one number of occupied orbitals "
            "(closed shell) or two (alpha, beta)."
        )
    if min(nocc) < 0 or max(nocc) == 0 or max(nocc) > nmo:
        raise InputError(
            f"nocc = {nocc} does not fit {nmo} basis functions: each number must lie between 0 and "
            f"{nmo}, and one must be positive. Check charge and multiplicity, or take a larger "
            "basis set."
        )


def orbital_factor(
    mo_coeff: Float[Array, "nspin nao nmo"], nocc: Nocc
) -> Float[Array, "nspin nao nocc"]:
    """Occupied orbitals times the square root of their occupation: dm = factor factor^T.

    Args:
        mo_coeff: Orbitals sorted by energy.
        nocc: Number of occupied orbitals in each spin channel. The channel with fewer is padded
            with columns of zeros.
    """
    root = jnp.sqrt(occupation_numbers(nocc, mo_coeff.shape[-1], mo_coeff.dtype))
    return mo_coeff[:, :, : width(nocc)] * root[:, None, : width(nocc)]


def density_matrix(factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
    """Density matrix of each spin channel, occupation included."""
    return jnp.matmul(factor, jnp.swapaxes(factor, -1, -2), precision="highest")


def canonicalize(
    fock: Float[Array, "nspin nmo nmo"], nocc: Nocc, exists: Bool[Array, " nmo"]
) -> tuple[Float[Array, "nspin nmo"], Float[Array, "nspin nmo nmo"]]:
    """Orbital energies and the rotation that diagonalizes both blocks of a Fock matrix.

    Occupied orbitals mix with each other, virtual ones with each other: the density stays.

    Args:
        fock: In orthonormal orbitals, the occupied ones first.
        nocc: Number of occupied orbitals in each spin channel.
        exists: False for the last orbitals, where linear dependence left none.

    Returns:
        Energies, hartree, ascending in each block, infinite for orbitals that do not exist; new
        orbitals in columns.
    """

    def of_spin(fock, occupied):
        same = occupied[:, None] == occupied[None, :]
        bound = jnp.max(jnp.sum(jnp.abs(fock), axis=0))
        # Occupied orbitals come first whatever their energies.
        shift = jnp.where(occupied, -2 * bound - 1, 0)
        energies, rotation = diagonalize(jnp.where(same, fock, 0) + jnp.diag(shift), exists)
        return energies - shift, rotation

    return jax.vmap(of_spin)(fock, jnp.asarray(is_occupied(nocc, fock.shape[-1])))


def reorthonormalize(
    orbitals: Float[Array | np.ndarray, "nspin nao nocc"],
    overlap: Float[Array | np.ndarray, "nao nao"],
    occupation: float = 1.0,
) -> Float[Array, "nspin nao nocc"]:
    """Orbitals of the same span, orthonormal in `overlap`: C L^(-T), L L^T = C^T S C.

    The triangular (Cholesky) form of orthonormalization, differentiable to any order. With C held
    and S moving with the nuclei, it is the connection under which the derivative of a stationary
    energy needs no derivative of the orbitals (Helgaker & Almlöf, Int. J. Quantum Chem. 26, 275
    (1984), for the symmetric form; the density matrix is the same).

    Args:
        orbitals: Linearly independent columns of any length, so `mo_coeff` or `factor` alike;
            columns of zeros remain zero.
        overlap: S.
        occupation: C^T S C of the result is this times the unit matrix; 2 / nspin for a `factor`.
    """
    orbitals = jnp.asarray(orbitals)
    lower = _lower_of_products(orbitals, jnp.asarray(overlap))
    return _times_inverse(orbitals, lower) * occupation**0.5


def held_and_turn(
    orbitals: Float[Array | np.ndarray, "nspin nao nocc"],
    overlap: Float[Array | np.ndarray, "nao nao"],
    occupation: float = 1.0,
) -> tuple[Float[Array, "nspin nao nocc"], Float[Array, "nspin nocc nocc"]]:
    """`reorthonormalize` as a product of two factors, which move for different reasons.

    The first, C L0^(-T), moves with C alone, as L0 is L held constant; the second, L0^T L^(-T), is
    the unit matrix where nothing has moved yet. What depends on orthonormal orbitals that follow
    the nuclei while C is held needs its derivative in the second alone: (nocc nocc) of it.
    """
    orbitals = jnp.asarray(orbitals)
    lower = _lower_of_products(orbitals, jnp.asarray(overlap))
    first = jax.lax.stop_gradient(lower)
    turn = _times_inverse(jnp.swapaxes(first, 1, 2), lower)
    unit = jnp.eye(turn.shape[-1], dtype=turn.dtype)[None]
    turn = unit + (turn - jax.lax.stop_gradient(turn))  # without the rounding of L^T L^(-T)
    return _times_inverse(orbitals, first) * occupation**0.5, turn


def _lower_of_products(orbitals, overlap):
    """L of L L^T = C^T S C, where columns of zeros count as if they were orthonormal."""
    empty = jnp.all(orbitals == 0, axis=1).astype(overlap.dtype)
    metric = jnp.einsum("sai,ab,sbj->sij", orbitals, overlap, orbitals, precision="highest")
    return jnp.linalg.cholesky(metric + jax.vmap(jnp.diag)(empty))


def _times_inverse(x, lower):
    """x L^(-T)."""
    transposed = jax.lax.linalg.triangular_solve(
        lower, jnp.swapaxes(x, 1, 2), left_side=True, lower=True
    )
    return jnp.swapaxes(transposed, 1, 2)


def spin_square(
    factor: Float[Array | np.ndarray, "nspin nao nocc"],
    overlap: Float[Array | np.ndarray, "nao nao"],
) -> Float[Array, ""] | float:
    """Expectation value of S^2 of the determinant: S(S + 1) for a pure spin state.

    (2.271) of Szabo & Ostlund (1989), written for either order of the numbers of alpha and beta
    electrons; zero for a closed shell.

    Args:
        factor: Occupied orbitals times the square root of their occupation.
        overlap: S.
    """
    if factor.shape[0] == 1:
        return jnp.zeros((), factor.dtype)
    alpha, beta = factor
    nalpha, nbeta = (alpha * (overlap @ alpha)).sum(), (beta * (overlap @ beta)).sum()
    shared = ((alpha.T @ overlap @ beta) ** 2).sum()
    return ((nalpha - nbeta) / 2) ** 2 + (nalpha + nbeta) / 2 - shared


def symmetrized(matrices: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """Symmetric part of each matrix."""
    return 0.5 * (matrices + jnp.swapaxes(matrices, -1, -2))
