"""Configurations: one TOML file, defaults that work, and mistakes that are refused."""

import dataclasses
import tomllib

import pytest

from qchem import InputError
from srdft.config import Config, FamilyConfig, from_dict, load_config, to_dict, to_toml

MINIMAL = '[family]\nxyz = "water.xyz"\n'


def load(tmp_path, text, *overrides):
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return load_config(path, overrides)


def test_a_file_holds_only_what_differs(tmp_path):
    config = load(tmp_path, MINIMAL + "[sampler]\ntemperature = 300\nladder = [600, 900]\n")
    assert config.sampler.temperature == 300.0 and config.sampler.ladder == (600.0, 900.0)
    assert isinstance(config.sampler.temperature, float)
    expected = dataclasses.replace(config.sampler, temperature=500.0, ladder=())
    assert expected == Config().sampler
    assert config.family[0].xyz == str(tmp_path / "water.xyz")


def test_the_resolved_configuration_reads_back(tmp_path):
    text = (
        '[[family]]\nxyz = "a \U0001f600é.xyz"\ndata = "b \\"c\\".npz"\n[[family]]\nxyz = "d.xyz"\n'
    )
    config = load(tmp_path, text)
    assert from_dict(tomllib.loads(to_toml(config))) == config
    assert from_dict(to_dict(config)) == config
    assert len(config.family) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sampler]\ntemprature = 300", "sampler.temprature; did you mean sampler.temperature?"),
        ("[smapler]\nsteps = 3", "smapler; did you mean sampler?"),
        ("[zzz]\nsteps = 3", "known are family, model"),
        ("[train]\nsteps = 1.5", "train.steps = 1.5; an integer is needed"),
        ("[train]\nsteps = true", "train.steps = True; an integer"),
        ("[train]\nmode = 'both'", "possible are 'interleaved', 'asynchronous'"),
        ("[train]\nlearning_rate = '1e-3'", "train.learning_rate = '1e-3'; a number"),
        ("[train]\nbatch = 0", "train.batch = 0; it must be positive"),
        ("[train]\nsteps = -1", "it must be 0 or more"),
        ("[sampler]\nladder = 600", "a list is needed"),
        ("[sampler]\nladder = [400]", "rise from 500.0 kelvin"),
        ("[sampler]\nladder = [600, inf]", "must be finite"),
        (
            "[sampler]\ntemperature = inf",
            "temperature = inf; it must be positive, and finite",
        ),
        ("[train]\nridge = inf", "train.ridge = inf"),
        ("[train]\nseed = -1", "train.seed = -1; seeds are from 0"),
        ("[train]\nseed = 99999999999999999999", "seeds are from 0"),
        ("data_seed = -1", "family.data_seed = -1"),
        ("[buffer]\ndata_share = 2", "it lies from 0 to 1"),
        ("grid = 17", "family.grid = 17; levels are 0 to 9"),
        ("train = 3", "a section with keys of its own"),
        ("[train", "is not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(InputError) as caught:
        load(tmp_path, text if text.startswith("train") else MINIMAL + text)
    assert message in str(caught.value) and "experiment.toml" in str(caught.value)


def test_families_have_names_of_their_own(tmp_path):
    two = '[[family]]\nxyz = "a/w.xyz"\n[[family]]\nxyz = "b/w.xyz"\n'
    with pytest.raises(InputError, match="two families are called 'w'"):
        load(tmp_path, two)
    assert load(tmp_path, two, "family.0.name=v").family[0].name == "v"


def test_a_geometry_and_a_file_are_needed(tmp_path):
    with pytest.raises(InputError, match="family.xyz is missing"):
        load(tmp_path, "[train]\nsteps = 3\n")
    with pytest.raises(InputError, match="cannot read"):
        load_config(tmp_path / "absent.toml")


def test_overrides_from_the_command_line(tmp_path):
    config = load(
        tmp_path, MINIMAL, "train.steps=7", "family.basis=sto-3g", "sampler.ladder=[600.0]"
    )
    assert config.train.steps == 7 and config.family[0].basis == "sto-3g"
    assert config.sampler.ladder == (600.0,)
    two = '[[family]]\nxyz = "a.xyz"\n[[family]]\nxyz = "b.xyz"\n'
    assert load(tmp_path, two, "family.1.charge=1").family[1] == FamilyConfig(
        xyz=str(tmp_path / "b.xyz"), charge=1
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=7", "did you mean train.steps?"),
        ("steps=7", "section.key=value"),
        ("train.steps", "section.key=value"),
        ("family.2.basis=x", "there are 2 families"),
        ("family.basis=x", "family.0.basis"),
    ],
)
def test_wrong_overrides_are_named(tmp_path, override, message):
    two = '[[family]]\nxyz = "a.xyz"\n[[family]]\nxyz = "b.xyz"\n'
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        load(tmp_path, two, override)
