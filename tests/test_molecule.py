"""Molecule: construction, files, and every kind of wrong input."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem.errors import InputError, MoleculeError
from qchem.molecule import SYMBOLS, Molecule, _integer
from qchem.units import BOHR_IN_ANGSTROM

WATER = [[0.0, 0.0, 0.0], [1.8, 0.0, 0.0], [-0.4, 1.7, 0.0]]
XYZ = "3\nwater\nO 0 0 0\nH 0.95 0 0\nH -0.2 0.9 0\n"


def write(tmp_path, text):
    path = tmp_path / "molecule.xyz"
    path.write_text(text)
    return path


def test_elements_end_at_krypton():
    assert len(SYMBOLS) == 37
    assert (SYMBOLS[1], SYMBOLS[17], SYMBOLS[26], SYMBOLS[36]) == ("H", "Cl", "Fe", "Kr")


def test_electrons_of_an_ion():
    ion = Molecule.from_arrays(["O", "h", 1], WATER, unit="bohr", charge=1, multiplicity=2)
    assert ion.numbers == (8, 1, 1)
    assert ion.symbols == ("O", "H", "H")
    assert (ion.natom, ion.nelectron, ion.nalpha, ion.nbeta) == (3, 9, 5, 4)
    assert ion.positions.dtype == np.float64


def test_unit_is_converted_once(tmp_path):
    read = Molecule.from_xyz(write(tmp_path, XYZ))
    given = Molecule.from_arrays(
        [8, 1, 1], [[0, 0, 0], [0.95, 0, 0], [-0.2, 0.9, 0]], unit="angstrom"
    )
    assert_allclose(read.positions, given.positions, rtol=0, atol=0)
    assert read.positions[1, 0] == pytest.approx(0.95 / BOHR_IN_ANGSTROM, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    [
        XYZ + "\n \n",
        XYZ.replace("\n", "\r\n"),
        '3\nLattice="9 0 0" Properties=species:S:1:pos:R:3:forces:R:3\n'
        "O 0 0 0 1 2 3\nH 0.95 0 0 1 2 3\nH -0.2 0.9 0 1 2 3\n",
        '3\nProperties="forces:R:3:id:I:1:species:S:1:pos:R:3" energy=-76\n'
        "1 2 3 7 O 0 0 0\n1 2 3 8 H 0.95 0 0\n1 2 3 9 H -0.2 0.9 0\n",
        "3\nProperties=Z:I:1:mass:R:1:pos:R:3\n8 16 0 0 0\n1 1 0.95 0 0\n1 1 -0.2 0.9 0\n",
        "3\n\n8 0 0 0\n1 9.5D-1 0 0\n1 -0.2 0.9 0\n",
        XYZ.replace("O", "\to"),
    ],
    ids=["blank lines", "windows", "extended", "forces first", "numbers first"]
    + ["numbers and Fortran", "lower case"],
)
def test_xyz_dialects(tmp_path, text):
    molecule = Molecule.from_xyz(write(tmp_path, text))
    assert molecule.numbers == (8, 1, 1)
    assert molecule.positions[1, 0] * BOHR_IN_ANGSTROM == pytest.approx(0.95, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("water\n", "line 1.*number of atoms.*'water'"),
        ("0\n\n", "line 1.*positive"),
        (XYZ.replace("0.95", "o.95"), "line 4.*three coordinates"),
        (XYZ.replace("H 0.95 0 0", "H 0.95 0"), "line 4.*three coordinates"),
        (XYZ.replace("O 0", "Qq 0"), "line 3: unknown element 'Qq'"),
        ("4" + XYZ[1:], "line 6.*announces 4 atoms, but only 3"),
        ("2" + XYZ[1:], "line 5.*follows the 2 atoms"),
        (XYZ + XYZ, "line 6.*single frame"),
        (XYZ.replace("0.95", "nan"), "atom 2 are not finite"),
        ("1\nProperties=species:S:1:forces:R:3\nO 0 0 0\n", "line 2.*pos:R:3 are needed"),
        ("1\nProperties=species:S:1:pos:R\nO 0 0 0\n", "line 2.*name:type:columns"),
    ],
)
def test_malformed_xyz_names_the_line(tmp_path, text, message):
    with pytest.raises(MoleculeError, match=message):
        Molecule.from_xyz(write(tmp_path, text))


def test_missing_file():
    with pytest.raises(MoleculeError, match="nowhere.xyz"):
        Molecule.from_xyz("nowhere.xyz")


@pytest.mark.parametrize(
    ("elements", "changes", "message"),
    [
        (["O", "H", "Xx"], {}, "unknown element 'Xx'"),
        ([8, 1, 37], {}, "37 is not supported"),
        ([8, 1, 1.5], {}, "must be an integer"),
        ([8, 1], {}, r"shape \(3, 3\); 2 atoms need \(2, 3\)"),
        ([8, 1, 1], {"multiplicity": 2}, "10 electrons cannot have multiplicity 2.*1, 3, 5"),
        ([8, 1, 1], {"multiplicity": 0}, "multiplicity 0"),
        ([8, 1, 1], {"charge": 9, "multiplicity": 3}, "1 electrons.*possible are 2"),
        ([8, 1, 1], {"charge": 10}, "leaves 0 electrons"),
        ([8, 1, 1], {"unit": "nm"}, "unknown unit 'nm'"),
        ([8, 1, 1], {"positions": [[0, 0, 0], [1, 0, 0], [1, 0, 0.05]]}, r"2 \(H\) and 3 \(H\)"),
        ([8, 1, 1], {"positions": [[0, 0, 0], [1, 0, 0], [1, 0, np.inf]]}, "atom 3"),
        ([8, 1, 1], {"positions": "here"}, "not an array of numbers"),
        ([], {"positions": np.zeros((0, 3))}, "at least one atom"),
        ([8, 1, 1], {"positions": 1j * np.ones((3, 3))}, "complex"),
        ([8, 1, None], {}, "atomic number must be an integer"),
    ],
)
def test_wrong_input_is_refused(elements, changes, message):
    arguments = {"positions": WATER, "unit": "bohr"} | changes
    with pytest.raises(InputError, match=message):
        Molecule.from_arrays(elements, **arguments)


@pytest.mark.parametrize(
    "numbers, positions, state, message",
    [
        ((8, 1, 1), np.array(WATER), (1, 1), "9 electrons cannot have multiplicity 1"),
        ((50, 1, 1), np.array(WATER), (0, 1), "atomic number 50"),
        ((8, 1, 1), np.array(WATER)[:2], (0, 1), "shape"),
    ],
)
def test_the_constructor_refuses_the_same(numbers, positions, state, message):
    with pytest.raises(InputError, match=message):
        Molecule(numbers, positions, *state)


@pytest.mark.parametrize("value", [True, "1", b"H", None, np.inf, np.nan, 0.5, [1]])
def test_what_is_no_integer(value):
    with pytest.raises(MoleculeError, match="charge must be an integer"):
        _integer("charge", value)


def test_bytes_of_any_encoding_in_a_comment(tmp_path):
    path = tmp_path / "file.xyz"
    path.write_bytes("1\nhélium\nHe 0 0 0\n".encode("latin-1"))
    assert Molecule.from_xyz(path).numbers == (2,)
    path.write_bytes("1\n\nHé 0 0 0\n".encode("latin-1"))
    with pytest.raises(InputError, match="line 3"):
        Molecule.from_xyz(path)


def test_separators_that_end_no_line(tmp_path):
    """And what Python alone takes for a number."""
    path = tmp_path / "file.xyz"
    path.write_text("1\na\u2028b\x0b\x1cc\x85d\nHe 0 0 0\n", encoding="utf-8")
    assert Molecule.from_xyz(path).numbers == (2,)
    assert len(Molecule.frames_from_xyz(path)) == 1
    for text in ("1\n\nHe 0 0 0.1_17\n", "0_1\n\nHe 0 0 0\n", "\u00b2\n\nHe 0 0 0\n"):
        path.write_text(text, encoding="utf-8")
        for read in (Molecule.from_xyz, Molecule.frames_from_xyz):
            with pytest.raises(InputError, match="line"):
                read(path)
