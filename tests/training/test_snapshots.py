"""Snapshots that a training writes, and averages that are put together from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cmsolvers.training import EMA, Trainer, TrainingSettings, power_decay, reconstruct_average
from cmsolvers.training.averages import SnapshotFolder
from cmsolvers.training.checkpoints import read_checkpoint
from cmsolvers.training.monitors import Snapshots
from support.monitored import STEPS, Killed, Silent, poisoned, trainer

pytestmark = pytest.mark.filterwarnings("ignore:the profile of")


def names(folder: Path) -> list[str]:
    return [path.name for path in SnapshotFolder(folder).paths()]


def apart(made: dict[str, torch.Tensor], module: nn.Module) -> float:
    state = module.state_dict()
    assert made.keys() == state.keys()
    return max(float((made[n] - t).abs().max()) for n, t in state.items())


@pytest.mark.parametrize("late", [0, 7])
def test_the_average_of_another_width_is_the_tracked_one(tmp_path: Path, late: int):
    """Of a training of 20 steps with a snapshot after each: the profile is nearly exact."""
    run = trainer(
        Snapshots(tmp_path, 1, ["short", "long"]),
        averages={"between": power_decay(0.07), "far": power_decay(0.2)},
        late=late,
    ).run(progress=False)
    made = reconstruct_average(tmp_path, 0.07)
    assert made.step == made.updates == STEPS
    assert apart(made.tensors, run.averages["between"].module) < 1e-3
    assert apart(made.tensors, run.averages["far"].module) > 1e-2  # negative control
    assert apart(reconstruct_average(tmp_path, 0.2).tensors, run.averages["far"].module) < 3e-3
    # One of the snapshots' own averages comes out as it is.
    assert apart(reconstruct_average(tmp_path, 0.1).tensors, run.averages["long"].module) < 1e-6


@pytest.mark.parametrize("late", [0, 7])
def test_skipped_steps_are_no_updates(tmp_path: Path, late: int):
    run = trainer(Snapshots(tmp_path, 5), loss=poisoned(0, 1, 6), late=late).run(progress=False)
    about = [read_checkpoint(path, ())[1] for path in SnapshotFolder(tmp_path).paths()]
    assert [a["averages"]["long"]["updates"] for a in about] == [3, 7, 12, 17]
    assert apart(reconstruct_average(tmp_path, 0.1).tensors, run.averages["long"].module) < 1e-6


def test_nothing_is_written_before_the_first_update(tmp_path: Path):
    trainer(Snapshots(tmp_path, 2), loss=poisoned(0, 1)).run(4, progress=False)
    assert names(tmp_path) == ["step-00000004"]


def test_there_is_one_at_the_last_step(tmp_path: Path):
    trainer(Snapshots(tmp_path, 8)).run(progress=False)
    assert names(tmp_path) == ["step-00000008", "step-00000016", "step-00000020"]


def test_a_killed_run_makes_the_same_snapshots(tmp_path: Path):
    run, left = tmp_path / "run", tmp_path / "left"
    trainer(Snapshots(run, 5), Killed(run, 17, left)).run(progress=False, folder=run, every=8)
    assert names(left)[-1] == "step-00000015"
    again = trainer(Snapshots(left, 5)).resume(left)
    assert again.step == 16
    again.run(progress=False, folder=left, every=8)
    assert names(left) == names(run)
    for mine, theirs in zip(SnapshotFolder(left).paths(), SnapshotFolder(run).paths(), strict=True):
        for file in theirs.iterdir():
            assert (mine / file.name).read_bytes() == file.read_bytes(), file


def test_snapshots_of_later_steps_are_void(tmp_path: Path):
    run = trainer(Snapshots(tmp_path, 2))
    run.run(9, progress=False)
    run.save(tmp_path / "nine")
    run.run(progress=False)
    assert len(names(tmp_path)) == 10
    trainer(Snapshots(tmp_path, 4)).load(tmp_path / "nine").run(12, progress=False)
    assert names(tmp_path) == [f"step-{k:08d}" for k in (2, 4, 6, 8, 12)]


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 5e-3), ("float16", 6e-4)])
def test_narrow_snapshots_take_less_room(tmp_path: Path, dtype: str, most: float):
    run = trainer(Snapshots(tmp_path / "narrow", 4, dtype=dtype), Snapshots(tmp_path / "wide", 4))
    run.run(progress=False)
    made = reconstruct_average(tmp_path / "narrow", 0.1)
    assert 0.0 < apart(made.tensors, run.averages["long"].module) < most
    assert made.tensors["net.first.weight"].dtype is torch.float32
    groups, _ = read_checkpoint(SnapshotFolder(tmp_path / "narrow").paths()[0])
    assert groups["average.short"]["net.first.weight"].dtype is getattr(torch, dtype)


@pytest.mark.parametrize(
    ("options", "averages", "text"),
    [
        ({"averages": ["wide"]}, {}, "averages must be of the run's, short, long; got 'wide'"),
        ({"averages": ["plain"]}, {"plain": 0.9}, "average 'plain' must have decay=power_decay"),
    ],
)
def test_averages_that_cannot_be_put_together(tmp_path: Path, options, averages, text: str):
    run = trainer(Snapshots(tmp_path, 4, **options), averages=averages)
    with pytest.raises(ValueError, match=text):
        run.run(progress=False)
    assert run.step == 0 and list(tmp_path.iterdir()) == []


def test_rates_of_the_trainer_and_warmups_are_no_profiles(tmp_path: Path):
    network = nn.Linear(2, 2)
    averages = {
        "led": EMA(network, power_decay(0.1)),
        "warm": EMA(network, power_decay(0.1), warmup=True),
    }
    run = Trainer(
        network,
        lambda model, batch: model(batch.x0).square().mean(),
        torch.randn(8, 2),
        TrainingSettings(2, batch_size=4),
        averages=averages,
        decays={"led": lambda k: 0.5},
        monitors=[Snapshots(tmp_path, 1)],
    )
    with pytest.raises(ValueError, match=r"averages must hold one whose decay is.*got led, warm"):
        run.run(progress=False)


def test_weights_that_float16_cannot_hold_are_one_warning(tmp_path: Path):
    run = trainer(Snapshots(tmp_path, 2, dtype="float16"))

    class Grows(Silent):
        def started(self, trainer):
            with torch.no_grad():
                trainer.network.net.last.bias.fill_(1e6)

    run._books.audience._monitors.append(Grows())
    with pytest.warns(RuntimeWarning, match="Snapshots failed at step 2.*float16 cannot") as told:
        run.run(progress=False)
    assert len(told) == 1 and run.step == STEPS and names(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [({"every": 0}, "every must be at least 1"), ({"dtype": "int8"}, "dtype must be one of")],
)
def test_bad_arguments(tmp_path: Path, options, text: str):
    with pytest.raises(ValueError, match=text):
        Snapshots(tmp_path, **{"every": 1} | options)
