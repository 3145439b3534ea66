"""What is never written, and what stays when writing breaks off."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from cmsolvers import training
from cmsolvers.training.trainer import Trainer
from support.saved import content

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
    trainer = Trainer(
        net, lambda m, b: net.weight.square().sum(), data, settings, averages=averages
    )
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
    trainer, path = trained(), tmp_path / "c"
    trainer.save(path)
    before = content(path)
    PLACES[place](trainer)[1] = bad
    with pytest.raises(FloatingPointError, match=f"finite; {place} has 1 entries of 3"):
        trainer.save(path)
    assert content(path) == before and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("bad", BAD)
def test_losses_of_skipped_steps_are_kept_as_they_were(bad: float, tmp_path: Path):
    trainer = trained()
    trainer.history[0] = bad
    trainer.save(tmp_path / "c")
    again = trained().load(tmp_path / "c")
    assert str(again.history) == str(trainer.history)


@pytest.mark.parametrize("place", ["network", "average.ema"])
def test_buffers_may_hold_infinities_but_no_nan(place: str, tmp_path: Path):
    trainer, path = trained(), tmp_path / "c"
    trainer.save(path)
    groups, _ = training.read_checkpoint(path)
    assert groups[place]["mask"].tolist() == [0.0, -math.inf, math.inf]
    module = trainer.network if place == "network" else trainer.averages["ema"].module
    module.mask[0] = math.nan
    with pytest.raises(FloatingPointError, match=f"finite; {place}/mask has 1 entries of 3"):
        trainer.save(path)
