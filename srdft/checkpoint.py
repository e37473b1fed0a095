"""Checkpoints: one file with everything a training needs to go on, written in one step.

A file is a line of JSON (the header) and the arrays behind it. The header holds format, versions,
the resolved configuration, the atoms of each family, counters, and length and SHA-256,
so that a file that was cut off or damaged is recognized before anything is read from it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax

from qchem import InputError, QChemError

FORMAT = "srdft checkpoint 2"
CHECKPOINTS = LATEST, BEST = "latest.ckpt", "best.ckpt"
State = TypeVar("State")


class CheckpointError(QChemError):
    """A checkpoint that could not be written (exit code 1); the previous one is as it was."""


class DamagedError(InputError):
    """A checkpoint that was cut off or changed; another one of the run may still serve."""


def save(path: str | Path, state: Any, header: dict[str, Any]) -> None:
    """Write a checkpoint; a file of this name is replaced only by a complete one.

    Args:
        path: Where.
        state: A PyTree; its arrays are kept.
        header: What JSON can hold; must say how to build a `state` of the same structure.

    Raises:
        CheckpointError: The file cannot be written, the disk is full for example.
    """
    path = Path(path)
    buffer = io.BytesIO()
    eqx.tree_serialise_leaves(buffer, jax.device_get(eqx.filter(state, eqx.is_array)))
    arrays = buffer.getvalue()
    line = {"format": FORMAT, **header, "bytes": len(arrays)}
    line["sha256"] = _digest(line, arrays)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.write(arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write the checkpoint {str(path)!r}: {error.strerror}. The previous one is "
            "intact; make room and go on with --resume."
        ) from error


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a checkpoint, of which every byte is as it was written.

    Raises:
        DamagedError: No checkpoint, or one that was cut off or changed.
        InputError: There is no such file, or it has another format.
    """
    return _read(Path(path))[0]


def load(path: str | Path, like: State) -> tuple[State, dict[str, Any]]:
    """State and header of a checkpoint.

    Args:
        path: The file.
        like: A state of the same structure, shapes and dtypes; its values do not matter.

    Raises:
        DamagedError: A file that was cut off or changed.
        InputError: A file that is missing, or of another structure.
    """
    path = Path(path)
    header, arrays = _read(path)
    dynamic, static = eqx.partition(like, eqx.is_array)
    try:
        loaded = eqx.tree_deserialise_leaves(io.BytesIO(arrays), dynamic)
    except (RuntimeError, ValueError, EOFError) as error:
        raise InputError(
            f"{path} holds a training of another family, model or optimizer: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return eqx.combine(loaded, static), header


def find(run: str | Path, name: str = BEST) -> Path:
    """The checkpoint file that a run directory stands for, or the given file itself.

    Args:
        run: A directory that `srdft train` has written, or a checkpoint.
        name: Which one of the directory; if there is none of this name, the other one.

    Raises:
        InputError: Neither exists.
    """
    run = Path(run)
    if run.is_file():
        return run
    for candidate in (run / name, run / LATEST, run / BEST):
        if candidate.is_file():
            return candidate
    raise InputError(
        f"{str(run)!r} is neither a checkpoint nor a directory with one; srdft train writes them."
    )


def _digest(header: dict[str, Any], arrays: bytes) -> str:
    rest = {key: value for key, value in header.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode() + arrays).hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the checkpoint {str(path)!r}: {error.strerror}.") from error
    line, newline, arrays = content.partition(b"\n")
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    known = isinstance(header, dict) and {"format", "bytes", "sha256"} <= header.keys()
    if not newline or not known:
        raise DamagedError(
            f"{path} is not a checkpoint, or its beginning is damaged; other checkpoints of the "
            f"run: {_others(path) or 'none'}."
        )
    intact = len(arrays) == header["bytes"]
    if not intact or _digest(header, arrays) != header["sha256"]:
        found = "a wrong checksum" if intact else f"{len(arrays)} of {header['bytes']} bytes"
        raise DamagedError(
            f"{path} is damaged ({found}); other checkpoints of the run: {_others(path) or 'none'}."
        )
    if header["format"] != FORMAT:
        raise InputError(f"{path} has format {header['format']!r}; this version reads {FORMAT!r}.")
    return header, arrays


def _others(path: Path) -> str:
    return ", ".join(sorted(str(other) for other in path.parent.glob("*.ckpt") if other != path))


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where the system lets a folder be synchronized."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
