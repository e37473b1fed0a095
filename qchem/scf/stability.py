"""Stability of a solution: the lowest curvature of the energy among rotations of the orbitals."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qchem.precision import full_products
from qchem.scf.orbitals import Nocc, Occupied, density_matrix, orbital_factor
from qchem.scf.rotations import Expansion
from qchem.scf.solve import SCFResult, SelfConsistent

UNSTABLE = -1e-4  # hartree; grids give the free rotation of an open shell curvatures near it
_STARTS = 4  # rotations that Davidson's method begins with: with one it can miss the lowest root
_TRIALS = (0.1, 0.2, 0.4, 0.7, 1.0)  # lengths of the first step along a direction of descent


class Curvature(eqx.Module):
    """Lowest eigenvalue of the orbital Hessian, hartree, and its rotation.

    `converged` is False where more products would be needed; a negative eigenvalue is one even so,
    since the true one is not above it.
    """

    eigenvalue: Float[Array, ""]
    direction: Float[Array, "nspin nmo nocc"]
    products: Int[Array, ""]
    converged: Bool[Array, ""]


class _Subspace(eqx.Module):
    vectors: Float[Array, "size nspin nmo nocc"]
    images: Float[Array, "size nspin nmo nocc"]
    size: Int[Array, ""]
    eigenvalue: Float[Array, ""]
    direction: Float[Array, "nspin nmo nocc"]
    residual: Float[Array, ""]
    exhausted: Bool[Array, ""]


@full_products
def lowest_curvature(
    hamiltonian: SelfConsistent,
    scf: SCFResult,
    nocc: Nocc,
    *,
    unrestricted: bool = False,
    max_products: int = 60,
    tolerance: float = 1e-3,
) -> Curvature:
    """Lowest eigenvalue of the orbital Hessian at a solution, by Davidson's method.

    Davidson, J. Comput. Phys. 17, 87 (1975); Seeger & Pople, J. Chem. Phys. 66, 3045 (1977). It
    starts from a fixed random rotation, so that no symmetry hides a direction, and from the pairs
    of orbitals closest in energy. The eigenvalue is
    the second derivative of the energy along a rotation of unit length, in which both spins count:
    the same for a closed shell as for its unrestricted copy.

    Args:
        hamiltonian: Energy and Fock matrix, differentiable in the orbitals.
        scf: The solution.
        nocc: Number of occupied orbitals in each of its spin channels.
        unrestricted: Let the two spins of a closed shell rotate apart.
        max_products: Hessian-vector products at most.
        tolerance: Length of the residual vector, hartree; the eigenvalue is much better.
    """
    mo_coeff, fock = scf.mo_coeff, scf.fock
    if unrestricted and len(nocc) == 1:
        mo_coeff, fock = (jnp.concatenate([x, x]) for x in (mo_coeff, fock))
        nocc = _twice(nocc)
    exists = jnp.isfinite(scf.mo_energy[0])
    here = Expansion.at(hamiltonian, mo_coeff, fock, exists, nocc)
    # A closed shell rotates both spins by the same kappa: its unit length is sqrt(2) times that.
    scale = len(nocc) / 2
    allowed, diagonal = here.allowed, here.diagonal * scale
    dtype = diagonal.dtype
    count = jnp.sum(allowed, dtype=jnp.int32)
    tiny = float(jnp.finfo(dtype).eps) ** 0.5

    def expand(s: _Subspace) -> _Subspace:
        vector = s.vectors[s.size]
        image = here.product(vector) * scale
        images = s.images.at[s.size].set(image)
        size = s.size + 1
        flat, flat_images = (x.reshape(max_products + 1, -1) for x in (s.vectors, images))
        used = jnp.arange(max_products + 1, dtype=size.dtype) < size
        projected = jnp.where(used[:, None] & used[None, :], flat @ flat_images.T, 0)
        unused = jnp.where(used, 0, jnp.asarray(jnp.finfo(dtype).max ** 0.25, dtype))
        values, columns = jnp.linalg.eigh(0.5 * (projected + projected.T) + jnp.diag(unused))
        weights = jnp.where(used, columns[:, 0], 0)
        direction = (weights @ flat).reshape(vector.shape)
        residual = (weights @ flat_images).reshape(vector.shape) - values[0] * direction
        gap = diagonal - values[0]
        gap = jnp.where(jnp.abs(gap) < 0.05, 0.05, gap)
        new = jnp.where(allowed, residual / gap, 0).ravel()
        new = jnp.where(size < nstart, starts[jnp.minimum(size, nstart - 1)], new)
        new = new / jnp.maximum(jnp.linalg.norm(new), float(jnp.finfo(dtype).tiny))
        for _ in range(2):
            new = new - (jnp.where(used, flat @ new, 0)) @ flat
        length = jnp.linalg.norm(new)
        new = (new / jnp.where(length > tiny, length, 1)).reshape(vector.shape)
        return _Subspace(
            vectors=s.vectors.at[size].set(new),
            images=images,
            size=size,
            eigenvalue=values[0],
            direction=direction,
            residual=jnp.linalg.norm(residual.ravel()),
            exhausted=(length <= tiny) | (size >= count),
        )

    nstart = min(_STARTS, diagonal.size)
    closest = jnp.argsort(jnp.where(allowed, diagonal, jnp.inf).ravel())[:nstart]
    starts = jax.nn.one_hot(jnp.roll(closest, 1), diagonal.size, dtype=dtype)
    starts = jnp.where(allowed.ravel(), starts, 0)
    noise = jax.random.normal(jax.random.key(0), allowed.shape, dtype)
    guess = jnp.where(allowed, noise / (jnp.abs(diagonal) + 0.1) ** 2, 0)
    guess = guess / jnp.maximum(jnp.linalg.norm(guess.ravel()), float(jnp.finfo(dtype).tiny))
    zeros = jnp.zeros((max_products + 1, *allowed.shape), dtype)
    infinite = jnp.asarray(jnp.inf, dtype)
    none = jnp.zeros((), jnp.int32)
    start = _Subspace(zeros.at[0].set(guess), zeros, none, infinite, guess, infinite, count == 0)

    def unfinished(s: _Subspace) -> Bool[Array, ""]:
        undecided = (s.residual > tolerance) | (s.size < nstart)
        return (s.size < max_products) & undecided & ~s.exhausted

    end = jax.lax.while_loop(unfinished, expand, start)
    converged = (end.residual <= tolerance) | end.exhausted
    return Curvature(end.eigenvalue, end.direction, end.size, converged)


def _twice(nocc):
    if isinstance(nocc, Occupied):
        return Occupied(jnp.concatenate([nocc.count, nocc.count]), nocc.width)
    return nocc * 2


@full_products
def displaced(
    hamiltonian: SelfConsistent,
    scf: SCFResult,
    nocc: Nocc,
    direction: Float[Array, "nspin nmo nocc"],
) -> SCFResult:
    """A start for `second_order` below a saddle point: a step along a direction of descent.

    Args:
        hamiltonian: Energy and Fock matrix.
        scf: The saddle point.
        nocc: Number of occupied orbitals in each spin channel.
        direction: Of `lowest_curvature`; both signs and several lengths are tried.
    """
    exists = jnp.isfinite(scf.mo_energy[0])
    here = Expansion.at(hamiltonian, scf.mo_coeff, scf.fock, exists, nocc)
    lengths = jnp.asarray([sign * t for t in _TRIALS for sign in (1, -1)], direction.dtype)

    def energy(length):
        factor = orbital_factor(here.rotated(length * direction), nocc)
        return hamiltonian.energy_and_fock(factor)[0]

    energies = jax.lax.map(energy, lengths)
    mo_coeff = here.rotated(lengths[jnp.argmin(energies)] * direction)
    factor = orbital_factor(mo_coeff, nocc)
    energy, fock = hamiltonian.energy_and_fock(factor)
    return dataclasses.replace(
        scf,
        energy=energy,
        energy_change=energy - scf.energy,
        mo_coeff=mo_coeff,
        fock=fock,
        factor=factor,
        dm=density_matrix(factor),
        converged=jnp.asarray(False),
        cycles=scf.cycles + len(_TRIALS) * 2 + 1,
    )
