"""`energy` and `energy_fn`: agreement with each other, tracing, results, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import qchem
from qchem import calculation
from qchem.basis.library import Shell
from qchem.errors import ConvergenceError, FunctionalNotFoundError, InputError
from qchem.scf.start import Guess, overlaps
from tests import oracle

ENERGY_ATOL = 1e-9
FORCE_ATOL = 1e-7
H2 = np.array([[0.0, 0.0, 0.0], [0.1, 0.2, 1.4]])
STRETCHED = np.stack([H2, 1.2 * H2, 0.8 * H2, 1.9 * H2])
SETTINGS = {"basis": "6-31g", "xc": "pbe", "grid": (12, 26)}


def molecule(symbols, positions, **options):
    return qchem.Molecule.from_arrays(symbols, np.asarray(positions), unit="bohr", **options)


@pytest.fixture(scope="module")
def function():
    return qchem.energy_fn((1, 1), **SETTINGS)


@pytest.fixture(scope="module")
def batched(function):
    return jax.jit(jax.vmap(jax.value_and_grad(function)))


@pytest.fixture(scope="module")
def values(batched):
    return batched(jnp.asarray(STRETCHED))


@pytest.fixture(scope="module")
def results():
    return [qchem.energy(molecule("HH", r), **SETTINGS) for r in STRETCHED[:2]]


def test_batch_equals_one_after_another(values, results):
    energies, gradients = values
    for n, result in enumerate(results):
        assert_allclose(energies[n], result.energy, rtol=0, atol=ENERGY_ATOL)
        assert_allclose(-gradients[n], result.forces(), rtol=0, atol=FORCE_ATOL)
    assert np.ptp(energies) > 0.05


def test_new_geometries_need_no_new_program(batched, values, results):
    other = jnp.asarray(STRETCHED[::-1] * 1.01)
    with oracle.compilations() as compiled:
        energies, _ = batched(other)
        alone = qchem.energy(molecule("HH", other[0]), **SETTINGS)
        alone.forces()
    assert compiled == []
    assert_allclose(alone.energy, energies[0], rtol=0, atol=ENERGY_ATOL)


def test_other_thresholds_need_no_new_program(results):
    rough = {"tolerance": 1e-2, "energy_tolerance": 1e-2, "damping": 0.1, "level_shift": 0.1}
    with oracle.compilations() as compiled:
        found = qchem.energy(molecule("HH", STRETCHED[0]), **rough, **SETTINGS)
    assert compiled == []
    assert found.converged and found.cycles < results[0].cycles


@pytest.mark.parametrize(
    "option", [{"tolerance": "tight"}, {"energy_tolerance": -1.0}, {"level_shift": np.nan}]
)
@pytest.mark.parametrize("calculate", [qchem.energy, qchem.energy_fn])
def test_thresholds_are_numbers(calculate, option):
    subject = molecule("HH", H2) if calculate is qchem.energy else (1, 1)
    with pytest.raises(qchem.InputError, match="a finite number, 0 or more"):
        calculate(subject, **option, **SETTINGS)


def test_chunks_do_not_change_the_values(values):
    chunked = jax.vmap(qchem.energy_fn((1, 1), chunk=3, **SETTINGS))(jnp.asarray(STRETCHED))
    assert_allclose(chunked, values[0], rtol=0, atol=ENERGY_ATOL)


def test_a_broken_geometry_is_not_a_number(batched, values):
    broken = jnp.asarray(STRETCHED).at[1, 0, 0].set(jnp.nan)
    energies, gradients = batched(broken)
    assert np.isnan(energies[1]) and np.isnan(gradients[1]).any()
    others = np.array([0, 2, 3])
    assert_allclose(energies[others], values[0][others], rtol=0, atol=ENERGY_ATOL)


def test_second_derivatives_are_refused(function):
    with pytest.raises(NotImplementedError, match="response of the orbitals"):
        jax.hessian(function)(jnp.asarray(H2))


@pytest.fixture(scope="module")
def ion():
    """HeH+ in Hartree-Fock: two electrons, no symmetry that would fix their orbital."""
    settings = {"basis": "6-31g", "xc": "hf"}
    mol = molecule(("He", "H"), [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4632]], charge=1)
    return mol, settings, qchem.energy(mol, **settings).require_converged()


@pytest.mark.parametrize("guess", ["sad", "core"])
def test_guesses_lead_to_the_same_solution(guess, ion):
    mol, settings, plain = ion
    result = qchem.energy(mol, guess=guess, **settings).require_converged()
    assert_allclose(result.energy, plain.energy, rtol=0, atol=ENERGY_ATOL)
    assert result.settings["guess"] == guess
    assert result.scf.energy_history[0] != plain.scf.energy_history[0]


def test_a_result_is_a_guess_for_another_geometry_or_spin(ion):
    mol, settings, plain = ion
    again = qchem.energy(mol, guess=plain, **settings)
    assert again.cycles <= 2 and again.settings["guess"] == "result"
    longer = molecule(("He", "H"), 1.05 * np.asarray(mol.positions), charge=1)
    moved = qchem.energy(longer, guess=plain, **settings)
    fresh = qchem.energy(longer, **settings)
    assert_allclose(moved.energy, fresh.energy, rtol=0, atol=ENERGY_ATOL)
    assert moved.scf.energy_history[0] < fresh.scf.energy_history[0]
    parted = qchem.energy(mol, guess=plain, unrestricted=True, **settings)
    assert parted.mo_occ.shape[0] == 2 and parted.cycles <= 2
    joined = qchem.energy(mol, guess=parted, **settings)
    assert joined.cycles <= 2
    assert_allclose([parted.energy, joined.energy], plain.energy, rtol=0, atol=ENERGY_ATOL)


def test_orbitals_are_projected_from_another_basis(ion):
    mol, settings, plain = ion
    small = qchem.energy(mol, "sto-3g", "hf")
    projected = qchem.energy(mol, guess=small, **settings)
    assert_allclose(projected.energy, plain.energy, rtol=0, atol=ENERGY_ATOL)
    bases = [r.method.basis for r in (plain, small)]
    overlap, cross = overlaps(*bases, jnp.asarray(mol.positions))
    assert_allclose(np.diag(overlap), 1, rtol=1e-12)
    # The projection onto a set that holds the old functions keeps them; here it only comes close.
    factor = Guess.from_orbitals(small.scf.factor, bases[1], bases[0], mol.positions).factor
    kept = float(np.vdot(factor, np.asarray(overlap) @ factor)) / 2
    assert 0.97 < kept < 1
    assert_allclose(np.vdot(factor[0], cross @ small.scf.factor[0]), 2 * kept, rtol=1e-10)


def test_second_order_takes_over_and_says_so(results):
    plain = results[0]
    assert [stage["method"] for stage in plain.stages] == ["diis"]
    second = qchem.energy(molecule("HH", H2), solver="second-order", **SETTINGS)
    assert_allclose(second.energy, plain.energy, rtol=0, atol=ENERGY_ATOL)
    assert [stage["method"] for stage in second.stages] == ["diis", "second-order"]
    assert sum(stage["cycles"] for stage in second.stages) == second.cycles
    assert second.stages == second.settings["stages"] and second.stages[-1]["converged"]
    assert_allclose(second.forces(), plain.forces(), rtol=0, atol=FORCE_ATOL)


def test_where_diis_stalls_second_order_follows(ion):
    mol, settings, plain = ion
    stalled = qchem.energy(mol, guess="core", stall=1, damping=0.9, **settings)
    assert [stage["method"] for stage in stalled.stages] == ["diis", "second-order"]
    assert_allclose(stalled.energy, plain.energy, rtol=0, atol=ENERGY_ATOL)
    alone = qchem.energy(mol, guess="core", stall=1, damping=0.9, solver="diis", **settings)
    assert not alone.converged and alone.cycles < stalled.cycles
    function = qchem.energy_fn((2, 1), charge=1, solver="auto", stall=1, damping=0.9, **settings)
    assert_allclose(function(mol.positions), plain.energy, rtol=0, atol=ENERGY_ATOL)


def test_symmetry_breaks_where_that_lowers_the_energy():
    """Hydrogen at 5 bohr: two atoms of -0.466582 hartree each, and the dispersion of none."""
    apart = molecule("HH", [[0.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    closed = qchem.energy(apart, "sto-3g", "hf")
    stability = closed.stability()
    assert stability.stable and stability.internal > 0 > stability.external
    options = {"unrestricted": True, "follow_instability": True}
    parted = qchem.energy(apart, "sto-3g", "hf", **options)
    methods = [stage["method"] for stage in parted.stages]
    assert methods == ["diis", "stability", "second-order", "stability"]
    assert_allclose(parted.energy, 2 * -0.466582, atol=2e-3)
    assert closed.energy > parted.energy + 0.1
    assert_allclose(parted.s2, 1, atol=0.05)
    assert parted.stability().stable
    assert parted.settings["unrestricted"] and parted.settings["follow_instability"]


def test_smearing_minimizes_the_free_energy():
    """Oxygen's pi* orbitals, half filled each, have an entropy of 4 ln 2."""
    mol = molecule("OO", [[0.0, 0.0, 0.0], [0.3, 0.4, 2.2311]])
    settings = {"basis": "sto-3g", "xc": "hf", "smearing": 0.05, "tolerance": 1e-9}
    result = qchem.energy(mol, **settings).require_converged()
    assert_allclose(result.mo_occ.sum(), 16, rtol=1e-12)
    assert 0.9 < result.mo_occ[0, 8] < 1.1
    assert_allclose(result.energy - result.free_energy, 0.05 * 4 * np.log(2), rtol=1e-2)
    free = []
    for step in (-1e-3, 1e-3):
        positions = np.asarray(mol.positions).copy()
        positions[1, 2] += step
        free.append(qchem.energy(molecule("OO", positions), **settings).free_energy)
    slope = (free[1] - free[0]) / 2e-3
    assert_allclose(result.forces()[1, 2], -slope, rtol=0, atol=2e-6)
    with pytest.raises(InputError, match="smearing"):
        result.stability()


def test_single_precision(function, results):
    energy = jax.jit(function)(jnp.asarray(H2, jnp.float32))
    assert energy.dtype == jnp.float32
    assert_allclose(energy, results[0].energy, rtol=0, atol=1e-5)


def test_parts_add_up(results):
    result = results[0].require_converged()
    assert list(result.energies) == ["nuclear", "one_electron", "coulomb", "exchange", "xc"]
    assert_allclose(sum(result.energies.values()), result.energy, atol=1e-12)
    assert_allclose(result.energies["nuclear"], 1 / np.linalg.norm(H2[1]), rtol=1e-12)
    assert result.energies["exchange"] == 0
    assert (result.nao, result.nelectron, result.s2) == (4, 2, 0)
    assert result.homo < result.lumo
    assert_allclose(result.dipole, 0, atol=1e-6)
    assert result.settings["basis"] == "6-31g" and result.settings["grid"] == (12, 26)
    assert_allclose(result.forces().sum(0), 0, atol=1e-9)
    assert {"plan", "integrals", "scf", "forces"} <= result.timings.keys()


def test_hydrogen_atom():
    """Szabo & Ostlund (1989), section 3.5.2: -0.4666 hartree in STO-3G. No beta electron."""
    result = qchem.energy(molecule("H", [[0.0, 0.0, 0.3]], multiplicity=2), "sto-3g", "hf")
    assert_allclose(result.energy, -0.466582, atol=1e-6)
    assert_allclose(result.s2, 0.75, rtol=1e-12)
    assert_allclose(result.homo[0], result.energy, atol=1e-10)  # one electron: no interaction
    assert result.homo[1] is None and result.lumo[0] is None
    assert result.lumo[1] > 0
    assert_allclose(result.dipole, 0, atol=1e-12)
    assert_allclose(result.dm[1], 0, atol=1e-14)
    assert_allclose(result.mo_occ, [[1], [0]])


def test_a_basis_for_each_element():
    """HeH+ in which helium has two functions; the names of the elements decide."""
    mol = molecule(("He", "H"), [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4632]], charge=1)
    plain = qchem.energy(mol, "sto-3g", "hf")
    assert_allclose(plain.energy, -2.841836, atol=1e-5)  # PySCF 2.14, RHF/STO-3G
    mixed = qchem.energy(mol, {"H": "sto-3g", "He": "6-31g"}, "hf")
    assert mixed.nao == 3
    assert mixed.energy < plain.energy - 1e-3
    assert_allclose(mixed.mo_occ, [[2, 0, 0]])


def test_cartesian_functions():
    sizes = [
        qchem.energy_fn((8,), "6-31g*", "hf", cartesian=cartesian).method.basis.nao
        for cartesian in (False, True)
    ]
    assert sizes == [14, 15]


def test_forces_need_convergence():
    mol = molecule(("He", "H"), [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4632]], charge=1)
    result = qchem.energy(mol, "6-31g", "hf", max_cycles=2)
    assert not result.converged and result.cycles == 2
    with pytest.raises(ConvergenceError, match="after 2 cycles"):
        result.forces()
    with pytest.raises(ConvergenceError):
        result.require_converged()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"multiplicity": 3, "overlap_threshold": 1e-5},
    ],
)
def test_forces_where_directions_are_left_out(change):
    """They turn with the nuclei; forces without that were wrong by 2e-5 here."""
    exponents = 3.4, 1.2, 1.212, 0.4, 0.404, 0.12
    basis = qchem.Basis.from_shells([[Shell(0, (a,), (1.0,)) for a in exponents]] * 2)
    options = {"basis": basis, "xc": "hf", "tolerance": 1e-9} | change
    spin = {"multiplicity": options.pop("multiplicity", 1)}

    def at(distance):
        positions = np.array([[0, 0, 0], [0, 0, distance]])
        return qchem.Molecule.from_arrays((1, 1), positions, unit="bohr", **spin)

    results = [qchem.energy(at(1.4 + n * 1e-3), **options) for n in (-2, -1, 1, 2)]
    assert np.isinf(results[0].mo_energy).any()
    measured = oracle.slope(np.array([result.energy for result in results]), 1e-3)
    assert_allclose(qchem.energy(at(1.4), **options).forces()[1, 2], -measured, atol=1e-9)
    function = qchem.energy_fn((1, 1), **options, **spin)
    slope = jax.grad(function)(jnp.asarray(at(1.4).positions))
    assert_allclose(slope[1, 2], measured, atol=1e-9)
    (forces,) = qchem.energies([at(1.4)], **options).forces
    assert_allclose(forces[1, 2], -measured, atol=1e-9)


@pytest.mark.parametrize("value", ["no", 1, None, np.array(True)])
def test_flags_are_true_or_false(value):
    calculation.check_flag("forces", np.bool_(False))
    with pytest.raises(InputError, match="forces = .*; True or False"):
        calculation.check_flag("forces", value)


STO_3G = qchem.Basis.from_name((1, 1), "sto-3g")


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"xc": "pbee"}, FunctionalNotFoundError, "pbe"),
        ({"basis": "sto-33g"}, InputError, "STO-3G"),
        ({"aux": "def2-universal-jkfit"}, InputError, "density fitting"),
        ({"max_cycle": 3}, InputError, "unknown option max_cycle.*max_cycles"),
        ({"basis": STO_3G, "two_electron": "df"}, InputError, "needs aux="),
        ({"aux": "def2-svp", "two_electron": "df"}, InputError, "set for orbitals"),
        ({"max_cycles": "10"}, InputError, "a whole number"),
        ({"smearing": "x"}, InputError, "a finite number"),
        ({"tolerance": 1e-7, "residual_tolerance": 1e-7}, InputError, "two names of one"),
        ({"multiplicity": 2}, InputError, "electron"),
        ({"chunk": 0}, InputError, "chunk"),
        ({"guess": "hukel"}, InputError, "'hukel'.*'sap', 'sad', 'core'"),
        ({"solver": "newton"}, InputError, "'newton'.*'second-order'"),
        ({"smearing": 0.01}, InputError, "energy_fn has no smearing"),
        ({"smearing": 0.01, "solver": "second-order"}, InputError, "whole occupation"),
        ({"basis": qchem.Basis.from_name((1,), "sto-3g")}, InputError, "1 atoms, not for 2"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        qchem.energy_fn((1, 1), **{"basis": "sto-3g", "xc": "hf"} | options)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"basis": None}, "basis = None"),
        ({"basis": {1: "sto-3g"}}, "for each element symbol"),
        ({"aux": 3, "two_electron": "df"}, "aux = 3"),
        ({"xc": 101}, "xc = 101; a name"),
        ({"grid": [20, 50]}, "numbers of .radial, angular. points"),
        ({"grid": (20, 50, 3)}, "numbers of .radial, angular. points"),
        ({"grid": True}, "a level from 0 to 9"),
        ({"cartesian": 0}, "cartesian = 0; True or False"),
    ],
)
def test_other_types_are_refused(change, message):
    names = {"basis": "sto-3g", "xc": "hf", "two_electron": "exact", "aux": None, "grid": 3}
    with pytest.raises(InputError, match=message):
        calculation._names(molecule(("H", "H"), H2), *(names | change).values(), False)


def test_few_cycles_do_not_loosen_the_threshold():
    """Half of them once did."""
    tight = {"basis": "6-31g", "xc": "hf", "tolerance": 1e-10}
    cycles = qchem.energy(molecule(("H", "F"), 1.3 * H2), **tight).cycles
    for few in range(cycles - 2, cycles + 1):
        found = qchem.energy(molecule(("H", "F"), 1.3 * H2), **tight, max_cycles=few)
        assert found.converged == (few == cycles)


def test_guesses_that_do_not_fit_are_refused(results):
    helium = molecule(("He", "H"), H2, charge=1)
    with pytest.raises(InputError, match=r"atoms \(1, 1\), not for \(2, 1\)"):
        qchem.energy(helium, guess=results[0], **SETTINGS)
    with pytest.raises(InputError, match="smearing = -1"):
        qchem.energy(molecule("HH", H2), smearing=-1.0, **SETTINGS)


def test_positions_of_other_molecules_are_refused(function):
    with pytest.raises(InputError, match=r"\(1, 3\), 2 atoms need \(2, 3\)"):
        function(H2[:1])


def test_double_precision_must_be_enabled(function):
    with jax.enable_x64(False):
        with pytest.raises(InputError, match="jax_enable_x64"):
            qchem.energy(molecule("HH", H2), "sto-3g", "hf")
