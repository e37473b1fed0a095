"""From a configuration's files to where a training starts; the examples' files."""

from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem import BOHR_IN_ANGSTROM, InputError
from qchem.fingerprint import fingerprint
from srdft.config import (
    Config,
    FamilyConfig,
    ModelConfig,
    TrainConfig,
    from_dict,
    load_config,
)
from srdft.experiment import (
    build_family,
    build_model,
    build_optimizer,
    build_sampler,
    build_workers,
    given_frames,
)
from srdft.family import MoleculeFamily

EXAMPLES = Path(__file__).parents[1] / "examples"
WATER = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])  # ångström


def xyz(symbols, *frames):
    blocks = []
    for frame in frames:
        rows = (f"{s} {x} {y} {z}" for s, (x, y, z) in zip(symbols, frame, strict=True))
        blocks.append("\n".join([str(len(symbols)), "", *rows]) + "\n")
    return "".join(blocks)


@pytest.fixture
def start(tmp_path):
    path = tmp_path / "water.xyz"
    path.write_text(xyz("OHH", WATER))
    return str(path)


def test_one_geometry_is_enough(start):
    frames = given_frames(FamilyConfig(start))
    assert frames.numbers == (8, 1, 1)
    assert_allclose(frames.positions[0] * BOHR_IN_ANGSTROM, WATER)


def test_more_geometries_are_drawn_by_size_and_seed(start, tmp_path):
    path = tmp_path / "more.npz"
    more = WATER + 0.01 * np.arange(20)[:, None, None]
    np.savez(path, z=np.array([8, 1, 1]), R=more)
    drawn = [
        given_frames(FamilyConfig(start, data=str(path), data_size=5, data_seed=seed)).positions
        for seed in (0, 0, 1)
    ]
    assert drawn[0].shape == (6, 3, 3)
    assert_allclose(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 0.01
    assert_allclose(drawn[0][0] * BOHR_IN_ANGSTROM, WATER)  # the geometry of family.xyz is first
    with pytest.raises(InputError, match="there are 20"):
        given_frames(FamilyConfig(start, data=str(path), data_size=21))


def test_atoms_of_more_geometries_may_be_in_another_order(start, tmp_path):
    path = tmp_path / "turned.xyz"
    path.write_text(xyz("HOH", WATER[[1, 0, 2]]))
    given = given_frames(FamilyConfig(start, data=str(path)))
    assert given.numbers == (8, 1, 1)
    assert_allclose(given.positions[1], given.positions[0])


def test_what_cannot_be_started_from_is_refused(start, tmp_path):
    two = tmp_path / "two.xyz"
    two.write_text(xyz("OHH", WATER, WATER + 0.1))
    with pytest.raises(InputError, match="has 2 frames; one is needed"):
        given_frames(FamilyConfig(str(two)))
    other = tmp_path / "other.xyz"
    other.write_text(xyz("SHH", WATER))
    with pytest.raises(InputError, match="another molecule: S H H instead of O H H"):
        given_frames(FamilyConfig(start, data=str(other)))
    bohr = tmp_path / "bohr.xyz"
    bohr.write_text(xyz("OHH", WATER / BOHR_IN_ANGSTROM))
    with pytest.raises(InputError, match="look like bohr"):
        given_frames(FamilyConfig(start, data=str(bohr)))


def test_devices_that_are_not_there_are_refused():
    many = len(jax.devices()) + 1
    with pytest.raises(InputError, match=f"train.devices = {many}; JAX sees {many - 1}"):
        build_workers(Config((FamilyConfig("a.xyz"),), train=TrainConfig(devices=many)))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_examples_name_files_that_are_there(path):
    config = load_config(path)
    assert all(given_frames(family).n == 1 for family in config.family)
    assert config.sampler.chains % (1 + len(config.sampler.ladder)) == 0


def test_the_size_of_the_reference_is_a_matter_of_configuration():
    model = ModelConfig(features="network", width=420, layers=6)
    config = Config((FamilyConfig(str(EXAMPLES / "ethanol.xyz")),), model)
    family = MoleculeFamily.build((6, 6, 8, 1, 1, 1, 1, 1, 1), "sto-3g", "hf")
    built = eqx.filter_eval_shape(build_model, config, [family])
    size = sum(x.size for x in jax.tree.leaves(built))
    assert 8.4e6 < size < 8.6e6


@pytest.mark.parametrize("kernel", ["mala", "hmc", "nuts", "ula", "random_walk"])
@pytest.mark.parametrize("drift", ["total", "held"])
def test_programs_of_a_training_can_be_found_again(kernel, drift):
    """Whatever they close over has a fingerprint, the same for the same settings."""
    config = from_dict(
        {
            "family": [{"xyz": str(EXAMPLES / "h2.xyz"), "basis": "sto-3g", "xc": "hf"}],
            "sampler": {"kernel": kernel, "drift": drift},
        }
    )

    def prints():
        family = build_family(config.family[0], (1, 1))
        return fingerprint(build_sampler(config, family)), fingerprint(
            build_optimizer(config), (family,), build_workers(config)
        )

    assert prints() == prints()
