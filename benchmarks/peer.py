"""The same calculations by PySCF, with our shells, positions and grid level."""

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from pyscf import dft, gto, lib, scf
from threadpoolctl import threadpool_limits

from benchmarks.measure import threads
from benchmarks.reference import Case
from qchem import Basis, Molecule
from qchem.basis.library import default_auxiliary
from qchem.molecule import SYMBOLS

lib.num_threads(threads())
# Ours keeps SciPy's LAPACK on one thread (qchem.linear_algebra); PySCF's is given them all.
_all_threads = threadpool_limits.wrap(limits=threads(), user_api="blas")


@dataclass(frozen=True)
class Calculation:
    """A finished calculation, in hartree and bohr, and its seconds."""

    energy: float
    forces: np.ndarray
    cycles: int
    energy_s: float
    forces_s: float
    dm: np.ndarray


def shells(basis: Basis, numbers: tuple[int, ...]) -> dict[str, list]:
    """The shells of each element in PySCF's format; atoms of an element must have the same."""
    found: dict[str, list] = {}
    for atom, number in enumerate(numbers):
        of_atom = []
        for batch in basis.batches:
            for n in np.flatnonzero(np.asarray(batch.atom) == atom):
                primitives = zip(batch.exponents[n], batch.contraction[n], strict=True)
                of_atom.append([batch.l, *([float(a), float(c)] for a, c in primitives if c != 0)])
        if found.setdefault(SYMBOLS[number], of_atom) != of_atom:
            raise ValueError(f"atoms of {SYMBOLS[number]} differ in their shells")
    return found


def molecule(
    basis: Basis,
    numbers: tuple[int, ...],
    positions: np.ndarray,
    charge: int = 0,
    multiplicity: int = 1,
) -> gto.Mole:
    """PySCF's molecule; AOs are in the same order as ours."""
    return gto.M(
        atom=[(SYMBOLS[z], xyz) for z, xyz in zip(numbers, positions.tolist(), strict=True)],
        basis=shells(basis, numbers),
        unit="bohr",
        cart=not basis.spherical,
        charge=charge,
        spin=multiplicity - 1,
        verbose=0,
    )


def _shells_of(case, numbers):
    """The basis, and the auxiliary shells of density fitting, else None."""
    basis = Basis.from_name(numbers, case.basis)
    if case.two_electron == "exact":
        return basis, None
    auxiliary = Basis.from_name(numbers, default_auxiliary(case.basis), auxiliary=True)
    return basis, shells(auxiliary, numbers)


def _mean_field(case, numbers, positions, basis, auxiliary):
    """PySCF's object for a closed shell."""
    mol = molecule(basis, numbers, positions)
    mf = scf.RHF(mol) if case.xc == "hf" else dft.RKS(mol, xc=case.xc)
    if case.xc != "hf":
        mf.grids.level = case.grid
    return mf if auxiliary is None else mf.density_fit(auxbasis=auxiliary)


@dataclass(frozen=True)
class Solution:
    """A converged energy, hartree, and what it took."""

    energy: float
    s2: float
    converged: bool
    newton: bool


@_all_threads
def converged(
    mol: Molecule,
    basis: str,
    xc: str,
    *,
    grid: int = 3,
    unrestricted: bool = False,
    newton: bool = False,
    follow: bool = False,
) -> Solution:
    """Energy by the second-order solver, from the start or where DIIS fails.

    Args:
        mol: A closed shell if its multiplicity is 1, unless `unrestricted`.
        basis, xc, grid: As in `qchem.energy`.
        newton: Second order from the start.
        follow: Follow internal instabilities.
    """
    ours = Basis.from_name(mol.numbers, basis)
    target = molecule(ours, mol.numbers, np.asarray(mol.positions), mol.charge, mol.multiplicity)
    open_shell = unrestricted or mol.multiplicity > 1
    if xc == "hf":
        mf = scf.UHF(target) if open_shell else scf.RHF(target)
    else:
        mf = dft.UKS(target, xc=xc) if open_shell else dft.RKS(target, xc=xc)
        mf.grids.level = grid
    mf.conv_tol, mf.max_cycle = 1e-10, 100
    if not newton:
        mf.kernel()
    second = newton or not mf.converged
    if second:
        dm = None if newton else mf.make_rdm1()
        mf = mf.newton()
        mf.kernel(dm0=dm)
    for _ in range(5 if follow else 0):
        orbitals, _, stable, _ = mf.stability(return_status=True)
        if stable:
            break
        second = True
        mf = mf.newton()
        mf.kernel(orbitals, mf.mo_occ)
    s2 = mf.spin_square()[0] if open_shell else 0.0
    return Solution(float(mf.e_tot), float(s2), bool(mf.converged), second)


@_all_threads
def calculate(
    case: Case,
    numbers: tuple[int, ...],
    positions: np.ndarray,
    *,
    tight: bool = False,
    dm=None,
    forces: bool = True,
) -> Calculation:
    """Energy, then forces with the response of the grid, of a closed shell.

    Args:
        case: What is calculated.
        numbers, positions: The molecule, bohr.
        tight: Converged as far as it goes, instead of by PySCF's defaults.
        dm: The first density matrix, instead of PySCF's guess.
        forces: Without, they are zeros.
    """
    shells_of = _shells_of(case, numbers)
    start = perf_counter()
    mf = _mean_field(case, numbers, positions, *shells_of)
    if tight:
        mf.conv_tol, mf.conv_tol_grad, mf.direct_scf_tol = 1e-12, 1e-8, 1e-15
    mf.kernel(dm0=dm)
    if not mf.converged:
        raise RuntimeError(f"PySCF did not converge: {case}")
    energy_s = perf_counter() - start
    start = perf_counter()
    slope = np.zeros_like(positions)
    if forces:
        gradient = mf.nuc_grad_method()
        if case.xc != "hf":
            gradient.grid_response = True
        slope = gradient.kernel()
    forces_s = perf_counter() - start
    return Calculation(
        float(mf.e_tot), -slope, int(mf.cycles), energy_s, forces_s, np.asarray(mf.make_rdm1())
    )


@_all_threads
def energy_of_density(
    case: Case, numbers: tuple[int, ...], positions: np.ndarray, factor: np.ndarray
) -> float:
    """Total energy of given orbitals (1, nao, nocc), hartree."""
    mf = _mean_field(case, numbers, positions, *_shells_of(case, numbers))
    return float(mf.energy_tot(dm=factor[0] @ factor[0].T))


@_all_threads
def dense_integrals(
    case: Case, numbers: tuple[int, ...], positions: np.ndarray
) -> tuple[np.ndarray, ...]:
    """T + V, (ab|cd) without symmetry, AO values and gradients on the grid, its weights, and the
    repulsion of the nuclei."""
    mol = molecule(Basis.from_name(numbers, case.basis), numbers, positions)
    grids = dft.gen_grid.Grids(mol)
    grids.level = case.grid
    grids.build()
    kind = "cart" if mol.cart else "sph"
    hcore = mol.intor("int1e_kin") + mol.intor("int1e_nuc")
    eri = mol.intor(f"int2e_{kind}", aosym="s1")
    ao = mol.eval_gto(f"GTOval_{kind}_deriv1", grids.coords)
    return hcore, eri, ao, grids.weights, np.asarray(mol.energy_nuc())
