"""The configuration of an experiment: frozen dataclasses and one TOML file.

Every field has a default that works; a file holds only what differs. Unknown keys and values of the
wrong type are refused, with the nearest key.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal

from qchem import InputError


@dataclass(frozen=True)
class FamilyConfig:
    """One molecule family: `[family]`, or `[[family]]` for several in one training."""

    xyz: str = ""
    """One geometry, ångström: composition, order of atoms, and where training starts. Relative to
    the file that names it."""
    name: str | None = None
    """For reports; by default the name of the xyz file."""
    charge: int = 0
    multiplicity: int = 1
    basis: str = "def2-svp"
    xc: str = "b3lyp"
    two_electron: Literal["df", "exact"] = "df"
    aux: str | None = None
    """Auxiliary basis set of density fitting; by default the one that suits the basis."""
    grid: int = 3
    cartesian: bool = False
    data: str | None = None
    """More geometries to start from: .npz or .xyz, relative to the file that names it."""
    data_size: int | None = None
    """How many of them, drawn at random; by default all."""
    data_seed: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """The model that maps geometries to orbitals; see docs/model.md."""

    features: Literal["constant", "gates", "network"] = "constant"
    """What the weights depend on: nothing, smooth functions of distances, or a network."""
    steps: int = 2
    """Learned steps; each builds one Fock matrix."""
    range: float = 2.0
    """Decay length of the influence of other atoms, bohr."""
    degree: int = 3
    """Gates: number of polynomials of a distance."""
    width: int = 32
    """Network: length of the state of a pair of atoms."""
    layers: int = 2
    """Network: rounds of messages."""
    even: int = 12
    """Network: features of a pair that its order does not change."""
    odd: int = 4
    """Network: features of a pair that change their sign with its order."""
    seed: int = 0
    """Network: of its first parameters."""


@dataclass(frozen=True)
class SamplerConfig:
    """The chains that sample the model's Boltzmann distribution."""

    kernel: Literal["mala", "hmc", "nuts", "random_walk", "ula"] = "mala"
    temperature: float = 500.0
    """Kelvin."""
    ladder: tuple[float, ...] = ()
    """Higher temperatures, kelvin, whose chains swap places with their neighbours."""
    keep_hot: bool = False
    """Whether geometries of the higher temperatures are trained on as well."""
    chains: int = 8
    """Of all temperatures together."""
    steps: int = 10
    """Transitions between one kept geometry of a chain and the next."""
    step_size: float = 1e-3
    """To begin with, bohr²; the adaptation soon tries ten times as much."""
    warmup: int = 100
    """Transitions in which the step size is adapted; then it is frozen."""
    leapfrogs: int = 10
    """Of an hmc trajectory."""
    doublings: int = 6
    """A nuts trajectory has at most 2**doublings - 1 steps."""
    drift: Literal["held", "total"] = "held"
    """The gradient that proposes moves: with the orbitals held (cheaper; the accept step is exact
    with either), or that of the model's energy, which ula always takes."""
    guard: float = 2.0
    """Geometries that contacts shorter than this many sums of covalent radii do not join to one
    molecule are refused; 0 allows them."""


@dataclass(frozen=True)
class BufferConfig:
    """The replay buffer."""

    size: int = 2048
    """Geometries kept of each family; the oldest make room."""
    data_share: float = 0.1
    """Smallest part of all geometries trained on that are given ones."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    mode: Literal["interleaved", "asynchronous"] = "interleaved"
    optimizer: Literal["gauss_newton", "adam"] = "gauss_newton"
    steps: int = 100
    """Of the optimizer, after pretraining."""
    pretrain_steps: int = 5
    """Of the optimizer, on the given geometries alone, before sampling begins."""
    batch: int = 8
    """Geometries of each family in a step."""
    reuse: int = 1
    """Optimizer steps for each geometry kept of every chain."""
    refresh_every: int = 1
    """The chains take over the model every so many of their turns."""
    max_staleness: int = 8
    """Asynchronous: what chains bring is from a model at most this many optimizer steps old."""
    learning_rate: float = 3e-4
    warmup_steps: int = 100
    """Adam: of the learning rate, which then falls to `final_learning_rate` as a cosine."""
    final_learning_rate: float = 1e-6
    weight_decay: float = 1e-6
    clip: float = 1.0
    """Adam: largest norm of the gradient."""
    memory: float = 0.9
    """Gauss-Newton: what past batches count after each step."""
    ridge: float = 1e-6
    """Gauss-Newton: lambda of the penalty on the change of the weights."""
    damping: float = 0.5
    """Gauss-Newton: part of the computed change that is made."""
    seed: int = 0
    checkpoint_every: int = 20
    """Steps."""
    devices: int = 0
    """Devices that share batches and chains; 0 is as many as can share them equally (asynchronous:
    one for the chains, one for the optimizer). On a CPU each core is a device."""
    chunk: int = 8
    """Geometries held at once by a device that is not a CPU."""
    tensorboard: bool = False


@dataclass(frozen=True)
class Config:
    """All of one experiment."""

    family: tuple[FamilyConfig, ...] = (FamilyConfig(),)
    model: ModelConfig = field(default_factory=ModelConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a TOML file, with changes from the command line.

    Args:
        path: Paths in the file are relative to its folder, and absolute in the result.
        overrides: "section.key=value"; the value is TOML, or a bare string. With several families
            "family.0.key" names the first.

    Raises:
        InputError: A file that cannot be read, or anything unknown or of the wrong type in it.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    for override in overrides:
        _override(data, override)
    try:
        config = from_dict(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    families = tuple(_absolute(family, path.resolve().parent) for family in config.family)
    return dataclasses.replace(config, family=families)


def from_dict(data: dict[str, Any]) -> Config:
    """The configuration in nested dictionaries, as TOML or JSON gives them.

    Raises:
        InputError: An unknown key, a value of the wrong type, or one out of range.
    """
    config = _convert(Config, data, "")
    _check(config)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dictionaries of plain values; what is None is left out."""
    pairs = ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    return {name: _plain(value) for name, value in pairs if value is not None}


def to_toml(config: Config) -> str:
    """The configuration as a TOML file, everything written out."""
    blocks = []
    for section, value in to_dict(config).items():
        tables = value if isinstance(value, list) else [value]
        header = f"[[{section}]]" if isinstance(value, list) else f"[{section}]"
        for table in tables:
            # Numbers, booleans, lists and strings are written alike in JSON and TOML.
            text = partial(json.dumps, ensure_ascii=False)
            lines = [f"{key} = {text(item)}" for key, item in table.items()]
            blocks.append("\n".join([header, *lines]))
    return "\n\n".join(blocks) + "\n"


def _plain(value):
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _absolute(family: FamilyConfig, folder: Path) -> FamilyConfig:
    paths = {
        name: str(folder / getattr(family, name))
        for name in ("xyz", "data")
        if getattr(family, name)
    }
    return dataclasses.replace(family, **paths)


def _override(data: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise InputError(f"--set {text!r}: write section.key=value, train.steps=10 for example.")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *sections, last = key.strip().split(".")
    place: Any = data
    for section in sections:
        if isinstance(place, list):
            if not section.isdigit() or int(section) >= len(place):
                raise InputError(
                    f"--set {text!r}: there are {len(place)} families; "
                    f"use family.0.{last} to family.{len(place) - 1}.{last}."
                )
            place = place[int(section)]
        else:
            place = place.setdefault(section, {})
        if not isinstance(place, dict | list):
            raise InputError(f"--set {text!r}: {section!r} is not a section.")
    if isinstance(place, list):
        raise InputError(f"--set {text!r}: there are several families; use family.0.{last}.")
    place[last] = parsed


def _convert(kind: Any, value: Any, where: str) -> Any:
    """The value as the annotation wants it."""
    if dataclasses.is_dataclass(kind):
        return _convert_table(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value in arguments and isinstance(value, str):
            return value
        raise InputError(f"{where} = {value!r}; possible are {', '.join(map(repr, arguments))}.")
    if origin is tuple:
        items = [value] if isinstance(value, dict) else value
        if not isinstance(items, list):
            raise InputError(f"{where} = {value!r}; a list is needed.")
        return tuple(_convert(arguments[0], x, f"{where}[{i}]") for i, x in enumerate(items))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        return float(value)
    if isinstance(value, kind) and (kind is not int or number):
        return value
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    raise InputError(f"{where} = {value!r}; {names[kind]} is needed.")


def _convert_table(kind, value, where):
    if not isinstance(value, dict):
        raise InputError(f"{where} = {value!r}; a section with keys of its own is needed.")
    annotations = typing.get_type_hints(kind)
    known = {f.name: annotations[f.name] for f in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}."
            raise InputError(f"unknown key {prefix}{key}; {hint}")
    return kind(**{k: _convert(known[k], v, f"{prefix}{k}") for k, v in value.items()})


_POSITIVE = {
    "sampler": ("temperature", "chains", "steps", "step_size", "leapfrogs", "doublings"),
    "buffer": ("size",),
    "train": (
        *("batch", "reuse", "refresh_every", "max_staleness", "learning_rate", "clip"),
        *("damping", "checkpoint_every", "chunk"),
    ),
    "model": ("steps", "range", "degree", "width", "layers", "even", "odd"),
}
_NOT_NEGATIVE = {
    "sampler": ("warmup", "guard"),
    "train": (
        *("steps", "pretrain_steps", "warmup_steps", "weight_decay", "ridge", "devices"),
        "final_learning_rate",
    ),
}


def _check(config: Config) -> None:
    for bound, table in (("positive", _POSITIVE), ("0 or more", _NOT_NEGATIVE)):
        for section, names in table.items():
            for name in names:
                value = getattr(getattr(config, section), name)
                large_enough = value > 0 or (value == 0 and bound == "0 or more")
                if not (large_enough and math.isfinite(value)):
                    raise InputError(f"{section}.{name} = {value}; it must be {bound}, and finite.")
    if not 0 <= config.buffer.data_share <= 1:
        raise InputError(f"buffer.data_share = {config.buffer.data_share}; it lies from 0 to 1.")
    check_seed(config.train.seed, "train.seed")
    check_seed(config.model.seed, "model.seed")
    for family in config.family:
        check_seed(family.data_seed, "family.data_seed")
        if not 0 <= family.grid <= 9:
            raise InputError(f"family.grid = {family.grid}; levels are 0 to 9.")
    if not 0 <= config.train.memory <= 1:
        raise InputError(f"train.memory = {config.train.memory}; it lies from 0 to 1.")
    ladder = (config.sampler.temperature, *config.sampler.ladder)
    rising = all(low < high for low, high in zip(ladder, ladder[1:], strict=False))
    if not rising or not math.isfinite(ladder[-1]):
        raise InputError(
            f"sampler.ladder = {list(ladder[1:])}; temperatures must be finite and rise from "
            f"{ladder[0]} kelvin."
        )
    if not config.family or any(not family.xyz for family in config.family):
        raise InputError("family.xyz is missing: name the xyz file of one geometry.")
    names = [family.name or Path(family.xyz).stem for family in config.family]
    if twice := sorted(name for name in set(names) if names.count(name) > 1):
        raise InputError(f"two families are called {twice[0]!r}; give them a family.name each.")


def check_seed(seed: int, name: str) -> None:
    """Refuse what is no seed of random numbers.

    Raises:
        InputError: A negative number, or one of more than 63 bits.
    """
    if not 0 <= seed < 1 << 63:
        raise InputError(f"{name} = {seed}; seeds are from 0 to {(1 << 63) - 1}.")
