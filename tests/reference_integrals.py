"""Reference integrals and functionals from PySCF, over explicit shells and random densities.

Two systems of shells hold every class at once: the one of `ONE_ELECTRON_CENTRES` centres has a
shell of each angular momentum s to g on every centre, and the one of `TWO_ELECTRON_CENTRES` has
each angular momentum on two centres, with fitting shells s to i. What is stored is not the
matrices but their products with two random vectors (`qchem.data.project`).
"""

import json

import numpy as np
import pyscf
from pyscf import dft, gto

from qchem.data import project
from qchem.validate import FUNCTIONALS, OMEGA
from tests.make_reference import DATA

ONE_ELECTRON_CENTRES = 3
TWO_ELECTRON_CENTRES = 4
ELEMENTS = ("He", "C", "O", "F")  # their nuclei attract; their own basis sets play no part


def random_shell(rng, l: int, depth: int, highest: float) -> dict:
    """A contraction whose exponents spread evenly in the logarithm below `highest`, bohr^-2."""
    lowest = 0.15 + 0.05 * l
    exponents = np.geomspace(highest, lowest, depth) * rng.uniform(0.8, 1.2, depth)
    coefficients = rng.uniform(0.2, 1.0, depth) * rng.choice([1, -1], depth, p=[0.8, 0.2])
    return {
        "l": l,
        "exponents": exponents.round(6).tolist(),
        "coefficients": coefficients.round(6).tolist(),
    }


def random_positions(rng, natom: int) -> list[list[float]]:
    """Points on a bent chain with steps near 2 bohr, so that no centres come close."""
    steps = np.array([[1.9, 0.3, 0.2], [-0.4, 1.8, 0.5], [0.3, -0.6, 1.9], [1.5, 0.9, -0.8]])
    return (np.cumsum(steps[:natom], axis=0) + rng.uniform(-0.2, 0.2, (natom, 3))).round(6).tolist()


def make_systems() -> dict:
    """The shells and centres, and the points at which AOs are evaluated."""
    rng = np.random.default_rng(1)
    one = [
        [
            random_shell(rng, l, 8 if (atom, l) in ((0, 0), (1, 1)) else 1 + (atom + l) % 3, 6.0)
            for l in range(5)
        ]
        for atom in range(ONE_ELECTRON_CENTRES)
    ]
    two = [[] for _ in range(TWO_ELECTRON_CENTRES)]
    aux = [[] for _ in range(TWO_ELECTRON_CENTRES)]
    for l in range(5):
        for copy in range(2):
            depth = 6 if (l, copy) == (0, 0) else 1 + (l + copy) % 2
            two[(l + 2 * copy + l // 2) % 4].append(random_shell(rng, l, depth, 4.0))
    for l in range(7):
        for copy in range(2):
            depth = 2 if l < 2 and copy == 0 else 1
            aux[(l + 2 * copy + l // 4) % 4].append(random_shell(rng, l, depth, 3.0))
    for shells in (*two, *aux):
        shells.sort(key=lambda shell: shell["l"])
    positions = random_positions(rng, TWO_ELECTRON_CENTRES)
    points = np.array(positions)[:3].repeat(4, axis=0) + rng.normal(size=(12, 3))
    points[0] = positions[0]  # on a nucleus
    return {
        "one_electron": {
            "positions": positions[:ONE_ELECTRON_CENTRES],
            "charges": [float(gto.charge(x)) for x in ELEMENTS[:ONE_ELECTRON_CENTRES]],
            "origin": [0.3, -0.2, 0.1],
            "points": points.round(6).tolist(),
            "shells": one,
        },
        "two_electron": {"positions": positions, "shells": two, "aux": aux},
    }


def molecule(system: dict, shells: str, cartesian: bool):
    """PySCF's molecule with these shells; electrons are not counted."""
    natom = len(system["positions"])
    return gto.M(
        atom=list(zip(ELEMENTS[:natom], system["positions"])),
        unit="bohr",
        basis={
            element: [
                [shell["l"], *map(list, zip(shell["exponents"], shell["coefficients"]))]
                for shell in of_atom
            ]
            for element, of_atom in zip(ELEMENTS, system[shells])
        },
        spin=None,
        cart=cartesian,
        verbose=0,
    )


def attenuated_attraction(mol, omega: float) -> np.ndarray:
    """-Z erf(omega r)/r: the potential of a Gaussian charge of exponent omega^2."""
    total = np.zeros((mol.nao, mol.nao))
    for charge, position in zip(mol.atom_charges(), mol.atom_coords()):
        with mol.with_rinv_origin(position), mol.with_rinv_zeta(omega**2):
            total -= charge * mol.intor("int1e_rinv")
    return total


def one_electron(system: dict, cartesian: bool) -> dict[str, np.ndarray]:
    mol = molecule(system, "shells", cartesian)
    nao, kind = mol.nao, "cart" if cartesian else "sph"
    values = {
        "overlap": mol.intor("int1e_ovlp"),
        "kinetic": mol.intor("int1e_kin"),
        "nuclear_attraction": mol.intor("int1e_nuc"),
        "nuclear_attraction_erf": attenuated_attraction(mol, OMEGA),
    }
    with mol.with_common_origin(system["origin"]):
        values["dipole"] = mol.intor("int1e_r")
        values["second_moment"] = mol.intor("int1e_rr").reshape(3, 3, nao, nao)
    ao = mol.eval_gto(f"GTOval_{kind}_deriv2", np.array(system["points"])).swapaxes(-1, -2)
    values |= {"ao_value": ao[:1], "ao_gradient": ao[1:4], "ao_hessian": ao[4:]}
    return values


def two_electron(system: dict, cartesian: bool) -> dict[str, np.ndarray]:
    mol, aux = (molecule(system, shells, cartesian) for shells in ("shells", "aux"))
    both = gto.conc_mol(mol, aux)
    nbas = mol.nbas
    values = {}
    for suffix, omega in (("", 0.0), ("_erf", OMEGA)):
        with both.with_range_coulomb(omega):
            three = both.intor(
                "int3c2e", aosym="s2ij", shls_slice=(0, nbas, 0, nbas, nbas, both.nbas)
            )
        with mol.with_range_coulomb(omega), aux.with_range_coulomb(omega):
            values["eri" + suffix] = mol.intor("int2e", aosym="s4")
            values["eri_2c" + suffix] = aux.intor("int2c2e")
        values["eri_3c" + suffix] = three
    return values


def make_integrals() -> None:
    """Write integrals.json (the shells) and integrals.npz (the projections)."""
    systems = make_systems()
    about = {
        "program": f"PySCF {pyscf.__version__}",
        "units": "bohr, hartree; projections of matrices, see qchem.data.project",
        "made_by": "python -m tests.make_reference integrals",
    }
    DATA.joinpath("integrals.json").write_text(json.dumps({"about": about, **systems}) + "\n")
    arrays = {}
    for kind in ("spherical", "cartesian"):
        cartesian = kind == "cartesian"
        values = one_electron(systems["one_electron"], cartesian)
        values |= two_electron(systems["two_electron"], cartesian)
        arrays |= {
            f"{name}.{kind}": project(value)
            for name, value in values.items()
            if not (cartesian and name.endswith("_erf"))  # see qchem.validate
        }
    np.savez_compressed(DATA / "integrals.npz", **arrays)
    print(f"integrals: {len(arrays)} projections")


def random_densities(rng, npoint: int = 40) -> dict[str, np.ndarray]:
    """Spin densities and gradients: 24 ordinary, 8 very small, 8 fully polarized."""
    total = 10 ** rng.uniform(-4, 2, npoint)
    total[24:32] = 10 ** rng.uniform(-9, -6, 8)
    share = rng.uniform(0.05, 0.95, npoint)
    share[32:] = 1.0
    rho = np.stack([total * share, total * (1 - share)])
    reduced = rng.normal(size=(2, 3, npoint))  # gradients of the size of k_F rho
    gradient = 2.0 * rho[:, None] * np.cbrt(rho[:, None]) * reduced
    return {"rho": rho, "gradient": gradient}


def make_functionals() -> None:
    """Write functionals.npz: energy densities and first derivatives from libxc."""
    densities = random_densities(np.random.default_rng(2))
    rho, gradient = densities["rho"], densities["gradient"]
    sigma = np.stack([(gradient[i] * gradient[j]).sum(0) for i, j in ((0, 0), (0, 1), (1, 1))])
    closed_sigma = sigma[0] + 2 * sigma[1] + sigma[2]
    arrays = {
        "rho.2": rho,
        "sigma.2": sigma,
        "rho.1": rho.sum(0)[None],
        "sigma.1": closed_sigma[None],
    }
    spin_input = np.concatenate([rho[:, None], gradient], axis=1)
    inputs = {1: spin_input.sum(0), 2: spin_input}
    for name in FUNCTIONALS:
        for nspin, value in inputs.items():
            if dft.libxc.xc_type(name) == "LDA":
                value = value[..., 0, :]
            exc, vxc, *_ = dft.libxc.eval_xc(name, value, spin=nspin - 1, deriv=1)
            key = f"{name}.{nspin}"
            arrays[f"{key}.energy"] = exc * rho.sum(0)
            for derivative, part in zip(("vrho", "vsigma"), vxc):
                if part is not None:
                    arrays[f"{key}.{derivative}"] = np.atleast_2d(part.T)
    about = f"PySCF {pyscf.__version__}, libxc {dft.libxc.__version__}"
    np.savez_compressed(DATA / "functionals.npz", about=np.array(about), **arrays)
    print(f"functionals: {len(FUNCTIONALS)} at {rho.shape[1]} densities")
