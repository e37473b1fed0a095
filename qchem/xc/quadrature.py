"""Exchange-correlation energy and potential, integrated over a grid in chunks of points."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.basis.evaluate import evaluate_ao
from qchem.basis.layout import Basis
from qchem.chunking import chunked_sum
from qchem.grids import Grid, GridPoints

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
        weights: Integration weights of all chunks, bohr³; None likewise.
    """

    functional: AnyFunctional
    basis: Basis
    points: GridPoints
    adjustment: Float[Array | np.ndarray, "natom natom"]
    positions: Float[Array | np.ndarray, "natom 3"]
    ao: Float[Array, "nchunk ncomponent chunk nao"] | None
    weights: Float[Array, "nchunk chunk"] | None

    def __init__(
        self,
        functional: AnyFunctional,
        basis: Basis,
        grid: Grid,
        positions: Float[Array | np.ndarray, "natom 3"],
        *,
        chunk: int = 1024,
        storage_bytes: int = 0,
    ):
        """Integrator at `positions`.

        Args:
            chunk: How many points are held at once.
            storage_bytes: AO values are stored if all of them fit. That spares most of the time of
                repeated use at one geometry. Derivatives in positions are the same either way,
                but with stored values they take several times that memory.
        """
        self.functional = functional
        self.basis = basis
        self.points = grid.chunks(chunk)
        self.adjustment = grid.adjustment
        self.positions = jnp.asarray(positions)
        self.ao = self.weights = None
        ncomponent = _NCOMPONENT[_AO_DERIVATIVE[functional.ingredients]]
        nvalue = self.points.quadrature.size * ncomponent * basis.nao
        fits = nvalue * self.positions.dtype.itemsize <= storage_bytes
        if fits and functional.ingredients != "none":
            placement = (self.positions, basis, self.adjustment)
            self.ao, self.weights = jax.lax.map(partial(self._values, placement), self.points)

    def energy(self, dm: Float[Array, "nspin nao nao"]) -> Float[Array, ""]:
        """Energy without exact exchange, hartree.

        Differentiable in `dm` and `positions`, to any order and in any mode, one chunk at a time.

        Args:
            dm: The total density matrix, or alpha and beta.
        """
        if self.functional.ingredients == "none":
            return jnp.zeros((), self.positions.dtype)

        def term(functional, dm, ao, weights):
            rho, sigma = density_and_gradient(dm, ao)
            tau = kinetic_energy_density(dm, ao) if functional.ingredients == "mgga" else None
            return jnp.vdot(weights, functional.energy_density(rho, sigma, tau))

        return self._integrate(term, dm)

    def energy_and_fock(
        self, dm: Float[Array, "nspin nao nao"]
    ) -> tuple[Float[Array, ""], Float[Array, "nspin nao nao"]]:
        """Energy, hartree, and its symmetric derivative dE/d(dm)."""
        return jax.value_and_grad(self.energy)(dm)

    def nelectron(self, dm: Float[Array, "nspin nao nao"]) -> Float[Array, ""]:
        """The integral of the density: how far the grid is from exact, in electrons."""

        def term(_, dm, ao, weights):
            rho, _ = density_and_gradient(dm, ao[:1])
            return jnp.vdot(weights, jnp.sum(rho, axis=0))

        return self._integrate(term, dm)

    def _integrate(self, term, dm):
        dm = (dm + jnp.swapaxes(dm, -1, -2)) / 2
        # What a functional has learned is a parameter of the sum; the rest of it is not an array.
        learned, fixed = eqx.partition(self.functional, eqx.is_array)

        def stored(params, values):
            learned, dm = params
            return term(eqx.combine(learned, fixed), dm, *values)

        def recomputed(params, part):
            learned, dm, placement = params
            return term(eqx.combine(learned, fixed), dm, *self._values(placement, part))

        if self.ao is not None:
            return chunked_sum(stored, (learned, dm), (self.ao, self.weights))
        placement = (self.positions, self.basis, self.adjustment)
        return chunked_sum(recomputed, (learned, dm, placement), self.points)

    def _values(self, placement, part: GridPoints):
        """AO values and weights of one chunk."""
        positions, basis, adjustment = placement
        points, weights = Grid(part, adjustment).place(positions)
        derivative = _AO_DERIVATIVE[self.functional.ingredients]
        return evaluate_ao(basis, positions, points, derivative), weights


def density_and_gradient(
    dm: Float[Array, "nspin nao nao"], ao: Float[Array, "ncomponent npoint nao"]
) -> tuple[Float[Array, "nspin npoint"], Float[Array, "nsigma npoint"] | None]:
    """rho and, where AO gradients are given, sigma, as functionals take them."""
    half = jnp.einsum("gm,smn->sgn", ao[0], dm, precision="highest")
    # One contraction per spin: XLA's batched product is faster than multiplying and summing.
    rho = jnp.stack([jnp.einsum("xgn,gn->xg", ao, h, precision="highest") for h in half])
    if len(ao) == 1:
        return rho[:, 0], None
    gradient = 2 * rho[:, 1:]
    pairs = [(i, j) for i in range(len(dm)) for j in range(i, len(dm))]
    sigma = jnp.stack([jnp.sum(gradient[i] * gradient[j], axis=0) for i, j in pairs])
    return rho[:, 0], sigma


def kinetic_energy_density(
    dm: Float[Array, "nspin nao nao"], ao: Float[Array, "ncomponent npoint nao"]
) -> Float[Array, "nspin npoint"]:
    """tau = ½ Σ_mn dm_mn grad m · grad n of each row of `dm`, hartree/bohr³."""
    half = jnp.einsum("xgm,smn->sxgn", ao[1:], dm, precision="highest")
    return jnp.stack([jnp.einsum("xgn,xgn->g", ao[1:], h, precision="highest") / 2 for h in half])
