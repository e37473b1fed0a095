"""Converged energies as pure functions of positions, and states that can be differentiated."""

from __future__ import annotations

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from qchem.devices import check_placement, map_geometries
from qchem.errors import InputError
from qchem.precision import check_mode, in_dtype
from qchem.properties import dipole_moment, known_after
from qchem.scf.converge import traced
from qchem.scf.hamiltonian import Method
from qchem.scf.orbitals import density_matrix
from qchem.scf.response import constant, relaxed_factor
from qchem.scf.solve import SCFResult
from qchem.scf.start import Guess


class Relaxed(eqx.Module):
    """A converged state that can be differentiated once; see `EnergyFunction.relaxed`.

    Attributes:
        energy: Total, hartree.
        dm: Density matrix of each spin.
        dipole: e bohr, about the origin of the coordinates.
        converged: Where not, all else is not a number.
    """

    energy: Float[Array, ""]
    dm: Float[Array, "nspin nao nao"]
    dipole: Float[Array, " 3"]
    converged: Bool[Array, ""]


class EnergyFunction(eqx.Module):
    """Converged energy as a pure function of positions; made by `energy_fn`.

    Under `vmap`, `chunk` geometries are held at once (on a CPU one), by each device of `mesh` if
    there is one. First derivatives are those of
    the converged energy, with respect to positions and to the arrays of this function: exponents
    and contraction coefficients in `method.basis`, `method.charges`, `method.field`, what
    `method.functional` has learned. What is not asked for costs nothing. Second derivatives would
    need the response of the orbitals and are refused.
    """

    method: Method
    nocc: tuple[int, ...] = eqx.field(static=True)
    guess: Guess
    solver: str = eqx.field(static=True)
    chunk: int = eqx.field(static=True)
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True, default=None)

    # jax.jit wants to hash what it compiles; the arrays inside cannot be hashed.
    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __call__(self, positions: Float[Array | np.ndarray, "natom 3"]) -> Float[Array, ""]:
        """Total energy, hartree; not a number where the SCF does not converge."""
        natom = len(self.method.numbers)
        if np.shape(positions) != (natom, 3):
            raise InputError(
                f"positions have shape {np.shape(positions)}, {natom} atoms need ({natom}, 3); "
                "use jax.vmap for several geometries."
            )
        check_precision(positions)
        check_placement(positions)
        check_mode(self.method.precision, positions.dtype)
        self = in_dtype(self, positions.dtype)
        variables, rest = eqx.partition((self, jnp.asarray(positions)), eqx.is_inexact_array)
        energy = jax.custom_jvp(_mapped(rest, self.mesh, self.chunk))

        def first(primals, tangents):
            (variables,), (changes,) = primals, tangents
            moving = jax.tree.map(lambda x: not isinstance(x, SymbolicZero), changes)
            both = jax.custom_jvp(_mapped(rest, self.mesh, self.chunk, moving))
            both.defjvp(_second)
            value, slopes = both(variables)
            changes = eqx.filter(changes, moving)
            product = partial(jnp.vdot, precision="highest")
            terms = jax.tree.leaves(jax.tree.map(product, slopes, changes))
            return value, sum(x.astype(value.dtype) for x in terms)

        energy.defjvp(first, symbolic_zeros=True)
        return energy(variables)

    def solve(self, positions: Float[Array | np.ndarray, "natom 3"]) -> SCFResult:
        """Converged orbitals and all that belongs to them; constants for differentiation."""
        positions = jax.lax.stop_gradient(jnp.asarray(positions))
        return _solve(constant(in_dtype(self, positions.dtype)), positions)

    def relaxed(self, positions: Float[Array | np.ndarray, "natom 3"]) -> Relaxed:
        """The converged state, with its first derivatives in everything.

        In forward and reverse mode, with respect to positions and to the arrays of this function:
        exponents and contraction coefficients in `method.basis`, `method.charges`, `method.field`,
        what `method.functional` has learned. See `qchem.scf.response`; the integrals are held in
        memory.
        """
        positions = jnp.asarray(positions)
        scf = self.solve(positions)
        hamiltonian, _ = self.method.hamiltonian(positions)
        factor = relaxed_factor(hamiltonian, scf, self.nocc)
        dm = density_matrix(factor)
        charges = jnp.asarray(self.method.charges, positions.dtype)
        return Relaxed(
            energy=hamiltonian.energy(factor),
            dm=dm,
            dipole=dipole_moment(charges, positions, hamiltonian.dipole, dm),
            converged=scf.converged,
        )


def _second(primals, tangents):
    raise NotImplementedError(
        "second derivatives of converged energies need the response of the orbitals, "
        "which is not supported; difference the gradient instead."
    )


def _mapped(rest, mesh, chunk, moving=None):
    """`_evaluate` for given variables; `vmap` goes through the batch as `map_geometries` does."""

    @jax.custom_batching.custom_vmap
    def mapped(variables):
        return _evaluate(variables, rest, moving)

    @mapped.def_vmap
    def rule(axis_size, in_batched, variables):
        batched, shared = eqx.partition(variables, in_batched[0])
        values = _evaluate_each(batched, shared, rest, moving, mesh, chunk)
        return values, jax.tree.map(lambda _: True, values)

    return mapped


@eqx.filter_jit
def _evaluate(variables, rest, moving):
    """Energy, and where some variables move its derivatives in them; compiled once for each."""
    function, positions = eqx.combine(variables, rest)
    fixed = constant(in_dtype(function, positions.dtype))
    hamiltonian, scf = _converged(fixed, jax.lax.stop_gradient(positions))
    value = jnp.where(scf.converged, scf.energy, jnp.nan)
    if moving is None:
        return value
    moved, held = eqx.partition(variables, moving)
    known = known_after(fixed.method, hamiltonian, scf, dict(fixed.options))

    def energy(moved):
        function, positions = eqx.combine(moved, held, rest)
        return function.method.energy(positions, scf.factor, *known)

    return value, jax.grad(energy)(moved)


@eqx.filter_jit
def _evaluate_each(batched, shared, rest, moving, mesh, chunk):
    """The same for a batch; what is shared is not repeated."""

    def one(shared, batched):
        shared, rest = shared
        return _evaluate(eqx.combine(batched, shared), rest, moving)

    return map_geometries(one, (shared, rest), batched, mesh=mesh, chunk=chunk)


@eqx.filter_jit
def _solve(function, positions):
    return _converged(function, positions)[1]


def _converged(function, positions):
    """The Hamiltonian, and what the SCF has found."""
    hamiltonian, screened = function.method.hamiltonian(positions)
    how = function.guess, function.nocc, dict(function.options), function.solver
    return hamiltonian, traced(hamiltonian, screened, *how)


def check_precision(positions: Float[Array | np.ndarray, "natom 3"]) -> None:
    """Refuse positions whose dtype JAX would change, or that are no array of real numbers."""
    if not isinstance(positions, np.ndarray | jax.Array):
        raise InputError("positions are no array: give numpy.array(positions, float).")
    dtype = np.dtype(positions.dtype)
    if dtype == np.float64 and not jax.config.jax_enable_x64:
        raise InputError(
            "positions are float64 but JAX is in 32-bit mode: call "
            'jax.config.update("jax_enable_x64", True) at the start of the program, or give '
            "float32 positions for a calculation in single precision."
        )
    if not np.issubdtype(dtype, np.floating):
        raise InputError(f"positions have dtype {dtype}; they must be float64 or float32.")
