"""The self-consistent field: the density matrix that its own Fock matrix gives back."""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qchem.errors import ConvergenceError, InputError
from qchem.scf.extrapolation import NEAR, History, extrapolate
from qchem.scf.orbitals import (
    OVERLAP_THRESHOLD,
    canonical_orthogonalizer,
    check_occupation,
    density_matrix,
    diagonalize,
    occupation_numbers,
    orbital_factor,
    symmetrized,
)

SOFT_RESIDUAL = 1e-5  # accepted when cycles bring no more; PySCF's default is about as large


@runtime_checkable
class SelfConsistent(Protocol):
    """What `solve` needs to know of a Hamiltonian: S, and energy and Fock matrix of orbitals."""

    overlap: Float[Array, "nao nao"]

    def energy_and_fock(self, factor):
        """Energy, hartree, and Fock matrix of each spin channel, dE/d(dm)."""


class SCFResult(eqx.Module):
    """State after the last cycle; every field belongs to the same density matrix.

    `fock` and `energy` are those of `dm`, and `mo_coeff` diagonalizes `fock` within the occupied
    and within the virtual orbitals, so that nothing was computed after `energy`. Functions lost
    to linear dependence are the last columns of `mo_coeff`, zero, with infinite `mo_energy`.
    """

    energy: Float[Array, ""]
    mo_coeff: Float[Array, "nspin nao nao"]
    mo_energy: Float[Array, "nspin nao"]
    mo_occ: Float[Array, "nspin nao"]
    dm: Float[Array, "nspin nao nao"]
    fock: Float[Array, "nspin nao nao"]
    factor: Float[Array, "nspin nao nocc"]
    converged: Bool[Array, ""]
    cycles: Int[Array, ""]
    residual: Float[Array, ""]
    energy_change: Float[Array, ""]
    energy_history: Float[Array, " max_cycles"]
    residual_history: Float[Array, " max_cycles"]

    def require_converged(self) -> "SCFResult":
        """This result, or `ConvergenceError` if it (or any of a batch) has not converged."""
        converged = np.asarray(self.converged)
        if converged.all():
            return self
        failed = np.flatnonzero(~converged.ravel())
        worst = failed[np.argmax(np.asarray(self.residual).ravel()[failed])]
        residual = float(np.asarray(self.residual).ravel()[worst])
        change = float(np.asarray(self.energy_change).ravel()[worst])
        cycles = int(np.asarray(self.cycles).ravel()[worst])
        which = f" for {failed.size} of {converged.size} geometries" if converged.ndim else ""
        advice = (
            "Check geometry, charge and multiplicity; then try more cycles (max_cycles), "
            "level_shift=0.3, damping=0.5, or a guess from a smaller basis set."
            if np.isfinite(residual)
            else "Energy or Fock matrix is not a number: look at the geometry and the basis set."
        )
        raise ConvergenceError(
            f"SCF not converged{which} after {cycles} cycles: residual max|FDS - SDF| = "
            f"{residual:.1e}, last energy change {change:.1e} hartree. {advice}",
            residual=residual,
            cycles=cycles,
        )


class _State(eqx.Module):
    cycle: Int[Array, ""]
    trial: Float[Array, "nspin nmo nmo"]
    vectors: Float[Array, "nspin nmo nmo"]
    fock: Float[Array, "nspin nao nao"]
    energy: Float[Array, ""]
    energy_change: Float[Array, ""]
    residual: Float[Array, ""]
    still: Int[Array, ""]  # cycles in a row in which the energy has not changed
    converged: Bool[Array, ""]
    history: History
    energies: Float[Array, " max_cycles"]
    residuals: Float[Array, " max_cycles"]


def solve(
    hamiltonian: SelfConsistent,
    nocc: tuple[int, ...],
    guess_fock: Float[Array | np.ndarray, "nspin nao nao"],
    *,
    max_cycles: int = 100,
    patience: int = 8,
    energy_tolerance: float = 1e-9,
    residual_tolerance: float | None = None,
    diis_size: int = 8,
    damping: float = 0.0,
    level_shift: float = 0.0,
    overlap_threshold: float = OVERLAP_THRESHOLD,
) -> SCFResult:
    """Self-consistent orbitals, by extrapolation of the Fock matrix.

    Close to the solution by the commutator (DIIS: Pulay, J. Comput. Chem. 3, 556 (1982)); far
    from it by the energy interpolated between past densities (ADIIS: Hu & Yang, J. Chem. Phys.
    132, 054109 (2010)); mixed between, as Garza & Scuseria, J. Chem. Phys. 137, 054110 (2012).
    Each cycle calls `energy_and_fock` once. Traceable: under `vmap`, geometries that have
    converged remain as they are while others go on. Nothing is raised inside a trace; see
    `SCFResult.require_converged`. Not meant to be differentiated: at the solution the energy is
    stationary.

    Args:
        hamiltonian: Energy and Fock matrix, and the overlap.
        nocc: Number of occupied orbitals in each spin channel, the lowest of each cycle.
        guess_fock: Its orbitals are the first.
        max_cycles: Number of Fock matrices built at most.
        patience: Number of cycles in a row without a change of the energy, or else half of
            `max_cycles`, after which a residual of 1e-5 is small enough. An open shell that a
            grid lets rotate almost freely, an atom's for example, gets no further.
        energy_tolerance: Largest change of the energy in the last cycle, hartree; not below what
            the dtype resolves.
        residual_tolerance: Largest element of FDS - SDF, in the orthonormal basis, occupation
            included, hartree. By default 1e-7, in single precision 1e-3.
        diis_size: Number of past cycles kept.
        damping: Part of the previous trial Fock matrix that is kept in the next while the
            residual is above 1e-2; 0 is none.
        level_shift: Added to the virtual orbitals of the trial Fock matrix, hartree, while the
            residual is above 1e-2. No longer, because it can hold excited states.
        overlap_threshold: Smallest eigenvalue of the overlap that is kept.
    """
    guess_fock = jnp.asarray(guess_fock)
    nspin, nao, _ = guess_fock.shape
    dtype = guess_fock.dtype
    _check_options(nocc, nspin, nao, max_cycles, diis_size, damping)
    eps = float(jnp.finfo(dtype).eps)
    if residual_tolerance is None:
        residual_tolerance = 1e-7 if eps < 1e-10 else 1e-3
    soft_tolerance = max(residual_tolerance, SOFT_RESIDUAL)

    x, kept = canonical_orthogonalizer(hamiltonian.overlap, overlap_threshold)
    solve_orbitals = jax.vmap(lambda fock: diagonalize(fock, kept)[1])
    occ = occupation_numbers(nocc, nao, dtype)

    def cycle(state: _State) -> _State:
        vectors = solve_orbitals(state.trial)
        energy, fock = hamiltonian.energy_and_fock(orbital_factor(x @ vectors, nocc))
        reduced = symmetrized(x.T @ fock @ x)
        dm = (vectors * occ[:, None, :]) @ jnp.swapaxes(vectors, 1, 2)
        product = reduced @ dm
        commutator = product - jnp.swapaxes(product, 1, 2)
        residual = jnp.max(jnp.abs(commutator))
        history = state.history.record(state.cycle, reduced, dm, commutator)
        trial = extrapolate(history, state.cycle, residual)
        far = (residual > NEAR).astype(dtype)
        kept_back = jnp.where(state.cycle > 0, damping * far, 0)
        trial = (1 - kept_back) * trial + kept_back * state.trial
        unoccupied = jnp.diag(kept.astype(dtype))[None] - dm * (nspin / 2)
        trial = trial + level_shift * far * unoccupied
        change = energy - state.energy
        stationary = jnp.abs(change) < jnp.maximum(energy_tolerance, 8 * eps * jnp.abs(energy))
        still = jnp.where(stationary, state.still + 1, 0)
        stalled = (still >= patience) | (state.cycle >= max_cycles // 2)
        tolerance = jnp.where(stalled, soft_tolerance, residual_tolerance)
        return _State(
            cycle=state.cycle + 1,
            trial=trial,
            vectors=vectors,
            fock=fock,
            energy=energy,
            energy_change=change,
            residual=residual,
            still=still,
            converged=stationary & (residual < tolerance),
            history=history,
            energies=state.energies.at[state.cycle].set(energy),
            residuals=state.residuals.at[state.cycle].set(residual),
        )

    def unfinished(state: _State) -> Bool[Array, ""]:
        broken = (state.cycle > 0) & ~jnp.isfinite(state.energy + state.residual)
        return (state.cycle < max_cycles) & ~state.converged & ~broken

    state = jax.lax.while_loop(
        unfinished, cycle, _first_state(x, guess_fock, max_cycles, diis_size)
    )
    vectors, mo_energy = _canonical_vectors(x, kept, state, nocc)
    mo_coeff = x @ vectors
    factor = orbital_factor(mo_coeff, nocc)
    return SCFResult(
        energy=state.energy,
        mo_coeff=mo_coeff,
        mo_energy=mo_energy,
        mo_occ=occ,
        dm=density_matrix(factor),
        fock=state.fock,
        factor=factor,
        converged=state.converged & (jnp.sum(kept) >= max(nocc)),
        cycles=state.cycle,
        residual=state.residual,
        energy_change=state.energy_change,
        energy_history=state.energies,
        residual_history=state.residuals,
    )


def _check_options(nocc, nspin, nao, max_cycles, diis_size, damping):
    check_occupation(nocc, nao)
    if len(nocc) != nspin:
        raise InputError(
            f"nocc = {nocc} names {len(nocc)} spin channels, guess_fock has {nspin}; "
            "both need one (closed shell) or two (alpha, beta)."
        )
    if max_cycles < 1 or diis_size < 1:
        raise InputError(
            f"max_cycles = {max_cycles} and diis_size = {diis_size} must both be 1 or more."
        )
    if not 0 <= damping < 1:
        raise InputError(f"damping = {damping} must be 0 or more (no damping) and less than 1.")


def _first_state(x, guess_fock, max_cycles, diis_size):
    dtype = guess_fock.dtype
    zeros = jnp.zeros((diis_size, *guess_fock.shape), dtype)
    unknown = jnp.full((max_cycles,), jnp.nan, dtype)
    infinite = jnp.asarray(jnp.inf, dtype)
    trial = symmetrized(x.T @ guess_fock @ x)
    return _State(
        cycle=jnp.zeros((), jnp.int32),
        trial=trial,
        vectors=jnp.zeros_like(trial),
        fock=jnp.zeros_like(guess_fock),
        energy=infinite,
        energy_change=infinite,
        residual=infinite,
        still=jnp.zeros((), jnp.int32),
        converged=jnp.asarray(False),
        history=History(zeros, zeros, zeros),
        energies=unknown,
        residuals=unknown,
    )


def _canonical_vectors(x, kept, state, nocc):
    """Orbitals of the same density that diagonalize its own Fock matrix block by block."""
    reduced = symmetrized(x.T @ state.fock @ x)
    occupied = np.arange(kept.size)[None, :] < np.asarray(nocc)[:, None]
    exists = jnp.arange(kept.size) < jnp.sum(kept)

    def canonical(fock, vectors, occupied):
        inner = vectors.T @ fock @ vectors
        same = occupied[:, None] == occupied[None, :]
        bound = jnp.max(jnp.sum(jnp.abs(inner), axis=0))
        # Occupied orbitals come first whatever their energies.
        shift = jnp.where(occupied, -2 * bound - 1, 0)
        blocks = jnp.where(same, inner, 0) + jnp.diag(shift)
        energies, rotation = diagonalize(blocks, exists)
        return vectors @ rotation, energies - shift

    return jax.vmap(canonical)(reduced, state.vectors, occupied)
