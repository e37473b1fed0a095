"""Remake the reference values packaged in qchem/data, with PySCF: python -m tests.make_reference.

`energies.json`: total energies and forces (`tests.reference_cases`); `integrals.npz` and
`functionals.npz`: see `tests.reference_integrals`. Name one or more of energies, integrals,
functionals to remake only those. Basis sets come from basis-set-exchange, so that both programs
are given the same shells; PySCF's own copies differ in a few digits here and there.
"""

import json
import sys
from pathlib import Path

import basis_set_exchange
import pyscf
from pyscf import dft, gto, lib, scf

from tests.reference_cases import CASES, Case, geometry

DATA = Path(__file__).parents[1] / "qchem" / "data"


def shells(name: str, symbols: list[str]) -> dict:
    """The basis set of basis-set-exchange in PySCF's internal format, for each element."""
    return {
        symbol: gto.basis.parse(
            basis_set_exchange.get_basis(name, elements=symbol, fmt="nwchem", header=False)
        )
        for symbol in sorted(set(symbols))
    }


def mean_field(case: Case):
    """A converged PySCF calculation with the settings of the case."""
    symbols, positions = geometry(case.molecule)
    mol = gto.M(
        atom=list(zip(symbols, positions)),
        unit="bohr",
        basis=shells(case.basis, symbols),
        charge=case.charge,
        spin=case.multiplicity - 1,
        cart=case.cartesian,
        verbose=0,
    )
    restricted = case.multiplicity == 1
    if case.xc == "hf":
        mf = scf.RHF(mol) if restricted else scf.UHF(mol)
    else:
        mf = dft.RKS(mol, xc=case.xc) if restricted else dft.UKS(mol, xc=case.xc)
        if isinstance(case.grid, int):
            mf.grids.level = case.grid
        else:
            mf.grids.atom_grid = case.grid
    if case.two_electron == "df":
        mf = mf.density_fit(auxbasis=shells(case.aux, symbols))
    mf.conv_tol, mf.conv_tol_grad, mf.max_cycle = 1e-12, 1e-8, 200
    mf.direct_scf_tol = 1e-15
    mf.kernel()
    if not mf.converged:
        raise RuntimeError(f"PySCF did not converge: {case.name}")
    return mf


def forces(mf) -> list[list[float]]:
    """-dE/dR of PySCF, the response of grid and auxiliary basis included."""
    gradient = mf.nuc_grad_method()
    if isinstance(mf, dft.rks.KohnShamDFT):
        gradient.grid_response = True
    if hasattr(gradient, "auxbasis_response"):
        gradient.auxbasis_response = True
    return (-gradient.kernel()).tolist()


def make_energies() -> None:
    """Write energies.json."""
    records = []
    for case in CASES:
        mf = mean_field(case)
        s2 = mf.spin_square()[0] if case.multiplicity > 1 else 0.0
        record = case.inputs() | {
            "energy": float(mf.e_tot),
            "dipole": mf.dip_moment(unit="au", verbose=0).tolist(),
            "s2": float(s2),
            "nao": int(mf.mol.nao),
        }
        record["forces"] = forces(mf) if case.forces else None
        records.append(record)
        print(f"{case.name}: {record['energy']:.10f}", flush=True)
    about = {
        "program": f"PySCF {pyscf.__version__}, libxc {dft.libxc.__version__}",
        "basis_sets": f"basis-set-exchange {basis_set_exchange.version()}",
        "units": "hartree, bohr, hartree/bohr; dipole in e bohr about the origin",
        "made_by": "python -m tests.make_reference",
    }
    lines = ",\n".join(json.dumps(record) for record in records)
    text = f'{{"about": {json.dumps(about)},\n"cases": [\n{lines}\n]}}\n'
    DATA.joinpath("energies.json").write_text(text)


def main(names: list[str]) -> None:
    from tests.reference_integrals import make_functionals, make_integrals

    makers = {
        "energies": make_energies,
        "integrals": make_integrals,
        "functionals": make_functionals,
    }
    lib.num_threads(1)
    for name in names or makers:
        makers[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
