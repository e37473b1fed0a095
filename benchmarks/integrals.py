"""How fast are the integrals, class by class and in total, beside libcint on the same threads?

(ab|P) and (ab|ab) of single classes, by the general kernel on one device; whole matrices and
tensors at the end, as a calculation makes them, on all cores that the process may use. Positions
in, AO arrays out. `order` is the highest Hermite degree, l of all functions together; it is padded
for auxiliary functions as it is in a calculation, and without padding for pairs. `ratio` compares
the time for one integral: in (ab|ab) with a != b libcint makes both (ab|a'b') and (a'b'|ab).
`error` is the largest deviation as a part of the largest integral; `error_hartree` is the deviation
itself.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import PartitionSpec as P
from pyscf import df, gto

import qchem
from benchmarks.measure import configure_jax, device, measure, stopwatch
from benchmarks.molecules import Name, molecule
from benchmarks.peer import molecule as pyscf_molecule
from benchmarks.report import Report
from qchem import Basis
from qchem.basis.library import default_auxiliary
from qchem.basis.spherical import ncomponent
from qchem.devices import MOLECULE, Share, spread
from qchem.fitted_jk import DensityFittedJK
from qchem.integrals.auxiliary import auxiliary_columns, coulomb_3c
from qchem.integrals.moments import packed_moment
from qchem.integrals.pairs import (
    auxiliary_distributions,
    charge_distribution,
    npair,
    pair_distributions,
    pair_expansions,
    plan_pairs,
)
from qchem.integrals.potential import potential
from qchem.integrals.shared import own_lists, to_device_order
from qchem.integrals.solid import (
    plan_solid,
    solid_2c,
    solid_3c,
    solid_functions,
    solid_shells,
)
from qchem.integrals.tiles import own_rows
from qchem.integrals.two_electron import coulomb_4c
from qchem.jk import PackedJK

LETTERS = "spdfghi"


@dataclass(frozen=True)
class Options:
    """What to measure."""

    molecule: Name = "ethanol"
    basis: str = "def2-svp"
    classes: bool = True
    """Single classes."""
    totals: bool = True
    """Whole matrices and tensors."""
    exact: bool = True
    """With all (ab|cd) among the latter."""
    max_l: int = 2
    """Single classes up to this l of orbital shells."""
    aux_l: tuple[int, ...] = (0, 2, 4)
    """Single classes with auxiliary shells of these l."""
    repeats: int = 5
    out: Path | None = None
    """Append to this file instead of results/integrals.json."""


class Problem:
    """One molecule, both programs' bases, and libcint's integrals as the reference."""

    def __init__(self, options: Options):
        mol = molecule(options.molecule)
        self.repeats, self.max_l, self.aux_l = options.repeats, options.max_l, options.aux_l
        self.mesh = qchem.use_cores()
        self.numbers, self.positions = mol.numbers, jnp.asarray(mol.positions)
        self.basis = Basis.from_name(mol.numbers, options.basis)
        self.aux = Basis.from_name(mol.numbers, default_auxiliary(options.basis), auxiliary=True)
        self.rows, self.fitting = plan_pairs(self.basis), plan_pairs(self.basis, fitted=True)
        self.npair = npair(self.basis.nao)
        self.mol, self.auxmol = (
            pyscf_molecule(basis, mol.numbers, np.asarray(mol.positions))
            for basis in (self.basis, self.aux)
        )
        self.three = df.incore.aux_e2(self.mol, self.auxmol, "int3c2e", aosym="s2ij")
        self.exact = options.exact
        self.four = self.mol.intor("int2e", aosym="s8") if options.exact else None
        self.by_l, self.aux_by_l = _sorted_by_l(self.mol), _sorted_by_l(self.auxmol)
        self.both = gto.conc_mol(self.by_l, self.aux_by_l)

    def three_centre_classes(self) -> Iterator[dict[str, Any]]:
        """(ab|P), each class alone."""
        for rows in self._classes():
            for batch in self.aux.batches:
                if batch.l not in self.aux_l:
                    continue
                fitting = replace(self.aux, batches=(batch,))
                value, cost = measure(three, self.basis, fitting, (rows,), self.positions,
                                      repeats=self.repeats)  # fmt: skip
                pairs, columns = self._pairs(rows), _functions(self.aux, batch)
                place = self._columns(fitting)[columns]
                ranges = (rows.la, rows.lb, batch.l)
                seconds, size = self._libcint(
                    self.both, "int3c2e", ranges, "s2ij" if rows.la == rows.lb else "s1"
                )
                yield self._row(
                    f"({_letters(rows)}|{LETTERS[batch.l]})",
                    rows.order + auxiliary_distributions(fitting, self.positions)[0].order,
                    np.asarray(value)[np.ix_(pairs, place)],
                    self.three[np.ix_(pairs, columns)],
                    cost,
                    seconds,
                    size,
                )

    def four_centre_classes(self) -> Iterator[dict[str, Any]]:
        """(ab|ab), each class with itself."""
        for rows in self._classes():
            value, cost = self._measured(four_of_class, self.basis, (rows,), self.positions)
            pairs = self._pairs(rows)
            i, j = np.tril_indices(pairs.size)
            high, low = pairs[i], pairs[j]  # ascending
            packed = high * (high + 1) // 2 + low
            ranges = (rows.la, rows.lb, rows.la, rows.lb)
            if rows.la == rows.lb:
                mol = _only(self.by_l, rows.la)
                seconds, size = self._timed(lambda m=mol: m.intor("int2e", aosym="s8"))
            else:
                seconds, size = self._libcint(self.by_l, "int2e", ranges, "s1")
            yield self._row(
                f"({_letters(rows)}|{_letters(rows)})",
                2 * rows.order,
                np.asarray(value)[packed],
                self.four[packed],
                cost,
                seconds,
                size,
            )

    def totals(self) -> Iterator[dict[str, Any]]:
        """Every integral of the molecule."""
        charges = jnp.asarray(self.numbers, float)[:, None]
        nuclei = charge_distribution(-charges, jnp.zeros_like(charges), self.positions)
        orbital = self.basis, self.rows, self.positions
        lower = np.tril_indices(self.basis.nao)
        square = {"overlap": "int1e_ovlp", "kinetic": "int1e_kin", "attraction": "int1e_nuc"}
        arguments = {"overlap": orbital, "kinetic": orbital, "attraction": (*orbital, nuclei)}
        functions = {"overlap": overlap, "kinetic": kinetic, "attraction": attraction}
        for name, integral in square.items():
            shared = () if name != "attraction" else (self.mesh,)
            value, cost = self._measured(functions[name], *arguments[name], *shared)
            expected = self.mol.intor(integral)[lower]
            seconds, _ = self._timed(lambda i=integral: self.mol.intor(i, hermi=1))
            yield self._row(name, None, value, expected, cost, seconds, expected.size)
        solid = plan_solid(self.aux)
        functions = self._solid_functions(solid)
        value, cost = self._measured(two, self.aux, solid, self.positions, self.mesh)
        value = np.asarray(value)[np.argsort(functions)][:, np.argsort(functions)]
        seconds, size = self._timed(lambda: self.auxmol.intor("int2c2e", hermi=1))
        expected = self.auxmol.intor("int2c2e")
        yield self._row("(P|Q)", None, value, expected, cost, seconds, size)
        arguments = self.basis, self.aux, self.fitting, solid, self.positions, self.mesh
        value, cost = self._measured(three_solid, *arguments)
        seconds, size = self._timed(
            lambda: df.incore.aux_e2(self.mol, self.auxmol, "int3c2e", aosym="s2ij")
        )
        expected = np.zeros(value.shape)
        column = self._shared_columns(solid)
        expected[:, column > 0] = self.three[:, functions[column[column > 0] - 1]]
        yield self._row("(ab|P)", None, value, expected, cost, seconds, size)
        yield self._fitted(arguments)
        if not self.exact:
            return
        jk, cost = self._measured(four, *orbital, self.mesh)
        seconds, size = self._timed(lambda: self.mol.intor("int2e", aosym="s8"))
        yield self._row("(ab|cd)", None, self._packed(jk), self.four, cost, seconds, size)

    def _measured(self, function, *arguments):
        return measure(function, *arguments, repeats=self.repeats)

    def _shared_columns(self, plan):
        """Numbers from 1 of the columns of all devices, as one list has them; 0 fills up."""
        shells = solid_shells(self.aux, plan, self.positions)
        numbers = jnp.diag(jnp.arange(1.0, 1 + self.aux.nao))
        moved = to_device_order(numbers, shells, Share.of(self.mesh))
        return np.asarray(jnp.diag(moved)).astype(int)

    def _packed(self, jk):
        """The integrals in the order of libcint, from those of all devices."""
        eri, place, row = (np.asarray(x) for x in (jk.eri, jk.place, jk.row))
        count = 1 if self.mesh is None else self.mesh.size
        device = np.repeat(np.arange(count), len(row) // count)
        start = np.zeros(self.npair, np.int64)
        start[row[row >= 0]] = (jk.start + device[:, None] * (eri.size // count))[row >= 0]
        i, j = (place[x] for x in np.tril_indices(self.npair))
        return eri[start[np.maximum(i, j)] + np.minimum(i, j)]

    def _fitted(self, arguments):
        """(ab|P) with the metric's factor divided out; compared on random densities."""
        value, cost = self._measured(fitted, *arguments)
        peer = df.incore.cholesky_eri(self.mol, auxmol=self.auxmol)
        seconds, _ = self._timed(lambda: df.incore.cholesky_eri(self.mol, auxmol=self.auxmol))
        densities = np.random.default_rng(0).normal(size=(self.npair, 3))
        value = np.asarray(value)
        row = self._row(
            "fitted (ab|P)",
            None,
            value @ (value.T @ densities),
            peer.T @ (peer @ densities),
            cost,
            seconds,
            1,
        )
        ratio = cost.run_s / seconds
        return row | {"count": peer.size, "per_s": peer.size / cost.run_s, "ratio": ratio}

    def _columns(self, aux):
        """Where our arrays have each auxiliary function."""
        return np.asarray(auxiliary_columns(auxiliary_distributions(aux, self.positions), aux.nao))

    def _solid_functions(self, plan):
        return np.asarray(solid_functions(solid_shells(self.aux, plan, self.positions)))

    def _classes(self):
        rows = plan_pairs(self.basis, merge=False)
        return [of_class for of_class in rows if of_class.la <= self.max_l]

    def _pairs(self, rows):
        """Packed AO pairs of a class, ascending."""
        pairs = np.unique(np.asarray(rows.index))
        return pairs[pairs < self.npair].astype(np.int64)

    def _libcint(self, mol, integral, ls, aosym):
        """Seconds and size of one block of classes; three-index blocks end with auxiliary l."""
        ranges: list[int] = []
        for n, l in enumerate(ls):
            auxiliary = integral == "int3c2e" and n == 2
            source, offset = (self.aux_by_l, self.by_l.nbas) if auxiliary else (self.by_l, 0)
            shells = np.flatnonzero(source._bas[:, gto.ANG_OF] == l)
            ranges += [offset + int(shells[0]), offset + int(shells[-1]) + 1]
        return self._timed(lambda: mol.intor(integral, shls_slice=tuple(ranges), aosym=aosym))

    def _timed(self, call):
        values = call()  # warms up
        return median(stopwatch(call)[1] for _ in range(self.repeats)), values.size

    def _row(self, name, order, value, expected, cost, libcint_s, libcint_size):
        value = np.asarray(value)
        error, largest = np.abs(value - expected).max(), np.abs(expected).max()
        return {
            "integrals": name,
            "order": order,
            "count": value.size,
            **asdict(cost),
            "per_s": value.size / cost.run_s,
            "libcint_s": libcint_s,
            "ratio": (cost.run_s / value.size) / (libcint_s / libcint_size),
            "error": float(error / largest),
            "error_hartree": float(error),
        }


def overlap(basis, rows, positions):
    pairs, origin = pair_distributions(basis, rows, positions), jnp.zeros(3, positions.dtype)
    return packed_moment(pairs, npair(basis.nao), (0, 0, 0), origin)


def kinetic(basis, rows, positions):
    return pair_expansions(basis, rows, positions)[1]


def attraction(basis, rows, positions, nuclei, mesh):
    share, size = Share.of(mesh), npair(basis.nao)

    def shared(pairs, nuclei):
        return share.total(potential(own_rows(pairs, share, size), nuclei, size))

    pairs = pair_distributions(basis, rows, positions)
    return spread(shared, mesh, P(), P())(pairs, nuclei)


def two(aux, plan, positions, mesh):
    metric = partial(solid_2c, share=Share.of(mesh))
    return spread(metric, mesh, P(), P())(solid_shells(aux, plan, positions))


def three(basis, aux, rows, positions):
    pairs, fitting = (
        pair_distributions(basis, rows, positions),
        auxiliary_distributions(aux, positions),
    )
    return coulomb_3c(pairs, fitting, npair(basis.nao))


def three_solid(basis, aux, rows, plan, positions, mesh):
    pairs = pair_distributions(basis, rows, positions)
    share = Share.of(mesh)
    make = lambda pairs, aux: solid_3c(pairs, own_lists(aux, share), npair(basis.nao))  # noqa: E731
    shells = solid_shells(aux, plan, positions)
    return spread(make, mesh, P(), P(None, MOLECULE))(pairs, shells)


def fitted(basis, aux, rows, plan, positions, mesh):
    pairs = pair_distributions(basis, rows, positions)
    lists = pairs, solid_shells(aux, plan, positions), basis.nao, aux.nao
    return DensityFittedJK.build_separated(*lists, 0.0, mesh=mesh)[0].fitted


def four(basis, rows, positions, mesh):
    return PackedJK.build(pair_distributions(basis, rows, positions), basis.nao, mesh)


def four_of_class(basis, rows, positions):
    return coulomb_4c(pair_distributions(basis, rows, positions), npair(basis.nao))


def _letters(rows):
    return LETTERS[rows.la] + LETTERS[rows.lb]


def _functions(basis, batch):
    width = ncomponent(batch.l, basis.spherical)
    return (np.asarray(batch.ao)[:, None] + np.arange(width)[None]).ravel()


def _sorted_by_l(mol):
    """The molecule with its shells in ascending l, so that a class is a range of shells."""
    ordered = mol.copy()
    ordered._bas = mol._bas[np.argsort(mol._bas[:, gto.ANG_OF], kind="stable")]
    return ordered


def _only(mol, l):
    part = mol.copy()
    part._bas = mol._bas[mol._bas[:, gto.ANG_OF] == l]
    return part


def main(options: Options) -> None:
    """Measure and report the rows."""
    configure_jax()
    report, problem = Report("integrals", options.out), Problem(options)
    same = {"molecule": options.molecule, "basis": options.basis, "device": device()}
    if options.classes:
        for row in problem.three_centre_classes():
            report.row(**row, **same)
        for row in problem.four_centre_classes():
            report.row(**row, **same)
    if options.totals:
        for row in problem.totals():
            report.row(**row, **same)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
