"""How much memory a calculation will take, before it starts, and how much there is."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from qchem.compilation import platform
from qchem.compilation import together as geometries_together
from qchem.errors import NotEnoughMemoryError
from qchem.fitted_jk import LEAST_COLUMNS
from qchem.integrals.coulomb import nhermite
from qchem.integrals.pairs import npair
from qchem.integrals.tiles import tile_bytes
from qchem.scf.hamiltonian import Method
from qchem.scf.solve import solve

_MARGIN = 0.95  # of what is available: the rest is for what is not counted
_PROGRAMS = 400 << 20  # compiled programs and the interpreter
_HISTORY = inspect.signature(solve).parameters["diis_size"].default
_ARRAYS_OF_TILE = 2  # on an accelerator, each with the bytes of a tile
_TILES = 200 << 20  # tiles of integrals, unpacked columns, chunks of points
# Of what devices that share a molecule have but a part; the rest each has, four-index integrals
# while they are made included.
_SHARED = (
    "three-index integrals",
    "float32 copies of them",
    "products of orbitals",
    "values on the grid",
)


def estimated_bytes(
    method: Method, nocc: tuple[int, ...], *, forces: bool = False, itemsize: int = 8
) -> dict[str, int]:
    """The large arrays of a calculation that are in memory together when most of it is in use.

    They are counted from the sizes of the molecule; a test compares them with what XLA's own
    analysis says of the compiled programs. Where devices share a molecule, of one of them, or of
    all cores together.

    Args:
        method: What is calculated.
        nocc: Number of occupied orbitals in each spin channel.
        forces: The gradient as well, which comes after the SCF and has memory of its own.
        itemsize: Bytes of a number.
    """
    stages = [_of_energy(method, nocc, itemsize)]
    if forces:
        stages.append(_of_forces(method, nocc, itemsize))
    largest = max(stages, key=lambda stage: sum(stage.values()))
    ndevice = 1 if method.mesh is None else method.mesh.size
    # With the same memory.
    together = ndevice if platform() == "cpu" else geometries_together()
    copies = {name: together / ndevice if name in _SHARED else together for name in largest}
    estimate = {name: int(itemsize * size * copies[name]) for name, size in largest.items()}
    tiles = _TILES if platform() == "cpu" else _ARRAYS_OF_TILE * tile_bytes()
    return estimate | {"programs and tiles": _PROGRAMS + together * tiles}


def _of_energy(method, nocc, itemsize):
    """Elements of the arrays of integrals and SCF."""
    nao, nspin = method.basis.nao, len(nocc)
    packed, nrange = npair(nao), 2 if method.functional.omega else 1
    mixed = method.precision == "mixed"
    sizes = {"charge distributions": _distributions(method)}
    if method.two_electron == "df":
        naux = method.aux.nao
        stored = nrange * packed * naux
        if _has_exchange(method) or _kept(method, itemsize * stored):
            sizes["three-index integrals"] = stored
        if _has_exchange(method):
            sizes["some of them, unpacked"] = _unpacked(nao, nocc)
        if mixed and _has_exchange(method):
            sizes["float32 copies of them"] = stored // 2
        sizes["the metric"] = nrange * 3 * naux**2
    elif method.two_electron == "exact":
        sizes["four-index integrals"] = nrange * npair(packed)
        sizes["rows of them, unpacked"] = nao * packed + nao**3
    sizes["orbitals and their history"] = nspin * nao**2 * (3 * _HISTORY + 12) + 8 * nao**2
    stored = _grid_values(method) // (2 if mixed else 1)
    if method.functional.ingredients == "mgga" and _kept(method, itemsize * stored):
        sizes["values on the grid"] = stored
    return sizes | {"a chunk of points": _chunk(method)}


def _kept(method, size):
    """Whether this many bytes, of all devices, are kept for all cycles."""
    return size <= method.device_bytes * (1 if method.mesh is None else method.mesh.size)


def _of_forces(method, nocc, itemsize):
    """Elements of the arrays of the gradient."""
    nao, nspin = method.basis.nao, len(nocc)
    packed, nrange = npair(nao), 2 if method.functional.omega else 1
    sizes = {"charge distributions and their derivatives": 4 * _distributions(method)}
    if method.two_electron == "df":
        naux, products = method.aux.nao, nspin * max(nocc) ** 2 * method.aux.nao
        times = int(_has_exchange(method)) + int(method.reuses_fitted)
        if times:
            sizes["three-index integrals"] = times * nrange * packed * naux
        if _has_exchange(method):
            sizes["products of orbitals"] = 2 * nrange * products
            sizes["some integrals, unpacked"] = 2 * _unpacked(nao, nocc)
        sizes["the metric"] = nrange * 4 * naux**2
    sizes["orbitals"] = nspin * nao**2 * 12
    return sizes | {"a chunk of points": 4 * _chunk(method)}


def _unpacked(nao, nocc):
    """Elements of (ab|P) and (ai|P) for the fewest P that exchange takes at a time."""
    return LEAST_COLUMNS * nao * (nao + len(nocc) * max(nocc))


def _has_exchange(method):
    return bool(method.functional.exchange_fraction or method.functional.attenuated_fraction)


def _distributions(method):
    """Elements of all expansions of pairs of functions."""
    total = 0
    for rows in method.pairs:
        nrow, nprim = rows.used.shape
        total += nrow * nprim * (rows.index.shape[1] * nhermite(rows.order) + 4)
    return total


def _grid_values(method):
    """Elements of the AO values on all points."""
    npoint = 0 if method.grid is None else len(method.grid.reference.quadrature)
    return npoint * method.basis.nao * _ncomponent(method)


def _chunk(method):
    """Elements of distances, and of AO values and their products with a density matrix."""
    return method.npoint * (
        6 * len(method.numbers) ** 2 + 8 * _ncomponent(method) * method.basis.nao
    )


def _ncomponent(method):
    return {"none": 0, "lda": 1}.get(method.functional.ingredients, 4)


def available_bytes() -> int | None:
    """Memory that this process can still have on the device that computes; None if not known."""
    statistics = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    known = [size for size in (_of_the_machine(), _of_the_group()) if size is not None]
    return min(known, default=None)


def _of_the_machine():
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = dict(line.split(":", 1) for line in lines)
        return 1024 * int(sizes["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None


def _of_the_group():
    """What is left of the limit that a container sets."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / f"memory.{name}").read_text() for name in ("max", "current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # no such group, or the limit is "max"
        return None


def check_memory(
    method: Method,
    nocc: tuple[int, ...],
    *,
    forces: bool = False,
    itemsize: int = 8,
    available: int | None = None,
) -> None:
    """Refuse a calculation that the memory will not hold.

    Raises:
        NotEnoughMemoryError: With the bytes that are estimated and available, and what would fit.
    """
    available = available_bytes() if available is None else available
    parts = estimated_bytes(method, nocc, forces=forces, itemsize=itemsize)
    needed = sum(parts.values())
    if available is None or needed <= _MARGIN * available:
        return
    largest = max(parts, key=parts.__getitem__)
    kind = "energy and forces" if forces else "energy"
    raise NotEnoughMemoryError(
        f"the {kind} of {method.basis.nao} basis functions would take about {_text(needed)}, "
        f"{_text(parts[largest])} of it for {largest}, and {_text(available)} are available: "
        f"{_advice(method, nocc, forces, itemsize, available)}",
        needed=needed,
        available=available,
    )


def _advice(method, nocc, forces, itemsize, available):
    """What would fit."""

    def fits(**changes):
        settings = {"method": method, "forces": forces, "itemsize": itemsize} | changes
        parts = estimated_bytes(nocc=nocc, **settings)
        return sum(parts.values()) <= _MARGIN * available

    if forces and fits(forces=False):
        return "the energy alone would fit."
    cores = method.mesh is not None and platform() == "cpu"
    if cores and fits(method=replace(method, mesh=None)):
        return "on one core (--cores 1, or no mesh) it would fit."
    if method.two_electron == "df":
        if _has_exchange(method):
            return (
                "without exact exchange nothing of that size is needed; exact integrals "
                "(two_electron='exact') are made again in batches and take less, at the cost of "
                "time; so does a smaller basis set."
            )
    return "a smaller basis set, or a machine with more memory, is needed."


def _text(size: int | np.integer) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
