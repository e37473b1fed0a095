"""The `srdft` command from end to end on hydrogen: files, JSON, exit codes, messages."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from qchem import BOHR_IN_ANGSTROM, InputError
from qchem.command import versions
from srdft import checkpoint, cli, plot, sampling
from srdft.config import Config, SamplerConfig, load_config
from srdft.data import load_frames
from srdft.experiment import model_of
from srdft.replay import ReplayBuffer
from srdft.sampling import Collected
from srdft.session import read_metrics
from tests import oracle

CONFIG = """
[family]
xyz = "h2.xyz"
basis = "sto-3g"
xc = "hf"
two_electron = "exact"

[model]
features = "constant"
steps = 1

[sampler]
temperature = 3000
guard = 3.0
chains = 4
steps = 4
warmup = 8
step_size = 0.01

[train]
steps = 6
pretrain_steps = 2
batch = 4
checkpoint_every = 3
"""
EXAMPLES = Path(__file__).parents[1] / "examples"
KEYS = {
    "n", "energy_mae", "fock_mae", "orbital_energy_mae", "occupied_orbital_energy_mae", "homo_mae",
    "lumo_mae", "gap_mae", "force_mae", "dipole_mae", "occupied_cosine", "scf_cycles_guess",
    "scf_cycles_model", "after_steps",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """Commands find what others have compiled, as they do for a user."""
    with oracle.programs_kept_in(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(autouse=True)
def quiet_jax(monkeypatch):
    monkeypatch.setattr(cli, "configure_jax", lambda: None)  # else it would change later tests


def write_xyz(path, bonds, axis=2):
    blocks = []
    for r in bonds:
        last = [0.0, 0.0, 0.0]
        last[axis] = r
        blocks.append(f"2\n\nH 0 0 0\nH {last[0]} {last[1]} {last[2]}\n")
    path.write_text("".join(blocks))
    return path


def run(capsys, *arguments):
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    try:
        code = cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a configuration and of a finished run of it."""
    folder = tmp_path_factory.mktemp("h2")
    write_xyz(folder / "h2.xyz", [0.74])
    (folder / "h2.toml").write_text(CONFIG)
    configure, cli.configure_jax = cli.configure_jax, lambda: None
    try:
        assert cli.main(["train", str(folder / "h2.toml"), "--out", str(folder / "run")]) == 0
    finally:
        cli.configure_jax = configure
    return folder


def test_train_writes_what_a_run_is_made_of(trained):
    run_directory = trained / "run"
    names = {path.name for path in run_directory.iterdir()}
    assert {"config.toml", "metrics.jsonl", checkpoint.LATEST, checkpoint.BEST} <= names
    lines = read_metrics(run_directory)
    assert [line["step"] for line in lines] == list(range(1, 9))
    for name in ("energy", "error_estimate", "residual", "seconds"):
        assert name in lines[0]
    for name in ("acceptance", "step_size", "sampled_error_estimate", "sampled_residual"):
        assert name in lines[-1]
    assert np.shape(lines[-1]["chain_energy"]) == (1, 4) and lines[-1]["chain_energy"][0][0] < -0.8
    assert load_config(run_directory / "config.toml") == load_config(trained / "h2.toml")
    header = checkpoint.read_header(run_directory / checkpoint.LATEST)
    assert header["step"] == 8 and header["versions"]["jax"]
    assert header["families"] == [{"name": "h2", "numbers": [1, 1], "given": 1}]


def test_evaluate_compares_with_converged_scf(trained, capsys):
    scan = write_xyz(trained / "scan.xyz", [0.65, 0.74, 0.85, 0.95])
    code, out, err = run(capsys, "evaluate", trained / "run", "--data", scan, "--n", 3, "--json")
    report = json.loads(out)
    assert code == 0 and report.keys() >= KEYS and report["n"] == 3
    # Two functions and two electrons: symmetry alone gives the orbitals.
    assert report["energy_mae"] < 1e-10 and report["occupied_cosine"] > 1 - 1e-10
    assert report["after_steps"]["steps"] == [0, 1, 2]
    assert len(report["after_steps"]["energy_mae"]) == 3
    assert report["force_mae"] < 1e-6 and report["scf_cycles_model"] <= report["scf_cycles_guess"]
    code, out, err = run(capsys, "evaluate", trained / "run" / checkpoint.LATEST, "--data", scan)
    assert code == 0 and out == "" and "4 geometries" in err and "occupied cosine" in err


def test_samples_follow_the_boltzmann_distribution_of_the_curve(trained, capsys):
    path = trained / "samples.xyz"
    code, out, err = run(
        capsys, "sample", trained / "run", "--n", 400, "--out", path, "--temperature", 4000
    )
    assert code == 0 and out == "" and "acceptance" in err and "R-hat" in err
    frames = load_frames(path)
    assert frames.n == 400 and "energy_hartree=-1.1" in path.read_text()
    lengths = np.linalg.norm(frames.positions[:, 0] - frames.positions[:, 1], axis=1)
    experiment, model = model_of(trained / "run")
    r = np.linspace(0.7, 3.5, 57)
    placed = np.stack([np.zeros((r.size, 3)), r[:, None] * [0, 0, 1]], axis=1)
    energy = np.array([float(experiment.families[0].energy_fn(model, x)) for x in placed])
    weight = r**2 * np.exp(-(energy - energy.min()) * 315775.02480407 / 4000)
    mean = np.sum(weight * r) / np.sum(weight)
    spread = np.sqrt(np.sum(weight * (r - mean) ** 2) / np.sum(weight))
    assert abs(lengths.mean() - mean) < 5 * spread / np.sqrt(60)
    assert 0.6 < lengths.std() / spread < 1.5


def test_samples_go_on_from_chains_that_are_warmed_up(trained):
    experiment, model = model_of(trained / "run" / checkpoint.LATEST)
    known = experiment.state.samples[0].chains
    assert int(known.steps) >= experiment.config.sampler.warmup
    found = sampling.collect(experiment, 0, model, 8, seed=1)
    assert found.step_size == float(known.step_size[0])
    other = sampling.collect(experiment, 0, model, 8, seed=1, temperature=4000.0)
    assert other.step_size != found.step_size


def test_plots_are_drawn(trained, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    reference = write_xyz(trained / "reference.xyz", np.linspace(0.65, 0.9, 12))
    code, _, err = run(capsys, "plot", trained / "run", "--data", reference)
    assert code == 0
    names = {path.name for path in (trained / "run" / "plots").iterdir()}
    drawn = "training chains energies coordinates curve".split()
    assert names == {f"{name}.png" for name in drawn}
    assert all(name in err for name in names)
    for path in (trained / "run" / "plots").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
    monkeypatch.setattr(plot, "quantities", lambda *_: {})  # of atoms far apart: no bonds
    code, _, err = run(capsys, "plot", trained / "run")
    assert code == 0 and "curve.png" in err and "coordinates.png" not in err


def test_files_belong_to_the_family_that_has_their_atoms(tmp_path):
    path = write_xyz(tmp_path / "h2.xyz", [0.7, 0.8])
    hydrogen, water = (
        SimpleNamespace(numbers=numbers, charge=0, multiplicity=1)
        for numbers in ((1, 1), (8, 1, 1))
    )
    first, second = plot._by_family(path, [water, hydrogen])
    assert first is None and second.n == 2
    assert plot._by_family(None, [water, hydrogen]) == [None, None]
    with pytest.raises(InputError, match="another molecule: H H instead of O H H"):
        plot._by_family(path, [water])


def test_histograms_leave_out_what_hot_chains_have_sampled():
    buffer = ReplayBuffer.empty(10, 1, float)
    for turn in range(4):  # 16 geometries; the first six have made room
        hot = np.array([False, False, True, True])
        frames = np.where(hot, 100.0, turn)[:, None, None] + np.zeros((1, 3))
        buffer = buffer.push(jnp.asarray(frames))
    state = SimpleNamespace(samples=[SimpleNamespace(buffer=buffer)])
    for keep_hot, expected in (
        (True, [2, 2, 3, 3]),
        (False, [100, 100, 2, 2, 100, 100, 3, 3, 100, 100]),
    ):
        config = Config(sampler=SamplerConfig(chains=4, ladder=(900.0,), keep_hot=keep_hot))
        experiment = SimpleNamespace(
            state=state, config=config, families=[SimpleNamespace(numbers=(1,))]
        )
        frames = plot._samples(experiment, 0)
        assert frames.positions[:, 0, 0].tolist() == expected


def test_resume_goes_on_and_refuses_another_training(trained, capsys):
    config, out = trained / "h2.toml", trained / "run"
    code, _, err = run(capsys, "train", config, "--out", out)
    assert code == 2 and "--resume" in err
    code, _, err = run(
        capsys, "train", config, "--out", out, "--resume", "--set", "train.steps=8", "train.seed=0"
    )
    assert code == 0 and "goes on after step 8" in err
    assert read_metrics(out)[-1]["step"] == 10
    for change, message in (
        ("family.basis=6-31g", "family.basis is '6-31g', was 'sto-3g'"),
        ("model.steps=2", "model.steps is 2, was 1"),
        ("sampler.chains=8", "sampler.chains is 8, was 4"),
    ):
        code, _, err = run(capsys, "train", config, "--out", out, "--resume", "--set", change)
        assert code == 2 and message in err
    (trained / "h2.xyz").rename(trained / "gone.xyz")  # which the checkpoint does not need
    code, _, err = run(capsys, "train", config, "--out", out, "--resume", "--set", "train.steps=8")
    assert code == 0 and "goes on after step 10" in err
    (trained / "gone.xyz").rename(trained / "h2.xyz")
    helium = trained / "other.toml"
    helium.write_text(CONFIG.replace("h2.xyz", "other.xyz"))
    (trained / "other.xyz").write_text("1\n\nHe 0 0 0\n")
    code, _, err = run(capsys, "train", helium, "--out", out, "--resume")
    assert code == 2 and "atoms is [2], was [1, 1]" in err


def test_an_interrupted_training_has_a_code_of_its_own(trained, capsys, monkeypatch):
    from srdft import session

    record = session.Session._record

    def stopping(self, *arguments):
        self.stop.set()
        return record(self, *arguments)

    monkeypatch.setattr(session.Session, "_record", stopping)
    out = trained / "interrupted"
    code, _, err = run(capsys, "train", trained / "h2.toml", "--out", out)
    assert code == 130 and "interrupted after step 1 of 8" in err
    monkeypatch.undo()
    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    code, _, err = run(capsys, "train", trained / "h2.toml", "--out", out, "--resume")
    assert code == 0 and "goes on after step 1" in err


def test_wrong_input_has_code_2(trained, capsys, tmp_path, monkeypatch):
    scan = write_xyz(tmp_path / "scan.xyz", [0.74])
    bohr = write_xyz(tmp_path / "bohr.xyz", [0.74 / BOHR_IN_ANGSTROM])
    (tmp_path / "he.xyz").write_text("1\n\nHe 0 0 0\n")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(CONFIG.replace("chains", "chain"))
    cases = [
        (("evaluate", tmp_path, "--data", scan), "srdft train writes"),
        (("evaluate", trained / "run", "--data", tmp_path / "absent.npz"), "cannot read"),
        (("evaluate", trained / "run", "--data", bohr), "look like bohr"),
        (("evaluate", trained / "run", "--data", tmp_path / "he.xyz"), "another molecule"),
        (("evaluate", trained / "run", "--data", scan, "--family", "x"), "choose one of h2"),
        (("sample", trained / "run", "--n", 0, "--out", tmp_path / "s.xyz"), "1 or more"),
        (("sample", trained / "run", "--n", 4, "--out", scan / "s.xyz"), "cannot write"),
        (("plot", tmp_path), "srdft train writes"),
        (("evaluate", trained / "run", "--data", scan, "--seed", -1), "seeds are from 0"),
        (("sample", trained / "run", "--n", 4, "--out", tmp_path / "s.xyz", "--seed", -1), "seeds"),
        (
            (
                "sample",
                trained / "run",
                "--n",
                4,
                "--out",
                tmp_path / "s.xyz",
                "--temperature",
                "inf",
            ),
            "finite",
        ),
        (
            (
                "train",
                trained / "h2.toml",
                "--out",
                tmp_path / "run",
                "--coordinator",
                "127.0.0.1:9",
                "--process",
                1,
            ),
            "--process 1 of --processes 1",
        ),
        (("train", wrong, "--out", tmp_path / "run"), "did you mean sampler.chains?"),
        (("train", trained / "h2.toml", "--out", tmp_path / "run", "--set", "x"), "section.key"),
        (("train", trained / "h2.toml", "--out", scan / "run"), "cannot write"),
        (("train",), "required"),
    ]
    monkeypatch.setattr(sampling, "collect", lambda *_, **__: pytest.fail("began to sample"))
    for arguments, message in cases:
        code, out, err = run(capsys, *arguments)
        assert code == 2 and out == "" and message in err, err


def test_a_damaged_latest_checkpoint_leaves_the_best_to_go_on_from(trained, capsys, tmp_path):
    """Nothing is written over the files before the run goes on."""
    scan, out = write_xyz(tmp_path / "scan.xyz", [0.74]), tmp_path / "run"
    out.mkdir()
    latest, best = out / checkpoint.LATEST, out / checkpoint.BEST
    whole = (trained / "run" / checkpoint.BEST).read_bytes()
    train = "train", trained / "h2.toml", "--out", out, "--resume", "--set", "train.steps=9"
    latest.write_bytes(whole[:-100])
    best.write_bytes(b"0" + whole[300:])
    code, _, err = run(capsys, *train)
    assert code == 2 and "is damaged" in err and "is not a checkpoint" in err
    assert latest.read_bytes() == whole[:-100]
    code, _, err = run(capsys, "evaluate", out, "--data", scan)
    assert code == 2 and "damaged" in err and checkpoint.LATEST in err
    best.write_bytes(whole)
    step = checkpoint.read_header(best)["step"]  # of now: the run may find a better one
    code, _, err = run(capsys, "train", trained / "h2.toml", "--out", out)
    assert code == 2 and "--resume" in err
    code, _, err = run(capsys, *train)
    assert code == 0 and "is damaged" in err and f"after step {step} (best.ckpt)" in err
    assert checkpoint.read_header(latest)["step"] == 11
    latest.unlink()
    code, _, err = run(capsys, *train)
    assert code == 0 and "(best.ckpt)" in err


def test_failures_have_code_1(trained, capsys, monkeypatch):
    def full(*arguments):
        raise checkpoint.CheckpointError("cannot write the checkpoint: No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    code, _, err = run(capsys, "train", trained / "h2.toml", "--out", trained / "full")
    assert code == 1 and "No space left on device" in err


@pytest.mark.slow
def test_two_families_share_a_training(tmp_path, capsys):
    """Of different sizes, by the settings of the example for ethanol and malonaldehyde."""
    (tmp_path / "hf.xyz").write_text("2\n\nF 0 0 0\nH 0 0 0.92\n")
    water = tmp_path / "water.xyz"
    water.write_text("3\n\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n")
    example = (EXAMPLES / "two_families.toml").read_text()
    example = example.replace("ethanol.xyz", "hf.xyz").replace("malonaldehyde.xyz", "water.xyz")
    example = example.replace("grid = 1", 'xc = "hf"\nbasis = "sto-3g"\ntwo_electron = "exact"')
    (tmp_path / "two.toml").write_text(example)
    out, few = tmp_path / "run", ("model.steps=1", "sampler.leapfrogs=2", "train.steps=8")
    change = [x for text in few for x in ("--set", text)]
    assert run(capsys, "train", tmp_path / "two.toml", "--out", out, *change)[0] == 0
    experiment, _ = model_of(out / checkpoint.LATEST)
    assert [family.name for family in experiment.families] == ["hf", "water"]
    assert all(int(one.buffer.size) > 0 for one in experiment.state.samples)
    code, _, err = run(capsys, "evaluate", out, "--data", water)
    assert code == 2 and "choose one of hf, water" in err
    turned = tmp_path / "turned.xyz"  # and the atoms in another order
    turned.write_text("3\n\nH 0.76 0 -0.48\nO 0 0 0.12\nH -0.76 0 -0.48\n")
    reports = []
    for data in (water, turned):
        arguments = "evaluate", out, "--data", data, "--family", "water", "--json"
        code, text, err = run(capsys, *arguments)
        assert code == 0 and ("H O H is taken as O H H" in err) == (data == turned)
        reports.append(json.loads(text))
    assert reports[0]["energy_mae"] < 1e-4
    assert abs(reports[0]["energy_mae"] - reports[1]["energy_mae"]) < 1e-8
    frames = tmp_path / "frames.xyz"
    assert run(capsys, "sample", out, "--n", 8, "--out", frames, "--family", "hf")[0] == 0
    assert load_frames(frames).numbers == (9, 1)


def test_version(capsys):
    code, out, _ = run(capsys, "--version")
    assert code == 0 and out.split()[1] == versions()["srdft"]


def test_too_few_samples_for_diagnostics_are_said():
    unknown = {"energy": (12.0, 1.01), "O1-H2": (np.nan, np.nan)}
    few = Collected(np.zeros((2, 3, 3)), np.zeros(2), 0.6, 0.0, 0.0, 1e-3, unknown)
    assert "effective samples    12.0" in few.summary() and "nan" not in few.summary()
    assert "O1-H2            too few geometries" in few.summary()
