"""What is never written, and what stays when writing breaks off."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from cmsolvers import training
from cmsolvers.training import checkpoint
from cmsolvers.training.trainer import Trainer

BAD = [math.nan, math.inf, -math.inf]


class Masked(nn.Module):
    """A weight, and a buffer that may hold infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("mask", torch.tensor([0.0, -math.inf, math.inf]))


def trained() -> Trainer:
    net = Masked()
    settings = training.TrainingSettings(4, batch_size=4)
    data, averages = torch.ones(8, 2), {"ema": training.EMA(net)}
    trainer = Trainer(net, lambda b: net.weight.square().sum(), data, settings, averages=averages)
    return trainer.run(2, progress=False)


PLACES = {
    "network/weight": lambda t: t.network.weight.data,
    "average.ema/weight": lambda t: t.averages["ema"].module.weight.data,
    "optimizer/0.exp_avg": lambda t: t.optimizer.state[t.network.weight]["exp_avg"],
    "optimizer/0.exp_avg_sq": lambda t: t.optimizer.state[t.network.weight]["exp_avg_sq"],
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", PLACES)
def test_a_state_that_is_not_finite_is_not_saved(place: str, bad: float, tmp_path: Path):
    trainer, path = trained(), tmp_path / "c.safetensors"
    trainer.save(path)
    before = path.read_bytes()
    PLACES[place](trainer)[1] = bad
    with pytest.raises(FloatingPointError, match=f"finite; {place} has 1 entries of 3"):
        trainer.save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("bad", BAD)
def test_losses_that_are_not_finite_are_not_saved(bad: float, tmp_path: Path):
    trainer = trained()
    trainer.history[0] = bad
    with pytest.raises(FloatingPointError, match="finite; progress/history has 1 entries of 2"):
        trainer.save(tmp_path / "c.safetensors")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("place", ["network", "average.ema"])
def test_buffers_may_hold_infinities_but_no_nan(place: str, tmp_path: Path):
    trainer, path = trained(), tmp_path / "c.safetensors"
    trainer.save(path)
    groups, _ = training.read_checkpoint(path)
    assert groups[place]["mask"].tolist() == [0.0, -math.inf, math.inf]
    module = trainer.network if place == "network" else trainer.averages["ema"].module
    module.mask[0] = math.nan
    with pytest.raises(FloatingPointError, match=f"finite; {place}/mask has 1 entries of 3"):
        trainer.save(path)


# --- a write that breaks off --------------------------------------------------------------------


def half_written(tensors, path, **options):
    """As if the process had been stopped in the middle of the file."""
    Path(path).write_bytes(b"half")
    raise KeyboardInterrupt


def stopped(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [(checkpoint, "save_file", half_written), (os, "replace", stopped)],
    ids=["in the file", "before it has its name"],
)
def test_a_write_that_breaks_off_leaves_the_old_file(owner, name, broken, tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    training.write_checkpoint(path, {"a": {"w": torch.ones(2)}}, {"step": 1})
    before = path.read_bytes()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(owner, name, broken)
        training.write_checkpoint(path, {"a": {"w": torch.zeros(2)}}, {"step": 2})
    assert path.read_bytes() == before
    training.write_checkpoint(path, {"a": {"w": torch.zeros(2)}}, {"step": 2})
    groups, about = training.read_checkpoint(path)
    assert groups["a"]["w"].tolist() == [0.0, 0.0] and about == {"step": 2}
    assert os.listdir(tmp_path) == [path.name]  # what the broken write left is used up


def test_the_first_write_that_breaks_off_leaves_no_file_of_that_name(tmp_path, monkeypatch):
    """So that nothing takes the half for a checkpoint, nor asks for --overwrite."""
    monkeypatch.setattr(checkpoint, "save_file", half_written)
    with pytest.raises(KeyboardInterrupt):
        training.write_checkpoint(tmp_path / "c.safetensors", {}, {})
    assert not (tmp_path / "c.safetensors").exists()


def test_a_file_is_written_beside_its_place(tmp_path, monkeypatch):
    """In the same folder: a rename across file systems is no single act."""
    written, original = [], checkpoint.save_file
    monkeypatch.setattr(
        checkpoint, "save_file", lambda t, path, **o: (written.append(path), original(t, path, **o))
    )
    path = tmp_path / "c.safetensors"
    training.write_checkpoint(str(path), {}, {})
    assert [Path(p).parent for p in written] == [tmp_path] and Path(written[0]) != path


def test_a_description_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "c.safetensors"
    training.write_checkpoint(path, {}, {"step": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError, match="JSON"):
        training.write_checkpoint(path, {}, {"step": torch.ones(2)})
    with pytest.raises(ValueError, match="group names must not contain"):
        training.write_checkpoint(path, {"a/b": {}}, {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_tensors_that_share_memory_come_back_each_with_its_values(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    group = {"whole": whole, "part": whole[1:], "across": whole.T, "same": whole}
    training.write_checkpoint(tmp_path / "c.safetensors", {"a": group}, {})
    groups, _ = training.read_checkpoint(tmp_path / "c.safetensors")
    assert groups["a"].keys() == group.keys()
    assert all(torch.equal(groups["a"][name], value) for name, value in group.items())
