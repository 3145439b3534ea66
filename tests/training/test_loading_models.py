"""Models read from checkpoints and from the folders of runs."""

import pytest
import torch

from cmsolvers.training.averages import EMA
from cmsolvers.training.checkpoints import CheckpointError, RunFolder, write_checkpoint
from cmsolvers.training.models import load_model
from support.tiny_specs import samples, shaken, spec


def groups_of(one, around=False, names=("ema", "wide")):
    """Groups of a checkpoint whose network and averages differ: (groups, networks by name)."""
    net = shaken(one.build(0))
    trained = one.wrap(net) if around else net
    found, nets = {"network": trained.state_dict()}, {"network": net}
    for seed, name in enumerate(names, 1):
        average = EMA(trained)
        shaken(average.module, seed)
        found[f"average.{name}"] = average.state_dict()
        nets[name] = average.module.net if around else average.module
    return found, nets


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("kind", ["edm", "average_velocity", "score"])
def test_a_checkpoint_is_the_model(kind, around, tmp_path):
    one = spec(kind, classes=3)
    groups, nets = groups_of(one, around)
    write_checkpoint(tmp_path / "it", groups, {"spec": one.about(), "note": 1})
    x, labels = samples(), torch.tensor([0, 1, 2, 3])
    for name, average in (("ema", None), ("ema", "ema"), ("wide", "wide"), ("network", "network")):
        found = load_model(tmp_path / "it", average)
        expected = one.wrap(nets[name].eval())(x, 0.7, labels=labels)
        assert torch.equal(found.function(x, 0.7, labels=labels), expected)
        assert found.spec == one and found.about["note"] == 1
        assert not found.function.training
        assert not any(p.requires_grad for p in found.network.parameters())


def test_without_an_average_it_is_the_network(tmp_path):
    one = spec()
    groups, nets = groups_of(one, names=("wide",))
    write_checkpoint(tmp_path / "it", groups, {"spec": one.about()})
    found = load_model(tmp_path / "it").network.state_dict()
    assert all(
        torch.equal(value, found[key]) for key, value in nets["network"].state_dict().items()
    )
    with pytest.raises(ValueError, match=r"average must be one of wide, network.*did you mean 'wi"):
        load_model(tmp_path / "it", "wid")
    with pytest.raises(ValueError, match="kind must be left out"):
        load_model(tmp_path / "it", kind="edm")


def test_of_a_run_it_is_the_newest_valid_checkpoint(tmp_path):
    one, place = spec(), RunFolder(tmp_path / "run")
    nets = []
    for step in (1, 2):
        net = shaken(one.build(0), step)
        nets.append(net.state_dict())
        place.save(step, {"network": nets[-1]}, {"spec": one.about()})
    found = load_model(tmp_path / "run")
    assert found.about["step"] == 2
    assert all(torch.equal(v, nets[1][k]) for k, v in found.network.state_dict().items())
    last = place.checkpoints()[-1] / "network.safetensors"
    data = bytearray(last.read_bytes())
    data[-5] ^= 1
    last.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match="step-00000001 is read; .*SHA-256"):
        assert load_model(tmp_path / "run").about["step"] == 1
    (place.checkpoints()[0] / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="must hold an undamaged checkpoint"):
        load_model(tmp_path / "run")


def test_code_that_a_checkpoint_names_is_not_run(tmp_path):
    name = "import:support.tiny_specs:OwnNet"
    one = spec(network=name)
    net = one.build(0)
    write_checkpoint(tmp_path / "own", {"network": net.state_dict()}, {"spec": one.about()})
    with pytest.raises(ValueError, match="imported only where it is named as trusted"):
        load_model(tmp_path / "own")
    found = load_model(tmp_path / "own", trusted=[name])
    assert torch.equal(found.network.first.weight, net.first.weight)
    planted = one.about() | {"network": "import:pathlib:Path.touch", "options": {}}
    planted["options"] = {"self": str(tmp_path / "it_ran")}
    write_checkpoint(tmp_path / "planted", {"network": net.state_dict()}, {"spec": planted})
    with pytest.raises(ValueError, match="named as trusted"):
        load_model(tmp_path / "planted", trusted=[name])
    assert not (tmp_path / "it_ran").exists()


def test_what_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is none"):
        load_model(tmp_path / "nothing")
    write_checkpoint(tmp_path / "other", {"network": {"w": torch.ones(3)}}, {})
    with pytest.raises(ValueError, match="does not say what its network is"):
        load_model(tmp_path / "other")
    write_checkpoint(tmp_path / "half", {"network": {"w": torch.ones(3)}}, {"spec": spec().about()})
    with pytest.raises(ValueError, match=r"(?s)must be a checkpoint of a model.*Missing key"):
        load_model(tmp_path / "half")
    write_checkpoint(tmp_path / "none", {"data": {"w": torch.ones(3)}}, {"spec": spec().about()})
    with pytest.raises(ValueError, match="has no network"):
        load_model(tmp_path / "none")
