"""Dispersion corrections: the packages' numbers, their derivatives, and where they appear."""

import json
import subprocess
import sys

import dftd3.interface
import dftd4.interface
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import qchem
from qchem import cli
from qchem.dispersion import Dispersion
from qchem.scf import converge
from qchem.scf.hamiltonian import ENERGIES
from qchem.xc.functional import Functional
from srdft.family import MoleculeFamily
from tests import oracle

ATOL = 1e-10  # hartree, hartree/bohr; against the packages called directly
NUMBERS = (8, 1, 1, 6, 1, 1, 1, 1)  # water beside methane
POSITIONS = np.array(
    [
        [0.0, 0.1, 0.2], [1.4, 0.0, -0.9], [-1.4, -0.1, -0.9], [0.2, 0.1, 6.4],
        [1.3, 1.3, 7.6], [-1.0, -1.1, 7.6], [-1.0, 1.3, 5.2], [1.4, -1.1, 5.2],
    ]
)  # fmt: skip
STEP = 1e-2
H2 = jnp.asarray([[0.0, 0.0, 0.0], [0.1, 0.2, 1.4]])


def theirs(model, parameters, numbers=NUMBERS, positions=POSITIONS, charge=0):
    """Energy and gradient as the package gives them."""
    numbers, positions = np.array(numbers), np.asarray(positions)
    if model == "d3bj":
        damping = dftd3.interface.RationalDampingParam(method=parameters)
        of = dftd3.interface.DispersionModel(numbers, positions)
    else:
        damping = dftd4.interface.DampingParam(method=parameters)
        of = dftd4.interface.DispersionModel(numbers, positions, charge=float(charge))
    found = of.get_dispersion(damping, grad=True)
    return float(found["energy"]), found["gradient"]


def ours(name, charge=0):
    return Dispersion.build(Functional.from_name(name).dispersion, NUMBERS, charge)


@pytest.mark.parametrize(
    ("name", "model", "parameters", "charge"),
    [
        ("b3lyp-d3bj", "d3bj", "b3lyp", 0),
        ("b3lyp-d4", "d4", "b3lyp", 0),
        ("PBE-D4", "d4", "pbe", 1),
        ("hf-d3bj", "d3bj", "hf", 0),
        ("hyb_gga_xc_b3lyp-d4", "d4", "b3lyp", 0),
        ("pbe1pbe-d3bj", "d3bj", "pbe0", 0),
        ("bp86-d4", "d4", "bp", 0),
        ("bhandhlyp-d4", "d4", "bhlyp", 0),
        ("b97-d-d3bj", "d3bj", "b97d", 0),
        ("b97-d-d4", "d4", "b97d", 0),
        ("m06-l-d4", "d4", "m06l", 0),
        ("cam-b3lyp-d3bj", "d3bj", "camb3lyp", 0),
        ("wb97m-d3bj", "d3bj", "wb97m", 0),
        ("ωb97x-d4", "d4", "wb97x", 0),
    ],
)
def test_energy_and_gradient_are_those_of_the_package(name, model, parameters, charge):
    dispersion = ours(name, charge)
    energy, gradient = jax.value_and_grad(dispersion.energy)(jnp.asarray(POSITIONS))
    expected = theirs(model, parameters, charge=charge)
    assert expected[0] < -1e-4
    assert_allclose(energy, expected[0], rtol=0, atol=ATOL)
    assert_allclose(gradient, expected[1], rtol=0, atol=ATOL)


def test_names_mean_the_functional_alone_and_its_correction():
    corrected, plain = (Functional.from_name(name) for name in ("b3lyp-d3bj", "b3lyp"))
    assert corrected.components == plain.components
    assert (corrected.exchange_fraction, plain.dispersion) == (0.2, None)
    # Corrections of the later functionals take the place of their VV10.
    for name, base in (("wb97x-d3bj", "wb97x-v"), ("wb97m-d4", "wb97m-v")):
        corrected, plain = Functional.from_name(name), Functional.from_name(base)
        assert corrected.components == plain.components
        assert not corrected.nonlocal_correlation and plain.nonlocal_correlation
    for name in ("b97-d", "wb97x-d", "wb97x-d3"):
        assert Functional.from_name(name).dispersion is None


@pytest.mark.parametrize("name", ["b3lyp-d3bj", "b3lyp-d4"])
def test_derivatives_in_any_transformation(name):
    dispersion = ours(name)
    direction = oracle.random_like(jnp.asarray(POSITIONS), 1)
    points = oracle.stencil(jnp.asarray(POSITIONS), direction, STEP)
    energies, gradients = jax.jit(jax.vmap(jax.value_and_grad(dispersion.energy)))(points)
    for point, energy, gradient in zip(points, energies, gradients):
        expected = theirs(dispersion.model, dispersion.parameters, positions=point)
        assert_allclose(energy, expected[0], rtol=0, atol=ATOL)
        assert_allclose(gradient, expected[1], rtol=0, atol=ATOL)
    middle = jnp.asarray(POSITIONS)
    _, slope = jax.jit(lambda r: jax.jvp(dispersion.energy, (r,), (direction,)))(middle)
    assert abs(slope) > 1e-5
    assert_allclose(slope, oracle.slope(energies, STEP), rtol=0, atol=1e-9)
    nested = jax.vmap(jax.vmap(dispersion.energy))(jnp.stack([points, points]))
    assert_allclose(nested, np.stack([energies, energies]), rtol=0, atol=ATOL)
    single = dispersion.energy(middle.astype(jnp.float32))
    assert single.dtype == jnp.float32
    assert np.isnan(dispersion.energy(middle.at[0, 0].set(jnp.nan)))


def test_second_derivatives_are_refused():
    with pytest.raises(NotImplementedError, match="second derivatives of dispersion"):
        jax.hessian(ours("b3lyp-d4").energy)(jnp.asarray(POSITIONS))


@pytest.fixture(scope="module")
def pair():
    """An ion in Hartree-Fock with D4, and without."""
    mol = qchem.Molecule.from_arrays(("He", "H"), 1.4 * np.eye(3)[:2], unit="bohr", charge=1)
    known = len(converge._diis._known)
    corrected = qchem.energy(mol, "sto-3g", "hf-d4")
    assert len(converge._diis._known) <= known + 1  # no other than the one expected
    return corrected, qchem.energy(mol, "sto-3g", "hf")


def test_dispersion_is_a_part_of_the_energy_and_leaves_the_orbitals_alone(pair):
    corrected, plain = pair
    energy, gradient = theirs("d4", "hf", (2, 1), 1.4 * np.eye(3)[:2], charge=1)
    assert abs(energy) > 1e-7 and np.abs(gradient).max() > 1e-8
    assert_allclose(corrected.energies.pop("dispersion"), energy, rtol=0, atol=ATOL)
    assert corrected.energies == plain.energies
    assert_allclose(corrected.energy - plain.energy, energy, rtol=0, atol=ATOL)
    assert_allclose(plain.forces() - corrected.forces(), gradient, rtol=0, atol=ATOL)
    assert np.array_equal(corrected.dm, plain.dm)
    assert corrected.settings["xc"] == "hf-d4"


def test_energy_functions_have_it_too():
    direction = oracle.random_like(H2, 1)
    points = jnp.concatenate([H2[None], oracle.stencil(H2, direction, 2e-3)])
    measured = {}
    for xc in ("hf-d4", "hf"):
        function = qchem.energy_fn((1, 1), "sto-3g", xc)
        measured[xc] = oracle.jit(jax.vmap(jax.value_and_grad(function)))(points)
    for n, point in enumerate(points):
        energy, gradient = theirs("d4", "hf", (1, 1), point)
        gained = [a[n] - b[n] for a, b in zip(measured["hf-d4"], measured["hf"])]
        assert_allclose(gained[0], energy, rtol=0, atol=ATOL)
        assert_allclose(gained[1], gradient, rtol=0, atol=ATOL)
    energies, gradients = measured["hf-d4"]
    slope = oracle.slope(energies[1:], 2e-3)
    assert_allclose(jnp.vdot(gradients[0], direction), slope, rtol=0, atol=1e-7)


def test_families_have_it_too():
    family = MoleculeFamily.build((1, 1), "sto-3g", "hf-d4", two_electron="exact")
    of = jax.value_and_grad(lambda r: family.place(r).hamiltonian.dispersion)
    for measured, expected in zip(oracle.jit(of)(H2), theirs("d4", "hf", (1, 1), H2)):
        assert_allclose(measured, expected, rtol=0, atol=ATOL)
    factor = jnp.ones((1, 2, 1))
    parts = oracle.jit(lambda r: family.place(r).hamiltonian.energies(factor))(H2)
    assert sorted(parts) == sorted(ENERGIES)


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    file = tmp_path / "h2.xyz"
    file.write_text("2\n\nH 0 0 0\nH 0 0 0.74\n")
    arguments = ["energy", str(file), "--basis", "sto-3g", "--xc", "hf-d3bj"]
    assert cli.main([*arguments, "--json", "--forces"]) == 0
    report = json.loads(capsys.readouterr().out)
    positions = np.array([[0, 0, 0], [0, 0, 0.74]]) / qchem.BOHR_IN_ANGSTROM
    energy, _ = theirs("d3bj", "hf", (1, 1), positions)
    assert_allclose(report["energies"]["dispersion"], energy, rtol=0, atol=ATOL)
    assert_allclose(sum(report["energies"].values()), report["energy"], rtol=0, atol=1e-12)
    assert report["settings"]["versions"]["dftd3"] == dftd3.__version__
    assert cli.main([*arguments[:-1], "svwn-d4"]) == 2
    assert "functionals that can be written with -d4: hf, pbe," in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("m06-2x-d4", "no parameters for 'm062x'; .* hf, pbe, .*b97-d, .*wb97m"),
        ("b97-d3bj", "no parameters for 'b97'; .* b97-d,"),
        ("wb97x-v-d4", "no parameters for 'wb97xv'"),
        ("b88,lyp-d4", "no parameters for 'b88,lyp'"),
        ("b3lyp-d3", "-d3bj or -d4 at the end"),
        ("b3lpy-d4", "nearest: b3lyp"),
    ],
)
def test_unknown_names_offer_what_would_do(name, hint):
    with pytest.raises(qchem.InputError, match=hint):
        qchem.energy_fn((1, 1), "sto-3g", name)


@pytest.mark.parametrize("model", ["d3bj", "d4"])
def test_a_missing_package_is_named(model, monkeypatch):
    package = {"d3bj": "dftd3", "d4": "dftd4"}[model]
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{package}.interface", None)
    with pytest.raises(qchem.InputError, match=f"{package}: pip install {package}"):
        Dispersion.build((model, "rpw86pbe"), (1, 1))  # other parameters are known already


def test_packages_are_imported_only_when_asked_for():
    program = (
        "import sys, qchem; qchem.Functional.from_name('pbe-d4');"
        "qchem.Method.build((1,), qchem.Basis.from_name((1,), 'sto-3g'),"
        " qchem.Functional.from_name('hf'));"
        "assert not {'dftd3', 'dftd4'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
