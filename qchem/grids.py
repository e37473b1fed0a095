"""Integration grids: atomic radial and angular rules, joined by Becke's partition of space.

Scheme and tables are those of PySCF's default grids, so that energies agree digit by digit:
Treutler-Ahlrichs M4 radial points, Lebedev angular points, NWChem's pruning, Becke's fuzzy cells
with Treutler's adjustment to Bragg radii. What depends on elements is built once on the host;
points and weights are differentiable functions of the positions.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qchem.atomic_grid import LAST_ELEMENT, LEVELS, atomic_grid, sizes_by_number
from qchem.becke import border_adjustment, cell_shares
from qchem.compilation import platform
from qchem.errors import InputError

_AROUND = 12.0  # bohr around the nuclei where points lie close together
_CURVE_BITS = 8  # per axis


class GridPoints(eqx.Module):
    """Points that ride on atoms; the leading axes are free.

    Attributes:
        atom: The atom that carries the point.
        offsets: Point minus its atom, bohr.
        quadrature: Radial times angular weight, 4 pi r^2 included, before Becke's partition,
            bohr^3; 0 marks padding.
    """

    atom: Int[Array | np.ndarray, "*npoint"]
    offsets: Float[Array | np.ndarray, "*npoint 3"]
    quadrature: Float[Array | np.ndarray, "*npoint"]


class Grid(eqx.Module):
    """Integration grid of a molecule family: elements and sizes, never coordinates.

    Attributes:
        reference: All points, atom by atom, each from the innermost radial shell outwards.
        adjustment: a_ij of Becke (1988), appendix, which moves the border between two atoms
            towards the smaller one.
    """

    reference: GridPoints
    adjustment: Float[Array | np.ndarray, "natom natom"]

    @classmethod
    def from_numbers(
        cls,
        numbers: Sequence[int],
        level: int = 3,
        *,
        sizes: tuple[int, int] | dict[str, tuple[int, int]] | None = None,
        prune: bool = True,
    ) -> "Grid":
        """Grid of PySCF's sizes for a level, or of explicit sizes.

        Args:
            numbers: Atomic numbers, H to Kr.
            level: 0 (coarse) to 9 (fine).
            sizes: Radial and angular number of points, for all elements or by symbol; elements
                without an entry follow `level`.
            prune: Use smaller angular rules near the nucleus and far from it, as NWChem does.

        Raises:
            InputError: for a level, an element or sizes that do not exist.
        """
        numbers = tuple(int(number) for number in numbers)
        if not numbers:
            raise InputError("a grid needs at least one atom; none was given")
        for number in numbers:
            if not 1 <= number <= LAST_ELEMENT:
                raise InputError(
                    f"no grid for atomic number {number}; grids cover 1 (H) to 36 (Kr)"
                )
        if level not in LEVELS:
            raise InputError(
                f"grid level {level} does not exist; levels are 0 (coarse) to 9 (fine)"
            )
        chosen = sizes_by_number(numbers, level, sizes)
        parts = [atomic_grid(number, *chosen[number], prune) for number in numbers]
        atom = np.repeat(np.arange(len(parts), dtype=np.int32), [len(q) for _, q in parts])
        offsets = np.concatenate([offsets for offsets, _ in parts])
        quadrature = np.concatenate([quadrature for _, quadrature in parts])
        return cls(GridPoints(atom, offsets, quadrature), border_adjustment(numbers))

    def chunks(self, size: int, multiple: int = 1) -> GridPoints:
        """The points in chunks of `size` along a new leading axis, whose length is a multiple.

        The last chunks are filled up with copies of the last point at zero quadrature weight.
        """
        if size < 1:
            raise InputError(f"a chunk of {size} points is impossible; give 1 or more")
        npoint = self.reference.quadrature.shape[0]
        nchunk = multiple * -(-npoint // (multiple * size))
        index = np.minimum(np.arange(nchunk * size), npoint - 1)
        atom, offsets, quadrature = (x[index] for x in jax.tree.leaves(self.reference))
        real = (np.arange(nchunk * size) < npoint).astype(quadrature.dtype)
        filled = GridPoints(atom, offsets, quadrature * real)
        return jax.tree.map(lambda x: x.reshape(nchunk, size, *x.shape[1:]), filled)

    def along_curve(self, positions: Float[Array | np.ndarray, "natom 3"]) -> "Grid":
        """The same points in the order of Morton's curve through space.

        Neighbours in this order are neighbours in space, whatever atoms carry them.
        """
        positions = jax.lax.stop_gradient(jnp.asarray(positions))
        points = positions[self.reference.atom] + self.reference.offsets.astype(positions.dtype)
        # The curve goes through the molecule, not to atoms without points that fill it up; far
        # points have the places at its ends.
        around = positions[self.reference.atom]
        low, high = jnp.min(around, axis=0) - _AROUND, jnp.max(around, axis=0) + _AROUND
        cells = 2**_CURVE_BITS
        scaled = cells * (points - low[None]) / jnp.max(high - low)
        cell = jnp.clip(scaled, 0, cells - 1).astype(jnp.int32)
        place = jnp.zeros(len(points), jnp.int32)
        for bit in range(_CURVE_BITS):
            for axis in range(3):
                place = place | (((cell[:, axis] >> bit) & 1) << (3 * bit + axis))
        order = jnp.argsort(place)
        return Grid(jax.tree.map(lambda x: jnp.asarray(x)[order], self.reference), self.adjustment)

    def place(
        self,
        positions: Float[Array | np.ndarray, "natom 3"],
        part: GridPoints | None = None,
        weights: Float[Array, " npoint"] | None = None,
    ) -> tuple[Float[Array, "npoint 3"], Float[Array, " npoint"]]:
        """Points and weights at one geometry, differentiable in the positions.

        Values and derivatives need a few arrays of (points) x (atoms): give the points in parts to
        bound the memory.

        Args:
            positions: Nuclei, bohr. Their dtype decides.
            part: Points to place, all if left out.
            weights: Theirs, if they are known.

        Returns:
            Points, bohr, and weights w with sum_p w_p f(r_p) = integral of f, bohr^3.
        """
        part = self.reference if part is None else part
        positions = jnp.asarray(positions)
        dtype = positions.dtype
        atom = jnp.asarray(part.atom)
        points = _of_atoms(positions, atom) + jnp.asarray(part.offsets, dtype)
        if weights is not None:
            return points, weights
        shares = cell_shares(positions, points, atom, jnp.asarray(self.adjustment, dtype))
        return points, jnp.asarray(part.quadrature, dtype) * shares


def _of_atoms(positions, atom):
    """positions[atom]; on an accelerator as a product, whose derivative is one and adds nothing to
    the same places in turn."""
    if platform() == "cpu":
        return positions[atom]
    own = jax.nn.one_hot(atom, len(positions), dtype=positions.dtype)
    return jnp.dot(own, positions, precision="highest")
