"""Basis sets by name and from files: spellings, refusals, suggestions."""

import basis_set_exchange
import pytest

from qchem.basis.library import (
    canonical_name,
    check_auxiliary,
    default_auxiliary,
    read_shells,
    shells_from_name,
)
from qchem.errors import BasisError, BasisNotFoundError


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("def2-svp", "def2-SVP"),
        ("DEF2SVP", "def2-SVP"),
        ("def2_tzvp", "def2-TZVP"),
        ("ccpvdz", "cc-pVDZ"),
        ("augccpvdz", "aug-cc-pVDZ"),
        ("631g*", "6-31G*"),
        ("6-31G(d)", "6-31G*"),
        ("6-31g(d,p)", "6-31G(d,p)"),
        ("6311++g**", "6-311++G**"),
        ("6-311++G(d,p)", "6-311++G**"),
        ("sto-3g", "STO-3G"),
        ("ano-rcc", "ANO-RCC"),
        ("roosdz", "Roos Augmented Double Zeta ANO"),
        ("def2-svp-jkfit", "def2-universal-JKFIT"),
        ("def2-tzvp-jfit", "def2-universal-JFIT"),
        ("weigend", "def2-universal-JFIT"),
        ("cc-pvdz-ri", "cc-pVDZ-RIFIT"),
    ],
)
def test_spellings(spelling, name):
    assert canonical_name(spelling) == name


@pytest.mark.parametrize(
    ("name", "number", "momenta"),
    [
        ("sto-3g", 8, "ssp"),
        ("6-31g*", 6, "sssppd"),
        ("def2-svp", 1, "ssp"),
        ("cc-pvtz", 8, "sssspppddf"),
        ("ano-rcc", 1, "ssssssppppdddf"),
    ],
)
def test_shells_per_contraction(name, number, momenta):
    shells = shells_from_name(name, [number])[number]
    assert "".join("spdfg"[shell.l] for shell in shells) == momenta
    for shell in shells:
        assert all(c != 0 for c in shell.coefficients)
        assert list(shell.exponents) == sorted(shell.exponents, reverse=True)


def test_a_set_per_element():
    shells = shells_from_name({"o": "cc-pvdz", "H": "sto-3g"}, [8, 1, 1])
    assert shells[8] == shells_from_name("cc-pvdz", [8])[8]
    assert shells[1] == shells_from_name("sto-3g", [1])[1]
    with pytest.raises(BasisNotFoundError, match="given for N.*only O"):
        shells_from_name({"O": "cc-pvdz"}, [8, 7])


def test_unknown_name_offers_the_nearest():
    with pytest.raises(BasisNotFoundError, match="'def2-svpx'.*def2-SVP"):
        canonical_name("def2-svpx")


def test_missing_element_offers_other_sets():
    with pytest.raises(BasisNotFoundError, match="no shells for Br; sets of its family.*6-31G"):
        shells_from_name("6-311++g**", [35, 6])
    with pytest.raises(BasisNotFoundError, match="no shells for K;.*def2-TZVP"):
        shells_from_name("cc-pvdz", [19, 9])


def test_effective_core_potentials_are_refused():
    with pytest.raises(BasisError, match="effective core potential"):
        shells_from_name("cc-pvdz-pp", [29])


def test_high_angular_momentum_is_refused():
    with pytest.raises(BasisError, match="angular momentum 5 on O; orbital.*up to 4"):
        shells_from_name("cc-pv5z", [8])
    fitting = shells_from_name("def2-universal-jkfit", [26], auxiliary=True)[26]
    assert max(shell.l for shell in fitting) == 6


@pytest.mark.parametrize("suffix", [".nw", ".gbs", ".tm", ".basis"])
def test_files(tmp_path, suffix):
    written = {".gbs": "gaussian94", ".tm": "turbomole"}.get(suffix, "nwchem")
    path = tmp_path / f"set{suffix}"
    path.write_text(basis_set_exchange.get_basis("6-31g*", elements=[6, 8], fmt=written))
    read = read_shells(path, [8])[8]
    expected = shells_from_name("6-31g*", [8])[8]
    assert [shell.l for shell in read] == [shell.l for shell in expected]
    for one, other in zip(read, expected, strict=True):
        assert one.exponents == pytest.approx(other.exponents, rel=1e-9)
        assert one.coefficients == pytest.approx(other.coefficients, rel=1e-9)
    with pytest.raises(BasisNotFoundError, match="no shells for N; it holds C, O"):
        read_shells(path, [7])


def test_unreadable_files(tmp_path):
    with pytest.raises(BasisError, match="nowhere"):
        read_shells("nowhere.nw", [1])
    path = tmp_path / "set.txt"
    path.write_text("nothing of the kind\n")
    with pytest.raises(BasisError, match="formats that can be read"):
        read_shells(path, [1])
    with pytest.raises(BasisError, match="unknown format 'nwchen'"):
        read_shells(path, [1], file_format="nwchen")


@pytest.mark.parametrize(
    ("name", "numbers", "auxiliary"),
    [
        ("def2-svp", [6], "def2-universal-JKFIT"),
        ("cc-pVDZ", [6, 1], "cc-pVTZ-JKFIT"),
        ("augccpvqz", [6, 1], "cc-pVQZ-JKFIT"),
        ("cc-pvtz", [26, 6], "def2-universal-JKFIT"),
        ("6-31g*", [6], "def2-universal-JKFIT"),
        ({"H": "cc-pvdz"}, [1], "def2-universal-JKFIT"),
    ],
)
def test_default_auxiliary(name, numbers, auxiliary):
    assert default_auxiliary(name, numbers) == auxiliary


def test_universal_auxiliary_covers_hydrogen_to_krypton():
    shells_from_name("def2-universal-jkfit", range(1, 37), auxiliary=True)


def test_sets_for_orbitals_do_not_fit():
    check_auxiliary("def2-universal-jkfit")
    check_auxiliary("cc-pvdz-ri")
    with pytest.raises(BasisError, match="'def2-SVP' is a set for orbitals"):
        check_auxiliary("def2-svp")
    with pytest.raises(BasisNotFoundError, match="has no shells for Li; def2-universal-JKFIT"):
        shells_from_name("cc-pvtz-jkfit", [3], auxiliary=True)


def test_a_file_that_has_changed_is_read_again(tmp_path):
    path = tmp_path / "set.nw"
    for exponent in ("0.5", "1.25"):
        path.write_text(f"BASIS SPHERICAL\nH S\n {exponent} 1.0\nEND\n")
        assert read_shells(path, [1])[1][0].exponents == (float(exponent),)
