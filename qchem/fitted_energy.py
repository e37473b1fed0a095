"""Coulomb and exchange energy of given orbitals in density fitting, and its derivatives."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from qchem.derivatives import jvp_of_moving, triangular_quotient
from qchem.devices import ALONE, Share, spread
from qchem.fitted_jk import PLACES, Fit, filled_columns, fitting_arrays, over_columns
from qchem.integrals.auxiliary import auxiliary_columns
from qchem.integrals.fitting import weighted_fitting
from qchem.integrals.moments import packed_density, unpack
from qchem.integrals.pairs import Distribution, attenuated
from qchem.integrals.shared import Auxiliary, from_device_order, own_lists
from qchem.jk import ExchangeWeights, over_ranges
from qchem.metric import lower_factor, separated, solved


def fitted_energy(
    pairs: tuple[Distribution, ...],
    aux: Auxiliary,
    factor: Float[Array, "nspin nao nocc"],
    naux: int,
    coulomb: float,
    exchange: float | ExchangeWeights,
    mesh: Mesh | None = None,
    dtype: DTypeLike | None = None,
    turn: Float[Array, "nspin nocc nocc"] | None = None,
    fitted: tuple[Fit, ...] | None = None,
) -> Float[Array, ""]:
    """Weighted Coulomb and exchange energy in density fitting, as `coulomb_energy` counts it.

    The orbitals contract (ab|P) to the charge q_P of the density and to (ij|P) of their own
    products; the metric meets only these. The derivative contracts derivatives of (ab|P) and (P|Q)
    with their weights in the energy, tile by tile: none is ever stored.

    Args:
        mesh: Devices that share the auxiliary functions.
        dtype: Of products in the derivative; by default that of the orbitals. Not of (ij|P),
            whose rounding V^-1 would enlarge.
        turn: If given, the orbitals are `factor` times this matrix, which is upper triangular; see
            `qchem.scf.orbitals.held_and_turn`.
        fitted: If given, those of each interaction from the same lists, as `DensityFittedJK` has
            them: no integrals need be made anew. Constant to derivatives, of which the first
            are right all the same.
    """
    if not isinstance(exchange, ExchangeWeights):
        exchange = ExchangeWeights(exchange)
    share = Share.of(mesh)

    def energy(pairs, aux, *orbitals):
        how = naux, coulomb, exchange, share, dtype
        return _fitted_energy(*how, pairs, aux, own_lists(aux, share), *orbitals)

    known = None if fitted is None else (PLACES,) * len(fitted)
    spreading = spread(energy, mesh, (P(), P(), P(), P(), known), P())
    return spreading(pairs, aux, factor, turn, jax.lax.stop_gradient(fitted))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3, 4))
def _fitted_energy(naux, coulomb, exchange, share, dtype, pairs, aux, own, factor, turn, fitted):
    factor = _turned(factor, turn)
    lists = pairs, aux, own
    ranges = _integrals(factor.shape[1], naux, exchange.omega, share, lists, fitted)
    return sum(
        _Contracted.build(*both, factor, *weights, share, dtype, fitted is not None).energy
        for both, weights in zip(ranges, _weights(coulomb, exchange))
    )


def _fitted_energy_jvp(naux, coulomb, exchange, share, dtype, primals, tangents):
    *lists, held, turn, fitted = primals
    *of_lists, of_held, of_turn, _ = tangents
    still = lambda dots: all(isinstance(x, SymbolicZero) for x in jax.tree.leaves(dots))  # noqa: E731
    moving = not still((of_held, of_turn))
    within = still(of_held) and moving
    factor = _turned(held, turn)
    ranges = _integrals(factor.shape[1], naux, exchange.omega, share, lists, fitted)
    energies, of_orbitals, slopes = [], [], []
    for fit, weights in zip(ranges, _weights(coulomb, exchange)):
        known = fitted is not None
        contracted = _Contracted.build(*fit, factor, *weights, share, dtype, known)
        energies.append(contracted.energy)
        # In this order: the slope in the columns takes their memory.
        if moving:
            slope = contracted.slope_within if within else contracted.factor_slope
            of_orbitals.append(slope(fit.columns, factor))
        slopes.append((contracted.column_slope(fit.columns, factor), contracted.metric_slope()))
    if exchange.omega < 0:  # the second is 1/r less erf(|omega| r)/r
        whole, rest = slopes
        slopes = [tuple(a + b for a, b in zip(whole, rest)), tuple(-b for b in rest)]

    energy = sum(energies)
    tangent = jnp.zeros_like(energy)
    if not still(of_lists):
        weighted = lambda *lists: _weighted_ranges(share, *lists, slopes, exchange.omega)  # noqa: E731
        tangent = jvp_of_moving(weighted, tuple(lists), tuple(of_lists))[1]
    if moving:
        change = (
            triangular_quotient(turn, of_turn)
            if within
            else jvp_of_moving(_turned, (held, turn), (of_held, of_turn))[1]
        )
        slope = share.total(sum(of_orbitals))
        tangent = tangent + jnp.vdot(slope, change, precision="highest")
    return energy, tangent


_fitted_energy.defjvp(_fitted_energy_jvp, symbolic_zeros=True)


def _integrals(nao, naux, omega, share, lists, fitted):
    """(ab|P), or B where it is known, and L of each interaction."""
    if fitted is not None:
        return fitted
    integrals = partial(fitting_arrays, nao, naux, share=share)
    ranges = separated(*over_ranges(integrals, omega, *lists), omega)
    return tuple(Fit(three, lower_factor(two)) for three, two in ranges)


def _weights(coulomb, exchange):
    """Of Coulomb and exchange energy, for each interaction."""
    return (coulomb, exchange.full), (0.0, exchange.attenuated)


class _Contracted(eqx.Module):
    """Coulomb and exchange energy of one interaction, and its derivatives.

    E = c/2 q V^-1 q - k/2 sum_sij (ij|V^-1|ij), with the metric V = L L^T. Columns are (ab|P), or B
    = (ab|P) L^-T where it is known.

    Attributes:
        energy: E.
        charge, products: q_P and (ij|P) times V^-1, of a device's own P.
        integrals: (ij|P), or (ij|P) L^-T, from the columns.
        dual: What sums over P with the columns take: `charge` and `products`, or of B q L^-T and
            `integrals`.
    """

    energy: Float[Array, ""]
    charge: Float[Array, " own"]
    products: Float[Array, "nspin nocc nocc own"]
    integrals: Float[Array, "nspin nocc nocc own"]
    dual: tuple[Float[Array, " own"], Float[Array, "nspin nocc nocc own"]]
    coulomb: float = eqx.field(static=True)
    exchange: float = eqx.field(static=True)
    share: Share = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)  # of products in the slopes

    @classmethod
    def build(
        cls, columns, lower, factor, coulomb, exchange, share=ALONE, dtype=None, known=False
    ) -> _Contracted:
        """From (ab|P), or B if it is known, L and orbitals."""
        nspin, nao, nocc = factor.shape
        own = columns.shape[1]
        fit = (lambda x: x) if known else partial(solved, lower, transpose_a=True)  # times L^-T
        charge = jnp.dot(_density(factor), columns, precision="highest")
        charge = fit(share.whole(charge)[None])
        of_fitted = share.part(charge[0])
        energy = 0.5 * coulomb * jnp.sum(charge**2)
        charge = share.part(solved(lower, charge, transpose_a=False)[0])
        products = integrals = jnp.zeros((nspin, nocc, nocc, own), factor.dtype)
        if exchange:

            def add(products, start, part):
                half = jnp.swapaxes(_transformed(factor, part[None]), 1, 2)
                part = _transformed(factor, half)
                return jax.lax.dynamic_update_slice_in_dim(products, part, start, 3)

            integrals = over_columns(add, products, columns, nao, factor.dtype)
            rows = fit(share.to_rows(integrals.reshape(-1, own)))
            energy = energy - 0.5 * exchange * share.total(jnp.sum(rows**2))
            rows = solved(lower, rows, transpose_a=False)
            products = share.to_columns(rows, nspin * nocc**2).reshape(products.shape)
        dual = (of_fitted, integrals) if known else (charge, products)
        dtype = jnp.dtype(factor.dtype if dtype is None else dtype)
        return cls(energy, charge, products, integrals, dual, coulomb, exchange, share, dtype)

    def metric_slope(self) -> Float[Array, "naux naux"]:
        """dE/d(P|Q)."""
        charge = self.share.whole(self.charge)
        slope = -0.5 * self.coulomb * charge[:, None] * charge[None]
        if self.exchange:
            rows = self.share.to_rows(self.products.reshape(-1, self.charge.size))
            square = self.share.total(jnp.dot(rows.T, rows, precision="highest"))
            slope = slope + 0.5 * self.exchange * square
        return slope

    def slope_within(self, columns, factor):
        """dE/dx of a change dC = C x of the orbitals, which needs (ij|P) and no other integrals."""
        if not self.exchange:
            slope = self._coulomb_slope(columns, factor)
            return jnp.einsum("sai,saj->sij", factor, slope, precision="highest")
        charge, products = self.dual
        slope = self.coulomb * jnp.dot(self.integrals, charge, precision="highest")
        both = self.integrals, products
        exchange = jnp.einsum("sijp,skjp->sik", *both, precision="highest")
        return 2 * (slope - self.exchange * exchange)

    def _coulomb_slope(self, columns, factor):
        matrix = unpack(jnp.dot(columns, self.dual[0], precision="highest"), factor.shape[1])
        return 2 * self.coulomb * jnp.einsum("ab,sbi->sai", matrix, factor, precision="highest")

    def _half(self, products, factor, start, size):
        """sum_i C_ai of the products as (s, j, a, P): what is summed next goes over its ends."""
        products = jax.lax.dynamic_slice_in_dim(products, start, size, 3)
        short = jnp.swapaxes(factor.astype(self.dtype), 1, 2)
        return jnp.swapaxes(_transformed(short, products.astype(self.dtype)), 1, 2)

    def factor_slope(self, columns, factor):
        """dE/d(factor)."""
        nao = factor.shape[1]
        of_factor = self._coulomb_slope(columns, factor)
        if not self.exchange:
            return of_factor

        def add(of_factor, start, part):
            right = self._half(self.dual[1], factor, start, part.shape[2])
            right = right.reshape(*right.shape[:2], -1)
            part = jnp.einsum("bx,sjx->sbj", part.reshape(nao, -1), right, precision="highest")
            return of_factor - 2 * self.exchange * part.astype(factor.dtype)

        return over_columns(add, of_factor, columns, nao, self.dtype)

    def column_slope(self, columns, factor):
        """dE/d(ab|P), each pair of AOs once, in the memory of the columns."""
        nao = factor.shape[1]
        density = _density(factor)[:, None]
        if not self.exchange:
            return self.coulomb * density * self.charge[None]
        i, j = np.tril_indices(nao)
        twice = jnp.asarray(np.where(i == j, 1.0, 2.0), factor.dtype)[:, None]
        short = factor.astype(self.dtype)

        def slope(start, size):
            right = self._half(self.products, factor, start, size)
            square = jnp.einsum("sbj,sjap->bap", short, right, precision="highest")
            square = square.astype(factor.dtype)[i, j]
            charge = jax.lax.dynamic_slice_in_dim(self.charge, start, size)
            return self.coulomb * density * charge[None] - self.exchange * twice * square

        return filled_columns(slope, columns, nao, self.dtype)


def _turned(held, turn):
    return held if turn is None else jnp.matmul(held, turn, precision="highest")


def _transformed(matrix, x):
    """sum_b matrix_sbi x_sb.. of each spin; x may be the same for both."""
    each = lambda matrix, x: jnp.tensordot(matrix.T, x, 1, precision="highest")  # noqa: E731
    if len(x) < len(matrix):
        return jax.vmap(each, (0, None))(matrix, x[0])
    return jax.vmap(each)(matrix, x)


def _density(factor):
    """The total density matrix, packed."""
    return packed_density(jnp.einsum("sai,sbi->ab", factor, factor, precision="highest"))


def _weighted_ranges(share, pairs, aux, own, weights, omega):
    """Sum of weights, of three- and two-index integrals, times the integrals of `over_ranges`."""

    def term(pairs, aux, own, three, two):
        arrays = _in_lists(aux, three, two, share)
        return share.total(weighted_fitting(pairs, aux, own, *arrays, share))

    if omega == 0:
        return term(pairs, aux, own, *weights[0])
    three, two = (jnp.stack(parts) for parts in zip(*weights, strict=True))
    inverse = jnp.asarray([0.0, omega**-2], three.dtype)
    terms = jax.lax.map(
        lambda x: term(*(attenuated(rows, x[0]) for rows in (pairs, aux, own)), x[1], x[2]),
        (inverse, three, two),
    )
    return jnp.sum(terms)


def _in_lists(aux, three, two, share):
    """Weights of the integrals in the order of the lists: the reverse of `fitting_arrays`."""
    if not share.alone:
        return three, from_device_order(two, aux, share)
    naux, width = two.shape[0], sum(rows.index.size for rows in aux)
    if naux == width:
        return three, two
    columns = auxiliary_columns(aux, naux)
    three = jnp.zeros((three.shape[0], width), three.dtype).at[:, columns].set(three)
    return three, jnp.zeros((width, width), two.dtype).at[columns[:, None], columns[None]].set(two)
