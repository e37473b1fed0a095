"""Geometries from files: what is read, what is refused, and what is written."""

import numpy as np
import pytest

from qchem import BOHR_IN_ANGSTROM, InputError
from srdft.data import Frames, load_frames, xyz_text

WATER = np.array([[0.0, 0.0, 0.119], [0.0, 0.763, -0.477], [0.0, -0.763, -0.477]])  # ångström
NUMBERS = (8, 1, 1)


def shaken(n, scale=0.02):
    return WATER + scale * np.random.default_rng(0).standard_normal((n, 3, 3))


def xyz(frames, symbols="O H H"):
    blocks = []
    for frame in frames:
        rows = [f"{s} {x} {y} {z}" for s, (x, y, z) in zip(symbols.split(), frame)]
        blocks.append("\n".join([str(len(rows)), "Properties=species:S:1:pos:R:3", *rows]))
    return "\n".join(blocks) + "\n\n"


def test_many_frames_from_xyz(tmp_path):
    path, frames = tmp_path / "w.xyz", shaken(5)
    path.write_text(xyz(frames))
    read = load_frames(path)
    assert read.numbers == NUMBERS and read.n == 5
    np.testing.assert_allclose(read.positions * BOHR_IN_ANGSTROM, frames, rtol=0, atol=1e-12)


@pytest.mark.parametrize("keys", [("Z", "R"), ("z", "R"), ("nuclear_charges", "coords")])
def test_npz_of_each_kind(tmp_path, keys):
    path, frames = tmp_path / "w.npz", shaken(4)
    np.savez(path, **dict(zip(keys, (np.array(NUMBERS, np.uint8), frames))), E=np.zeros(4))
    read = load_frames(path)
    assert read.numbers == NUMBERS
    np.testing.assert_allclose(read.positions * BOHR_IN_ANGSTROM, frames, rtol=0, atol=1e-12)


def test_what_is_written_reads_back(tmp_path):
    path, frames = tmp_path / "w.xyz", Frames(NUMBERS, shaken(3) / BOHR_IN_ANGSTROM)
    path.write_text(xyz_text(frames, ["a", "b", "c"]))
    np.testing.assert_allclose(load_frames(path).positions, frames.positions, rtol=0, atol=2e-9)
    assert path.read_text().splitlines()[1] == "a"


def test_subsets_are_drawn_once_each():
    frames = Frames(NUMBERS, np.arange(20.0)[:, None, None] * np.ones((1, 3, 3)))
    rows = frames.subset(10, seed=1).positions[:, 0, 0]
    assert len(set(rows)) == 10 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, frames.subset(10, seed=1).positions[:, 0, 0])
    assert (rows != frames.subset(10, seed=2).positions[:, 0, 0]).any()
    with pytest.raises(InputError, match="there are 20"):
        frames.subset(21)


@pytest.mark.parametrize(
    ("factor", "unit"), [(1 / BOHR_IN_ANGSTROM, "bohr"), (0.1, "nanometre"), (100, "picometre")]
)
def test_wrong_units_are_recognized(tmp_path, factor, unit):
    path = tmp_path / "w.npz"
    np.savez(path, Z=np.array(NUMBERS), R=shaken(4) * factor)
    with pytest.raises(InputError, match=f"look like {unit}"):
        load_frames(path)


def test_stretched_bonds_beside_usual_ones_are_no_wrong_unit(tmp_path):
    path = tmp_path / "h2.xyz"
    bonds = [[[0, 0, 0], [0, 0, r]] for r in np.linspace(0.5, 2.5, 9)]
    path.write_text(xyz(bonds, "H H"))
    assert load_frames(path).n == 9


def test_atoms_are_put_in_the_order_of_the_family():
    """Elements first; like atoms as in the file, or by the bonds of a geometry."""
    rows = np.array([1, 0, 2])
    frames = Frames((1, 8, 1), shaken(2)[:, rows])
    np.testing.assert_array_equal(frames.ordered_as(NUMBERS).positions, shaken(2))
    assert frames.ordered_as([1, 8, 1]) is frames
    with pytest.raises(InputError, match="another molecule: O H instead of O H H"):
        Frames((8, 1), shaken(1)[:, :2]).ordered_as(NUMBERS)
    hooh = np.array([[0, 0, 0], [1.46, 0, 0], [-0.2, 0.94, 0], [1.66, 0.3, 0.9]]) / BOHR_IN_ANGSTROM
    mixed = Frames((1, 8, 1, 8), hooh[None, [2, 1, 3, 0]]).ordered_as((8, 8, 1, 1))
    assert (mixed.positions[0] != hooh).any()
    found = mixed.bonded_as(hooh).positions[0]
    np.testing.assert_array_equal(found[2:] - found[:2], (hooh[2:] - hooh[:2])[::-1])
    apart = Frames((8, 8, 1, 1), 9 * hooh[None])
    assert apart.bonded_as(hooh) is apart


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"Z": np.array(NUMBERS)}, r"positions \(R or coords\)"),
        ({"R": np.zeros((2, 3, 3))}, r"atomic numbers \(Z or z or nuclear_charges\)"),
        ({"Z": np.array(NUMBERS), "R": np.zeros((3, 3))}, r"positions have shape \(3, 3\)"),
        ({"Z": np.array(NUMBERS), "R": np.zeros((0, 3, 3))}, "positions have shape"),
        ({"Z": np.array(NUMBERS), "R": shaken(2) + 1j}, "dtype complex128"),
        ({"Z": np.array(NUMBERS), "R": np.full((2, 3, 3), "x")}, "numbers are needed"),
        ({"Z": np.array(NUMBERS), "R": shaken(2) * [[[1.0]], [[0.0]]]}, "frame 2 two atoms are 0 "),
        ({"Z": np.array([8.0, 1, 1]), "R": shaken(2)}, "one integer for each"),
        ({"Z": np.array([8, 1, 99]), "R": shaken(2)}, "atomic number 99"),
        ({"Z": np.array(NUMBERS), "R": shaken(2) * np.nan}, "not finite"),
    ],
)
def test_malformed_npz(tmp_path, content, message):
    path = tmp_path / "w.npz"
    np.savez(path, **content)
    with pytest.raises(InputError, match=message):
        load_frames(path)


def test_malformed_files(tmp_path):
    path = tmp_path / "w.npz"
    np.savez_compressed(tmp_path / "whole.npz", Z=np.array(NUMBERS), R=shaken(20))
    whole = (tmp_path / "whole.npz").read_bytes()
    middle = len(whole) // 2
    changed = whole[: middle - 50] + bytes(100) + whole[middle + 50 :]
    for content in (b"", b"no archive", whole[:middle], changed):
        path.write_bytes(content)
        with pytest.raises(InputError, match="as npz.* complete"):
            load_frames(path)
    with pytest.raises(InputError, match="cannot read"):
        load_frames(tmp_path / "absent.xyz")
    path = tmp_path / "w.xyz"
    path.write_text(xyz(shaken(2)) + "3\n\nO 0 0 x\n")
    with pytest.raises(InputError, match="frame 3, which begins at line"):
        load_frames(path)
    path.write_text(xyz(shaken(1)) + xyz(shaken(1), "H O H"))
    with pytest.raises(InputError, match="frame 2 has atoms H O H"):
        load_frames(path)
    path.write_text("")
    with pytest.raises(InputError, match="empty"):
        load_frames(path)
