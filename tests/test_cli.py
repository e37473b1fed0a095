"""The command line: flags, JSON, exit codes and messages; the calculation itself is a stand-in."""

import errno
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose

import qchem
import qchem.calculation
from qchem import cli
from qchem.data import read_json
from qchem.errors import BasisNotFoundError, ConvergenceError, InputError
from qchem.units import BOHR_IN_ANGSTROM

EXAMPLES = Path(__file__).parents[1] / "examples"
WATER = str(EXAMPLES / "water.xyz")
KEYS = {
    "energy", "energies", "converged", "cycles", "residual", "dipole", "homo", "lumo", "s2", "nao",
    "nelectron", "timings", "settings",
}  # fmt: skip


def result(**changes):
    """What `qchem.energy` returns, with made-up numbers."""
    fields = {
        "energy": np.float64(-76.25),
        "energies": {"nuclear": np.float64(9.0), "one_electron": np.array(-85.25)},
        "converged": True,
        "cycles": 9,
        "residual": 1e-9,
        "dipole": np.array([0.0, 0.0, 0.75]),
        "homo": -0.25,
        "lumo": np.float64(0.0625),
        "s2": 0.0,
        "nao": 24,
        "nelectron": 10,
        "timings": {"scf": 1.5},
        "settings": {"xc": "b3lyp", "basis": "def2-svp", "grid": (75, 302)},
        "forces": lambda: np.array([[0.0, 0.0, 0.5], [0.0, 0.25, -0.25], [0.0, -0.25, -0.25]]),
    }
    return SimpleNamespace(**fields | changes)


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """The calls of `qchem.energy`, which answers with `result()`."""
    calls = []

    def energy(mol, **settings):
        calls.append((mol, settings))
        return result()

    monkeypatch.setattr(qchem, "energy", energy)
    monkeypatch.setattr(cli, "configure_jax", lambda: None)  # else it would change later tests
    monkeypatch.setattr(qchem, "use_cores", lambda count: count and f"{count} cores")
    return calls


def answer(monkeypatch, outcome):
    """Let `qchem.energy` return or raise `outcome`."""

    def energy(mol, **settings):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(qchem, "energy", energy)


def run(capsys, *arguments):
    """Exit code, stdout and stderr of `qchem energy`."""
    try:
        code = cli.main(["energy", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def refused(capsys, *arguments):
    """The message of a refused input: code 2, one or two lines, nothing on stdout."""
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    return err


def test_json_is_one_object_with_the_promised_keys(capsys):
    code, out, err = run(capsys, WATER, "--json", "--forces")
    report = json.loads(out)
    assert code == 0
    assert set(report) == KEYS | {"forces"}
    assert report["energy"] == -76.25
    assert report["energies"]["one_electron"] == -85.25
    assert report["forces"][1] == [0.0, 0.25, -0.25]
    assert report["settings"]["versions"]["python"] == sys.version.split()[0]
    assert report["settings"]["grid"] == [75, 302]
    assert report["settings"]["file"] == WATER
    assert err == ""


def test_without_forces_there_is_no_such_key(capsys):
    assert "forces" not in json.loads(run(capsys, WATER, "--json")[1])


def test_text_goes_to_stderr(capsys):
    code, out, err = run(capsys, WATER, "--forces")
    assert (code, out) == (0, "")
    for text in ("-76.25000000", "0.750000", "0.062500", "-0.250000", "forces"):
        assert text in err


def test_flags_reach_the_calculation(capsys, calls):
    flags = "--basis cc-pvdz --xc pbe --charge -1 --multiplicity 2 --cartesian --two-electron df"
    more = "--aux cc-pvtz-jkfit --grid 75,302 --max-cycles 7 --tolerance 1e-6 --precision mixed"
    more += " --cores 2"
    assert run(capsys, WATER, *flags.split(), *more.split())[0] == 0
    [(mol, settings)] = calls
    assert (mol.charge, mol.multiplicity, mol.nelectron) == (-1, 2, 11)
    assert settings == {
        "forces": False,
        "mesh": "2 cores",
        "basis": "cc-pvdz",
        "xc": "pbe",
        "cartesian": True,
        "two_electron": "df",
        "aux": "cc-pvtz-jkfit",
        "grid": (75, 302),
        "max_cycles": 7,
        "tolerance": 1e-6,
        "precision": "mixed",
    }


def test_defaults(capsys, calls):
    assert run(capsys, WATER)[0] == 0
    [(mol, settings)] = calls
    assert (mol.charge, mol.multiplicity) == (0, 1)
    assert settings == {
        "forces": False,
        "mesh": None,
        "basis": "def2-svp",
        "xc": "b3lyp",
        "cartesian": False,
        "two_electron": "exact",
        "aux": None,
        "grid": 3,
        "precision": "double",
    }
    assert_allclose(mol.positions[1, 1], 0.763239 / 0.529177210903)


def test_spin_channels_and_missing_orbitals(capsys, monkeypatch):
    answer(monkeypatch, result(homo=np.array([-0.5, -np.inf]), lumo=None, s2=np.float64(0.75)))
    code, out, _ = run(capsys, WATER, "--json")
    report = json.loads(out)
    assert (report["homo"], report["lumo"], report["s2"]) == ([-0.5, None], None, 0.75)
    assert run(capsys, WATER)[0] == code == 0


def test_not_converged(capsys, monkeypatch, tmp_path):
    out_file = tmp_path / "result.json"
    out_file.write_text("the last good one")
    answer(monkeypatch, result(converged=False, residual=2.5e-3, cycles=50))
    code, out, err = run(capsys, WATER, "--json", "--forces", "--out", out_file)
    report = json.loads(out)
    assert code == 1
    assert report["converged"] is False
    assert report["forces"] is None
    for text in ("2.5e-03", "50 cycles", "--max-cycles"):
        assert text in err
    assert out_file.read_text() == "the last good one"


@pytest.mark.parametrize(
    "outcome",
    [
        ConvergenceError("stopped", residual=0.5, cycles=3),
        result(converged=False, energy=np.nan, residual=np.nan, dipole=np.full(3, np.nan)),
    ],
    ids=["raised", "NaN"],
)
def test_not_converged_is_still_valid_json(capsys, monkeypatch, outcome):
    answer(monkeypatch, outcome)
    code, out, err = run(capsys, WATER, "--json")
    report = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert code == 1
    assert report["converged"] is False
    assert report["residual"] in (0.5, None)
    assert "not converged" in err
    assert run(capsys, WATER)[0] == 1  # the text for people copes, too


def test_failure_inside_is_one_line_with_code_1(capsys, monkeypatch):
    answer(monkeypatch, MemoryError("out of memory\nframe 1\nframe 2"))
    code, out, err = run(capsys, WATER, "--json")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "MemoryError: out of memory" in err
    assert "Traceback" in run(capsys, WATER, "--debug")[2]


def test_interrupt(capsys, monkeypatch):
    answer(monkeypatch, KeyboardInterrupt())
    assert run(capsys, WATER)[0] == 130


def test_out_is_the_json_object(capsys, tmp_path):
    out_file = tmp_path / "result.json"
    out_file.write_text("old")
    code, out, err = run(capsys, WATER, "--out", out_file)
    assert (code, out) == (0, "")
    assert json.loads(out_file.read_text())["energy"] == -76.25
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_out_is_written_first(capsys, monkeypatch, tmp_path):
    """Text that nobody takes loses nothing, nor does what an earlier process has left."""
    out_file = tmp_path / "result.json"
    (tmp_path / f".result.json.{os.getpid()}.part").touch()

    def closed(text):
        raise OSError("No space left on device")

    monkeypatch.setattr(cli, "say", closed)
    assert run(capsys, WATER, "--out", out_file)[0] == 1
    assert json.loads(out_file.read_text())["energy"] == -76.25


def test_an_interrupt_leaves_no_part_of_a_file(tmp_path):
    code = (
        "import os, pathlib, signal, sys; from qchem.command import output_file\n"
        "with output_file(pathlib.Path(sys.argv[1])):\n"
        "    print(len(os.listdir(os.path.dirname(sys.argv[1]))), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "result.json")]
    process = subprocess.run(arguments, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (130, "1\n")
    assert process.stderr == "interrupted\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["missing/result.json", ".", "file.xyz/result.json", "/dev/null"])
def test_out_is_checked_before_the_calculation(capsys, calls, tmp_path, place):
    (tmp_path / "file.xyz").write_text("")
    assert "cannot write" in refused(capsys, WATER, "--out", tmp_path / place)
    assert calls == []


def test_a_full_disk_does_not_lose_the_result(capsys, monkeypatch, tmp_path):
    """The file is kept where there is room; without, that is said."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    place = tmp_path / "r" / "result.json"
    place.parent.mkdir()
    code, _, err = run(capsys, WATER, "--out", place)
    assert code == 1 and "No space left" in err and "no room for it" in err
    (tmp_path / "elsewhere").mkdir()
    code, _, err = run(capsys, WATER, "--out", place)
    (kept,) = (tmp_path / "elsewhere").iterdir()
    assert code == 1 and str(kept) in err and json.loads(kept.read_text())["energy"] == -76.25
    assert list(place.parent.iterdir()) == []


def test_out_does_not_overwrite_the_geometry(capsys, calls, tmp_path):
    file = tmp_path / "water.xyz"
    file.write_text(Path(WATER).read_text())
    assert "geometry" in refused(capsys, file, "--out", tmp_path / "." / "water.xyz")
    assert calls == []
    assert file.read_text() == Path(WATER).read_text()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("2\n\nH 0 0 0\nH 0 0 x\n", "line 4"),
        ("3\n\nH 0 0 0\nH 0 0 1\n", "3 atoms"),
        ("one\n\nH 0 0 0\n", "line 1"),
        ("1\n\nXx 0 0 0\n", "'Xx'"),
        ("1\n\nU 0 0 0\n", "U"),
        ("2\n\nH 0 0 0\nH 0 0 0\n", "1"),
        ("2\n\nH 0 0 0\nH 0 0 nan\n", "nan"),
        ("", "empty"),
    ],
)
def test_wrong_geometries_are_refused(capsys, calls, tmp_path, text, expected):
    file = tmp_path / "molecule.xyz"
    file.write_text(text)
    assert expected.lower() in refused(capsys, file).lower()
    assert calls == []


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([WATER, "--multiplicity", "2"], "10 electrons"),
        ([WATER, "--multiplicity", "0"], "multiplicity"),
        ([WATER, "--charge", "10"], "electron"),
        (["no-such-file.xyz"], "no-such-file.xyz"),
        ([str(EXAMPLES)], "examples"),
        ([WATER, "--grid", "fine"], "'fine'"),
        ([WATER, "--grid", "1,2,3"], "'1,2,3'"),
        ([WATER, "--charge", "one"], "--charge"),
        ([WATER, "--two-electron", "ri"], "'ri'"),
        ([WATER, "--bases", "sto-3g"], "--bases"),
        ([], "FILE.xyz"),
    ],
)
def test_wrong_input_is_refused(capsys, calls, arguments, expected):
    assert expected in refused(capsys, *arguments)
    assert calls == []


@pytest.mark.parametrize("error", [InputError("unknown grid"), BasisNotFoundError("unknown basis")])
def test_input_errors_of_the_library_have_code_2(capsys, monkeypatch, error):
    answer(monkeypatch, error)
    assert refused(capsys, WATER) == f"{error}\n"


def test_a_real_calculation_agrees_with_the_stored_energy(capsys, monkeypatch, tmp_path):
    case = next(
        case for case in read_json("energies.json")["cases"] if case["molecule"] == "hydrogen"
    )
    rows = [
        f"{symbol} {x:.14f} {y:.14f} {z:.14f}"
        for symbol, (x, y, z) in zip(
            case["symbols"], np.array(case["positions"]) * BOHR_IN_ANGSTROM, strict=True
        )
    ]
    file = tmp_path / "hydrogen.xyz"
    file.write_text("\n".join(["2", "", *rows]))
    monkeypatch.setattr(qchem, "energy", qchem.calculation.energy)
    arguments = [file, "--basis", case["basis"], "--xc", case["xc"], "--json", "--forces"]
    code, out, _ = run(capsys, *arguments)
    report = json.loads(out)
    assert code == 0
    assert set(report) == KEYS | {"forces"}
    assert_allclose(report["energy"], case["energy"], rtol=0, atol=1e-8)
    assert_allclose(sum(report["energies"].values()), report["energy"], rtol=0, atol=1e-12)
    assert_allclose(report["forces"], case["forces"], rtol=0, atol=1e-6)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("qchem ")


def test_version_where_nothing_can_be_written(capsys, monkeypatch):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert cli.main(["--version"]) == 1
    assert capsys.readouterr().err == "the version cannot be shown: No space left on device.\n"


@pytest.mark.parametrize("deviation, code", [(1e-12, 0), (1e-3, 1), (np.nan, 1)])
def test_validate_exits_with_its_verdict(capsys, monkeypatch, deviation, code):
    from qchem import validate

    checks = [
        validate.Check("overlap", 15, deviation, 1e-10),
        validate.Check("dipole", 15, 0.0, 1.0),
    ]
    monkeypatch.setattr(validate, "run", lambda parts: iter(checks))
    assert cli.main(["validate"]) == code
    out, err = capsys.readouterr()
    assert all(word in out for word in ("quantity", "overlap", "dipole", "1e-10", "ok"))
    assert ("MISS" in out) == ("overlap" in err) == (code == 1)


@pytest.mark.parametrize("package", ["qchem", "srdft"])
def test_an_interrupt_while_modules_are_imported(package):
    """It ends the process at once, with its code and no traceback."""
    code = (
        f"import builtins, os, signal, {package}.__main__ as command\n"
        "imported = builtins.__import__\n"
        "def interrupted(name, *arguments):\n"
        "    if name == 'tyro':\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return imported(name, *arguments)\n"
        "builtins.__import__ = interrupted\n"
        "command.main()\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (130, "interrupted\n")


def test_a_process_of_its_own(tmp_path):
    """Wrong input ends soon with code 2; the cache goes to the user's cache directory."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    code = (
        "import sys; from qchem.cli import main; status = main(sys.argv[1:]); import jax; "
        "print(jax.config.jax_enable_x64, jax.config.jax_compilation_cache_dir); sys.exit(status)"
    )
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", code, "energy", "missing.xyz"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 2, process.stderr
    assert "missing.xyz" in process.stderr
    assert "Traceback" not in process.stderr
    (directory,) = (tmp_path / "srdft").iterdir()  # of this version
    assert process.stdout.split() == ["True", str(directory)]
    assert time.perf_counter() - start < 15  # about 2 s on an idle machine; nothing is compiled
