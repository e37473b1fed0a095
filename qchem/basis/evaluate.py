"""Values and derivatives of the AOs at points in space."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from qchem.basis.layout import Basis, ShellBatch
from qchem.basis.spherical import angular_matrix, cartesian_powers, ncomponent

_NCOMPONENT = (1, 4, 10)  # value; x, y, z; xx, xy, xz, yy, yz, zz
_I, _J = np.triu_indices(3)  # axes of the second derivatives
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
    if derivative not in (0, 1, 2):
        raise ValueError(f"derivatives of AOs have order 0, 1 or 2 here, not {derivative!r}.")
    positions = jnp.asarray(positions)
    points = jnp.asarray(points, positions.dtype)
    return _differentiable(basis, _column_order(basis), positions, points, derivative)


def _evaluate(
    basis: Basis, order: Array | np.ndarray, positions: Array, points: Array, derivative: int
) -> Array:
    # Points are the minor axis until the end: exponentials and polynomials then run over long
    # contiguous rows, and where the caller's layout allows it the last transposition is free.
    blocks = [_batch_ao(b, basis.spherical, positions, points, derivative) for b in basis.batches]
    return jnp.swapaxes(jnp.concatenate(blocks, axis=1)[:, order], 1, 2)


_differentiable = jax.custom_jvp(_evaluate, nondiff_argnums=(4,))


@partial(_differentiable.defjvp, symbolic_zeros=True)
def _differentiable_jvp(derivative, primals, tangents):
    basis, order, positions, points = primals
    basis_dot, _, positions_dot, points_dot = tangents
    if derivative == 2:  # third derivatives are not tabulated
        return _plain_jvp(primals, tangents, derivative)
    ncomp = _NCOMPONENT[derivative]
    terms = []
    values = None
    if any(not isinstance(dot, SymbolicZero) for dot in jax.tree.leaves(basis_dot)):
        still = (basis_dot, tangents[1], *map(_zero, (positions, points)))
        values, tangent = _plain_jvp(primals, still, derivative)
        terms.append(tangent)
    if not all(isinstance(dot, SymbolicZero) for dot in (positions_dot, points_dot)):
        higher = _differentiable(basis, order, positions, points, derivative + 1)
        values = higher[:ncomp]
        for axis, component in enumerate(_RAISED[:ncomp].T):
            raised = higher[component]
            if not isinstance(points_dot, SymbolicZero):
                terms.append(raised * points_dot[None, :, axis, None])
            if not isinstance(positions_dot, SymbolicZero):
                shift = positions_dot[:, axis][_atom_of_ao(basis, order)]
                terms.append(-raised * shift[None, None])
    return values, sum(terms[1:], terms[0])


def _plain_jvp(primals, tangents, derivative):
    """Forward derivative of the formulas as they stand, with respect to whatever moves."""
    leaves, tree = jax.tree.flatten(primals)
    dots = jax.tree.leaves(tangents)
    moving = [n for n, dot in enumerate(dots) if not isinstance(dot, SymbolicZero)]

    def of_moving(*moved):
        new = list(leaves)
        for n, leaf in zip(moving, moved, strict=True):
            new[n] = leaf
        return _evaluate(*jax.tree.unflatten(tree, new), derivative)

    return jax.jvp(of_moving, [leaves[n] for n in moving], [dots[n] for n in moving])


def _zero(x: Array) -> SymbolicZero:
    return SymbolicZero(jax.typeof(x))


def _batch_ao(
    batch: ShellBatch, spherical: bool, positions: Array, points: Array, derivative: int
) -> Array:
    """AOs of one batch: components, columns (shell, function), points."""
    dtype = positions.dtype
    r = points.T[None] - positions[batch.atom][:, :, None]
    r2 = r[:, 0] ** 2 + r[:, 1] ** 2 + r[:, 2] ** 2
    exponents = jnp.asarray(batch.exponents, dtype)
    gaussians = jnp.exp(-exponents[:, :, None] * r2[:, None, :])
    orders = [batch.coefficients(dtype)]
    for _ in range(derivative):
        orders.append(-2 * exponents * orders[-1])
    radial = jnp.einsum("ndk,nkg->dng", jnp.stack(orders, 1), gaussians, precision="highest")
    radial = radial[:, None, :, None]  # order, component, shell, function, point

    monomials = [jnp.ones_like(r2)[:, None]]
    for l in range(1, batch.l + 1):
        monomials.append(_next_monomials(monomials[-1], r, l))
    angular = [
        _angular(batch.l, spherical, monomials, order)
        for order in range(min(derivative, batch.l) + 1)
    ]
    x = jnp.moveaxis(r, 1, 0)[:, :, None]
    blocks = [radial[0] * angular[0]]
    if derivative > 0:
        first = radial[1] * x * angular[0]
        blocks.append(first + radial[0] * angular[1] if batch.l > 0 else first)
    if derivative > 1:
        same = jnp.asarray((_I == _J)[:, None, None, None], dtype)
        second = (radial[1] * same + radial[2] * x[_I] * x[_J]) * angular[0]
        if batch.l > 0:
            second += radial[1] * (x[_I] * angular[1][_J] + x[_J] * angular[1][_I])
        if batch.l > 1:
            second += radial[0] * angular[2]
        blocks.append(second)
    return jnp.concatenate([b.reshape(b.shape[0], -1, b.shape[-1]) for b in blocks])


def _next_monomials(lower: Array, r: Array, l: int) -> Array:
    """Monomials of degree l from those of degree l - 1, each times one coordinate."""
    column = _columns(l - 1)
    powers = cartesian_powers(l)
    axis = (powers > 0).argmax(axis=1)
    parent = [column[tuple(power)] for power in (powers - np.eye(3, dtype=int)[axis]).tolist()]
    return lower[:, np.array(parent)] * r[:, axis]


def _angular(l: int, spherical: bool, monomials: list[Array], order: int) -> Array:
    """A, Aᵢ or Aᵢⱼ of every shell: components, shells, functions, points."""
    matrix = angular_matrix(l, spherical)[None]
    for n in range(order):
        matrix = np.stack([matrix @ _gradient_matrix(l - n, axis) for axis in range(3)])
        if n == 0:
            matrix = matrix[:, 0]
        else:
            matrix = matrix[_I, _J]
    dtype = monomials[0].dtype
    if l == order:  # constants
        return jnp.asarray(matrix[:, None, :, :], dtype)
    scale = matrix.flat[0]
    if order == 0 and np.array_equal(matrix[0], scale * np.eye(matrix.shape[1])):
        return jnp.asarray(scale, dtype) * monomials[l][None]
    product = "xmc,ncg->xnmg"
    return jnp.einsum(
        product, jnp.asarray(matrix, dtype), monomials[l - order], precision="highest"
    )


def _gradient_matrix(l: int, axis: int) -> np.ndarray:
    """Takes each monomial of degree l to its derivative, in monomials of degree l - 1."""
    column = _columns(l - 1)
    matrix = np.zeros((ncomponent(l, False), len(column)))
    for row, power in enumerate(cartesian_powers(l).tolist()):
        if power[axis]:
            factor = power[axis]
            power[axis] -= 1
            matrix[row, column[tuple(power)]] = factor
    return matrix


def _columns(l: int) -> dict[tuple[int, ...], int]:
    return {tuple(power): c for c, power in enumerate(cartesian_powers(l).tolist())}


def _column_order(basis: Basis) -> Int[Array | np.ndarray, "nao"]:
    """For each AO, its column where the batches stand one after another."""
    numpy = all(isinstance(batch.ao, np.ndarray) for batch in basis.batches)
    xp = np if numpy else jnp  # known on the host: a constant of the program
    columns = []
    for batch in basis.batches:
        function = np.arange(ncomponent(batch.l, basis.spherical), dtype=np.int32)
        columns.append((batch.ao[:, None] + function[None]).reshape(-1))
    return xp.argsort(xp.concatenate(columns)).astype(np.int32)


def _atom_of_ao(basis: Basis, order: Array | np.ndarray) -> Array:
    width = [ncomponent(batch.l, basis.spherical) for batch in basis.batches]
    atoms = [jnp.repeat(b.atom, n) for b, n in zip(basis.batches, width, strict=True)]
    return jnp.concatenate(atoms)[order]
