"""What training lowers: the mean variational energy; by gradients, or by Gauss-Newton steps."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem import InputError
from srdft.family import MoleculeFamily, Orbitals, PredictsOrbitals, map_geometries
from srdft.model import OperatorMixture
from srdft.operators import shell_of_ao
from srdft.orbitals import SMALLEST_GAP

_COMBINATIONS = 256  # of the blocks that the energy does not see, if they are larger

Batch = tuple[MoleculeFamily, Float[Array, "n natom 3"]]


def mean_energy(
    model: PredictsOrbitals,
    family: MoleculeFamily,
    positions: Float[Array, "n natom 3"],
    chunk: int = 1,
) -> Float[Array, ""]:
    """Mean variational energy of a batch, hartree; differentiable in the model."""
    energies = map_geometries(lambda r: family.energy_fn(model, r), positions, chunk)
    return jnp.mean(energies)


class Quality(NamedTuple):
    """Of each geometry of a batch, without labels; hartree. See `Prediction`."""

    energy: Float[Array, " n"]
    residual: Float[Array, " n"]
    error_estimate: Float[Array, " n"]


class NormalEquations(eqx.Module):
    """Least squares for the weights of each step and spin, gathered over geometries.

    Attributes:
        matrix: Products of the derivatives by two weights.
        vector: The matrix times the weights that the gathered targets ask for.
        count: Number of geometries, those forgotten in part counted in part.
    """

    matrix: Float[Array, "nstep nspin n n"]
    vector: Float[Array, "nstep nspin n"]
    count: Float[Array, ""]


class GaussNewton(eqx.Module):
    """Second-order training of weights on which Fock matrices depend linearly.

    Where the model's Fock matrix changes by dF, the energy becomes, to second order in the
    rotation of the orbitals and without the response of F[P] to it,

        E + occupation sum_ia (|dF_ia - F[P]_ia|^2 - |F[P]_ia|^2) / (e_a - e_i),

    least squares for the change of the weights. The targets are Fock matrices of the model's own
    orbitals, so no converged orbitals are needed. Blocks that the energy does not see, occupied
    with occupied and virtual with virtual, follow with a small weight. Each step of a model is
    trained on its own output. Equations are kept in terms of the weights, not of their change, so
    that those gathered with other weights remain of use until they are forgotten.

    Attributes:
        ridge: Of the change of the weights, hartree per geometry.
        block_weight: Of the blocks that the energy does not see, hartree^(-1/2).
    """

    ridge: float = eqx.field(static=True, default=1e-7)
    block_weight: float = eqx.field(static=True, default=0.03)

    def init(self, model: OperatorMixture) -> NormalEquations:
        """Nothing gathered.

        Raises:
            InputError: Too many weights for the memory.
        """
        _check_memory(model)
        nstep, nspin, *of_weight = model.weights.shape
        n, dtype = math.prod(of_weight), model.weights.dtype
        return NormalEquations(
            jnp.zeros((nstep, nspin, n, n), dtype),
            jnp.zeros((nstep, nspin, n), dtype),
            jnp.zeros((), dtype),
        )

    @eqx.filter_jit
    def accumulate(
        self,
        state: NormalEquations,
        family: MoleculeFamily,
        model: OperatorMixture,
        positions: Float[Array, "n natom 3"],
        memory: Float[Array, ""] | float = 1.0,
    ) -> tuple[NormalEquations, Quality]:
        """Gather the equations of a batch.

        Args:
            memory: What earlier equations count from now on: 1 forgets nothing, 0 all.

        Returns:
            The state, and how good the model was on the batch.

        Raises:
            InputError: Too many weights for the memory.
        """
        _check_memory(model, family)
        memory = jnp.asarray(memory, state.count.dtype)
        state = jax.tree.map(lambda x: x * memory, state)

        def one(state, r):
            molecule = family.place(r)
            steps = model.steps(molecule)

            def of_step(args):
                factor, mo_coeff, fock, operators = args
                quality = molecule.judge(Orbitals(factor, mo_coeff))
                found = []
                for spin, nocc in enumerate(family.nocc):
                    missing = quality.fock[spin] - fock[spin]
                    block = quality.mo_coeff[spin], quality.mo_energy[spin], nocc
                    found.append(
                        self._equations(
                            family, model, operators[spin], steps.features, missing, *block
                        )
                    )
                rows, wanted = (jnp.stack(x) for x in zip(*found))
                return (
                    rows,
                    wanted,
                    Quality(quality.energy, quality.residual, quality.error_estimate),
                )

            args = steps.factor, steps.mo_coeff, steps.fock, steps.operators
            rows, wanted, quality = jax.lax.map(of_step, args)
            now = model.weights[:, : len(family.nocc)].reshape(*rows.shape[:3])
            wanted = wanted + jnp.einsum("tsn,tsnr->tsr", now, rows, precision="highest")
            matrix = jnp.einsum("tsnr,tsmr->tsnm", rows, rows, precision="highest")
            vector = jnp.einsum("tsnr,tsr->tsn", rows, wanted, precision="highest")
            gathered = NormalEquations(
                state.matrix.at[:, : len(family.nocc)].add(matrix),
                state.vector.at[:, : len(family.nocc)].add(vector),
                state.count + 1,
            )
            return gathered, jax.tree.map(lambda x: x[-1], quality)

        return jax.lax.scan(one, state, positions)

    def _equations(self, family, model, operators, features, missing, c, e, nocc):
        """Derivatives of the weighted blocks by each weight, and what they miss."""
        i, j = np.triu_indices(c.shape[1])
        scale = self._row_scale(e, nocc)[i, j]
        ao = shell_of_ao(family)
        ao_class = jnp.asarray(model.classes.index(family)[ao[:, None], ao[None, :]])
        of_ao = jnp.moveaxis(features, -1, 0)[:, ao[:, None], ao[None, :]]
        products = operators[:, None] * of_ao[None]
        shorten = partial(_shortened, np.flatnonzero((i < nocc) & (j >= nocc)))

        def of_class(number):
            blocks = products * (ao_class == number).astype(c.dtype)[None, None]
            half = jnp.einsum("kfab,bq->kfaq", blocks, c, precision="highest")
            moved = jnp.einsum("kfaq,ap->kfpq", half, c, precision="highest")
            return shorten(moved[:, :, i, j] * scale[None, None])

        rows = jax.lax.map(of_class, jnp.arange(model.classes.size, dtype=jnp.int32))
        wanted = shorten((c.T @ missing @ c)[i, j] * scale)
        return rows.reshape(-1, wanted.size), wanted

    def _row_scale(self, e, nocc):
        """Weight of each element of F among semicanonical orbitals, in its upper triangle."""
        nmo = e.size
        gap = jnp.maximum(e[None, nocc:] - e[:nocc, None], SMALLEST_GAP)
        other = np.where(np.eye(nmo, dtype=bool), 1.0, 2.0**0.5) * self.block_weight
        return jnp.asarray(other, e.dtype).at[:nocc, nocc:].set(1 / jnp.sqrt(gap))

    @eqx.filter_jit
    def step(
        self,
        state: NormalEquations,
        model: OperatorMixture,
        scale: Float[Array, ""] | float = 1.0,
        caution: Float[Array, ""] | float = 1.0,
    ) -> OperatorMixture:
        """The model with the weights that the gathered equations ask for.

        Args:
            scale: Part of the way that is gone, 0 to 1.
            caution: Multiplies the ridge.
        """
        weights = model.weights.reshape(*state.vector.shape)
        changes = []
        for place in np.ndindex(*weights.shape[:2]):
            matrix, vector = state.matrix[place], state.vector[place]
            damping = self.ridge * caution * jnp.maximum(state.count, 1)
            damped = matrix + damping * jnp.eye(vector.size, dtype=vector.dtype)
            missing = vector - matrix @ weights[place]
            changes.append(jax.scipy.linalg.solve(damped, missing, assume_a="pos"))
        change = jnp.stack(changes).reshape(model.weights.shape)
        new = model.weights + jnp.asarray(scale, weights.dtype) * change
        return eqx.tree_at(lambda model: model.weights, model, new)


def _shortened(kept: np.ndarray, x: Float[Array, "*rows size"]) -> Float[Array, "*rows few"]:
    """The kept elements, and the others as they are if few, else in random combinations.

    Scalar products stay the same on average, and the others have small weights.
    """
    others = np.setdiff1d(np.arange(x.shape[-1]), kept)
    rest = x[..., others]
    if others.size > _COMBINATIONS:
        signs = jax.random.rademacher(jax.random.key(0), (others.size, _COMBINATIONS), x.dtype)
        rest = jnp.dot(rest, signs / _COMBINATIONS**0.5, precision="highest")
    return jnp.concatenate([x[..., kept], rest], axis=-1)


def _check_memory(model: OperatorMixture, family: MoleculeFamily | None = None) -> None:
    """Refuse equations that do not fit: those gathered, those of one geometry, and their sum.

    With a family also the rows of one geometry, as they are made and as they are stacked.
    """
    nstep, nspin, *of_weight = model.weights.shape
    n, nao = math.prod(of_weight), 0 if family is None else family.method.basis.nao
    numbers = nstep * nspin * (3 * n**2 + n * nao * (nao + 1))
    needed, available = numbers * model.weights.dtype.itemsize, available_bytes()
    if available is not None and needed > available:
        raise InputError(
            f"Gauss-Newton equations for {n} weights of each of {nstep} steps and {nspin} spins "
            f"need about {needed} bytes ({needed / 2**30:.1f} GiB), and the memory has "
            f"{available} ({available / 2**30:.1f} GiB). Take fewer weights (model.degree, "
            "model.steps, model.features = 'constant', a smaller basis set) or "
            "train.optimizer = 'adam', which needs no equations."
        )


def available_bytes() -> int | None:
    """Memory of the device that computes, all of it; None where that is not known."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such thing on this system
        return None
