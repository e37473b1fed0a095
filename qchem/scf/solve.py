"""The self-consistent field: the density matrix that its own Fock matrix gives back."""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qchem.errors import ConvergenceError, InputError
from qchem.precision import full_products
from qchem.scf.extrapolation import NEAR, History, extrapolate
from qchem.scf.occupation import entropy, fermi_occupation
from qchem.scf.orbitals import (
    OVERLAP_THRESHOLD,
    Nocc,
    canonical_orthogonalizer,
    canonicalize,
    check_occupation,
    counts,
    density_matrix,
    diagonalize,
    occupation_numbers,
    orbital_factor,
    symmetrized,
)

Number = float | Float[Array, ""]  # a traced one needs no program of its own
SOFT_RESIDUAL = 1e-5  # accepted when cycles bring no more; PySCF's default is about as large
LATE = 50  # cycles after which it is accepted
PROGRESS = 0.8  # a residual that falls below this part of the smallest so far is progress
PROGRESS_ENERGY = 1e-3  # hartree below the lowest energy so far: progress too


@runtime_checkable
class SelfConsistent(Protocol):
    """What `solve` needs to know of a Hamiltonian: S, and energy and Fock matrix of orbitals."""

    overlap: Float[Array, "nao nao"]

    def energy_and_fock(self, factor):
        """Energy, hartree, and Fock matrix of each spin channel, dE/d(dm)."""


class SCFResult(eqx.Module):
    """State after the last cycle, or that of lowest energy if the last has not converged.

    Every field belongs to the same density matrix: `fock` and `energy` are those of `dm`, and
    `mo_coeff` diagonalizes `fock` within the occupied and within the virtual orbitals, so that
    nothing was computed after `energy`. Functions lost to linear dependence are the last columns
    of `mo_coeff`, zero, with infinite `mo_energy`. At an electronic temperature `entropy` is that
    of the occupation, in units of k. `cycles` counts Fock matrices, `products` those with a
    perturbed density that second-order cycles needed besides.
    """

    energy: Float[Array | np.ndarray, ""]
    mo_coeff: Float[Array | np.ndarray, "nspin nao nao"]
    mo_energy: Float[Array | np.ndarray, "nspin nao"]
    mo_occ: Float[Array | np.ndarray, "nspin nao"]
    dm: Float[Array | np.ndarray, "nspin nao nao"]
    fock: Float[Array | np.ndarray, "nspin nao nao"]
    factor: Float[Array | np.ndarray, "nspin nao nocc"]
    converged: Bool[Array | np.ndarray, ""]
    cycles: Int[Array | np.ndarray, ""]
    residual: Float[Array | np.ndarray, ""]
    energy_change: Float[Array | np.ndarray, ""]
    energy_history: Float[Array | np.ndarray, " max_cycles"]
    residual_history: Float[Array | np.ndarray, " max_cycles"]
    entropy: Float[Array | np.ndarray, ""]
    products: Int[Array | np.ndarray, ""]

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
            "level_shift=0.3, damping=0.5, smearing=0.01, second order (solver='second-order'), "
            "or a guess from a smaller basis set."
            if np.isfinite(residual)
            else "Energy or Fock matrix is not a number: look at the geometry and the basis set."
        )
        raise ConvergenceError(
            f"SCF not converged{which} after {cycles} cycles: residual max|FDS - SDF| = "
            f"{residual:.1e}, last energy change {change:.1e} hartree. {advice}",
            residual=residual,
            cycles=cycles,
        )


class _Density(eqx.Module):
    """Orbitals with their occupation, and what was computed from them."""

    vectors: Float[Array, "nspin nmo nmo"]
    mo_occ: Float[Array, "nspin nmo"]
    fock: Float[Array, "nspin nao nao"]
    energy: Float[Array, ""]
    residual: Float[Array, ""]


class _State(eqx.Module):
    cycle: Int[Array, ""]
    trial: Float[Array, "nspin nmo nmo"]
    now: "_Density"
    best: "_Density"  # of lowest energy
    energy_change: Float[Array, ""]
    lowest_residual: Float[Array, ""]
    idle: Int[Array, ""]  # cycles in a row without progress
    still: Int[Array, ""]  # cycles in a row in which the energy has not changed
    converged: Bool[Array, ""]
    history: History
    energies: Float[Array, " max_cycles"]
    residuals: Float[Array, " max_cycles"]


@full_products
def solve(
    hamiltonian: SelfConsistent,
    nocc: Nocc,
    guess_fock: Float[Array | np.ndarray, "nspin nao nao"],
    *,
    max_cycles: int = 100,
    patience: int = 8,
    energy_tolerance: Number = 1e-9,
    residual_tolerance: Number | None = None,
    diis_size: int = 8,
    damping: Number = 0.0,
    level_shift: Number = 0.0,
    smearing: float = 0.0,
    stall: int | None = None,
    overlap_threshold: float = OVERLAP_THRESHOLD,
) -> SCFResult:
    """Self-consistent orbitals, by extrapolation of the Fock matrix.

    Close to the solution by the commutator (DIIS: Pulay, J. Comput. Chem. 3, 556 (1982)); far
    from it by the energy interpolated between past densities (ADIIS: Hu & Yang, J. Chem. Phys.
    132, 054109 (2010)); mixed between, as Garza & Scuseria, J. Chem. Phys. 137, 054110 (2012).
    Each cycle calls `energy_and_fock` once. Traceable: under `vmap`, geometries that have
    converged remain as they are while others go on. Nothing is raised inside a trace; see
    `SCFResult.require_converged`. Not meant to be differentiated: at the solution the energy is
    stationary. Tolerances, damping and level shift may be traced.

    Args:
        hamiltonian: Energy and Fock matrix, and the overlap.
        nocc: Number of occupied orbitals in each spin channel, the lowest of each cycle.
        guess_fock: Its orbitals are the first.
        max_cycles: Number of Fock matrices built at most.
        patience: Number of cycles in a row without a change of the energy after which, or else
            after 50 cycles, a residual of 1e-5 is small enough. An open shell that a grid lets
            rotate almost freely, an atom's for example, gets no further.
        energy_tolerance: Largest change of the energy in the last cycle, hartree; not below what
            the dtype resolves.
        residual_tolerance: Largest element of FDS - SDF, in the orthonormal basis, occupation
            included, hartree. By default 1e-7, in single precision 1e-3.
        diis_size: Number of past cycles kept.
        damping: Part of the previous trial Fock matrix that is kept in the next while the
            residual is above 1e-2; 0 is none.
        level_shift: Added to the virtual orbitals of the trial Fock matrix, hartree, while the
            residual is above 1e-2. No longer, because it can hold excited states.
        smearing: Electronic temperature kT, hartree: fractional occupation by Fermi and Dirac in
            each spin channel. 0 is none.
        stall: Give up after so many cycles in a row in which neither the residual nor the energy
            has fallen noticeably; by default only after `max_cycles`.
        overlap_threshold: Smallest eigenvalue of the overlap that is kept.
    """
    guess_fock = jnp.asarray(guess_fock)
    nspin, nao, _ = guess_fock.shape
    dtype = guess_fock.dtype
    _check_options(nocc, nspin, nao, max_cycles, diis_size, damping)
    if smearing < 0:
        raise InputError(f"smearing = {smearing} hartree must be 0 (none) or more.")
    if stall is not None and stall < 1:
        raise InputError(f"stall = {stall} cycles; it must be 1 or more.")
    eps = float(jnp.finfo(dtype).eps)
    residual_tolerance = resolved_tolerance(residual_tolerance, dtype)
    soft_tolerance = jnp.maximum(residual_tolerance, SOFT_RESIDUAL)

    x, kept = canonical_orthogonalizer(hamiltonian.overlap, overlap_threshold)
    solve_orbitals = jax.vmap(lambda fock: diagonalize(fock, kept))
    whole = occupation_numbers(nocc, nao, dtype)

    def occupied(mo_coeff, occ):
        return mo_coeff * jnp.sqrt(occ)[:, None, :] if smearing else orbital_factor(mo_coeff, nocc)

    def cycle(state: _State) -> _State:
        energies, vectors = solve_orbitals(state.trial)
        occ = fermi_occupation(energies, nocc, smearing) if smearing else whole
        energy, fock = hamiltonian.energy_and_fock(occupied(x @ vectors, occ))
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
        change = energy - state.now.energy
        stationary = jnp.abs(change) < jnp.maximum(energy_tolerance, 8 * eps * jnp.abs(energy))
        still = jnp.where(stationary, state.still + 1, 0)
        stalled = (still >= patience) | (state.cycle >= LATE)
        tolerance = jnp.where(stalled, soft_tolerance, residual_tolerance)
        progress = residual < PROGRESS * state.lowest_residual
        progress |= energy < state.best.energy - PROGRESS_ENERGY
        now = _Density(vectors, occ, fock, energy, residual)
        lower = energy < state.best.energy
        return _State(
            cycle=state.cycle + 1,
            trial=trial,
            now=now,
            best=jax.tree.map(lambda new, old: jnp.where(lower, new, old), now, state.best),
            energy_change=change,
            lowest_residual=jnp.minimum(residual, state.lowest_residual),
            idle=jnp.where(progress, 0, state.idle + 1),
            still=still,
            converged=stationary & (residual < tolerance),
            history=history,
            energies=state.energies.at[state.cycle].set(energy),
            residuals=state.residuals.at[state.cycle].set(residual),
        )

    def unfinished(state: _State) -> Bool[Array, ""]:
        broken = (state.cycle > 0) & ~jnp.isfinite(state.now.energy + state.now.residual)
        moving = state.idle < (max_cycles if stall is None else stall)
        return (state.cycle < max_cycles) & ~state.converged & ~broken & moving

    first = _first_state(x, guess_fock, whole, max_cycles, diis_size)
    state = jax.lax.while_loop(unfinished, cycle, first)
    last = jax.tree.map(lambda a, b: jnp.where(state.converged, a, b), state.now, state.best)
    mo_coeff = x @ last.vectors
    inner = jnp.swapaxes(mo_coeff, 1, 2) @ last.fock @ mo_coeff
    exists = jnp.arange(kept.size) < jnp.sum(kept)
    if smearing:
        diagonal = jnp.diagonal(inner, axis1=1, axis2=2)
        mo_energy = jnp.where(exists[None], diagonal, jnp.inf)
    else:
        mo_energy, rotation = canonicalize(symmetrized(inner), nocc, exists)
        mo_coeff = mo_coeff @ rotation
    factor = occupied(mo_coeff, last.mo_occ)
    return SCFResult(
        energy=last.energy,
        mo_coeff=mo_coeff,
        mo_energy=mo_energy,
        mo_occ=last.mo_occ,
        dm=density_matrix(factor),
        fock=last.fock,
        factor=factor,
        converged=state.converged & (jnp.sum(kept, dtype=jnp.int32) >= jnp.max(counts(nocc))),
        cycles=state.cycle,
        residual=last.residual,
        energy_change=state.energy_change,
        energy_history=state.energies,
        residual_history=state.residuals,
        entropy=entropy(last.mo_occ) if smearing else jnp.zeros_like(last.energy),
        products=jnp.zeros((), jnp.int32),
    )


def resolved_tolerance(residual_tolerance: Number | None, dtype: jnp.dtype) -> Number:
    """The tolerance given, or what the dtype allows: 1e-7, in single precision 1e-3 hartree."""
    if residual_tolerance is not None:
        return residual_tolerance
    return 1e-7 if float(jnp.finfo(dtype).eps) < 1e-10 else 1e-3


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
    if not isinstance(damping, jax.core.Tracer):
        check_damping(damping)


def check_damping(damping: Number) -> None:
    """Refuse what would keep everything of the previous Fock matrix, or more."""
    if not 0 <= damping < 1:
        raise InputError(f"damping = {damping} must be 0 or more (no damping) and less than 1.")


def _first_state(x, guess_fock, occ, max_cycles, diis_size):
    dtype = guess_fock.dtype
    zeros = jnp.zeros((diis_size, *guess_fock.shape), dtype)
    unknown = jnp.full((max_cycles,), jnp.nan, dtype)
    infinite = jnp.asarray(jnp.inf, dtype)
    none = jnp.zeros((), jnp.int32)
    trial = symmetrized(x.T @ guess_fock @ x)
    nothing = _Density(jnp.zeros_like(trial), occ, jnp.zeros_like(guess_fock), infinite, infinite)
    return _State(
        cycle=none,
        trial=trial,
        now=nothing,
        best=nothing,
        energy_change=infinite,
        lowest_residual=infinite,
        idle=none,
        still=none,
        converged=jnp.asarray(False),
        history=History(zeros, zeros, zeros),
        energies=unknown,
        residuals=unknown,
    )
