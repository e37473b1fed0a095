"""The `srdft` command: train a model, sample its distribution, evaluate and plot it.

Exit codes: 0 done; 1 a calculation that failed; 2 wrong input; 130 interrupted (a training is saved
first). Results that programs read go to stdout, text for people to stderr.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import tyro

from qchem.command import (
    INTERRUPTED,
    configure_jax,
    exit_code,
    jsonable,
    output_file,
    say,
    show_version,
    versions,
)
from qchem.errors import InputError

RunDirectory = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]


@dataclass(frozen=True)
class Train:
    """Train a model by sampling its own Boltzmann distribution.

    Writes checkpoints (latest.ckpt, best.ckpt), metrics.jsonl and the resolved config.toml.
    """

    config: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CONFIG.toml")]
    """The experiment; see examples/ and docs/training.md."""
    out: Annotated[Path, tyro.conf.arg(metavar="RUN_DIR")]
    """Directory of the run."""
    resume: bool = False
    """Go on from the latest checkpoint of the run; from its best, where the latest is damaged."""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """Change the configuration: section.key=value ..."""
    coordinator: str | None = None
    """Address HOST:PORT of the first of several processes that train together."""
    processes: int = 1
    """How many they are."""
    process: int = 0
    """Which of them this is."""
    debug: bool = False
    """Show the traceback of a failure."""


@dataclass(frozen=True)
class Sample:
    """Sample the Boltzmann distribution of a trained model's energy."""

    run: RunDirectory
    """Directory of a run (its best checkpoint), or a checkpoint."""
    n: int
    """Number of geometries."""
    out: Path
    """The xyz file to write, in angstrom."""
    temperature: float | None = None
    """Kelvin; by default that of the training."""
    family: str | None = None
    """Which one, where the run has several."""
    seed: int = 0
    """Of the random numbers."""
    debug: bool = False
    """Show the traceback of a failure."""


@dataclass(frozen=True)
class Evaluate:
    """Compare a trained model with converged SCF calculations."""

    run: RunDirectory
    """Directory of a run (its best checkpoint), or a checkpoint."""
    data: Annotated[Path, tyro.conf.arg(metavar="FILE.npz|FILE.xyz")]
    """Geometries, in angstrom."""
    n: int | None = None
    """So many of them, drawn at random; by default all."""
    seed: int = 0
    """Of that choice."""
    family: str | None = None
    """Which one, where the run has several."""
    grid: int | None = None
    """Level of the grid, 0 to 9, of predictions and references; by default the training's."""
    json: bool = False
    """Print one JSON object to stdout."""
    debug: bool = False
    """Show the traceback of a failure."""


@dataclass(frozen=True)
class Plot:
    """Draw what a run has recorded, into its directory."""

    run: RunDirectory
    """Directory of a run."""
    data: Path | None = None
    """Reference geometries for histograms of bonds and torsions."""
    samples: Path | None = None
    """Samples to compare with them; by default the training's own."""
    debug: bool = False
    """Show the traceback of a failure."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; wrong usage exits with 2 from the parser.

    Args:
        arguments: What follows the program's name; by default that of the process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        return show_version(f"srdft {versions()['srdft']}")
    command = tyro.cli(
        Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[Sample, tyro.conf.subcommand("sample")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Plot, tyro.conf.subcommand("plot")],
        prog="srdft",
        description="Self-refining training of amortized density functional theory.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    commands = {Train: _train, Sample: _sample, Evaluate: _evaluate, Plot: _plot}
    run = commands[type(command)]
    return exit_code(lambda: run(command), debug=command.debug, failure="failed")


def _train(options: Train) -> int:
    from srdft.config import load_config

    config = load_config(options.config, [text for group in options.set for text in group])
    _start(options)
    from srdft.checkpoint import CHECKPOINTS
    from srdft.experiment import Experiment
    from srdft.progress import reporter
    from srdft.session import Session, build_schedule, interruptible

    found = [path for name in CHECKPOINTS if (path := options.out / name).exists()]
    if found and not options.resume:
        raise InputError(
            f"{str(options.out)!r} holds a training already; go on with it (--resume), or give "
            "another --out."
        )
    if options.resume and not found:
        say(f"{str(options.out)!r} holds no checkpoint to go on from; the training begins")
    start = perf_counter()
    experiment = _resumed(found, config) if found else Experiment.from_config(config)
    _prepare_directory(options.out, config)
    trainer = experiment.trainer
    with reporter(trainer.plan.total, options.out if config.train.tensorboard else None) as report:
        session = Session(
            trainer,
            build_schedule(trainer, config.train.mode, config.train.max_staleness),
            options.out,
            header=experiment.header() | {"versions": versions()},
            checkpoint_every=config.train.checkpoint_every,
            report=report,
        )
        with interruptible(session):
            state = session.run(experiment.state)
    step, took = int(state.step), perf_counter() - start
    if session.stop.is_set() and step < trainer.plan.total:
        say(f"interrupted after step {step} of {trainer.plan.total}; saved, go on with --resume")
        return INTERRUPTED
    error = float(state.error)
    known = f"; estimated error {error:.1e} hartree" if math.isfinite(error) else ""
    say(f"{step} steps in {took:.0f} s{known}; {str(options.out)}")
    return 0


def _resumed(found: Sequence[Path], config: Any) -> Any:
    """The experiment as the first of a run's checkpoints that is whole holds it."""
    from srdft.checkpoint import DamagedError
    from srdft.experiment import Experiment

    damaged = []
    for path in found:
        try:
            experiment = Experiment.from_checkpoint(path, config)
        except DamagedError as error:
            damaged.append(error)
            continue
        for error in damaged:
            say(f"{error} {path.name} serves.")
        say(f"goes on after step {int(experiment.state.step)} ({path.name})")
        return experiment
    raise InputError(
        f"{' '.join(map(str, damaged))} No checkpoint of the run is whole: begin anew, with "
        "another --out."
    )


def _start(options: Train) -> None:
    configure_jax()
    if options.coordinator is None:
        if options.processes != 1:
            raise InputError("several processes need --coordinator HOST:PORT.")
        from qchem import use_cores

        use_cores()  # one geometry keeps few cores busy, several at once keep all
        return
    if not 0 <= options.process < options.processes:
        raise InputError(
            f"--process {options.process} of --processes {options.processes}: they are counted "
            "from 0."
        )
    import jax

    jax.distributed.initialize(options.coordinator, options.processes, options.process)


def _prepare_directory(run: Path, config: Any) -> None:
    from srdft.config import to_toml

    try:
        run.mkdir(parents=True, exist_ok=True)
        temporary = run / ".config.toml.part"
        try:
            temporary.write_text(to_toml(config), encoding="utf-8")
            temporary.replace(run / "config.toml")
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {str(run)!r}: {error.strerror}.") from error


def _sample(options: Sample) -> int:
    configure_jax()
    from qchem import use_cores
    from srdft.config import check_seed
    from srdft.data import Frames, xyz_text
    from srdft.experiment import model_of
    from srdft.progress import bar
    from srdft.sampling import collect

    use_cores()
    if options.n < 1:
        raise InputError(f"--n {options.n}; it must be 1 or more.")
    check_seed(options.seed, "--seed")
    if options.temperature is not None and not 0 < options.temperature < math.inf:
        raise InputError(f"--temperature {options.temperature}; it must be above 0, and finite.")
    with output_file(options.out) as write:
        experiment, model = model_of(options.run)
        index = experiment.family(options.family)
        with bar("sampling", options.n) as advance:
            found = collect(
                experiment,
                index,
                model,
                options.n,
                temperature=options.temperature,
                seed=options.seed,
                report=advance,
            )
        family = experiment.families[index]
        comments = [f"{family.name} energy_hartree={energy:.10f}" for energy in found.energy]
        write(xyz_text(Frames(family.numbers, found.positions), comments))
    say(found.summary())
    return 0


def _evaluate(options: Evaluate) -> int:
    configure_jax()
    from srdft.config import check_seed
    from srdft.data import formula, load_frames
    from srdft.evaluation import evaluate, table
    from srdft.experiment import model_of
    from srdft.progress import bar

    check_seed(options.seed, "--seed")
    experiment, model = model_of(options.run, grid=options.grid)
    index = experiment.family(options.family)
    family = experiment.families[index]
    frames = load_frames(options.data, charge=family.charge, multiplicity=family.multiplicity)
    if frames.numbers != family.numbers:
        given, wanted = formula(frames.numbers), formula(family.numbers)
        frames = frames.ordered_as(family.numbers, str(options.data))
        say(f"{options.data} has the atoms in another order: {given} is taken as {wanted}")
    if options.n is not None and options.n > frames.n:
        say(f"{options.data} has {frames.n} geometries, not {options.n}; all are taken")
    else:
        frames = frames.subset(options.n, options.seed)
    with bar("evaluating", frames.n) as advance:
        report = evaluate(family, model, frames.positions, advance)
    if options.json:
        print(json.dumps(jsonable(report), allow_nan=False), flush=True)
    else:
        from rich.console import Console

        Console(stderr=True).print(table(report))
    return 0


def _plot(options: Plot) -> int:
    configure_jax()
    from srdft.plot import plot_run

    for path in plot_run(options.run, options.data, options.samples):
        say(str(path))
    return 0
