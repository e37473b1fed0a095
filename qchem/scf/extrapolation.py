"""Extrapolation of the Fock matrix from past cycles: DIIS close to the solution, ADIIS far away."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qchem.scf.orbitals import symmetrized

INTERPOLATED = 6  # newest cycles among which the energy is interpolated: 2^6 - 1 small systems
FAR, NEAR = 1e-1, 1e-2  # hartree; far, the energy alone guides, near, the commutator alone


class History(eqx.Module):
    """The last cycles, in a ring: matrices in the orthonormal basis."""

    fock: Float[Array, "size nspin nmo nmo"]
    dm: Float[Array, "size nspin nmo nmo"]
    commutator: Float[Array, "size nspin nmo nmo"]

    def record(
        self,
        cycle: Int[Array, ""],
        fock: Float[Array, "nspin nmo nmo"],
        dm: Float[Array, "nspin nmo nmo"],
        commutator: Float[Array, "nspin nmo nmo"],
    ) -> "History":
        """The history with this cycle in the place of the oldest."""
        slot = cycle % self.fock.shape[0]
        return History(
            self.fock.at[slot].set(fock),
            self.dm.at[slot].set(dm),
            self.commutator.at[slot].set(commutator),
        )


def extrapolate(
    history: History, cycle: Int[Array, ""], residual: Float[Array, ""]
) -> Float[Array, "nspin nmo nmo"]:
    """Next trial Fock matrix: a sum of past ones, with weights that add up to one.

    Args:
        history: Cycle n is in slot n modulo the size.
        cycle: The newest.
        residual: Largest element of its commutator, hartree: below `NEAR` the weights are those
            of the smallest commutator, above `FAR` those of the lowest energy, between mixed.
    """
    size = history.fock.shape[0]
    # Newest first; slots not yet written are masked.
    age = jnp.arange(size, dtype=cycle.dtype)
    order, valid = (cycle - age) % size, age <= cycle
    fock, dm, commutator = (
        m[order].reshape(size, -1) for m in (history.fock, history.dm, history.commutator)
    )
    weights = _diis_weights(commutator @ commutator.T, valid)
    recent = min(size, INTERPOLATED)
    interpolation = jnp.clip((residual - NEAR) / (FAR - NEAR), 0, 1)

    def mixed():
        energy_weights = _adiis_weights(dm[:recent] @ fock[:recent].T, valid[:recent])
        padded = jnp.zeros_like(weights).at[:recent].set(energy_weights)
        return interpolation * padded + (1 - interpolation) * weights

    weights = jax.lax.cond(interpolation > 0, mixed, lambda: weights)
    return (weights @ fock).reshape(history.fock.shape[1:])


def _diis_weights(gram, valid):
    """Weights of the smallest commutator, from the scalar products of past ones."""
    tiny = jnp.finfo(gram.dtype).tiny
    length = jnp.sqrt(jnp.maximum(jnp.diag(gram), tiny))
    both = valid[:, None] & valid[None, :]
    cosine = jnp.where(both, gram / (length[:, None] * length[None, :]), 0)
    ridge = jnp.where(valid, 100 * jnp.finfo(gram.dtype).eps, 1)  # 1: slots not in use
    shortest = jnp.min(jnp.where(valid, length, jnp.inf))
    constraint = jnp.where(valid, shortest / length, 0)
    solution = jnp.linalg.solve(cosine + jnp.diag(ridge), constraint)
    weights = solution * constraint
    return weights / jnp.sum(weights)


def _adiis_weights(overlap, valid):
    """Weights, none negative, of the lowest energy between past densities; newest first.

    E(w) = E_0 + sum_i w_i <D_i - D_0|F_0> + 1/2 sum_ij w_i w_j <D_i - D_0|F_j - F_0> (Hu & Yang,
    J. Chem. Phys. 132, 054109 (2010)), exact for Hartree-Fock. The minimum on the simplex is a
    stationary point on one of its faces; there are few, so all are tried.

    Args:
        overlap: <D_i|F_j>.
        valid: Entries in use.
    """
    size = valid.size
    gradient = overlap[:, 0] - overlap[0, 0]
    hessian = symmetrized(overlap - overlap[:1] - overlap[:, :1] + overlap[0, 0])
    limits = jnp.finfo(hessian.dtype)
    noise = limits.eps * jnp.max(jnp.abs(overlap)) + limits.tiny
    scale = jnp.maximum(jnp.max(jnp.where(valid, jnp.abs(jnp.diag(hessian)), 0)), noise)
    # Stationary where hessian w + gradient = -multiplier, sum(w) = 1: one bordered matrix.
    border = jnp.ones((size,), hessian.dtype)
    bordered = jnp.pad(hessian / scale, (0, 1)).at[-1, :-1].set(border).at[:-1, -1].set(border)
    right = jnp.append(-gradient / scale, border[:1])
    faces = np.array(list(itertools.product((False, True), repeat=size))[1:])
    rows = np.pad(faces, ((0, 0), (0, 1)), constant_values=True)
    systems = jnp.where(
        rows[:, :, None] & rows[:, None, :], bordered[None], np.eye(size + 1, dtype=border.dtype)
    )
    solutions = jnp.linalg.solve(systems, jnp.where(rows, right[None], 0)[:, :, None])
    weights = solutions[:, :-1, 0]
    inside = jnp.all((weights >= 0) & jnp.isfinite(weights) & (valid[None, :] | ~faces), axis=1)
    weights = jnp.where(inside[:, None], weights, 0)
    energies = weights @ gradient + 0.5 * jnp.sum((weights @ hessian) * weights, axis=1)
    best = weights[jnp.argmin(jnp.where(inside, energies, jnp.inf))]
    return best / jnp.sum(best)
