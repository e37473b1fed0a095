"""Second-order SCF: Newton steps within a trust region, over rotations of the orbitals."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qchem.errors import InputError
from qchem.precision import full_products
from qchem.scf.orbitals import (
    Nocc,
    canonicalize,
    check_occupation,
    density_matrix,
    occupation_numbers,
    orbital_factor,
    symmetrized,
)
from qchem.scf.rotations import Expansion, in_orbitals
from qchem.scf.solve import SOFT_RESIDUAL, Number, SCFResult, SelfConsistent, resolved_tolerance

_SMALLEST_GAP = 0.1  # hartree; smaller orbital energy differences precondition like this one
_FIRST_RADIUS, _LARGEST_RADIUS = 0.5, 2.0  # of the preconditioner's norm, hartree^(1/2)
_SMALLEST_RADIUS = 1e-5
_ROUNDING = 64  # changes of the energy below this many units of rounding mean nothing


class _State(eqx.Module):
    mo_coeff: Float[Array, "nspin nao nmo"]
    mo_energy: Float[Array, "nspin nmo"]
    fock: Float[Array, "nspin nao nao"]
    energy: Float[Array, ""]
    energy_change: Float[Array, ""]
    residual: Float[Array, ""]
    radius: Float[Array, ""]
    still: Int[Array, ""]
    cycle: Int[Array, ""]
    products: Int[Array, ""]
    converged: Bool[Array, ""]
    energies: Float[Array, " max_cycles"]
    residuals: Float[Array, " max_cycles"]


@full_products
def second_order(
    hamiltonian: SelfConsistent,
    start: SCFResult,
    nocc: Nocc,
    *,
    max_cycles: int = 100,
    max_products: int = 25,
    patience: int = 4,
    energy_tolerance: Number = 1e-9,
    residual_tolerance: Number | None = None,
) -> SCFResult:
    """Self-consistent orbitals, by Newton's method from given ones; the energy never rises.

    Each cycle minimizes the energy to second order within a trust region by conjugate gradients
    (Steihaug, SIAM J. Numer. Anal. 20, 626 (1983)), preconditioned with orbital energy differences,
    and follows negative curvature where it finds it; a step that raises the energy is not taken,
    and the region shrinks. It ends in a minimum, or, where symmetry hides the way down, in a
    saddle point: see `qchem.scf.stability`. Traceable as `solve` is; nothing is done where `start`
    has converged.

    Args:
        hamiltonian: Energy and Fock matrix, differentiable in the orbitals.
        start: Orbitals, with whole occupation; the cycles go on counting from its own.
        nocc: Number of occupied orbitals in each spin channel.
        max_cycles: Number of Fock matrices at most, those of `start` included.
        max_products: Hessian-vector products in a cycle; with 1 this is direct minimization along
            the preconditioned gradient, with the exact curvature.
        patience: Number of cycles in a row without a change of the energy after which a residual
            of 1e-5 is small enough.
        energy_tolerance, residual_tolerance: As in `solve`.
    """
    check_occupation(nocc, start.mo_coeff.shape[2])
    if max_cycles < 1 or max_products < 1:
        raise InputError(
            f"max_cycles = {max_cycles} and max_products = {max_products} must be 1 or more."
        )
    dtype = start.energy.dtype
    eps = float(jnp.finfo(dtype).eps)
    residual_tolerance = resolved_tolerance(residual_tolerance, dtype)
    soft_tolerance = jnp.maximum(residual_tolerance, SOFT_RESIDUAL)
    exists = jnp.isfinite(start.mo_energy[0])

    def cycle(state: _State) -> _State:
        here = Expansion.at(hamiltonian, state.mo_coeff, state.fock, exists, nocc)
        kappa, predicted, length, products = _step(here, state, max_products)
        mo_coeff = here.rotated(kappa)
        energy, fock = hamiltonian.energy_and_fock(orbital_factor(mo_coeff, nocc))
        change = energy - state.energy
        rounding = _ROUNDING * eps * jnp.abs(state.energy)
        taken = change <= rounding  # not so for nan
        meaningful = predicted > rounding
        quality = -change / jnp.where(meaningful, predicted, 1)
        shrink = ~taken | (meaningful & (quality < 0.25))
        grow = meaningful & (quality > 0.75) & (length > 0.9 * state.radius)
        radius = jnp.where(grow, jnp.minimum(2 * state.radius, _LARGEST_RADIUS), state.radius)
        radius = jnp.where(shrink, 0.25 * jnp.minimum(length, state.radius), radius)
        mo_coeff, mo_energy, residual = _canonical(
            hamiltonian,
            jnp.where(taken, mo_coeff, state.mo_coeff),
            fock := jnp.where(taken, fock, state.fock),
            exists,
            nocc,
        )
        change = jnp.where(taken, change, state.energy_change)
        energy = jnp.where(taken, energy, state.energy)
        stationary = taken & (jnp.abs(change) < jnp.maximum(energy_tolerance, 2 * rounding))
        still = jnp.where(stationary, state.still + 1, 0)
        tolerance = jnp.where(still >= patience, soft_tolerance, residual_tolerance)
        return _State(
            mo_coeff=mo_coeff,
            mo_energy=mo_energy,
            fock=fock,
            energy=energy,
            energy_change=change,
            residual=residual,
            radius=radius,
            still=still,
            cycle=state.cycle + 1,
            products=state.products + products,
            converged=stationary & (residual < tolerance),
            energies=state.energies.at[state.cycle].set(energy),
            residuals=state.residuals.at[state.cycle].set(residual),
        )

    def unfinished(state: _State) -> Bool[Array, ""]:
        possible = jnp.isfinite(state.energy) & (state.radius > _SMALLEST_RADIUS)
        return (state.cycle < max_cycles) & ~state.converged & possible

    def history(values):
        missing = max(0, max_cycles - values.size)
        return jnp.pad(values, (0, missing), constant_values=jnp.nan)

    mo_coeff, mo_energy, residual = _canonical(
        hamiltonian, start.mo_coeff, start.fock, exists, nocc
    )
    state = _State(
        mo_coeff=mo_coeff,
        mo_energy=mo_energy,
        fock=start.fock,
        energy=start.energy,
        energy_change=start.energy_change,
        residual=jnp.where(jnp.isfinite(start.energy), residual, jnp.inf),
        radius=jnp.asarray(_FIRST_RADIUS, dtype),
        still=jnp.zeros((), jnp.int32),
        cycle=start.cycles,
        products=start.products,
        converged=start.converged,
        energies=history(start.energy_history),
        residuals=history(start.residual_history),
    )
    state = jax.lax.while_loop(unfinished, cycle, state)
    factor = orbital_factor(state.mo_coeff, nocc)
    return SCFResult(
        energy=state.energy,
        mo_coeff=state.mo_coeff,
        mo_energy=state.mo_energy,
        mo_occ=occupation_numbers(nocc, state.mo_coeff.shape[2], dtype),
        dm=density_matrix(factor),
        fock=state.fock,
        factor=factor,
        converged=state.converged,
        cycles=state.cycle,
        residual=state.residual,
        energy_change=state.energy_change,
        energy_history=state.energies,
        residual_history=state.residuals,
        entropy=jnp.zeros_like(state.energy),
        products=state.products,
    )


def _canonical(hamiltonian, mo_coeff, fock, exists, nocc):
    """Canonical orbitals of the same density, their energies, and the residual."""
    inner = symmetrized(in_orbitals(fock, mo_coeff))
    mo_energy, rotation = canonicalize(inner, nocc, exists)
    mo_coeff = mo_coeff @ rotation
    here = Expansion(hamiltonian, mo_coeff, in_orbitals(inner, rotation), exists, nocc)
    return mo_coeff, mo_energy, here.residual


class _Conjugate(eqx.Module):
    """Conjugate gradients: step, Hessian times it, residual, direction."""

    kappa: Float[Array, "nspin nmo nocc"]
    curved: Float[Array, "nspin nmo nocc"]
    residual: Float[Array, "nspin nmo nocc"]
    direction: Float[Array, "nspin nmo nocc"]
    products: Int[Array, ""]
    finished: Bool[Array, ""]


def _step(here: Expansion, state: _State, max_products: int):
    """Rotation of lowest energy to second order, the decrease that it promises, its length."""
    gradient = here.gradient
    smallest = 4 / len(here.nocc) * _SMALLEST_GAP
    weight = jnp.maximum(jnp.abs(here.diagonal), smallest)
    first = jnp.vdot(gradient, gradient / weight)
    # Tighter as the solution comes closer: superlinear convergence.
    forcing = jnp.minimum(0.3, jnp.sqrt(state.residual)) ** 2 * first

    def iterate(cg: _Conjugate) -> _Conjugate:
        p = cg.direction
        curved = here.product(p)
        curvature = jnp.vdot(p, curved)
        steepness = jnp.vdot(cg.residual, cg.residual / weight)
        ahead = steepness / jnp.where(curvature > 0, curvature, 1)
        # Where the direction leaves the trust region: |kappa + limit p| = radius.
        pp, kp = jnp.vdot(p, weight * p), jnp.vdot(cg.kappa, weight * p)
        room = jnp.maximum(state.radius**2 - jnp.vdot(cg.kappa, weight * cg.kappa), 0)
        limit = (jnp.sqrt(kp**2 + pp * room) - kp) / jnp.where(pp > 0, pp, 1)
        out = (curvature <= 0) | (ahead >= limit)
        length = jnp.where(out, limit, ahead)
        residual = cg.residual - length * curved
        new = jnp.vdot(residual, residual / weight)
        ratio = new / jnp.where(steepness > 0, steepness, 1)
        return _Conjugate(
            kappa=cg.kappa + length * p,
            curved=cg.curved + length * curved,
            residual=residual,
            direction=residual / weight + ratio * p,
            products=cg.products + 1,
            finished=out | (new <= forcing),
        )

    zero = jnp.zeros_like(gradient)
    start = _Conjugate(
        zero, zero, -gradient, -gradient / weight, jnp.zeros((), jnp.int32), first <= 0
    )
    end = jax.lax.while_loop(lambda cg: ~cg.finished & (cg.products < max_products), iterate, start)
    predicted = -jnp.vdot(gradient, end.kappa) - 0.5 * jnp.vdot(end.kappa, end.curved)
    length = jnp.sqrt(jnp.vdot(end.kappa, weight * end.kappa))
    return end.kappa, predicted, length, end.products
