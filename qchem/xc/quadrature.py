"""Exchange-correlation energy and potential, integrated over a grid in chunks of points."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from qchem.basis.evaluate import evaluate_rows, rounding_of_rows
from qchem.basis.layout import Basis
from qchem.basis.reach import Depths, Reach
from qchem.basis.rows import RowPlan, ao_of_row, plan_rows
from qchem.chunking import chunked_sum
from qchem.compilation import standing
from qchem.devices import MOLECULE, Share, spread
from qchem.grids import Grid, GridPoints

from .chunk import Density, Formula, Placement, energy_and_half_fock_of_chunk, energy_of_chunk
from .learned import AnyFunctional

_AO_DERIVATIVE = {"none": 0, "lda": 0, "gga": 1, "mgga": 1}
_NCOMPONENT = (1, 4)  # value, gradient


class GridXC(eqx.Module):
    """Exchange-correlation energy at one geometry, as a function of `dm`.

    Attributes:
        points: The grid's points, in chunks.
        adjustment: The grid's a_ij.
        positions: Nuclei, bohr. Grid points, Becke weights and AOs all follow them.
        ao: Stored AO values of all chunks; None if each use computes them anew.
        ao_dtype: Of AO values and their products; functionals, weights and sums have that of the
            positions.
        weights: Integration weights of all chunks, bohr³, for repeated use; None if none is seen.
        mesh: Devices that share the chunks; only energies and matrices meet.
        depths: How many shells of the basis have how many primitives.
        reach: How far they reach.
    """

    functional: AnyFunctional
    basis: Basis
    points: GridPoints
    adjustment: Float[Array | np.ndarray, "natom natom"]
    positions: Float[Array | np.ndarray, "natom 3"]
    ao: tuple[Float[Array, "nchunk nao chunk"], ...] | None
    weights: Float[Array, "nchunk chunk"] | None
    ao_dtype: jnp.dtype = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)
    depths: Depths = eqx.field(static=True)
    reach: Reach

    def __init__(
        self,
        functional: AnyFunctional,
        basis: Basis,
        grid: Grid,
        positions: Float[Array | np.ndarray, "natom 3"],
        *,
        chunk: int = 1024,
        storage_bytes: int = 0,
        ao_dtype: DTypeLike | None = None,
        mesh: Mesh | None = None,
        rows: RowPlan | None = None,
    ):
        """Integrator at `positions`.

        Args:
            chunk: How many points are held at once.
            storage_bytes: AO values are stored if all of a device fit. That spares meta-GGAs most
                of the time of repeated use at one geometry; LDAs and GGAs, whose values are made
                shell by shell where they are used, next to nothing. Derivatives in positions are
                the same either way, but with stored values they take several times that memory.
            ao_dtype: By default that of the positions.
            mesh: Devices that share the points, along an axis called "molecule".
            rows: Of the basis; needed where its arrays are traced, for padding not to count.
        """
        self.functional = functional
        rows = plan_rows(basis) if rows is None else rows
        self.basis = basis = rows.ordered(basis)
        self.depths = rows.depths
        self.mesh, ndevice = mesh, 1 if mesh is None else mesh.size
        chunk = min(chunk, -(-grid.reference.quadrature.size // ndevice)) if mesh else chunk
        self.adjustment = grid.adjustment
        self.positions = jnp.asarray(positions)
        self.reach = Reach.of_basis(basis, rows.capacities, self.positions.dtype)
        grid = grid.along_curve(self.positions) if self.reach.capacities else grid
        self.points = grid.chunks(chunk, ndevice)
        self.ao_dtype = jnp.dtype(self.positions.dtype if ao_dtype is None else ao_dtype)
        self.ao = self.weights = None
        ncomponent = _NCOMPONENT[_AO_DERIVATIVE[functional.ingredients]]
        nvalue = self.points.quadrature.size * ncomponent * basis.nao
        fits = nvalue // ndevice * self.ao_dtype.itemsize <= storage_bytes
        placement = (self.positions, basis, self.adjustment)
        if fits and functional.ingredients != "none":
            self.ao, self.weights = self._of_chunks(self._values, placement)
        elif self._by_rows:
            self.weights = self._of_chunks(_weights, placement)

    def energy(self, dm: Float[Array, "nspin nao nao"]) -> Float[Array, ""]:
        """Energy without exact exchange, hartree.

        Differentiable in `dm` and `positions`, to any order and in any mode, one chunk at a time.

        Args:
            dm: The total density matrix, or alpha and beta.
        """
        return self._energy(Density(_symmetric(dm)))

    def energy_of_orbitals(
        self,
        orbitals: Float[Array, "nspin nao nocc"],
        turn: Float[Array, "nspin nocc nocc"] | None = None,
    ) -> Float[Array, ""]:
        """`energy` of dm = C C^T with C = orbitals turn, which is quicker with few orbitals.

        Args:
            turn: Upper triangular; the unit matrix if left out. Where it alone moves, derivatives
                cost less.
        """
        across = jnp.swapaxes(orbitals, 1, 2)
        return self._energy(Density(orbitals=orbitals, turn=turn, transpose=across))

    def _energy(self, density):
        rung = self.functional.ingredients
        if rung == "none":
            return jnp.zeros((), self.positions.dtype)
        if self._by_rows:
            return self._energy_of_rows(density)

        def term(functional, dm, ao, weights):
            rho, sigma = density_and_gradient(dm, ao)
            tau = kinetic_energy_density(dm, ao) if rung == "mgga" else None
            values = jax.checkpoint(lambda *x: functional.energy_density(*x))  # hashable
            values = standing(values, rho, sigma, tau)
            return jnp.vdot(weights, values, precision="highest")

        return self._integrate(term, density)

    @property
    def _by_rows(self):
        """Whether sums over the rows of shells are written out."""
        return self.functional.ingredients in ("lda", "gga") and self.ao is None

    def _energy_of_rows(self, density):
        of_chunk, learned, placement = self._rows_of(energy_of_chunk)
        return self._sum(of_chunk, (learned, self._in_rows(density), placement), self.points)

    def _energy_and_fock_of_rows(self, factor):
        of_chunk, learned, placement = self._rows_of(energy_and_half_fock_of_chunk)
        across = jnp.swapaxes(factor, 1, 2)
        density = self._in_rows(Density(orbitals=factor, transpose=across))
        share, shape = Share.of(self.mesh), (*factor.shape[:2], factor.shape[1])

        def total(params, chunks):
            again = jax.checkpoint(of_chunk)  # in reverse mode

            def step(sums, part):
                return jax.tree.map(jnp.add, sums, again(params, part)), None

            zero = jnp.zeros((), self.positions.dtype), jnp.zeros(shape, self.positions.dtype)
            return jax.tree.map(share.total, jax.lax.scan(step, zero, chunks)[0])

        chunks = jax.tree.map(jnp.asarray, self.points), self.weights
        energy, half = self._spread(total, P())((learned, density, placement), chunks)
        scale = self._rounding
        if scale is not None:
            half = half * (scale[:, None] * scale[None])[None]
        aos = jnp.arange(factor.shape[1], dtype=jnp.int32)
        row = jnp.zeros_like(aos).at[ao_of_row(self.basis)].set(aos, unique_indices=True)
        half = half[:, row[:, None], row[None]]
        return energy, half + jnp.swapaxes(half, 1, 2)

    def _rows_of(self, function):
        """A function of a chunk with what is static filled in, what is learned, the placement."""
        learned, fixed = eqx.partition(self.functional, eqx.is_array)

        def energy_density(learned, *ingredients):
            return eqx.combine(learned, fixed).energy_density(*ingredients, None)

        gradient = _AO_DERIVATIVE[self.functional.ingredients] > 0
        formula = Formula(energy_density, gradient, self.ao_dtype, self.depths)
        placement = Placement(self.positions, self.basis, self.adjustment, self.reach)

        return lambda params, part: function(formula, *params, part), learned, placement

    def _in_rows(self, density):
        """The AOs in the order of `ao_of_row`, normalized where their values are rounded."""
        return density.in_columns(ao_of_row(self.basis), self._rounding)

    @property
    def _rounding(self):
        """What brings AOs back to their norm, of each row; None where they are not rounded."""
        if self.ao_dtype == self.positions.dtype:
            return None
        return rounding_of_rows(self.basis, self.positions.dtype, self.ao_dtype)

    def energy_and_fock(
        self,
        dm: Float[Array, "nspin nao nao"],
        factor: Float[Array, "nspin nao nocc"] | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, "nspin nao nao"]]:
        """Energy, hartree, and its symmetric derivative dE/d(dm).

        Args:
            dm: As for `energy`.
            factor: If dm = factor factor^T with few columns, this spares operations.
        """
        few = factor is not None and 2 * factor.shape[2] < factor.shape[1]
        if few and self._by_rows:
            return self._energy_and_fock_of_rows(factor)
        return jax.value_and_grad(self.energy)(dm)

    def nelectron(self, dm: Float[Array, "nspin nao nao"]) -> Float[Array, ""]:
        """The integral of the density: how far the grid is from exact, in electrons."""

        def term(_, dm, ao, weights):
            rho, _ = density_and_gradient(dm, ao[:1])
            return jnp.vdot(weights, jnp.sum(rho, axis=0), precision="highest")

        return self._integrate(term, Density(_symmetric(dm)))

    def _integrate(self, term, density):
        dm = self._in_rows(density).as_matrix()
        # What a functional has learned is a parameter of the sum; the rest of it is not an array.
        learned, fixed = eqx.partition(self.functional, eqx.is_array)

        def stored(params, values):
            learned, dm = params
            return term(eqx.combine(learned, fixed), dm, *values)

        def recomputed(params, part):
            learned, dm, placement = params
            return term(eqx.combine(learned, fixed), dm, *self._values(placement, part))

        if self.ao is not None:
            return self._sum(stored, (learned, dm), (self.ao, self.weights))
        placement = (self.positions, self.basis, self.adjustment)
        return self._sum(recomputed, (learned, dm, placement), self.points)

    def _sum(self, f, params, chunks):
        share = Share.of(self.mesh)
        total = lambda params, chunks: share.total(chunked_sum(f, params, chunks))  # noqa: E731
        return self._spread(total, P())(params, chunks)

    def _spread(self, f, out_specs):
        """f(what all devices have, chunks) with the chunks shared."""
        if self.mesh is None:
            return f
        spreading = spread(f, self.mesh, (P(), P(MOLECULE)), out_specs)
        return lambda shared, chunks: spreading(shared, jax.tree.map(jnp.asarray, chunks))

    def _of_chunks(self, values, placement):
        """Values of each chunk, stacked; derivatives hold one chunk."""
        of_chunks = lambda placement, points: jax.lax.map(  # noqa: E731
            jax.checkpoint(partial(values, placement)), points
        )
        return self._spread(of_chunks, P(MOLECULE))(placement, self.points)

    def _values(self, placement, part: GridPoints):
        """AO values and weights of one chunk."""
        positions, basis, adjustment = placement
        points, weights = Grid(part, adjustment).place(positions)
        derivative = _AO_DERIVATIVE[self.functional.ingredients]
        how = derivative, self.ao_dtype, self.depths
        return evaluate_rows(basis, positions, points, *how), weights


def _weights(placement, part):
    positions, _, adjustment = placement
    return Grid(part, adjustment).place(positions)[1]


@eqx.filter_custom_vjp
def xc_potential(xc_and_dm):
    """dE/d(dm) of an integrator and a density matrix, for reverse mode alone.

    Its derivative is the gradient of the energy's change along the cotangent, which costs about as
    much as a gradient of the energy; reverse mode through that gradient costs several times more.
    """
    xc, dm = xc_and_dm
    return jax.grad(xc.energy)(dm)


@xc_potential.def_fwd
def _xc_potential_fwd(perturbed, xc_and_dm):
    return xc_potential(xc_and_dm), None


@xc_potential.def_bwd
def _xc_potential_bwd(residuals, cotangent, perturbed, xc_and_dm):
    moving, fixed = eqx.partition(xc_and_dm, perturbed)

    def change(moving):
        xc, dm = eqx.combine(moving, fixed)
        return jax.jvp(xc.energy, (dm,), (cotangent,))[1]

    return jax.grad(change)(moving)


def density_and_gradient(
    dm: Float[Array, "nspin nao nao"], ao: tuple[Float[Array, "nao npoint"], ...]
) -> tuple[Float[Array, "nspin npoint"], Float[Array, "nsigma npoint"] | None]:
    """rho and, where AO gradients are given, sigma, as functionals take them; dtype of `dm`."""
    half = [jnp.dot(d.astype(ao[0].dtype), ao[0], precision="highest") for d in dm]
    rho = jnp.stack([_sum_of_products(ao[0], h) for h in half]).astype(dm.dtype)
    if len(ao) == 1:
        return rho, None
    gradient = [[2 * _sum_of_products(x, h).astype(dm.dtype) for x in ao[1:]] for h in half]
    pairs = [(i, j) for i in range(len(dm)) for j in range(i, len(dm))]
    sigma = [sum(a * b for a, b in zip(gradient[i], gradient[j])) for i, j in pairs]
    return rho, jnp.stack(sigma)


def kinetic_energy_density(
    dm: Float[Array, "nspin nao nao"], ao: tuple[Float[Array, "nao npoint"], ...]
) -> Float[Array, "nspin npoint"]:
    """tau = ½ Σ_mn dm_mn grad m · grad n of each row of `dm`, hartree/bohr³."""
    taus = []
    for d in dm:
        d = d.astype(ao[0].dtype)
        terms = [_sum_of_products(x, jnp.dot(d, x, precision="highest")) for x in ao[1:]]
        taus.append(sum(terms) / 2)
    return jnp.stack(taus).astype(dm.dtype)


def _symmetric(dm):
    return (dm + jnp.swapaxes(dm, -1, -2)) / 2


def _sum_of_products(a, b):
    """Sum over the AOs, at each point; a product is quicker than a sum."""
    return jnp.dot(jnp.ones(len(a), a.dtype), a * b, precision="highest")
