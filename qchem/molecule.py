"""Molecule: elements, nuclear positions, charge and multiplicity; reading xyz files."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from os import PathLike
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from qchem.errors import MoleculeError
from qchem.units import BOHR_IN_ANGSTROM

# Index is the atomic number; "X" keeps the place of zero.
SYMBOLS = tuple(
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar "
    "K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr".split()
)
MIN_DISTANCE = 0.1  # bohr; nuclei closer than this are a mistake in the input


class Molecule(eqx.Module):
    """A molecule at one geometry.

    Attributes:
        numbers: Atomic numbers, 1 (H) to 36 (Kr).
        positions: Of the nuclei, bohr.
        charge: In units of e.
        multiplicity: 2S + 1.

    Raises:
        MoleculeError: As `from_arrays`.
    """

    numbers: tuple[int, ...] = eqx.field(static=True)
    positions: Float[Array | np.ndarray, "natom 3"]
    charge: int = eqx.field(static=True, default=0)
    multiplicity: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        numbers = tuple(_atomic_number(_integer("atomic number", z)) for z in self.numbers)
        if isinstance(self.positions, jax.core.Tracer):
            _check_shape(self.positions, len(numbers))
        else:
            if not isinstance(self.positions, np.ndarray | jax.Array):
                raise MoleculeError("positions are no array; from_arrays makes one of a list.")
            _check_distances(numbers, _checked_positions(self.positions, len(numbers)))
        _check_electrons(sum(numbers), _integer("charge", self.charge), self.multiplicity)

    @property
    def natom(self) -> int:
        """Number of nuclei."""
        return len(self.numbers)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Element symbols."""
        return tuple(SYMBOLS[z] for z in self.numbers)

    @property
    def nelectron(self) -> int:
        """Number of electrons."""
        return sum(self.numbers) - self.charge

    @property
    def nalpha(self) -> int:
        """Number of alpha electrons, never fewer than beta."""
        return (self.nelectron + self.multiplicity - 1) // 2

    @property
    def nbeta(self) -> int:
        """Number of beta electrons."""
        return self.nelectron - self.nalpha

    @classmethod
    def from_xyz(
        cls, path: str | PathLike[str], *, charge: int = 0, multiplicity: int = 1
    ) -> "Molecule":
        """Read an xyz file: a count, a comment, then symbol (or number) and x y z in Ångström.

        Further columns and trailing blank lines are ignored. In an extended xyz file
        `Properties` says which columns are the species and the position.

        Raises:
            MoleculeError: A file that cannot be read, a malformed line (its number is named),
                more than one frame, or anything that `from_arrays` refuses.
        """
        lines = _lines(path)
        try:
            symbols, positions = _parse_xyz(lines)
            return cls.from_arrays(
                symbols, positions, unit="angstrom", charge=charge, multiplicity=multiplicity
            )
        except MoleculeError as error:
            raise MoleculeError(f"{path}: {error}") from error

    @classmethod
    def frames_from_xyz(
        cls, path: str | PathLike[str], *, charge: int = 0, multiplicity: int = 1
    ) -> "list[Molecule]":
        """Read all frames of an xyz file, each written as `from_xyz` wants it.

        Raises:
            MoleculeError: As `from_xyz`; the frame and its first line are named.
        """
        lines = _lines(path)
        while lines and not lines[-1].strip():
            lines.pop()
        frames, start = [], 0
        while start < len(lines) or not frames:
            count = lines[start].strip() if start < len(lines) else ""
            end = start + 2 + int(count) if count.isdecimal() and len(count) < 9 else len(lines)
            try:
                symbols, positions = _parse_xyz(lines[start:end])
                frames.append(
                    cls.from_arrays(
                        symbols,
                        positions,
                        unit="angstrom",
                        charge=charge,
                        multiplicity=multiplicity,
                    )
                )
            except MoleculeError as error:
                raise MoleculeError(
                    f"{path}, frame {len(frames) + 1}, which begins at line {start + 1}: {error}"
                ) from error
            start = end
            while start < len(lines) and not lines[start].strip():
                start += 1
        return frames

    @classmethod
    def from_arrays(
        cls,
        elements: Sequence[object] | np.ndarray,
        positions: Any,
        *,
        unit: str,
        charge: int = 0,
        multiplicity: int = 1,
    ) -> "Molecule":
        """A molecule from its elements and coordinates.

        Args:
            elements: Atomic numbers or symbols.
            positions: One row x, y, z per nucleus.
            unit: Of `positions`: "bohr" or "angstrom".
            charge: In units of e.
            multiplicity: 2S + 1.

        Raises:
            MoleculeError: Unknown elements or unit, coordinates that are not finite, coincident
                nuclei, no electrons, or a multiplicity that the electrons cannot have.
        """
        if unit not in ("bohr", "angstrom"):
            raise MoleculeError(f"unknown unit {unit!r}; use 'bohr' or 'angstrom'.")
        numbers = tuple(_atomic_number(element) for element in elements)
        placed = _checked_positions(positions, len(numbers))
        if unit == "angstrom":
            placed = placed / BOHR_IN_ANGSTROM
        charge, multiplicity = _integer("charge", charge), _integer("multiplicity", multiplicity)
        return cls(numbers, placed, charge, multiplicity)


def _lines(path: str | PathLike[str]) -> list[str]:
    try:
        # Comments may be in any encoding; numbers and symbols are ASCII.
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return file.read().split("\n")  # splitlines() knows rarer separators too
    except OSError as error:
        raise MoleculeError(f"cannot read {str(path)!r}: {error}") from error


def _parse_xyz(lines: list[str]) -> tuple[list[int | str], list[list[float]]]:
    if not any(line.strip() for line in lines):
        raise MoleculeError("the file is empty; an xyz file begins with the number of atoms.")
    try:
        natom = int(_digits(lines[0]))
    except ValueError:
        raise MoleculeError(
            f"line 1: expected the number of atoms, found {lines[0].strip()!r}."
        ) from None
    if natom < 1:
        raise MoleculeError(f"line 1: the number of atoms must be positive, not {natom}.")
    element, first = _columns(lines[1] if len(lines) > 1 else "")
    symbols: list[int | str] = []
    positions = []
    for row in range(2, 2 + natom):
        fields = lines[row].split() if row < len(lines) else []
        if not fields:
            raise MoleculeError(
                f"line {row + 1}: line 1 announces {natom} atoms, but only {row - 2} are given."
            )
        try:
            x, y, z = (_coordinate(field) for field in fields[first : first + 3])
            symbol = fields[element] if element < len(fields) else ""
            symbol = int(symbol) if symbol.isdecimal() else symbol
            _atomic_number(symbol)
        except MoleculeError as error:
            raise MoleculeError(f"line {row + 1}: {error}") from None
        except ValueError:
            raise MoleculeError(
                f"line {row + 1}: expected a symbol and three coordinates, "
                f"found {lines[row].strip()!r}."
            ) from None
        symbols.append(symbol)
        positions.append([x, y, z])
    for row in range(2 + natom, len(lines)):
        if lines[row].strip():
            raise MoleculeError(
                f"line {row + 1}: {lines[row].strip()!r} follows the {natom} atoms that line 1 "
                "announces; correct the count, or keep a single frame."
            )
    return symbols, positions


def _columns(comment: str) -> tuple[int, int]:
    """Where symbols and coordinates stand; in an extended xyz file its comment tells."""
    found = re.search(r'\bProperties="?([^\s"]+)', comment)
    if found is None:
        return 0, 1
    parts, places, column = found[1].split(":"), {}, 0
    try:
        for name, kind, count in zip(*(parts[i::3] for i in range(3)), strict=True):
            places[name.lower(), kind.upper(), int(count)] = column
            column += int(count)
    except ValueError:
        raise MoleculeError(
            f"line 2: Properties={found[1]}; name:type:columns are needed, again and again."
        ) from None
    elements = [places.get(kind) for kind in (("species", "S", 1), ("z", "I", 1))]
    element = next((place for place in elements if place is not None), None)
    first = places.get(("pos", "R", 3))
    if element is None or first is None:
        raise MoleculeError(
            f"line 2: Properties={found[1]}; species:S:1 (or Z:I:1) and pos:R:3 are needed."
        )
    return element, first


def _coordinate(field: str) -> float:
    return float(re.sub("[dD]", "e", _digits(field)))  # Fortran writes 1.0D+00


def _digits(field: str) -> str:
    """The same, unless it is what Python alone takes for a number."""
    if "_" in field:
        raise ValueError(field)
    return field


def _atomic_number(element: Any) -> int:
    if isinstance(element, str):
        symbol = element.strip().capitalize()
        if symbol in SYMBOLS[1:]:
            return SYMBOLS.index(symbol)
        near = get_close_matches(symbol, SYMBOLS[1:], n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}" if near else ""
        raise MoleculeError(f"unknown element {element!r}{hint}? Supported are H to Kr.")
    number = _integer("atomic number", element)
    if not 1 <= number < len(SYMBOLS):
        raise MoleculeError(f"atomic number {number} is not supported; 1 (H) to 36 (Kr) are.")
    return number


def _integer(what: str, value: Any) -> int:
    try:
        if not isinstance(value, bool | str | bytes) and int(value) == value:
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise MoleculeError(f"{what} must be an integer, not {value!r}.")


def _checked_positions(positions: Any, natom: int) -> np.ndarray:
    try:
        array = np.asarray(positions)
        if np.iscomplexobj(array):
            raise TypeError("they are complex")
        array = np.array(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MoleculeError(f"positions are not an array of numbers: {error}") from error
    _check_shape(array, natom)
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if bad.size:
        atom = int(bad[0])
        raise MoleculeError(f"coordinates of atom {atom + 1} are not finite: {array[atom]}.")
    return array


def _check_shape(array: Any, natom: int) -> None:
    if natom == 0:
        raise MoleculeError("a molecule needs at least one atom.")
    if array.shape != (natom, 3):
        raise MoleculeError(f"positions have shape {array.shape}; {natom} atoms need ({natom}, 3).")


def _check_distances(numbers: tuple[int, ...], positions: np.ndarray) -> None:
    for i in range(1, len(numbers)):
        distance = np.linalg.norm(positions[:i] - positions[i], axis=1)
        j = int(distance.argmin())
        if distance[j] < MIN_DISTANCE:
            raise MoleculeError(
                f"atoms {j + 1} ({SYMBOLS[numbers[j]]}) and {i + 1} ({SYMBOLS[numbers[i]]}) are "
                f"{distance[j]:.3g} bohr apart, less than {MIN_DISTANCE}; check the coordinates "
                "and their unit."
            )


def _check_electrons(nuclear_charge: int, charge: int, multiplicity: Any) -> None:
    nelectron = nuclear_charge - charge
    if nelectron < 1:
        raise MoleculeError(
            f"charge {charge:+d} leaves {nelectron} electrons of {nuclear_charge}; "
            "at least one is needed."
        )
    nopen = _integer("multiplicity", multiplicity) - 1
    if nopen < 0 or nopen > nelectron or (nelectron - nopen) % 2:
        possible = [n + 1 for n in range(nelectron % 2, min(nelectron, 5) + 1, 2)]
        raise MoleculeError(
            f"{nelectron} electrons cannot have multiplicity {multiplicity}; "
            f"possible are {', '.join(map(str, possible))}{', ...' if nelectron > 5 else ''}."
        )
