"""Nonlocal correlation of VV10: a double integral over the density."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from qchem.basis.evaluate import evaluate_rows
from qchem.basis.layout import Basis
from qchem.basis.rows import ao_of_row
from qchem.devices import ALONE, MOLECULE, Share, spread
from qchem.grids import Grid, GridPoints

from .chunk import Density
from .quadrature import GridXC, density_and_gradient

_THRESHOLD = 1e-8  # bohr⁻³: points of lower density do not take part, as in PySCF
_TILE = (64, 4096)  # points held against points: what the cache holds


class NonlocalCorrelation(eqx.Module):
    """VV10 energy at one geometry, as a function of `dm`.

    E = int rho(r) [beta + 1/2 int rho(r') Phi(r, r') dr'] dr: Vydrov & Van Voorhis, J. Chem. Phys.
    133, 244103 (2010). The time grows with the square of the number of points, the memory does
    not.

    Attributes:
        parameters: Weight, b and C of each term.
        points: The grid's points, in chunks.
        adjustment: The grid's a_ij.
        positions: Nuclei, bohr; points and AOs follow them.
        mesh: Devices that share the points, and the sum over pairs of them.
    """

    parameters: tuple[tuple[float, float, float], ...] = eqx.field(static=True)
    basis: Basis
    points: GridPoints
    adjustment: Float[Array | np.ndarray, "natom natom"]
    positions: Float[Array | np.ndarray, "natom 3"]
    mesh: Mesh | None = eqx.field(static=True)

    def __init__(
        self,
        parameters: tuple[tuple[float, float, float], ...],
        basis: Basis,
        grid: Grid,
        positions: Float[Array | np.ndarray, "natom 3"],
        *,
        chunk: int = 1024,
        mesh: Mesh | None = None,
    ):
        """Integrator at `positions`; AO values of `chunk` points are held at once."""
        self.parameters = parameters
        self.basis = basis
        self.points = grid.chunks(chunk, 1 if mesh is None else mesh.size)
        self.adjustment = grid.adjustment
        self.positions = jnp.asarray(positions)
        self.mesh = mesh

    def energy(self, dm: Float[Array, "nspin nao nao"]) -> Float[Array, ""]:
        """Energy, hartree; differentiable in `dm` and `positions`."""
        chunks = jax.tree.map(jnp.asarray, self.points)
        shared = dm, self.positions, self.basis, self.adjustment
        return spread(self._energy, self.mesh, (P(), P(MOLECULE)), P())(shared, chunks)

    def _energy(self, shared, chunks):
        """Of a device's points and those of the others."""
        dm, positions, basis, adjustment = shared
        share = Share.of(self.mesh)
        total = jnp.sum(dm, axis=0, keepdims=True)
        total = (total + jnp.swapaxes(total, 1, 2)) / 2
        order = ao_of_row(basis)
        total = total[:, order[:, None], order[None, :]]

        @jax.checkpoint
        def of_chunk(part):
            points, weights = Grid(part, adjustment).place(positions)
            ao = evaluate_rows(basis, positions, points, 1)
            rho, sigma = density_and_gradient(total, ao)
            return points, weights, rho[0], sigma[0]

        points, *rows = map(share.whole, jax.lax.map(of_chunk, chunks))
        flat = *(x.ravel() for x in rows), points.reshape(-1, 3).T
        terms = (weight * vv10_energy(*flat, b, c, share) for weight, b, c in self.parameters)
        return sum(terms)

    def energy_of_orbitals(
        self,
        orbitals: Float[Array, "nspin nao nocc"],
        turn: Float[Array, "nspin nocc nocc"] | None = None,
    ) -> Float[Array, ""]:
        """`energy` of dm = C C^T with C = orbitals turn."""
        return self.energy(Density(orbitals=orbitals, turn=turn).as_matrix())

    def energy_and_fock(
        self,
        dm: Float[Array, "nspin nao nao"],
        factor: Float[Array, "nspin nao nocc"] | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, "nspin nao nao"]]:
        """Energy, hartree, and its symmetric derivative dE/d(dm); `factor` is not needed."""
        return jax.value_and_grad(self.energy)(dm)


class SummedXC(eqx.Module):
    """Several integrators as one."""

    parts: tuple[GridXC | NonlocalCorrelation, ...]

    def energy(self, dm: Float[Array, "nspin nao nao"]) -> Float[Array, ""]:
        """Sum of the energies, hartree."""
        return sum(part.energy(dm) for part in self.parts)

    def energy_of_orbitals(
        self,
        orbitals: Float[Array, "nspin nao nocc"],
        turn: Float[Array, "nspin nocc nocc"] | None = None,
    ) -> Float[Array, ""]:
        """`energy` of dm = C C^T with C = orbitals turn, hartree."""
        return sum(part.energy_of_orbitals(orbitals, turn) for part in self.parts)

    def energy_and_fock(
        self,
        dm: Float[Array, "nspin nao nao"],
        factor: Float[Array, "nspin nao nocc"] | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, "nspin nao nao"]]:
        """Energy, hartree, and its symmetric derivative dE/d(dm), as `GridXC.energy_and_fock`."""
        parts = [part.energy_and_fock(dm, factor) for part in self.parts]
        energies, focks = zip(*parts, strict=True)
        return sum(energies), sum(focks)


def vv10_energy(
    weights: Float[Array, " npoint"],
    rho: Float[Array, " npoint"],
    sigma: Float[Array, " npoint"],
    points: Float[Array, "3 npoint"],
    b: float,
    c: float,
    share: Share = ALONE,
) -> Float[Array, ""]:
    """VV10 energy of a density on points, hartree: eqs. (3)-(14) of the paper.

    Args:
        weights: Of the integration, bohr³.
        rho: Density, bohr⁻³.
        sigma: |grad rho|², bohr⁻⁸.
        points: bohr.
        b, c: Damping at short range, and strength of the local gap.
        share: A device makes its part of the sum over pairs; all know all points.
    """
    active = jax.lax.stop_gradient(rho) >= _THRESHOLD
    # Points that take part first: whole tiles of the others are left out.
    order = jnp.argsort(~active)
    active, weights, rho, sigma = (x[order] for x in (active, weights, rho, sigma))
    charge = jnp.where(active, weights * rho, 0.0)
    rho, sigma = jnp.where(active, rho, 1.0), jnp.where(active, sigma, 0.0)
    gap = jnp.sqrt(c * (sigma / rho**2) ** 2 + 4 / 3 * np.pi * rho)
    kappa = 1.5 * np.pi * b * (rho / (9 * np.pi)) ** (1 / 6)
    beta = (3 / b**2) ** 0.75 / 32
    return beta * jnp.sum(charge) + _pair_energy(share, charge, gap, kappa, points[:, order])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pair_energy(share, charge, gap, kappa, points):
    """1/2 sum_gh q_g q_h Phi_gh."""
    potential = _row_sums(share, False, charge, gap, kappa, points)[0]
    return 0.5 * jnp.vdot(charge, potential, precision="highest")


def _pair_energy_jvp(share, primals, tangents):
    # Phi is symmetric: one sum over h for each g holds the whole gradient.
    moved = not isinstance(tangents[3], SymbolicZero)
    charge = primals[0]
    potential, by_gap, by_kappa, *pull = _row_sums(share, moved, *primals)
    slopes = [potential, charge * by_gap, charge * by_kappa]
    slopes += [charge[None] * jnp.stack(pull)] if moved else []
    value = 0.5 * jnp.vdot(charge, potential, precision="highest")
    tangent = jnp.zeros_like(value)
    for slope, t in zip(slopes, tangents, strict=False):
        if not isinstance(t, SymbolicZero):
            tangent = tangent + jnp.vdot(slope, t, precision="highest")
    return value, tangent


_pair_energy.defjvp(_pair_energy_jvp, symbolic_zeros=True)


def _row_sums(share, moved, charge, gap, kappa, points):
    """Sums over h of q_h times Phi_gh and its derivatives in gap_g, kappa_g and, if `moved`, r_g.

    Rows of a tile are points g, columns points h; a tile without charge on either side is left
    out.
    """
    npoint = charge.size
    everything = charge, gap, kappa, points
    rows, columns = (_tiles(everything, min(size, npoint)) for size in _TILE)
    nsum = 6 if moved else 3

    def of_rows(n):
        row = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, n, 0, False), rows)
        zero = jnp.zeros((nsum, row[0].size), charge.dtype)

        @jax.checkpoint  # second derivatives too hold one tile at a time
        def step(total, column):
            wanted = jnp.any(row[0] != 0) & jnp.any(column[0] != 0)
            part = partial(_tile_sums, moved)
            return total + jax.lax.cond(wanted, part, lambda *_: zero, row, column), None

        return jax.lax.scan(step, zero, columns)[0]

    ntile = len(rows[0])
    (own,) = share.dealt(np.arange(ntile, dtype=np.int32))
    sums = share.collected(jax.lax.map(of_rows, own), ntile)
    return jnp.swapaxes(sums, 0, 1).reshape(nsum, -1)[:, :npoint]


def _tiles(arrays, size):
    """Points in tiles along a new leading axis, filled up with points that have no charge."""

    def split(x, fill):
        padding = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % size)]
        x = jnp.pad(x, padding, constant_values=fill)
        return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, size), -2, 0)

    return tuple(split(x, fill) for x, fill in zip(arrays, (0.0, 1.0, 1.0, 0.0), strict=True))


def _tile_sums(moved, row, column):
    _, gap, kappa, points = row
    charge, gap_h, kappa_h, points_h = column
    apart = [a[:, None] - b[None, :] for a, b in zip(points, points_h, strict=True)]
    distance2 = sum(x * x for x in apart)
    g = gap[:, None] * distance2 + kappa[:, None]
    h = gap_h[None, :] * distance2 + kappa_h[None, :]
    inverse = 1 / (g * h * (g + h))
    phi = -1.5 * inverse
    by_g = -phi * inverse * h * (2 * g + h)  # dPhi/dg
    terms = [phi, by_g * distance2, by_g]
    if moved:
        by_h = -phi * inverse * g * (2 * h + g)
        by_distance2 = 2 * (by_g * gap[:, None] + by_h * gap_h[None, :])
        terms += [by_distance2 * x for x in apart]
    return jnp.stack([jnp.dot(term, charge, precision="highest") for term in terms])
