"""Kohn-Sham energy and Fock matrix of given orbitals, built from positions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from qchem.basis.layout import Basis
from qchem.basis.rows import RowPlan, plan_rows
from qchem.compilation import platform, together
from qchem.coulomb_fitting import FittedCoulomb, fitted_coulomb_energy
from qchem.devices import MOLECULE, mesh_for
from qchem.dispersion import Dispersion
from qchem.fitted_energy import fitted_energy
from qchem.fitted_jk import DensityFittedJK, Fit
from qchem.grids import Grid
from qchem.integrals.moments import packed_density, packed_dipole, packed_moment, unpack
from qchem.integrals.pairs import (
    PairRows,
    attenuated,
    auxiliary_distributions,
    charge_distribution,
    npair,
    pair_expansions,
    plan_pairs,
)
from qchem.integrals.potential import potential, potential_energy
from qchem.integrals.shared import filled_width
from qchem.integrals.solid import SolidRows, plan_solid, solid_shells
from qchem.jk import AbstractJK, DirectJK, ExchangeWeights, PackedJK, exact_energy
from qchem.linear_algebra import keep_lapack_on_one_thread
from qchem.precision import Precision, in_dtype
from qchem.scf.guess import screened_charges
from qchem.scf.orbitals import density_matrix, held_and_turn
from qchem.xc.learned import AnyFunctional
from qchem.xc.nonlocal_correlation import NonlocalCorrelation, SummedXC
from qchem.xc.quadrature import GridXC, xc_potential

# Parts of the total; the last one only where the functional has it.
ENERGIES = ("nuclear", "one_electron", "coulomb", "exchange", "xc", "dispersion")
TwoElectron = Literal["exact", "df"]
_CHUNK = 240  # grid points, on a CPU: what its caches hold, and rows of arrays not a power of two
# apart, which would share the same few places in them
_AO_BYTES = 1 << 27  # of AOs at a chunk's points on an accelerator, of all geometries held at once
NONLOCAL_LEVEL = 3  # grid of VV10
_PART_FOR_DERIVATIVES = 4  # of `stored_bytes`
STORED_BYTES = 2 << 30  # of integrals, and of AO values of meta-GGAs, kept for all cycles


_product = partial(jnp.matmul, precision="highest")


class Hamiltonian(eqx.Module):
    """Kohn-Sham energy at one geometry, as a function of occupied orbitals.

    Orbitals come as a `factor`: occupied columns times the square root of their occupation, so
    that dm_s = factor_s factor_s^T. The exact exchange is `exchange_fraction` times that of `jk`
    and, with range separation, `attenuated_fraction` times that of `attenuated_jk`. `dipole` holds
    the matrices of x, y and z, bohr.
    """

    overlap: Float[Array, "nao nao"]
    kinetic: Float[Array, "nao nao"]
    hcore: Float[Array, "nao nao"]
    dipole: Float[Array, "3 nao nao"]
    jk: AbstractJK
    xc: GridXC | SummedXC | None
    nuclear_repulsion: Float[Array, ""]
    exchange_fraction: float = eqx.field(static=True)
    attenuated_jk: AbstractJK | None = None
    attenuated_fraction: float = eqx.field(static=True, default=0.0)
    dispersion: Float[Array, ""] | None = None

    def energies(self, factor: Float[Array, "nspin nao nocc"]) -> dict[str, Float[Array, ""]]:
        """The parts of the total energy, hartree."""
        energies, _ = self._without_xc(factor)
        if self.xc is not None:
            energies["xc"] = self.xc.energy_of_orbitals(factor)
        return energies

    def energy(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, ""]:
        """Total energy, hartree."""
        return sum(self.energies(factor).values())

    def energy_and_fock(
        self, factor: Float[Array, "nspin nao nocc"]
    ) -> tuple[Float[Array, ""], Float[Array, "nspin nao nao"]]:
        """Total energy and dE/d(dm) of each spin, hartree; half the derivative dE/d(factor) is
        the Fock matrix times the factor."""
        energies, fock = self.energies_and_fock(factor)
        return sum(energies.values()), fock

    def energies_and_fock(
        self, factor: Float[Array, "nspin nao nocc"]
    ) -> tuple[dict[str, Float[Array, ""]], Float[Array, "nspin nao nao"]]:
        """`energies`, and the Fock matrix as in `energy_and_fock`, hartree."""
        energies, fock = self._without_xc(factor)
        if self.xc is not None:
            energies["xc"], of_xc = self.xc.energy_and_fock(density_matrix(factor), factor)
            fock = fock + of_xc
        return energies, fock

    def fock(self, factor: Float[Array, "nspin nao nocc"]) -> Float[Array, "nspin nao nao"]:
        """The Fock matrix of `energy_and_fock`, to be differentiated in reverse mode alone."""
        _, fock = self._without_xc(factor)
        return fock if self.xc is None else fock + xc_potential((self.xc, density_matrix(factor)))

    def exchange(
        self, factor: Float[Array, "nspin nao nocc"]
    ) -> Float[Array, "nspin nao nao"] | None:
        """What exact exchange takes from the Fock matrix, hartree; None without any."""
        parts = (self.exchange_fraction, self.jk), (self.attenuated_fraction, self.attenuated_jk)
        matrices = [fraction * jk.exchange(factor) for fraction, jk in parts if fraction]
        return sum(matrices) * (0.5 * factor.shape[0]) if matrices else None

    def _without_xc(self, factor):
        dm = density_matrix(factor)
        density = jnp.sum(dm, axis=0)
        coulomb = self.jk.coulomb(density)
        fock = jnp.broadcast_to((self.hcore + coulomb)[None], dm.shape)
        energies = {
            "nuclear": self.nuclear_repulsion,
            "one_electron": jnp.vdot(self.hcore, density, precision="highest"),
            "coulomb": 0.5 * jnp.vdot(coulomb, density, precision="highest"),
            "exchange": jnp.zeros_like(self.nuclear_repulsion),
            "xc": jnp.zeros_like(self.nuclear_repulsion),
        }
        if self.dispersion is not None:
            energies["dispersion"] = self.dispersion
        exchange = self.exchange(factor)
        if exchange is not None:
            energies["exchange"] = -0.5 * jnp.vdot(exchange, dm, precision="highest")
            fock = fock - exchange
        return energies, fock


class Method(eqx.Module):
    """All that defines a calculation except the positions: atoms, basis, functional, integrals.

    Built once per molecule family; everything it does is a pure function of positions.
    """

    numbers: tuple[int, ...] = eqx.field(static=True)
    basis: Basis
    aux: Basis | None
    functional: AnyFunctional
    grid: Grid | None
    nonlocal_grid: Grid | None
    charges: Float[Array | np.ndarray, " natom"]
    field: Float[Array | np.ndarray, " 3"] | None
    pairs: tuple[PairRows, ...]
    rows: RowPlan
    fitting: tuple[SolidRows, ...]
    screened: tuple[np.ndarray | Array, np.ndarray | Array]
    dispersion: Dispersion | None
    two_electron: Literal["exact", "direct", "df"] = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)
    stored_bytes: int = eqx.field(static=True)
    precision: Precision = eqx.field(static=True, default="double")
    mesh: Mesh | None = eqx.field(static=True, default=None)

    @classmethod
    def build(
        cls,
        numbers: tuple[int, ...],
        basis: Basis,
        functional: AnyFunctional,
        *,
        aux: Basis | None = None,
        grid: Grid | None = None,
        nonlocal_grid: Grid | None = None,
        field: Float[Array | np.ndarray, " 3"] | None = None,
        charge: int = 0,
        chunk: int | None = None,
        stored_bytes: int = STORED_BYTES,
        precision: Precision = "double",
    ) -> Method:
        """Plans the integrals.

        Args:
            numbers: Atomic numbers.
            basis: Of the orbitals.
            functional: Exchange and correlation.
            aux: Density fitting with this basis; without, exact integrals.
            grid: For exchange and correlation; not needed by Hartree-Fock.
            nonlocal_grid: For VV10, where the functional has it; `NONLOCAL_LEVEL` if left out.
            field: A uniform electric field, hartree/(e bohr): the energy gains minus its product
                with the dipole moment about the origin of the coordinates.
            charge: Of the molecule, for a dispersion correction that depends on it.
            chunk: Grid points held at once; by default what suits the device.
            stored_bytes: Exact integrals, (ab|P) of functionals without exact exchange, and AO
                values of meta-GGAs on the grid are kept for all cycles where each takes no more
                than this; else they are made again in each. Of each device, but of all cores
                together.
            precision: "mixed" keeps fitted integrals and AO values, and multiplies both, in
                float32, for positions in float64; see docs/precision.md.
        """
        if platform() == "cpu":
            keep_lapack_on_one_thread()
        if not functional.nonlocal_correlation:
            nonlocal_grid = None
        elif nonlocal_grid is None:
            nonlocal_grid = Grid.from_numbers(numbers, NONLOCAL_LEVEL)
        terms = functional.dispersion
        npacked = npair(npair(basis.nao))
        nstored = npacked * (2 if functional.omega else 1)
        exact = "exact" if 8 * nstored <= stored_bytes and npacked < 2**31 else "direct"
        return cls(
            numbers=numbers,
            basis=basis,
            aux=aux,
            functional=functional,
            grid=grid if functional.ingredients != "none" else None,
            nonlocal_grid=nonlocal_grid,
            charges=np.asarray(numbers, dtype=float),
            field=field,
            pairs=plan_pairs(basis, fitted=aux is not None),
            rows=plan_rows(basis),
            fitting=() if aux is None else plan_solid(aux),
            screened=screened_charges(numbers),
            dispersion=Dispersion.build(terms, numbers, charge) if terms else None,
            two_electron="df" if aux is not None else exact,
            chunk=chunk,
            stored_bytes=stored_bytes,
            precision=precision,
        )

    def on(self, mesh: Mesh | None) -> Method:
        """The same with integrals and grid shared by devices, along an axis "molecule"."""
        return replace(self, mesh=mesh_for(mesh, MOLECULE))

    def hamiltonian(
        self, positions: Float[Array, "natom 3"], *, reverse: bool = False
    ) -> tuple[Hamiltonian, Float[Array, "nao nao"]]:
        """The Hamiltonian at one geometry, and the Fock matrix of superposed atomic potentials.

        Args:
            reverse: For a few Fock matrices, made by `Hamiltonian.fock`, that are differentiated in
                reverse mode alone, if at all: AO values are not stored, and derivatives cost less.
        """
        self = in_dtype(self, positions.dtype)
        size = npair(self.basis.nao)
        pairs, kinetic = pair_expansions(self.basis, self.pairs, positions)
        overlap = packed_moment(pairs, size, (0, 0, 0), jnp.zeros(3, positions.dtype))
        attraction = potential(pairs, self._nuclei(positions), size, self.mesh)
        charges, widths = (jnp.asarray(x, positions.dtype) for x in self.screened)
        screening = charge_distribution(-charges, widths, positions)
        screened = potential(pairs, screening, size, self.mesh)
        jks, fractions = self._builders(positions, pairs, reverse)
        dipole = packed_dipole(pairs, size)
        hcore = kinetic + attraction
        if self.field is not None:
            field = _product(jnp.asarray(self.field, positions.dtype), dipole)
            hcore, screened = hcore + field, screened + field
        matrices = jnp.stack([overlap, kinetic, hcore, kinetic + screened, *dipole])
        overlap, kinetic, hcore, guess, *dipole = unpack(matrices, self.basis.nao)
        hamiltonian = Hamiltonian(
            overlap=overlap,
            kinetic=kinetic,
            hcore=hcore,
            dipole=jnp.stack(dipole),
            jk=jks[0],
            xc=self._xc(positions, 0 if reverse else self.device_bytes),
            nuclear_repulsion=self._nuclear_energy(positions),
            exchange_fraction=fractions[0],
            attenuated_jk=jks[1],
            attenuated_fraction=fractions[1],
            dispersion=self.dispersion.energy(positions) if self.dispersion else None,
        )
        return hamiltonian, guess

    def energy(
        self,
        positions: Float[Array, "natom 3"],
        factor: Float[Array, "nspin nao nocc"],
        fitted: tuple[Fit, ...] | None = None,
        of_overlap: Float[Array, "nao nao"] | None = None,
    ) -> Float[Array, ""]:
        """Energy of given orbitals, made orthonormal where the nuclei are; hartree.

        The derivative with respect to positions, orbitals held, is the whole gradient of a
        converged energy: see `reorthonormalize`. Memory stays that of a tile, a chunk of points, or
        the three-index integrals.

        Args:
            fitted: `known_fitted` of the Hamiltonian at these positions.
            of_overlap: dE/dS where it is known, as `known_after` finds it after an SCF. The
                orbitals, orthonormal, are taken as they are, and no derivative in them is needed.
        """
        self = in_dtype(self, positions.dtype)
        size = npair(self.basis.nao)
        pairs, kinetic = pair_expansions(self.basis, self.pairs, positions)
        overlap = packed_moment(pairs, size, (0, 0, 0), jnp.zeros(3, positions.dtype))
        overlap, kinetic = unpack(jnp.stack([overlap, kinetic]), self.basis.nao)
        held, turn = factor, None
        if of_overlap is None:
            held, turn = held_and_turn(factor, overlap, 2.0 / factor.shape[0])
            factor = jnp.matmul(held, turn, precision="highest")
        dm = density_matrix(factor)
        density = jnp.sum(dm, axis=0)
        energy = self._nuclear_energy(positions) + jnp.vdot(kinetic, density, precision="highest")
        if of_overlap is not None:
            turned = overlap - jax.lax.stop_gradient(overlap)
            energy = energy + jnp.vdot(of_overlap, turned, precision="highest")
        packed = packed_density(density)
        energy = energy + potential_energy(pairs, self._nuclei(positions), packed, self.mesh)
        if self.field is not None:
            field = _product(jnp.asarray(self.field, positions.dtype), packed_dipole(pairs, size))
            energy = energy + jnp.vdot(
                unpack(field[None], self.basis.nao)[0], density, precision="highest"
            )
        if self.dispersion is not None:
            energy = energy + self.dispersion.energy(positions)
        weights = self._exchange_weights(0.5 * dm.shape[0])
        if self.two_electron != "df":
            energy = energy + exact_energy(pairs, dm, weights, self.mesh)
        elif weights.full or weights.attenuated:
            fitting = pairs, self._auxiliary(positions), held, self.aux.nao, 1.0, weights
            energy = energy + fitted_energy(*fitting, self.mesh, self._short, turn, fitted)
        else:
            fitting = pairs, self._auxiliary(positions), density
            known = None if fitted is None else fitted[0]
            energy = energy + fitted_coulomb_energy(*fitting, self.mesh, known)
        xc = self._xc(positions)
        return energy if xc is None else energy + xc.energy_of_orbitals(held, turn)

    @property
    def reuses_fitted(self) -> bool:
        """Whether derivatives after an SCF take its three-index integrals and L in place of making
        them again; as they are held meanwhile, only where they are small."""
        if self.two_electron != "df" or not self.fitting or self.precision != "double":
            return False
        nrange = 2 if self.functional.omega else 1
        size = 8 * nrange * npair(self.basis.nao) * self.aux.nao
        return size <= self.stored_bytes // _PART_FOR_DERIVATIVES

    def known_fitted(self, hamiltonian: Hamiltonian) -> tuple[Fit, ...] | None:
        """Of each interaction, for `energy` not to make it again; None where it has to."""
        if not self.reuses_fitted:
            return None
        jks = hamiltonian.jk, hamiltonian.attenuated_jk
        return tuple(jk.fit for jk in jks if jk is not None)

    def fitted_types(self, dtype: DTypeLike) -> tuple[Fit, ...] | None:
        """Of `known_fitted`, before there is a Hamiltonian."""
        if not self.reuses_fitted:
            return None
        ndevice = 1 if self.mesh is None else self.mesh.size
        width = filled_width(self.fitting, ndevice)

        rows = npair(self.basis.nao), width
        of_each = Fit(*(jax.ShapeDtypeStruct((nrow, width), dtype) for nrow in rows))
        return (of_each,) * (2 if self.functional.omega else 1)

    @property
    def npoint(self) -> int:
        """Grid points held at once."""
        if self.chunk or platform() == "cpu" or self.grid is None:
            return self.chunk or _CHUNK
        every = len(self.grid.reference.quadrature)
        if self.mesh is not None:
            every = -(-every // self.mesh.size)
        most = max(256, _AO_BYTES // (8 * self.basis.nao * together()))
        return 256 * -(-every // 256) if every <= most else 1 << (most.bit_length() - 1)

    @property
    def device_bytes(self) -> int:
        """`stored_bytes` of one device: cores have one memory together."""
        cores = self.mesh is not None and platform() == "cpu"
        return self.stored_bytes // self.mesh.size if cores else self.stored_bytes

    @property
    def _short(self):
        """What costs most has this dtype; None for that of the positions."""
        return jnp.float32 if self.precision == "mixed" else None

    def _auxiliary(self, positions):
        """The auxiliary functions in the form that integrals are fastest of."""
        shells = solid_shells(self.aux, self.fitting, positions)
        return shells or auxiliary_distributions(self.aux, positions)

    def _exchange_weights(self, scale):
        xc = self.functional
        return ExchangeWeights(
            scale * xc.exchange_fraction, scale * xc.attenuated_fraction, xc.omega
        )

    def _builders(self, positions, pairs, reverse):
        """Builders for the full and for the attenuated interaction, and their exchange weights."""
        weights = self._exchange_weights(1.0)
        nao, mesh = self.basis.nao, self.mesh
        if self.two_electron == "df" and not (weights.full or weights.attenuated):
            lists = pairs, self._auxiliary(positions)
            how = {"stored_bytes": self.device_bytes, "reverse": reverse, "mesh": mesh}
            jks = (FittedCoulomb.build(*lists, nao, self.aux.nao, **how),)
        elif self.two_electron == "df":
            lists = pairs, self._auxiliary(positions)
            how = {"reverse": reverse, "dtype": self._short, "mesh": mesh}
            how["keep"] = self.reuses_fitted
            sizes = nao, self.aux.nao, weights.omega
            jks = DensityFittedJK.build_separated(*lists, *sizes, **how)
        elif self.two_electron == "exact":
            jks = PackedJK.build_separated(pairs, nao, weights, mesh)
            weights = ExchangeWeights(0.0, 1.0) if weights.omega else weights
        elif weights.omega == 0:
            jks = (DirectJK(pairs, mesh),)
        else:
            weights = weights.of_long_range()
            far = jnp.asarray(weights.omega**-2, positions.dtype)
            jks = DirectJK(pairs, mesh), DirectJK(attenuated(pairs, far), mesh)
        return (*jks, None)[:2], (weights.full, weights.attenuated)

    def _nuclear_energy(self, positions):
        charges = jnp.asarray(self.charges, positions.dtype)
        energy = nuclear_repulsion(charges, positions)
        if self.field is None:
            return energy
        field = jnp.asarray(self.field, positions.dtype)
        return energy - _product(field, _product(charges, positions))

    def _nuclei(self, positions):
        charges = jnp.asarray(self.charges, positions.dtype)[:, None]
        return charge_distribution(-charges, jnp.zeros_like(charges), positions)

    def _xc(self, positions, stored_bytes=0):
        parts = []
        if self.functional.ingredients != "mgga":
            stored_bytes = 0
        if self.grid is not None:
            how = {
                "chunk": self.npoint,
                "storage_bytes": stored_bytes,
                "ao_dtype": self._short,
                "mesh": self.mesh,
                "rows": self.rows,
            }
            parts.append(GridXC(self.functional, self.basis, self.grid, positions, **how))
        if self.nonlocal_grid is not None:
            terms = self.functional.nonlocal_correlation
            place = self.basis, self.nonlocal_grid, positions
            parts.append(NonlocalCorrelation(terms, *place, chunk=self.npoint, mesh=self.mesh))
        return SummedXC(tuple(parts)) if len(parts) > 1 else (*parts, None)[0]


def nuclear_repulsion(
    charges: Float[Array, " natom"], positions: Float[Array, "natom 3"]
) -> Float[Array, ""]:
    """Repulsion of the nuclei, hartree."""
    itself = jnp.eye(charges.size, dtype=positions.dtype)  # no pair
    distance2 = jnp.sum((positions[:, None] - positions[None]) ** 2, axis=-1) + itself
    products = charges[:, None] * charges[None] * (1.0 - itself)
    return 0.5 * jnp.sum(products / jnp.sqrt(distance2))
