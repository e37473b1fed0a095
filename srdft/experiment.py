"""From a configuration, or a checkpoint, to families, model, sampler and trainer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qchem import InputError
from srdft import checkpoint
from srdft.config import Config, FamilyConfig, from_dict, to_dict
from srdft.data import Frames, load_frames
from srdft.family import MoleculeFamily
from srdft.kernels import kernel_from_name
from srdft.model import OperatorMixture
from srdft.network import Constant, Gates, Network
from srdft.objective import GaussNewton
from srdft.optimizers import AbstractOptimizer, FirstOrder, SecondOrder
from srdft.parallel import Workers
from srdft.potential import HeldDrift, TotalDrift
from srdft.sampler import Sampler
from srdft.trainer import Plan, Trainer


class Experiment:
    """All that a configuration describes, built.

    Attributes:
        config: The configuration.
        families: In its order.
        trainer: Of all of them.
        state: Before the first step, or as a checkpoint holds it.
    """

    def __init__(self, config: Config, given: Sequence[Frames]):
        """
        Args:
            config: The configuration.
            given: Geometries of each family to start from.
        """
        self.config = config
        self.families = tuple(
            build_family(settings, frames.numbers)
            for settings, frames in zip(config.family, given, strict=True)
        )
        self.trainer = Trainer(
            self.families,
            [build_sampler(config, family) for family in self.families],
            build_optimizer(config),
            build_plan(config),
            build_workers(config),
        )
        self.state = self.trainer.init(
            build_model(config, self.families),
            [frames.positions for frames in given],
            nchain=config.sampler.chains,
            buffer_size=config.buffer.size,
            step_size=config.sampler.step_size,
        )

    @classmethod
    def from_config(cls, config: Config) -> Experiment:
        """With the geometries in the files that the configuration names.

        Raises:
            InputError: What is wrong with the files or the configuration.
        """
        return cls(config, [given_frames(settings) for settings in config.family])

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, config: Config | None = None, *, grid: int | None = None
    ) -> Experiment:
        """As a checkpoint holds it, which needs no other file.

        Args:
            path: The checkpoint.
            config: Instead of the checkpoint's own; must agree in all that gives the state its
                structure.
            grid: Level of the grid, instead of each family's own.

        Raises:
            InputError: A file that cannot be used, or a configuration of another training.
        """
        header = checkpoint.read_header(path)
        if "config" not in header or "families" not in header:
            raise InputError(f"{path} says nothing of its configuration; srdft train writes it.")
        own = from_dict(header["config"])
        if config is None:
            config = own
        else:
            _check_same(config, own, header["families"], path)
        if grid is not None:
            families = tuple(dataclasses.replace(family, grid=grid) for family in config.family)
            config = from_dict(to_dict(dataclasses.replace(config, family=families)))  # checked
        given = [
            Frames(tuple(f["numbers"]), np.zeros((f["given"], len(f["numbers"]), 3)) + _line(f))
            for f in header["families"]
        ]
        experiment = cls(config, given)
        experiment.state, _ = checkpoint.load(path, experiment.state)
        return experiment

    def header(self) -> dict[str, Any]:
        """Of this experiment's checkpoints."""
        families = [
            {"name": family.name, "numbers": list(family.numbers), "given": given.shape[0]}
            for family, given in zip(self.families, self.state.given, strict=True)
        ]
        return {"config": to_dict(self.config), "families": families}

    def family(self, name: str | None) -> int:
        """Index of the family of this name; of the only one if there is no name.

        Raises:
            InputError: There is none, or several to choose from.
        """
        names = [family.name for family in self.families]
        if name is None and len(names) == 1:
            return 0
        if name not in names:
            raise InputError(f"family {name!r}; choose one of {', '.join(names)} (--family).")
        return names.index(name)


def given_frames(settings: FamilyConfig) -> Frames:
    """The geometries that a family's training starts from: one, or those of its data file too."""
    spin = {"charge": settings.charge, "multiplicity": settings.multiplicity}
    first = load_frames(settings.xyz, **spin)
    if first.n != 1:
        raise InputError(
            f"family.xyz = {settings.xyz!r} has {first.n} frames; one is needed there, "
            "more go into family.data."
        )
    if settings.data is None:
        return first
    more = load_frames(settings.data, **spin).ordered_as(first.numbers, settings.data)
    more = more.bonded_as(first.positions[0])
    more = more.subset(settings.data_size, settings.data_seed)
    return Frames(first.numbers, np.concatenate([first.positions, more.positions]))


def build_family(settings: FamilyConfig, numbers: tuple[int, ...]) -> MoleculeFamily:
    """The family that a section of the configuration describes."""
    return MoleculeFamily.build(
        numbers,
        settings.basis,
        settings.xc,
        charge=settings.charge,
        multiplicity=settings.multiplicity,
        two_electron=settings.two_electron,
        aux=settings.aux,
        grid=settings.grid,
        cartesian=settings.cartesian,
        name=settings.name or Path(settings.xyz).stem,
    )


def build_model(config: Config, families: Sequence[MoleculeFamily]) -> OperatorMixture:
    """The untrained model."""
    settings = config.model
    if settings.features == "constant":
        features = Constant()
    elif settings.features == "gates":
        features = Gates.build(families, settings.degree, settings.range)
    else:
        features = Network.build(
            families,
            width=settings.width,
            layers=settings.layers,
            neven=settings.even,
            nodd=settings.odd,
            range=settings.range,
            key=jax.random.key(settings.seed),
        )
    return OperatorMixture.build(families, features, steps=settings.steps)


def build_sampler(
    config: Config,
    family: MoleculeFamily,
    *,
    temperature: float | None = None,
) -> Sampler:
    """The chains of a family, at the configuration's temperature or another (without a ladder)."""
    settings = config.sampler
    temperatures = (settings.temperature, *settings.ladder)
    held = settings.drift == "held" and settings.kernel != "ula"  # nothing corrects its drift
    kernel = kernel_from_name(
        settings.kernel, leapfrogs=settings.leapfrogs, doublings=settings.doublings
    )
    return Sampler(
        potential=HeldDrift(family) if held else TotalDrift(family.energy_fn),
        kernel=kernel,
        numbers=family.numbers,
        temperatures=temperatures if temperature is None else (temperature,),
        guard=settings.guard,
        warmup=settings.warmup,
        workers=build_workers(config),
    )


def build_optimizer(config: Config) -> AbstractOptimizer:
    """What changes the model."""
    settings = config.train
    if settings.optimizer == "gauss_newton":
        gauss_newton = GaussNewton(ridge=settings.ridge)
        return SecondOrder(gauss_newton, memory=settings.memory, scale=settings.damping)
    return FirstOrder.adam(
        settings.pretrain_steps + settings.steps,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        final_learning_rate=settings.final_learning_rate,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
    )


def build_plan(config: Config) -> Plan:
    """How often and how much."""
    train, sampler = config.train, config.sampler
    return Plan(
        steps=train.steps,
        pretrain_steps=train.pretrain_steps,
        batch=train.batch,
        reuse=train.reuse,
        transitions=sampler.steps,
        refresh_every=train.refresh_every,
        data_share=config.buffer.data_share,
        keep_hot=sampler.keep_hot,
        seed=train.seed,
    )


def build_workers(config: Config) -> Workers:
    """The devices that the configuration asks for; with several processes all of them.

    By default the most that can share the work equally.

    Raises:
        InputError: There are fewer.
    """
    devices, wanted = jax.devices(), config.train.devices
    if wanted > len(devices):
        raise InputError(f"train.devices = {wanted}; JAX sees {len(devices)}.")
    if jax.process_count() > 1:
        wanted = len(devices)
    elif wanted == 0 and config.train.mode == "asynchronous":
        wanted = 1  # the chains find another for themselves
    elif wanted == 0:
        equal = math.gcd(config.train.batch, config.sampler.chains)
        wanted = max(n for n in range(1, len(devices) + 1) if equal % n == 0)
    return Workers.over(devices[:wanted], config.train.chunk)


def model_of(path: str | Path, *, grid: int | None = None) -> tuple[Experiment, Any]:
    """Experiment and trained model of a run directory (its best checkpoint) or a checkpoint.

    Args:
        path: Either.
        grid: Level of the grid, instead of the training's.
    """
    experiment = Experiment.from_checkpoint(checkpoint.find(path), grid=grid)
    return experiment, experiment.state.model


def _line(family: dict[str, Any]) -> np.ndarray:
    """Placeholders for geometries: atoms in contact, in a row."""
    return np.arange(len(family["numbers"]))[:, None] * np.array([[0.5, 0.0, 0.0]])


_STRUCTURE = {
    "model": None,  # all of it
    "train": ("optimizer",),
    "sampler": ("chains", "ladder", "temperature", "kernel"),
    "buffer": ("size",),
}


def _check_same(config: Config, own: Config, families: list[dict[str, Any]], path) -> None:
    """Refuse to go on with a training under a configuration that is not its own."""
    different = []
    for section, names in _STRUCTURE.items():
        new, old = getattr(config, section), getattr(own, section)
        for field in dataclasses.fields(new):
            name = field.name
            if (names is None or name in names) and getattr(new, name) != getattr(old, name):
                different.append((f"{section}.{name}", getattr(new, name), getattr(old, name)))
    files = ("xyz", "data", "data_size", "data_seed", "name")
    if len(config.family) != len(own.family):
        different.append(("number of families", len(config.family), len(own.family)))
    for new, old, family in zip(config.family, own.family, families, strict=False):
        for field in dataclasses.fields(new):
            if field.name not in files and getattr(new, field.name) != getattr(old, field.name):
                values = getattr(new, field.name), getattr(old, field.name)
                different.append((f"family.{field.name}", *values))
        if Path(new.xyz).exists():  # nothing is needed of it
            spin = {"charge": new.charge, "multiplicity": new.multiplicity}
            numbers = load_frames(new.xyz, **spin).numbers
            if list(numbers) != family["numbers"]:
                different.append(("atoms", list(numbers), family["numbers"]))
    if different:
        lines = "; ".join(f"{name} is {new!r}, was {old!r}" for name, new, old in different)
        raise InputError(
            f"{path} belongs to another training: {lines}. Give the configuration that it was "
            "started with, or another --out."
        )
