"""Exchange-correlation energy of a chunk of points as the sum over shells that it is.

No AO gradient is stored: the density's gradient, and the energy's gradient in the positions, are
sums over the rows of shells (qchem/basis/rows.py).
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from qchem.basis.layout import Basis
from qchem.basis.reach import Depths, Reach
from qchem.basis.rows import coordinates, shell_rows, summed, times
from qchem.becke import inverse, inverse_separations, lengths, shares_at
from qchem.compilation import standing
from qchem.derivatives import jvp_of_moving, triangular_quotient
from qchem.grids import GridPoints

from .screening import over_reaching


class Formula(NamedTuple):
    """What of an LDA or GGA is no array.

    Attributes:
        function: Energy density of what is learned, rho and sigma.
        gradient: Whether it is a GGA.
        ao_dtype: Of AOs and their products.
        depths: Of the `RowPlan` that the basis has been ordered by.
    """

    function: Callable[..., Float[Array, " npoint"]]
    gradient: bool
    ao_dtype: jnp.dtype
    depths: Depths


class Density(NamedTuple):
    """A density matrix, or orbitals whose products are one, in the order of `ao_of_row`.

    Orbitals may come as two factors: see `qchem.scf.orbitals.held_and_turn`; or with their
    transpose, as products with it take longer where it is made in a loop.
    """

    matrix: Float[Array, "nspin nao nao"] | None = None
    orbitals: Float[Array, "nspin nao nocc"] | None = None
    turn: Float[Array, "nspin nocc nocc"] | None = None
    transpose: Float[Array, "nspin nocc nao"] | None = None

    @property
    def nspin(self) -> int:
        """Closed shell or two spins."""
        return len(jax.tree.leaves(self)[0])

    def turned(self) -> "Density":
        """With orbitals in one factor."""
        if self.turn is None:
            return self
        orbitals = jnp.matmul(self.orbitals, self.turn, precision="highest")
        if self.transpose is None:
            return Density(orbitals=orbitals)
        turn = jnp.swapaxes(self.turn, 1, 2)
        across = jnp.matmul(turn, self.transpose, precision="highest")
        return Density(orbitals=orbitals, transpose=across)

    def as_matrix(self) -> Float[Array, "nspin nao nao"]:
        """The density matrix."""
        c = self.turned().orbitals
        return self.matrix if c is None else jnp.einsum("smi,sni->smn", c, c, precision="highest")

    def change(self, dots: "Density") -> tuple[Array | None, bool]:
        """What of the matrix or of the orbitals, turned, a tangent is; whether that is a change
        dC = C x of orbitals, given by x, as their second factor moves alone."""
        density, dots = (x._replace(transpose=None) for x in (self, dots))
        moves = [not isinstance(dot, SymbolicZero) for dot in jax.tree.leaves(dots)]
        if not any(moves):
            return None, False
        if moves == [False, True]:
            return triangular_quotient(self.turn, dots.turn), True
        _, dots = jvp_of_moving(lambda density: density.turned(), (density,), (dots,))
        return jax.tree.leaves(dots)[0], False

    def in_columns(
        self, order: Int[Array | np.ndarray, " nao"], scale: Float[Array, " nao"] | None
    ) -> "Density":
        """The AOs in another order, and times factors."""
        if self.orbitals is not None:
            orbitals, across = self.orbitals[:, order], self.transpose
            across = None if across is None else across[:, :, order]
            if scale is not None:
                orbitals = orbitals * scale[None, :, None]
                across = None if across is None else across * scale[None, None]
            return self._replace(orbitals=orbitals, transpose=across)
        matrix = self.matrix[:, order[:, None], order[None, :]]
        return Density(matrix if scale is None else matrix * (scale[:, None] * scale[None])[None])

    def scattered(self, x: Array, rows: Int[Array, " nrow"] | None) -> Array:
        """An array of the form of these AOs from one of some of them, zero for the others."""
        if rows is None:
            return x
        if self.orbitals is not None:
            return jnp.zeros(self.orbitals.shape, x.dtype).at[:, rows].set(x, unique_indices=True)
        empty = jnp.zeros(self.matrix.shape, x.dtype)
        return empty.at[:, rows[:, None], rows[None, :]].set(x, unique_indices=True)

    def reduced(self, spin: int, x: Array) -> Array:
        """C^T x of orbitals, of which there are few; D x of a matrix."""
        if self.orbitals is None:
            return _dot(self.matrix[spin].astype(x.dtype), x)
        across = self.orbitals[spin].T if self.transpose is None else self.transpose[spin]
        return _dot(across.astype(x.dtype), x)

    def completed(self, spin: int, reduced: Array) -> Array:
        """D x of `reduced` x."""
        if self.orbitals is None:
            return reduced
        return _dot(self.orbitals[spin].astype(reduced.dtype), reduced)

    def slope(self, x: Array, reduced_x: Array, a: Array, y: Array | None, reduced: Array) -> Array:
        """d/d(own matrix) of sum_p a/2 x · D x + y · D x of one spin; y is zero if left out.

        With `reduced` x and y in place of them it is C^T times that of orbitals.

        Args:
            x, reduced_x: The latter is `reduced` of the former.
            a: Of each point.
            y: Like x.
            reduced: That of a x + y.
        """
        if self.orbitals is None:
            slope = half_slope(x, a, y)
            return slope + slope.T
        pairs = [(x, reduced)] if y is None else [(x, reduced), (y, reduced_x)]
        return 2 * sum(jnp.einsum("mp,ip->mi", *pair, precision="highest") for pair in pairs)


class Placement(NamedTuple):
    """What AOs, points and weights follow from."""

    positions: Float[Array, "natom 3"]
    basis: Basis
    adjustment: Float[Array, "natom natom"]
    reach: Reach


def energy_of_chunk(
    formula: Formula, learned: object, density: Density, placement: Placement, part: GridPoints
) -> Float[Array, ""]:
    """Energy of the points of `part`, hartree, as LDA or GGA.

    Its derivatives in density and positions are written out. With the weights of the points in
    a = de/d(rho) and b = de/d(∇rho), X = D phi, Y = (b · ∇) phi and W = a X + D Y,

        dE/dD   = sum_p phi B^T + B phi^T,  B = a phi / 2 + Y,
        dE/dR_A = -2 sum_p sum_m∈A W_m ∇phi_m + X_m ∇Y_m;

    points, which ride on their atoms, feel the opposite of all atoms together. Other derivatives
    are those of the energy's formula.

    Args:
        formula: Of an LDA or GGA.
        learned, density, placement, part: All that may be differentiated.
    """

    over_shells = partial(_over_shells, formula)

    def plain(learned, density, *where):
        energy = lambda chunk, own, _: chunk.energy(learned, own.turned())  # noqa: E731
        return over_shells(energy, density, *where, None, 0)

    def rule(primals, tangents):
        def moving(dots):
            return sum(not isinstance(x, SymbolicZero) for x in jax.tree.leaves(dots))

        along = tangents[2].positions
        if moving(tangents) > moving((tangents[1], along)):
            return jvp_of_moving(plain, primals, tangents)
        learned, density, *where = primals
        change, within = density.change(tangents[1])
        moved = moving(along) > 0

        def energy_and_slopes(chunk, own, rows):
            by = None if change is None else "turn" if within else "density"
            value, slope, by_place = chunk.energy_and_slopes(learned, own.turned(), moved, by)
            return value, density.scattered(slope, rows) if by == "density" else slope, by_place

        value, slope, by_place = over_shells(energy_and_slopes, density, *where, None, int(moved))
        tangent = jnp.zeros_like(value)
        if change is not None:
            tangent = tangent + jnp.vdot(slope, change, precision="highest")
        if moved:
            tangent = tangent + jnp.vdot(by_place, along, precision="highest")
        return value, tangent

    energy = jax.custom_jvp(plain)
    energy.defjvp(rule, symbolic_zeros=True)
    return energy(learned, density, placement, part)


def energy_and_half_fock_of_chunk(
    formula: Formula,
    learned: object,
    density: Density,
    placement: Placement,
    part: tuple[GridPoints, Float[Array, " npoint"]],
) -> tuple[Float[Array, ""], Float[Array, "nspin nao nao"]]:
    """`energy_of_chunk` of orbitals, and a matrix whose sum with its transpose is dE/dD.

    Written out, as the density comes from few orbitals: a derivative in D of a formula in D would
    need products with D.

    Args:
        formula, learned, density, placement: As there.
        part: Points and their weights, which all cycles share.
    """

    def of_shells(chunk, own, rows):
        energy, slope, _ = chunk.energy_and_slopes(learned, own, moved=False, by="half matrix")
        if rows is not None:
            nao = density.orbitals.shape[1]
            empty = jnp.zeros((len(slope), nao, nao), slope.dtype)
            slope = empty.at[:, rows[:, None], rows[None]].set(slope, unique_indices=True)
        return energy, slope

    return _over_shells(formula, of_shells, density, placement, *part, 0)


def _over_shells(formula, function, density, placement, part, weights, more):
    """The function of a chunk, of the part of the density and of that part's rows."""

    def of_shells(shells):
        chunk = _Chunk(placement, part, weights, shells, formula, more)
        own = density if shells.rows is None else density.in_columns(shells.rows, None)
        return function(chunk, own, shells.rows)

    positions, basis, _, reach = placement
    points = positions[part.atom] + part.offsets.astype(positions.dtype)
    return over_reaching(of_shells, basis, formula.depths, reach, positions, points)


class _Chunk:
    """Rows of the shells at a chunk's points."""

    def __init__(self, placement, part, weights, shells, formula, more):
        self.depths = shells.depths
        self.dtype, self.formula = formula.ao_dtype, formula
        self.placement = placement._replace(basis=shells.basis)
        self.part, self.weights = part, weights
        self.order = int(formula.gradient) + more

    def _apart(self):
        """r - R of all atoms, which the points ride on."""
        positions, part = self.placement.positions, self.part
        points = positions[part.atom] + part.offsets.astype(positions.dtype)
        return coordinates(positions, points, positions.dtype)

    def _shares(self, distance, separations):
        adjustment = jnp.asarray(self.placement.adjustment, distance.dtype)
        return shares_at(distance, separations, adjustment, self.part.atom)

    def _weights(self, apart):
        separations = inverse_separations(self.placement.positions)
        return self.part.quadrature.astype(apart[0].dtype) * self._shares(
            lengths(apart), separations
        )

    def _weights_and_derivative(self, apart):
        """And a function of dE/d(weights): dE/d(r - R), and dE/dR at the same r - R."""
        distance, quadrature = lengths(apart), self.part.quadrature.astype(apart[0].dtype)
        separations, by_place = jax.vjp(inverse_separations, self.placement.positions)
        shares, slopes = jax.vjp(self._shares, distance, separations)

        def derivative(by_weights):
            by_distance, by_separations = slopes(by_weights * quadrature)
            scaled = by_distance * inverse(distance)
            return [scaled * x for x in apart], by_place(by_separations)[0]

        return quadrature * shares, derivative

    def _evaluate(self, apart):
        """r - R of all atoms, rows of all shells, AOs."""
        placement = self.placement
        apart = [x.astype(self.dtype) for x in apart]
        rows = shell_rows(placement.basis, apart, self.order, self.depths)
        return apart, rows, jnp.concatenate([c for batch in rows for c in batch.columns()])

    def _of_density(self, apart, rows, x):
        """Density and its gradient of one spin, from X = D phi, and what both are made of."""
        contracted = _contracted(rows, x)
        sums = [polynomial.value() for polynomial in contracted]
        rho = _sum_rows([batch.radial[0] * p for batch, p in zip(rows, sums, strict=True)])
        if not self.formula.gradient:
            return rho, None, (contracted, sums, None, None)
        slopes = [[s.value() for s in polynomial.slopes()] for polynomial in contracted]
        pull = self._by_atom([batch.radial[1] * p for batch, p in zip(rows, sums, strict=True)])
        gradient = []
        for i in range(3):
            parts = [(r.radial[0], s[i]) for r, s in zip(rows, slopes, strict=True)]
            own = [a * b for a, b in parts if b is not None]
            gradient.append(2 * _sum_rows([apart[i] * pull, *own]))
        return rho, jnp.concatenate(gradient), (contracted, sums, slopes, pull)

    def _by_atom(self, rows):
        """Sums over the shells of each atom, of an array or None for each batch."""
        pairs = zip(self.placement.basis.batches, rows, strict=True)
        found = [(batch.atom, x) for batch, x in pairs if x is not None]
        if not found:
            return None
        # One product: XLA makes terms of few shells anew for each atom.
        atoms, rows = (jnp.concatenate(x) for x in zip(*found, strict=True))
        own = jax.nn.one_hot(atoms, self.placement.basis.natom, dtype=rows.dtype, axis=0)
        return _dot(own, rows)

    def energy(self, learned, density):
        exact = self._apart()
        weights = self._weights(exact)
        apart, rows, phi = self._evaluate(exact)
        found = []
        for spin in range(density.nspin):
            x = density.completed(spin, density.reduced(spin, phi))
            found.append(self._of_density(apart, rows, x)[:2])
        rho, gradient = _stacked(found, weights.dtype)
        values = standing(self._values, learned, rho, gradient)
        return jnp.vdot(weights, values, precision="highest")

    def _values(self, learned, rho, gradient):
        sigma = None
        if gradient is not None:
            pairs = [(i, j) for i in range(len(rho)) for j in range(i, len(rho))]
            g = gradient
            sigma = jnp.stack([sum(g[i][k] * g[j][k] for k in range(3)) for i, j in pairs])
        return self.formula.function(learned, rho, sigma)

    def energy_and_slopes(self, learned, density, moved, by):
        """Energy, and derivatives by the density's own matrix, by x of dC = C x ("turn"), by D
        without the transpose ("half matrix") or by neither; and, if `moved`, by positions."""
        exact, weights = self._apart(), self.weights
        if moved:
            weights, of_weights = self._weights_and_derivative(exact)
        elif weights is None:
            weights = self._weights(exact)
        apart, rows, phi = self._evaluate(exact)
        reduced = [density.reduced(spin, phi) for spin in range(density.nspin)]
        applied = [density.completed(spin, x) for spin, x in enumerate(reduced)]
        found = [self._of_density(apart, rows, x) for x in applied]
        rho, gradient = _stacked([x[:2] for x in found], weights.dtype)

        def potentials(learned, rho, gradient, weights):
            def weighted(rho, gradient):
                values = self._values(learned, rho, gradient)
                return jnp.vdot(weights, values, precision="highest"), values

            return jax.grad(weighted, (0, 1), has_aux=True)(rho, gradient)

        (by_rho, by_gradient), values = standing(potentials, learned, rho, gradient, weights)
        energy = jnp.vdot(weights, values, precision="highest")
        by_density, by_atoms = [], None
        for spin, (inner, of_density) in enumerate(zip(reduced, found, strict=True)):
            a = by_rho[spin].astype(self.dtype)[None]
            b = None if by_gradient is None else list(by_gradient[spin].astype(self.dtype))
            along = None if b is None else sum(c[None] * r for c, r in zip(b, apart, strict=True))
            y, inner_of_y, outer = None, None, a * inner
            if b is not None:
                pairs = zip(rows, self.placement.basis.batches, strict=True)
                columns = [c for r, batch in pairs for c in r.columns_along(b, along[batch.atom])]
                y = standing(lambda *x: jnp.concatenate(x), *columns)
                inner_of_y = density.reduced(spin, y)
                outer = outer + inner_of_y
            if by == "half matrix":
                by_density.append(half_slope(phi, a, y))
            elif by is not None:
                x, of_y = (inner, inner_of_y) if by == "turn" else (phi, y)
                by_density.append(density.slope(x, inner, a, of_y, outer))
            if moved:
                w = density.completed(spin, outer)
                pull = self._pull(apart, rows, of_density[2], w, b, along)
                by_atoms = pull if by_atoms is None else [p + q for p, q in zip(by_atoms, pull)]
        dtype = weights.dtype
        slope = None if by is None else jnp.stack(by_density).astype(dtype)
        by_place = None
        if moved:
            by_weights, by_place = of_weights(values)
            own = jax.nn.one_hot(self.part.atom, len(by_weights[0]), dtype=dtype, axis=0)
            by_r = [x.astype(dtype) + y for x, y in zip(by_atoms, by_weights, strict=True)]
            along = [_dot(own, jnp.sum(x, axis=0)) - jnp.sum(x, axis=1) for x in by_r]
            by_place = by_place + jnp.stack(along, axis=1)
        return energy, slope, by_place

    def _pull(self, apart, rows, of_density, w, b, along):
        """2 sum_m W_m ∇phi_m + X_m ∇Y_m over the AOs of each atom, at each point."""
        contracted, sums, slopes, of_radial = of_density
        radial, own = [], [[], [], []]
        for k, polynomial in enumerate(_contracted(rows, w)):
            R = rows[k].radial
            outer, inner = [polynomial.value()], [[x.value()] for x in polynomial.slopes()]
            terms = []
            if b is not None:
                br = along[self.placement.basis.batches[k].atom]
                outer.append(_along(b, slopes[k]))
                terms.append(times(R[2], br * sums[k]))
                for i, slope in enumerate(contracted[k].slopes()):
                    inner[i].append(_along(b, [x.value() for x in slope.slopes()]))
            radial.append(summed([times(R[1], summed(outer)), *terms]))
            for i in range(3):
                parts = [times(R[0], summed(inner[i]))]
                if b is not None:
                    parts.append(times(R[1], times(br, slopes[k][i])))
                own[i].append(summed(parts))
        radial, pull = self._by_atom(radial), []
        for i in range(3):
            bent = None if b is None else b[i][None] * of_radial
            pull.append(2 * summed([apart[i] * radial, bent, self._by_atom(own[i])]))
        return pull


def half_slope(
    x: Float[Array, "nao npoint"], a: Float[Array, "1 npoint"], y: Float[Array, "nao npoint"] | None
) -> Float[Array, "nao nao"]:
    """sum_p x (a x / 2 + y)^T; y is zero if left out."""
    half = 0.5 * a * x if y is None else 0.5 * a * x + y
    return jnp.einsum("mp,np->mn", x, half, precision="highest")


def _contracted(rows, x):
    """Sums over the functions of each shell, as polynomials."""
    ends = list(accumulate(batch.size for batch in rows))
    return [r.contracted(x[end - r.size : end]) for r, end in zip(rows, ends, strict=True)]


def _along(b, slopes):
    """b · slopes, row by row."""
    return summed(times(x[None], s) for x, s in zip(b, slopes, strict=True))


def _stacked(found, dtype):
    """rho and gradient of all spins."""
    rho, gradient = zip(*found, strict=True)
    rho = jnp.concatenate(rho).astype(dtype)
    return rho, None if gradient[0] is None else jnp.stack(gradient).astype(dtype)


def _sum_rows(parts):
    """The sum of all rows of all parts, as one row; a product is quicker than a sum."""
    return sum(_dot(jnp.ones((1, len(x)), x.dtype), x) for x in parts)


def _dot(a, b):
    return jnp.dot(a, b, precision="highest")
