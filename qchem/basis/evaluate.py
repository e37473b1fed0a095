"""Values and derivatives of the AOs at points in space."""

from collections.abc import Callable
from functools import partial
from math import gamma

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

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
    column = jnp.argsort(ao_of_column(basis))
    components = evaluate_columns(basis, positions, points, derivative)
    return jnp.stack([component[column].T for component in components])


def evaluate_columns(
    basis: Basis,
    positions: Float[Array | np.ndarray, "natom 3"],
    points: Float[Array | np.ndarray, "npoint 3"],
    derivative: int = 0,
    dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "nao npoint"], ...]:
    """The components of `evaluate_ao` as they are cheapest to make and to use.

    Points follow one another in memory, AOs are in the order of `ao_of_column`, and components are
    separate arrays: to pick one of a stack costs a copy of the whole in reverse mode. They may have
    a shorter `dtype` than the positions: distances are taken first, then rounded.
    """
    if derivative not in (0, 1, 2):
        raise ValueError(f"derivatives of AOs have order 0, 1 or 2 here, not {derivative!r}.")
    positions = jnp.asarray(positions)
    dtype = positions.dtype if dtype is None else jnp.dtype(dtype)
    return _columns(basis, positions, jnp.asarray(points, positions.dtype), derivative, dtype)


def _evaluate(
    basis: Basis, positions: Array, points: Array, derivative: int, dtype: jnp.dtype
) -> tuple[Array, ...]:
    r = (points.T[None] - positions[:, :, None]).astype(dtype)
    scales = [batch.coefficients(positions.dtype).astype(dtype) for batch in basis.batches]
    batches = zip(basis.batches, _radial(basis, scales, r, derivative), strict=True)
    blocks = [_batch_ao(b, basis.spherical, r[b.atom], radial) for b, radial in batches]
    return tuple(jnp.concatenate(columns) for columns in zip(*blocks, strict=True))


_columns = jax.custom_jvp(_evaluate, nondiff_argnums=(3, 4))


@partial(_columns.defjvp, symbolic_zeros=True)
def _columns_jvp(derivative, dtype, primals, tangents):
    basis, positions, points = primals
    basis_dot, positions_dot, points_dot = tangents

    def plain(*primals):
        return _evaluate(*primals, derivative, dtype)

    if derivative == 2:  # third derivatives are not written down
        return jvp_of_moving(plain, primals, tangents)
    change = []
    if any(not isinstance(dot, SymbolicZero) for dot in jax.tree.leaves(basis_dot)):
        still = (basis_dot, *map(_zero, (positions, points)))
        values, tangent = jvp_of_moving(plain, primals, still)
        change.append(tangent)
    if not all(isinstance(dot, SymbolicZero) for dot in (positions_dot, points_dot)):
        higher = _columns(basis, positions, points, derivative + 1, dtype)
        values = higher[: _NCOMPONENT[derivative]]
        # A product, not an index: its transpose is a product too.
        atom = jax.nn.one_hot(_atom_of_column(basis), len(positions), dtype=dtype)
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


def jvp_of_moving(
    function: Callable[..., PyTree], primals: tuple[PyTree, ...], tangents: tuple[PyTree, ...]
) -> tuple[PyTree, PyTree]:
    """Forward derivative of a formula as it stands, with respect to whatever moves."""
    leaves, tree = jax.tree.flatten(primals)
    dots = jax.tree.leaves(tangents)
    moving = [n for n, dot in enumerate(dots) if not isinstance(dot, SymbolicZero)]

    def of_moving(*moved):
        new = list(leaves)
        for n, leaf in zip(moving, moved, strict=True):
            new[n] = leaf
        return function(*jax.tree.unflatten(tree, new))

    return jax.jvp(of_moving, [leaves[n] for n in moving], [dots[n] for n in moving])


def _zero(x: Array) -> SymbolicZero:
    return SymbolicZero(jax.typeof(x))


def _radial(basis: Basis, scales: list[Array], r: Array, derivative: int) -> list[Array]:
    """R, R1 and R2 of the shells of each batch: order, shell, point."""
    dtype = r.dtype
    natom = r.shape[0]
    r2 = r[:, 0] ** 2 + r[:, 1] ** 2 + r[:, 2] ** 2
    # A product makes the arguments: XLA then takes the exponentials of a whole array in one
    # vectorized loop, which it does not if their indices are worked out in the same loop.
    rows = [
        jnp.asarray(b.exponents, dtype)[:, :, None]
        * jax.nn.one_hot(b.atom, natom, dtype=dtype)[:, None]
        for b in basis.batches
    ]
    sizes = [b.exponents.size for b in basis.batches]
    factor = -jnp.concatenate([x.reshape(-1, natom) for x in rows])
    gaussians = jnp.exp(jnp.dot(factor, r2, precision="highest"))
    found = []
    parts = jnp.split(gaussians, np.cumsum(sizes)[:-1])
    for batch, scale, g in zip(basis.batches, scales, parts, strict=True):
        exponents = jnp.asarray(batch.exponents, dtype)
        orders = [scale]
        for _ in range(derivative):
            orders.append(-2 * exponents * orders[-1])
        g = g.reshape(*batch.exponents.shape, -1)
        found.append(jnp.einsum("ndk,nkg->dng", jnp.stack(orders, 1), g, precision="highest"))
    return found


def _batch_ao(batch: ShellBatch, spherical: bool, r: Array, radial: Array) -> list[Array]:
    """Each component of the AOs of one batch: columns (shell, function), points."""
    derivative = len(radial) - 1
    radial = radial[:, :, None]  # order, shell, function, point
    monomials = [jnp.ones_like(r[:, :1])]
    for l in range(1, batch.l + 1):
        monomials.append(_next_monomials(monomials[-1], r, l))
    orders = range(min(derivative, batch.l) + 1)
    value, *slopes = [_angular(batch.l, spherical, monomials, order) for order in orders]
    x = jnp.moveaxis(r, 1, 0)[:, :, None]
    components = [radial[0] * value[0]]
    if derivative > 0:
        first = radial[1] * value[0]
        for i in range(3):
            component = x[i] * first
            components.append(component + radial[0] * slopes[0][i] if slopes else component)
    if derivative > 1:
        second = radial[2] * value[0]
        for n, (i, j) in enumerate(zip(_I, _J)):
            component = x[i] * x[j] * second + (first if i == j else 0)
            if len(slopes) > 0:
                component += radial[1] * (x[i] * slopes[0][j] + x[j] * slopes[0][i])
            if len(slopes) > 1:
                component += radial[0] * slopes[1][n]
            components.append(component)
    return [c.reshape(-1, c.shape[-1]) for c in components]


def _next_monomials(lower: Array, r: Array, l: int) -> Array:
    """Monomials of degree l from those of degree l - 1, each times one coordinate."""
    column = _column_of_power(l - 1)
    powers = cartesian_powers(l)
    axis = (powers > 0).argmax(axis=1)
    parent = [column[tuple(power)] for power in (powers - np.eye(3, dtype=int)[axis]).tolist()]
    return lower[:, np.array(parent)] * r[:, axis]


def _angular(l: int, spherical: bool, monomials: list[Array], order: int) -> Array:
    """A, Aᵢ or Aᵢⱼ of every shell: components, shells, functions, points."""
    matrix = angular_matrix(l, spherical)[None]
    for n in range(order):
        matrix = np.stack([matrix @ _gradient_matrix(l - n, axis) for axis in range(3)])
        matrix = matrix[:, 0] if n == 0 else matrix[_I, _J]
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
    column = _column_of_power(l - 1)
    matrix = np.zeros((ncomponent(l, False), len(column)))
    for row, power in enumerate(cartesian_powers(l).tolist()):
        if power[axis]:
            factor = power[axis]
            power[axis] -= 1
            matrix[row, column[tuple(power)]] = factor
    return matrix


def _column_of_power(l: int) -> dict[tuple[int, ...], int]:
    return {tuple(power): c for c, power in enumerate(cartesian_powers(l).tolist())}


def rounding_of_columns(
    basis: Basis, dtype: DTypeLike, short: DTypeLike
) -> Float[Array, "{basis.nao}"]:
    """What columns evaluated in a shorter dtype are to be multiplied by to be normalized again.

    Exponents, coefficients and the constants of polynomials are the same at all points: rounded,
    they make the density too large or too small everywhere, by up to 1e-7 in float32. The norm of
    the rounded functions is known: ∫ r^(2l+2) exp(-(a + b) r²) dr = Γ(l+3/2) / (2 (a + b)^(l+3/2)).

    Args:
        dtype: Of the result.
        short: Of the columns.
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
        factors.append((radial[:, None] * jnp.asarray(angular, dtype)[None]).reshape(-1))
    return jnp.concatenate(factors)


def ao_of_column(basis: Basis) -> Int[Array | np.ndarray, "nao"]:
    """For each column of `evaluate_columns`, the number of its AO."""
    numpy = all(isinstance(batch.ao, np.ndarray) for batch in basis.batches)
    xp = np if numpy else jnp  # known on the host: a constant of the program
    aos = []
    for batch in basis.batches:
        function = np.arange(ncomponent(batch.l, basis.spherical), dtype=np.int32)
        aos.append((batch.ao[:, None] + function[None]).reshape(-1))
    return xp.concatenate(aos)


def _atom_of_column(basis: Basis) -> Array:
    width = [ncomponent(batch.l, basis.spherical) for batch in basis.batches]
    return jnp.concatenate(
        [jnp.repeat(b.atom, n) for b, n in zip(basis.batches, width, strict=True)]
    )
