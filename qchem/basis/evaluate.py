"""Values and derivatives of the AOs at points in space."""

from functools import partial
from math import gamma

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from qchem.basis.layout import Basis
from qchem.basis.reach import Depths
from qchem.basis.rows import ao_of_row, coordinates, shell_rows
from qchem.basis.spherical import angular_matrix, ncomponent
from qchem.derivatives import jvp_of_moving

_NCOMPONENT = (1, 4, 10)  # value; x, y, z; xx, xy, xz, yy, yz, zz
# Component that a further derivative along x, y or z makes of each component.
_RAISED = np.array([[1, 2, 3], [4, 5, 6], [5, 7, 8], [6, 8, 9]])


def evaluate_ao(
    basis: Basis,
    positions: Float[Array | np.ndarray, "natom 3"],
    points: Float[Array | np.ndarray, "npoint 3"],
    derivative: int = 0,
) -> Float[Array, "ncomponent npoint nao"]:
    """AOs and their derivatives with respect to the point, bohr^(-3/2 - order).

    An AO is R(r²) A(r): a contraction of Gaussians times a homogeneous polynomial. With
    R₁ = 2 dR/d(r²) and R₂ = 4 d²R/d(r²)²,

        ∂ᵢ(R A)   = R Aᵢ + R₁ rᵢ A,
        ∂ᵢ∂ⱼ(R A) = R Aᵢⱼ + R₁ (rᵢ Aⱼ + rⱼ Aᵢ + δᵢⱼ A) + R₂ rᵢ rⱼ A,

    smooth everywhere, the nuclei included. Derivatives with respect to `positions` and `points`
    are the components of the next order, so they cost no more than evaluating those.

    Args:
        basis: The AOs; their order is the order of the columns.
        positions: Of the nuclei, bohr; their dtype is that of the result.
        points: Where to evaluate, bohr.
        derivative: Highest order, 0 to 2.

    Returns:
        The value, then x, y, z, then xx, xy, xz, yy, yz, zz, as far as `derivative` goes.
    """
    row = jnp.argsort(ao_of_row(basis))
    components = eqx.filter_jit(evaluate_rows)(basis, positions, points, derivative)
    return jnp.stack([component[row].T for component in components])


def evaluate_rows(
    basis: Basis,
    positions: Float[Array | np.ndarray, "natom 3"],
    points: Float[Array | np.ndarray, "npoint 3"],
    derivative: int = 0,
    dtype: DTypeLike | None = None,
    depths: Depths | None = None,
) -> tuple[Float[Array, "nao npoint"], ...]:
    """The components of `evaluate_ao` as they are cheapest to make and to use.

    AOs are in the order of `ao_of_row`, and components are separate arrays: to pick one of a stack
    costs a copy of the whole in reverse mode. They may have a shorter `dtype` than the positions:
    distances are taken first, then rounded. `depths` are those of `shell_rows`.
    """
    if derivative not in (0, 1, 2):
        raise ValueError(f"derivatives of AOs have order 0, 1 or 2 here, not {derivative!r}.")
    positions = jnp.asarray(positions)
    dtype = positions.dtype if dtype is None else jnp.dtype(dtype)
    points = jnp.asarray(points, positions.dtype)
    return _rows(basis, positions, points, derivative, dtype, depths)


def _evaluate(basis, positions, points, derivative, dtype, depths):
    apart = coordinates(positions, points, dtype)
    batches = shell_rows(basis, apart, derivative, depths)
    blocks = [batch.components(derivative) for batch in batches]
    return tuple(jnp.concatenate(component) for component in zip(*blocks, strict=True))


_rows = jax.custom_jvp(_evaluate, nondiff_argnums=(3, 4, 5))


@partial(_rows.defjvp, symbolic_zeros=True)
def _rows_jvp(derivative, dtype, depths, primals, tangents):
    basis, positions, points = primals
    basis_dot, positions_dot, points_dot = tangents

    def plain(basis, positions, points):
        return _evaluate(basis, positions, points, derivative, dtype, depths)

    if derivative == 2:  # third derivatives are not written down
        return jvp_of_moving(plain, primals, tangents)
    change = []
    if any(not isinstance(dot, SymbolicZero) for dot in jax.tree.leaves(basis_dot)):
        still = (basis_dot, *map(_zero, (positions, points)))
        values, tangent = jvp_of_moving(plain, primals, still)
        change.append(tangent)
    if not all(isinstance(dot, SymbolicZero) for dot in (positions_dot, points_dot)):
        higher = _rows(basis, positions, points, derivative + 1, dtype, depths)
        values = higher[: _NCOMPONENT[derivative]]
        # A product, not an index: its transpose is a product too.
        atom = jax.nn.one_hot(_atom_of_row(basis), len(positions), dtype=dtype)
        shift = []
        for axis in range(3):
            x = jnp.zeros((len(positions), len(points)), positions.dtype)
            if not isinstance(points_dot, SymbolicZero):
                x = x + points_dot[None, :, axis]
            if not isinstance(positions_dot, SymbolicZero):
                x = x - positions_dot[:, axis, None]
            shift.append(jnp.dot(atom, x.astype(dtype), precision="highest"))
        raised = _RAISED[: len(values)].tolist()
        change.append([sum(higher[k] * x for k, x in zip(row, shift)) for row in raised])
    return values, tuple(sum(terms[1:], terms[0]) for terms in zip(*change))


def _zero(x: Array) -> SymbolicZero:
    return SymbolicZero(jax.typeof(x))


def rounding_of_rows(
    basis: Basis, dtype: DTypeLike, short: DTypeLike
) -> Float[Array, " {basis.nao}"]:
    """What rows evaluated in a shorter dtype are to be multiplied by to be normalized again.

    Exponents, coefficients and the constants of polynomials are the same at all points: rounded,
    they make the density too large or too small everywhere, by up to 1e-7 in float32. The norm of
    the rounded functions is known: ∫ r^(2l+2) exp(-(a + b) r²) dr = Γ(l+3/2) / (2 (a + b)^(l+3/2)).

    Args:
        dtype: Of the result.
        short: Of the rows.
    """
    factors = []
    for batch in basis.batches:
        a = jnp.asarray(batch.exponents, dtype).astype(short).astype(dtype)
        c = batch.coefficients(dtype).astype(short).astype(dtype)
        power = batch.l + 1.5
        products = gamma(power) / 2 / (a[:, :, None] + a[:, None, :]) ** power
        norm2 = jnp.einsum("np,npq,nq->n", c, products, c, precision="highest")
        radial = 1 / jnp.sqrt(jnp.where(norm2 > 0, norm2, 1))
        exact = angular_matrix(batch.l, basis.spherical)
        rounded = exact.astype(short).astype(exact.dtype)
        angular = np.sum(exact * rounded, axis=1) / np.sum(rounded**2, axis=1)
        factors.append((jnp.asarray(angular, dtype)[:, None] * radial[None]).reshape(-1))
    return jnp.concatenate(factors)


def _atom_of_row(basis: Basis) -> Array:
    width = [ncomponent(batch.l, basis.spherical) for batch in basis.batches]
    return jnp.concatenate([jnp.tile(b.atom, n) for b, n in zip(basis.batches, width, strict=True)])
