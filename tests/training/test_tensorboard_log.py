"""Events for TensorBoard, read again by TensorBoard's own reader."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest

from cmsolvers.training.monitors import TensorBoardLog
from support.monitored import STEPS, Killed, Silent, loss, poisoned, trainer

pytest.importorskip("tensorboard")


def events(path: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(path)).Reload()
    tags = reader.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in tags}


class Reports(Silent, list):
    def stepped(self, report):
        self.append(report)


@pytest.mark.parametrize("late", [0, 7])
def test_values_are_means_over_windows(tmp_path: Path, late: int):
    reports = Reports()
    made = trainer(
        TensorBoardLog(tmp_path, 6, 10, 2), reports, loss=poisoned(3), late=late
    ).run(progress=False)  # fmt: skip
    found = events(tmp_path)
    ends = [6, 12, 18, 20]
    losses = {k: v for k, v in enumerate(made.history) if k != 3}
    means = [
        np.mean([v for k, v in losses.items() if a <= k < b])
        for a, b in zip([0, *ends], ends, strict=False)
    ]
    assert [step for step, _ in found["training/loss"]] == ends
    np.testing.assert_allclose([v for _, v in found["training/loss"]], means, rtol=1e-6)
    norms = [r.grad_norm for r in reports if r.step < 6 and r.step != 3]
    assert found["training/grad_norm"][0][1] == pytest.approx(np.mean(norms), rel=1e-6)
    rates = [made.settings.rate(k - 1) for k in ends]
    np.testing.assert_allclose([v for _, v in found["training/lr"]], rates, rtol=1e-6)
    assert [v for _, v in found["training/skipped"]] == [1.0] * 4
    assert all(v > 0 for _, v in found["training/seconds_per_step"])
    levels = {tag: values for tag, values in found.items() if tag.startswith("loss_by_level/")}
    assert {step for values in levels.values() for step, _ in values} == {10, 20}
    assert "loss_by_level/0.32 to 1" in levels
    terms = [
        float(v)
        for r in reports
        if r.step >= 10
        for at, v in zip(r.levels, r.per_sample, strict=True)
        if 10**-0.5 <= at < 1.0
    ]
    assert levels["loss_by_level/0.32 to 1"][-1][1] == pytest.approx(np.mean(terms), rel=1e-6)


def test_a_killed_run_goes_on_with_each_step_once(tmp_path: Path):
    run, left = tmp_path / "run", tmp_path / "left"
    monitors = TensorBoardLog(run / "events", 1, 0), Killed(run, 11, left)

    class Flushes(Silent):
        def stepped(self, report):
            monitors[0]._writer.flush()

    whole = trainer(monitors[0], Flushes(), monitors[1]).run(progress=False, folder=run, every=8)
    steps = [step for step, _ in events(left / "events")["training/loss"]]
    assert steps == list(range(1, 12))
    trainer(TensorBoardLog(left / "events", 1, 0)).resume(left).run(progress=False, folder=left)
    found = events(left / "events")["training/loss"]
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([v for _, v in found], whole.history, rtol=1e-6)
    assert not any(tag.startswith("loss_by_level") for tag in events(left / "events"))


def test_a_checkpoint_ends_a_window(tmp_path: Path):
    made = trainer(TensorBoardLog(tmp_path / "events", 50, 0))
    made.run(7, progress=False, folder=tmp_path)
    assert [step for step, _ in events(tmp_path / "events")["training/loss"]] == [7]


def test_a_missing_package_is_one_warning(tmp_path: Path, monkeypatch):
    original = builtins.__import__

    def refuse(name, *rest, **more):
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    made = trainer(TensorBoardLog(tmp_path), loss=loss)
    with pytest.warns(RuntimeWarning, match="TensorBoardLog failed at step 0.*tensorboard") as told:
        made.run(progress=False)
    assert len(told) == 1 and made.step == STEPS


def test_bad_arguments(tmp_path: Path):
    with pytest.raises(ValueError, match="every must be at least 1; got 0"):
        TensorBoardLog(tmp_path, 0)
    with pytest.raises(ValueError, match="window must be at least 0; got -1"):
        TensorBoardLog(tmp_path, 1, -1)
