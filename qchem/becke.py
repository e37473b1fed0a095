"""Becke's partition of space into fuzzy cells of atoms, and its derivatives."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qchem.atomic_grid import bragg_radii
from qchem.compilation import platform

_NEAR = 12  # atoms that decide whether a cell has any part of the points
_NEGLIGIBLE = 1e-20  # share of a point
_TOGETHER = 8  # factors of a product that XLA:CPU unrolls; with more it takes points one by one


def border_adjustment(numbers: Sequence[int]) -> Float[np.ndarray, "natom natom"]:
    """a_ij = (chi_ji - chi_ij)/4 within 1/2, chi_ij = sqrt(R_i/R_j): Treutler & Ahlrichs (1995)."""
    radius = np.sqrt(bragg_radii(numbers))
    ratio = radius[:, None] / radius[None, :]
    return np.clip(0.25 * (ratio.T - ratio), -0.5, 0.5)


def cell_shares(
    positions: Float[Array, "natom 3"],
    points: Float[Array, "npoint 3"],
    atom: Int[Array, " npoint"],
    adjustment: Float[Array, "natom natom"],
) -> Float[Array, " npoint"]:
    """Share of each point that belongs to its own atom's cell, in [0, 1].

    Args:
        positions, points: bohr.
        atom: Each point's own.
        adjustment: From `border_adjustment`.
    """
    # Component by component: a sum over an axis of three costs as much as all the rest.
    apart = [positions[:, None, k] - points[None, :, k] for k in range(3)]
    return shares_at(lengths(apart), inverse_separations(positions), adjustment, atom)


def lengths(apart: Sequence[Float[Array, "..."]]) -> Float[Array, "..."]:
    """Of vectors given by their components; where one vanishes its derivative is 0."""
    square = sum(x * x for x in apart)
    regular = square > 0
    return jnp.where(regular, jnp.sqrt(jnp.where(regular, square, 1)), 0)


def inverse_separations(positions: Float[Array, "natom 3"]) -> Float[Array, "natom natom"]:
    """1/R_ij, 1/bohr; 1 of an atom and itself."""
    return inverse(lengths([x[:, None] - x[None] for x in positions.T]))


def inverse(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """1/x of lengths, and 1 where x = 0."""
    return 1 / jnp.where(x > 0, x, 1)


@jax.custom_jvp
def shares_at(
    distance: Float[Array, "natom npoint"],
    inverse_separation: Float[Array, "natom natom"],
    adjustment: Float[Array, "natom natom"],
    atom: Int[Array, " npoint"],
) -> Float[Array, " npoint"]:
    """`cell_shares`, from the distances between atoms and points, and from `inverse_separations`.

    Eqs. (11), (13), (19)-(22) and (A2) of A. D. Becke, J. Chem. Phys. 88, 2547 (1988). An atom
    paired with itself gives the same factor 1/2 in every cell, which cancels.
    """
    return _partition(distance, inverse_separation, adjustment, atom)[0]


@shares_at.defjvp
def _shares_at_jvp(primals, tangents):
    """d(log share) = sum_ij (own_i - cell_i/total) d(log s_ij); the adjustment is constant."""
    distance, inverse_separation, adjustment, atom = primals
    share, lead = _partition(distance, inverse_separation, adjustment, atom)
    log_change = _change_of_few if len(distance) <= 2 * _NEAR else _change_of_many
    return share, share * log_change(lead, *primals[:3], *tangents[:2])


def _change_of_few(lead, distance, inverse_separation, adjustment, distance_dot, inverse_dot):
    """All pairs at once, each with its reverse, as mu_ji = -mu_ij: slopes by mu_ij stand in memory,
    and a matrix takes them to the atoms."""
    natom = len(distance)
    i, j = np.triu_indices(natom, 1)
    inverse, a = inverse_separation[i, j][:, None], adjustment[i, j][:, None]
    ends = jnp.asarray(np.eye(natom)[:, i] - np.eye(natom)[:, j], distance.dtype)
    apart = jnp.dot(ends.T, distance, precision="highest")
    mu, nu = _border_coordinate(apart, inverse, a)
    slope = _pair_slope(lead[i], lead[j], nu) * (1 - 2 * a * mu)
    by_distance = jnp.dot(ends * inverse.T, slope, precision="highest")
    by_separation = jnp.dot(inverse_dot[i, j], slope * apart, precision="highest")
    return by_separation + jnp.sum(by_distance * distance_dot, axis=0)


def _change_of_many(lead, distance, inverse_separation, adjustment, distance_dot, inverse_dot):
    """One atom i after another, whose pairs are made again in reverse. Atoms that have no share of
    the points are passed over."""

    def of_cell(row):
        """The part of the pairs (i, j) of one atom i."""
        here, here_dot, lead_here, inverse, inverse_dot, a = row
        apart = here[None] - distance
        pull = _pull(lead_here[None], apart, inverse[:, None], a[:, None])
        by_separation = jnp.dot(inverse_dot, pull * apart, precision="highest")
        scaled = pull * inverse[:, None]
        by_here = jnp.dot(jnp.ones_like(inverse), scaled, precision="highest")
        return by_separation + by_here * here_dot - jnp.sum(scaled * distance_dot, axis=0)

    def add(change, row):
        counts = jnp.any(jnp.abs(row[2]) > _NEGLIGIBLE)
        return change + jax.lax.cond(counts, of_cell, lambda _: jnp.zeros_like(change), row), None

    rows = distance, distance_dot, lead, inverse_separation, inverse_dot, adjustment
    return jax.lax.scan(jax.checkpoint(add), jnp.zeros_like(distance[0]), rows)[0]


def _pull(lead, apart, inverse_separation, adjustment):
    """lead_i d(log s_ij)/d(mu_ij)."""
    mu, nu = _border_coordinate(apart, inverse_separation, adjustment)
    numerator, denominator = _log_slope(1 - nu)
    return lead * (1 - 2 * adjustment * mu) * numerator / denominator


def _pair_slope(lead, lead_of_other, nu):
    """lead_i d(log s_ij)/d(nu_ij) + lead_j d(log s_ji)/d(nu_ij).

    s_ij is (1 - nu_3)/2 after three of Becke's steps nu -> nu (3 - nu^2)/2, each of which takes
    q = 1 - nu^2 to q^2 (3 + q)/4. So the slope of nu_3 over q_3 is 216 over q_0 times 3 + q of each
    step. Where q_0 is small, one lead and one 1 - |nu_3| are as its eighth power: it may as well be
    larger, and rounding of the other is not made large.
    """
    small = 2 * float(jnp.finfo(nu.dtype).eps) ** 0.125
    denominator = jnp.maximum(1 - nu * nu, small)
    for _ in range(3):
        square = nu * nu
        denominator = denominator * (4 - square)
        nu = nu * (1.5 - 0.5 * square)
    return 216 * (lead_of_other * (1 - nu) - lead * (1 + nu)) / denominator


def _partition(distance, inverse_separation, adjustment, atom):
    """Share of the own atom, and own_i - share_i for every atom i.

    Of many atoms those nearest to the points are multiplied first; where they leave nothing of a
    cell, to rounding, the others are spared.
    """

    def product(here, there, inverse, a):
        # Becke's s(nu) in y = 1 - nu, where p(p(p(nu))) does not cancel as s goes to zero.
        total = 1.0
        for start in range(0, len(there), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            separation, border = inverse[part, None], a[part, None]
            _, nu = _border_coordinate(here[None] - there[part], separation, border)
            y = 1 - nu
            for _ in range(3):
                y = 0.5 * y * y * (3 - y)
            total = total * jnp.prod(0.5 * y, axis=0)
        return total

    others = distance, inverse_separation, adjustment
    if len(distance) <= 2 * _NEAR and platform() != "cpu":
        cell = jax.vmap(product, (0, None, 0, 0))(distance, *others)
    elif len(distance) <= 2 * _NEAR:
        cell = jax.lax.map(lambda row: product(row[0], distance, *row[1:]), others)
    else:
        order = jnp.argsort(jnp.sum(distance, axis=1))
        there, rows = distance[order], (distance, *(x[:, order] for x in others[1:]))
        # No sum of cells is less than one of them.
        least = _NEGLIGIBLE * product(there[0], there, *(x[order[0]] for x in rows[1:]))

        def of_atom(row):
            here, *pairs = row
            near = product(here, there[:_NEAR], *(x[:_NEAR] for x in pairs))
            far = lambda: near * product(here, there[_NEAR:], *(x[_NEAR:] for x in pairs))  # noqa: E731
            return jax.lax.cond(jnp.any(near > least), far, lambda: jnp.zeros_like(near))

        cell = jax.lax.map(of_atom, rows)
    total = _summed(cell)
    shares = cell / jnp.maximum(total, jnp.finfo(cell.dtype).tiny)[None, :]
    own = jax.nn.one_hot(atom, cell.shape[0], dtype=cell.dtype, axis=0)
    return _summed(own * shares), own - shares


def _summed(rows):
    """Over the rows; a product is quicker than a sum."""
    return jnp.dot(jnp.ones(len(rows), rows.dtype), rows, precision="highest")


def _border_coordinate(apart, inverse_separation, adjustment):
    """mu_ij, from -1 at atom i to 1 at atom j, and nu_ij = mu + a (1 - mu^2), of how much further
    atom i is than j."""
    mu = apart * inverse_separation
    return mu, mu + adjustment * (1 - mu * mu)


def _log_slope(y):
    """Numerator and denominator of d(log s)/d(nu) at y = 1 - nu, which grows as 8/y for small y."""
    y = jnp.maximum(y, jnp.finfo(y.dtype).tiny ** 0.25)
    numerator, denominator = -1, y
    for _ in range(3):
        numerator, denominator = numerator * (6 - 3 * y), denominator * (3 - y)
        y = 0.5 * y * y * (3 - y)
    return numerator, denominator
