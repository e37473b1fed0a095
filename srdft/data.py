"""Geometries from files: xyz (one or many frames) and npz (MD17 and rMD17), and to xyz files."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import equinox as eqx
import numpy as np
from jaxtyping import Float, Num

from qchem import BOHR_IN_ANGSTROM, SYMBOLS, InputError, Molecule
from srdft.geometry import bonds, matching, radius_sums

# Nearest neighbours of bonded atoms, in sums of covalent radii, lie well between these bounds.
SHORTEST, LONGEST = 0.55, 1.7
_NUMBERS, _POSITIONS = ("Z", "z", "nuclear_charges"), ("R", "coords")
CLOSEST = 0.1  # bohr, as in xyz files
TRIED = 50  # frames that are asked for their bonds


class Frames(eqx.Module):
    """Geometries of one molecule.

    Attributes:
        numbers: Atomic numbers, the same in all frames.
        positions: Bohr.
    """

    numbers: tuple[int, ...] = eqx.field(static=True)
    positions: Float[np.ndarray, "n natom 3"]

    @property
    def n(self) -> int:
        """Number of frames."""
        return self.positions.shape[0]

    def subset(self, size: int | None, seed: int = 0) -> Frames:
        """`size` frames drawn at random without replacement, in their order; None keeps all.

        Raises:
            InputError: There are fewer.
        """
        if size is None:
            return self
        if not 1 <= size <= self.n:
            raise InputError(f"{size} geometries were asked for; there are {self.n}.")
        rows = np.sort(np.random.default_rng(seed).choice(self.n, size, replace=False))
        return Frames(self.numbers, self.positions[rows])

    def ordered_as(self, numbers: Sequence[int], what: str = "the file") -> Frames:
        """The same frames, their atoms in the order of a family's; like atoms as in the file.

        No energy depends on which of several like atoms is which; `bonded_as` serves what does.

        Raises:
            InputError: Other atoms.
        """
        numbers = tuple(numbers)
        if self.numbers == numbers:
            return self
        if sorted(self.numbers) != sorted(numbers):
            given, wanted = formula(self.numbers), formula(numbers)
            raise InputError(f"{what} is about another molecule: {given} instead of {wanted}.")
        order = np.empty(len(numbers), int)
        order[np.argsort(numbers, kind="stable")] = np.argsort(self.numbers, kind="stable")
        return Frames(numbers, self.positions[:, order])

    def bonded_as(self, start: Float[np.ndarray, "natom 3"]) -> Frames:
        """The frames with like atoms in the order that gives them the bonds of a geometry.

        In files of others, atoms of one element may be numbered differently. Frames as they are if
        none of the first ones has these bonds in any order.
        """
        wanted = bonds(self.numbers, start)
        for frame in self.positions[:TRIED]:
            order = matching(self.numbers, wanted, bonds(self.numbers, frame))
            if order is not None:
                return Frames(self.numbers, self.positions[:, order])
        return self


def load_frames(path: str | Path, *, charge: int = 0, multiplicity: int = 1) -> Frames:
    """Geometries in a file, ångström: `.npz` with Z, R, or the names of MD17 (z, R) or of rMD17
    (nuclear_charges, coords), or else xyz.

    Args:
        path: The file.
        charge, multiplicity: Of the molecule, which xyz files do not tell.

    Raises:
        InputError: A file that cannot be read, frames of different molecules, coordinates that are
            not finite, nuclei at one place, or bond lengths that no unit but ångström explains.
    """
    path = Path(path)
    if path.suffix == ".npz":
        frames = _from_npz(path)
    else:
        frames = _from_xyz(path, charge=charge, multiplicity=multiplicity)
    _check_unit(frames, path)
    return frames


def xyz_text(frames: Frames, comments: Sequence[str] | None = None) -> str:
    """What a multi-frame xyz file holds, in ångström."""
    symbols = [SYMBOLS[z] for z in frames.numbers]
    lines = []
    for i, frame in enumerate(np.asarray(frames.positions) * BOHR_IN_ANGSTROM):
        lines += [str(len(symbols)), comments[i] if comments is not None else f"frame {i + 1}"]
        lines += [
            f"{symbol:2s} {x:16.10f} {y:16.10f} {z:16.10f}"
            for symbol, (x, y, z) in zip(symbols, frame, strict=True)
        ]
    return "\n".join(lines) + "\n"


def _from_xyz(path, **spin):
    molecules = Molecule.frames_from_xyz(path, **spin)
    first = molecules[0]
    for i, molecule in enumerate(molecules):
        if molecule.numbers != first.numbers:
            raise InputError(
                f"{path}: frame {i + 1} has atoms {formula(molecule.numbers)}, "
                f"frame 1 has {formula(first.numbers)}; all frames must be of one molecule, "
                "its atoms in one order."
            )
    return Frames(first.numbers, np.stack([molecule.positions for molecule in molecules]))


def _from_npz(path):
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            names = file.files
            keys = [next((k for k in some if k in names), None) for some in (_NUMBERS, _POSITIONS)]
            found = [None if key is None else file[key] for key in keys]
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise InputError(
            f"cannot read {str(path)!r} as npz: {error}. Is the file complete?"
        ) from error
    if None in keys:
        raise InputError(
            f"{path}: keys are {', '.join(names) or 'missing'}; atomic numbers "
            f"({' or '.join(_NUMBERS)}) and positions ({' or '.join(_POSITIONS)}) in ångström are "
            "needed."
        )
    return Frames(*_checked(*found, path))


def _checked(numbers: Num[np.ndarray, ...], positions: Num[np.ndarray, ...], path: Path):
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise InputError(
            f"{path}: atomic numbers have shape {numbers.shape} and dtype {numbers.dtype}; one "
            "integer for each atom is needed."
        )
    if positions.dtype.kind not in "iuf":
        raise InputError(f"{path}: positions have dtype {positions.dtype}; numbers are needed.")
    if positions.ndim != 3 or positions.shape[1:] != (numbers.size, 3) or not len(positions):
        raise InputError(
            f"{path}: positions have shape {positions.shape}; {numbers.size} atoms need "
            f"(frames, {numbers.size}, 3)."
        )
    bad = np.flatnonzero((numbers < 1) | (numbers >= len(SYMBOLS)))
    if bad.size:
        raise InputError(f"{path}: atomic number {numbers[bad[0]]} is not supported; 1 to 36 are.")
    broken = np.flatnonzero(~np.isfinite(positions).all(axis=(1, 2)))
    if broken.size:
        raise InputError(f"{path}: coordinates of frame {broken[0] + 1} are not finite.")
    positions = positions.astype(np.float64) / BOHR_IN_ANGSTROM
    i, j = np.triu_indices(numbers.size, 1)
    for n, frame in enumerate(positions):
        nearest = np.linalg.norm(frame[i] - frame[j], axis=-1).min(initial=np.inf)
        if nearest < CLOSEST:
            raise InputError(
                f"{path}: in frame {n + 1} two atoms are {nearest:.3g} bohr apart, less than "
                f"{CLOSEST}."
            )
    return tuple(map(int, numbers)), positions


def _check_unit(frames: Frames, path: Path) -> None:
    """Refuse coordinates in which no frame has bonds of a usual length."""
    if len(frames.numbers) == 1:
        return
    some = frames.positions[:: max(1, frames.n // 200)]
    apart = np.linalg.norm(some[:, :, None] - some[:, None], axis=-1)
    apart = apart / radius_sums(frames.numbers) + np.diag(np.full(len(frames.numbers), np.inf))
    lengths = np.median(apart.min(axis=-1), axis=-1)  # the typical bond of each frame

    def usual(unit):
        return bool(np.any((unit * lengths >= SHORTEST) & (unit * lengths <= LONGEST)))

    if usual(1.0):
        return
    guesses = {"bohr": BOHR_IN_ANGSTROM, "nanometre": 10.0, "picometre": 0.01}
    fitting = [unit for unit, length in guesses.items() if usual(length)]
    hint = f"they look like {fitting[0]}" if fitting else "check the coordinates"
    raise InputError(
        f"{path}: nearest neighbours are typically {np.median(lengths):.2f} times a bond length "
        f"apart, as coordinates in ångström cannot be; {hint}. Files must be in ångström."
    )


def formula(numbers: Sequence[int]) -> str:
    """Symbols of the atoms in their order, the first twelve."""
    symbols = [SYMBOLS[z] for z in numbers]
    return " ".join(symbols) if len(symbols) <= 12 else " ".join(symbols[:12]) + " ..."
