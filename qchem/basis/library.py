"""Basis sets by name, from the Basis Set Exchange or a file, as contracted shells per element."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from os import PathLike
from typing import Any, NamedTuple

from qchem.errors import BasisError, BasisNotFoundError
from qchem.molecule import SYMBOLS

MAX_L_ORBITAL = 4  # g
MAX_L_AUXILIARY = 6  # i

# Spellings that PySCF users type and that normalization alone does not lead to a known name.
_ALIASES = {
    "ano": "ano-rcc",
    "roosdz": "Roos Augmented Double Zeta ANO",
    "roostz": "Roos Augmented Triple Zeta ANO",
    "dz": "DZ (Dunning-Hay)",
    "dzp": "DZP (Dunning-Hay)",
    "weigend": "def2-universal-jfit",
    "weigendjfit": "def2-universal-jfit",
    "weigendjkfit": "def2-universal-jkfit",
}


class Shell(NamedTuple):
    """One contracted shell of an element.

    Attributes:
        l: Angular momentum.
        exponents: Of the primitives, bohr⁻².
        coefficients: As published, of normalized primitives.
    """

    l: int
    exponents: tuple[float, ...]
    coefficients: tuple[float, ...]


def shells_from_name(
    name: str | Mapping[str, str], numbers: Iterable[int], auxiliary: bool = False
) -> dict[int, tuple[Shell, ...]]:
    """The shells of each element, from the set called `name`, or from one per element symbol.

    A general contraction becomes one shell per column, an SP shell an s and a p shell.

    Raises:
        BasisNotFoundError: Unknown name, or an element that the set does not have.
        BasisError: An effective core potential, or an angular momentum too high.
    """
    present = tuple(sorted(set(numbers)))
    if isinstance(name, str):
        return dict(_shells_of_set(canonical_name(name), present, auxiliary))
    given = {symbol.strip().capitalize(): value for symbol, value in name.items()}
    missing = [SYMBOLS[z] for z in present if SYMBOLS[z] not in given]
    if missing:
        raise BasisNotFoundError(
            f"no basis set was given for {', '.join(missing)}; the sets by element name only "
            f"{', '.join(given) or 'nothing'}."
        )
    return {
        z: shell
        for z in present
        for shell in _shells_of_set(canonical_name(given[SYMBOLS[z]]), (z,), auxiliary).values()
    }


def read_shells(
    path: str | PathLike[str],
    numbers: Iterable[int],
    auxiliary: bool = False,
    file_format: str | None = None,
) -> dict[int, tuple[Shell, ...]]:
    """The shells of each element, from a file in any format that basis-set-exchange reads.

    Args:
        path: The file.
        numbers: Atomic numbers.
        auxiliary: A fitting set, with l up to 6.
        file_format: basis-set-exchange's name of the format. By default the extension decides,
            or, if that tells nothing, the first format that reads the file.

    Raises:
        BasisNotFoundError: An element that the file does not have.
        BasisError: A file that cannot be read, an effective core potential, or an angular
            momentum too high.
    """
    present = tuple(sorted(set(numbers)))
    elements = _read_elements(str(path), file_format, _version(path))
    missing = [SYMBOLS[z] for z in present if str(z) not in elements]
    if missing:
        held = ", ".join(SYMBOLS[int(z)] for z in elements if int(z) < len(SYMBOLS))
        raise BasisNotFoundError(
            f"basis set file {str(path)!r} has no shells for {', '.join(missing)}; "
            f"it holds {held or 'no element from H to Kr'}."
        )
    return {z: _parse_element(elements[str(z)], str(path), z, auxiliary) for z in present}


def canonical_name(name: str) -> str:
    """The Basis Set Exchange's name of a set, from any common spelling.

    Case, hyphens, underscores and spaces do not matter, (d) and (d,p) stand for * and **.

    Raises:
        BasisNotFoundError: Unknown name; the message offers the nearest ones.
    """
    known = _known_names()
    key = _normalize(name)
    tries = [
        key,
        _normalize(_ALIASES.get(key, key)),
        key.replace("(d,p)", "**").replace("(d)", "*"),
        re.sub(r"ri$", "rifit", key),
        re.sub(r"^def2.*jkfit$", "def2universaljkfit", key),
        re.sub(r"^def2.*(?<!k)jfit$", "def2universaljfit", key),
    ]
    for candidate in tries:
        if candidate in known:
            return known[candidate]
    near = [known[match] for match in get_close_matches(key, known, n=3, cutoff=0.5)]
    hint = f"the nearest names are {', '.join(near)}" if near else "no known name is near"
    raise BasisNotFoundError(
        f"unknown basis set {name!r}; {hint}. Any set of the Basis Set Exchange "
        "(https://www.basissetexchange.org) will do; others can be read with "
        "Basis.from_file(path, numbers)."
    )


def default_auxiliary(name: str | Mapping[str, str], numbers: Iterable[int] = ()) -> str:
    """The set that fits Coulomb and exchange for an orbital basis when none is asked for.

    cc-pVXZ and aug-cc-pVXZ have cc-pVXZ-JKFIT (F. Weigend, Phys. Chem. Chem. Phys. 4, 4285 (2002)),
    with the triple-zeta one for double zeta too. All others, and elements that those lack, have
    def2-universal-JKFIT (F. Weigend, J. Comput. Chem. 29, 167 (2008)), which covers H to Rn.

    Args:
        name: The orbital basis; a choice per element gets the universal set.
        numbers: Atomic numbers that the set must cover.
    """
    universal = "def2-universal-JKFIT"
    if not isinstance(name, str):
        return universal
    match = re.fullmatch(r"(?:aug)?ccpv([dtq5])z", _normalize(name))
    if not match:
        return universal
    fitting = f"cc-pV{match[1].replace('d', 't').upper()}Z-JKFIT"
    return fitting if set(numbers) <= _covered(_metadata()[fitting.lower()]) else universal


def _normalize(name: str) -> str:
    return re.sub(r"[-_\s]", "", name.lower())


def _exchange() -> Any:
    import basis_set_exchange  # half a second: only when a set is looked up

    return basis_set_exchange


@cache
def _metadata() -> dict[str, Any]:
    return _exchange().get_metadata()


@cache
def _known_names() -> dict[str, str]:
    return {_normalize(meta["display_name"]): meta["display_name"] for meta in _metadata().values()}


def _covered(meta: dict[str, Any]) -> set[int]:
    return {int(z) for z in meta["versions"][meta["latest_version"]]["elements"]}


@cache
def _shells_of_set(
    name: str, numbers: tuple[int, ...], auxiliary: bool
) -> dict[int, tuple[Shell, ...]]:
    metadata = _metadata()
    meta = next(meta for meta in metadata.values() if meta["display_name"] == name)
    missing = [z for z in numbers if z not in _covered(meta)]
    if missing:
        covering = sorted(
            other["display_name"]
            for other in metadata.values()
            if other["family"] == meta["family"]
            and other["role"] == meta["role"]
            and set(numbers) <= _covered(other)
        )
        raise BasisNotFoundError(
            f"basis set {name!r} has no shells for {', '.join(SYMBOLS[z] for z in missing)}; "
            f"{_offer(covering, metadata, numbers, auxiliary)}. "
            "Others can be read with Basis.from_file(path, numbers), "
            "and each element can have a set of its own."
        )
    elements = _exchange().get_basis(name, elements=list(numbers))["elements"]
    return {z: _parse_element(elements[str(z)], name, z, auxiliary) for z in numbers}


def _offer(
    covering: list[str], metadata: dict[str, Any], numbers: tuple[int, ...], auxiliary: bool
) -> str:
    if covering:
        more = ", ..." if len(covering) > 8 else ""
        return f"sets of its family that cover all elements here: {', '.join(covering[:8])}{more}"
    if auxiliary:
        return "def2-universal-JKFIT has all elements from H to Kr"
    general = ("def2-SVP", "def2-TZVP", "def2-QZVP", "6-31G", "cc-pVDZ", "ANO-RCC")
    useful = [name for name in general if set(numbers) <= _covered(metadata[name.lower()])]
    return f"no set of its family covers all elements here; sets that do: {', '.join(useful)}"


@cache
def check_auxiliary(name: str) -> None:
    """Refuse a set that is known to be no fitting set.

    Raises:
        BasisError: It is for orbitals: energies would be wrong by as much as a hartree.
    """
    name = canonical_name(name)
    role = next(m["role"] for m in _metadata().values() if m["display_name"] == name)
    if role == "orbital":
        raise BasisError(
            f"{name!r} is a set for orbitals, not for density fitting; def2-universal-JKFIT, which "
            "suits every orbital basis, is one for that."
        )


def _version(path: str | PathLike[str]) -> tuple[int, int]:
    """When a file was changed last, and its size."""
    try:
        open(path).close()
        status = os.stat(path)
    except OSError as error:
        raise BasisError(f"cannot read basis set file {str(path)!r}: {error}") from error
    return status.st_mtime_ns, status.st_size


@cache
def _read_elements(path: str, file_format: str | None, version: tuple[int, int]) -> dict[str, Any]:
    from basis_set_exchange import readers

    known = readers.get_reader_formats()
    if file_format is not None and file_format not in known:
        raise BasisError(f"unknown format {file_format!r}; known are {', '.join(known)}.")
    problems = []
    for candidate in [file_format] if file_format else [None, *known]:  # None: by the extension
        try:
            elements = readers.read_formatted_basis_file(path, candidate)["elements"]
        except Exception as error:  # each reader raises its own kinds
            problems.append(str(error))
            continue
        if any(element.get("electron_shells") for element in elements.values()):
            return elements
        problems.append("no shells found")
    raise BasisError(
        f"cannot read basis set file {path!r}: {problems[0]} "
        f"The formats that can be read are {', '.join(known)}; name one as `file_format`."
    )


def _parse_element(
    element: dict[str, Any], name: str, number: int, auxiliary: bool
) -> tuple[Shell, ...]:
    if element.get("ecp_electrons") or element.get("ecp_potentials"):
        raise BasisError(
            f"basis set {name!r} replaces the core of {SYMBOLS[number]} by an effective core "
            "potential (ECP), which is not supported; choose an all-electron set, "
            "for instance one of the def2 or x2c families."
        )
    shells = [shell for entry in element.get("electron_shells", []) for shell in _split(entry)]
    limit = MAX_L_AUXILIARY if auxiliary else MAX_L_ORBITAL
    highest = max((shell.l for shell in shells), default=-1)
    if highest < 0:
        raise BasisNotFoundError(f"basis set {name!r} has no shells for {SYMBOLS[number]}.")
    if highest > limit:
        kind = "auxiliary" if auxiliary else "orbital"
        raise BasisError(
            f"basis set {name!r} has functions of angular momentum {highest} on {SYMBOLS[number]}; "
            f"{kind} functions are supported up to {limit} ({'spdfghi'[limit]})."
        )
    return tuple(sorted(shells, key=lambda shell: shell.l))


def _split(entry: dict[str, Any]) -> list[Shell]:
    """One shell per column. Where a primitive has a column of its own, the others lose it.

    That leaves the span unchanged and is the form in which PySCF holds the correlation-consistent
    sets, which the Basis Set Exchange publishes with all primitives in every column.
    """
    exponents = [float(value) for value in entry["exponents"]]
    columns = [[float(value) for value in column] for column in entry["coefficients"]]
    momenta: Sequence[int] = entry["angular_momentum"]
    rows = [{k for k, value in enumerate(column) if value != 0} for column in columns]
    if len(momenta) == 1:
        momenta = list(momenta) * len(columns)
        alone = set().union(*(row for row in rows if len(row) == 1))
        rows = [row if len(row) == 1 else row - alone for row in rows]
    shells = []
    for l, column, row in zip(momenta, columns, rows, strict=True):
        kept = sorted(((exponents[k], column[k]) for k in row), reverse=True)
        if kept:
            shells.append(Shell(l, *map(tuple, zip(*kept, strict=True))))
    return shells
