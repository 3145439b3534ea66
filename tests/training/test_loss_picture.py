"""The picture of a run: what is drawn, when, and what its lines are made of."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest

from cmsolvers.training.monitors import CSVLog, LevelBins, LossPicture
from cmsolvers.training.monitors.loss_figure import (
    BAD,
    LIGHT,
    LINE,
    POINTS,
    loss_figure,
    smoothed,
    stretches,
)
from cmsolvers.training.reports import StepReport
from support.monitored import STEPS, poisoned, trainer

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def has(picture: np.ndarray, color: str) -> int:
    """How many pixels have a colour."""
    wanted = [int(color[k : k + 2], 16) for k in (1, 3, 5)]
    return int((np.abs(picture - wanted).max(axis=-1) <= 2).sum())


def log(n: int, skipped=(), loss=None) -> dict[str, np.ndarray]:
    steps = np.arange(1.0, n + 1)
    made = 1.0 / steps if loss is None else loss
    marks = np.isin(np.arange(n), skipped).astype(float)
    return {"step": steps, "loss": made, "lr": np.full(n, 0.1), "skipped": marks}


def of_bytes(data: bytes, tmp_path: Path) -> np.ndarray:
    (tmp_path / "p.png").write_bytes(data)
    return pixels(tmp_path / "p.png")


def test_a_run_draws_its_picture(tmp_path: Path):
    paths = tmp_path / "log.csv", tmp_path / "levels.csv"
    drawn = LossPicture(tmp_path / "pictures" / "losses.png", *paths, every=10, title="a run")
    trainer(CSVLog(paths[0]), LevelBins(paths[1], 5), drawn, loss=poisoned(4)).run(progress=False)
    found = pixels(tmp_path / "pictures" / "losses.png")
    assert found.shape[1] == 990 and 600 < found.shape[0] < 1100
    assert has(found, LINE) > 300 and has(found, LIGHT) > 50 and has(found, BAD) > 20
    # The map of levels has colours that nothing else has.
    plain = LossPicture(tmp_path / "plain.png", paths[0])
    plain.draw()
    other = pixels(tmp_path / "plain.png")
    green = [np.logical_and(p[..., 1] > p[..., 0] + 40, p[..., 1] > p[..., 2] + 20).sum()
             for p in (found, other)]  # fmt: skip
    assert green[0] > 1000 and green[1] == 0


def test_skipped_steps_are_marked(tmp_path: Path):
    assert has(of_bytes(loss_figure(log(50, [20]), {}), tmp_path), BAD) > 20
    assert has(of_bytes(loss_figure(log(50), {}), tmp_path), BAD) == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "columns",
    [
        log(1),
        log(2, [0], np.array([np.nan, -3.0])),
        log(1, [0], np.array([np.nan])),
        log(3, (), np.array([np.inf, 1.0, 1.0])),
        log(40, (), np.zeros(40)),
        log(3 * POINTS),
    ],
)
def test_odd_courses_are_drawn(columns, tmp_path: Path):
    assert of_bytes(loss_figure(columns, {}, "$x Δ 漢"), tmp_path).shape[1] == 990


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("loss", [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [-1.0, 2.0, 2.0]])
@pytest.mark.parametrize("low", [0.0, 0.1])
def test_odd_levels_are_drawn(loss, low, tmp_path: Path):
    levels = {
        "step": np.array([5.0, 5.0, 9.0]),
        "first": np.array([0.0, 0.0, 5.0]),
        "low": np.array([low, 1.0 if low else 0.0, low]),
        "high": np.array([0.2, 2.0, 0.2]),
        "samples": np.ones(3),
        "loss": np.array(loss),
    }
    found = of_bytes(loss_figure(log(9), levels), tmp_path)
    assert found.shape[0] > of_bytes(loss_figure(log(9), {}), tmp_path).shape[0]


def test_the_dark_line_is_a_mean_over_two_percent():
    values = np.random.default_rng(0).standard_normal(500)
    naive = [values[max(k - 5, 0) : k + 6].mean() for k in range(500)]
    np.testing.assert_allclose(smoothed(values), naive, atol=1e-12)
    assert np.abs(smoothed(values) - values).max() > 0.5  # negative control
    assert smoothed(np.array([3.0])).tolist() == [3.0]


def test_stretches_cover_all_steps():
    values = np.random.default_rng(0).standard_normal(POINTS * 2 + 7)
    first, low, high = stretches(values)
    parts = np.split(values, first[1:])
    np.testing.assert_array_equal(low, [part.min() for part in parts])
    np.testing.assert_array_equal(high, [part.max() for part in parts])
    assert len(first) == POINTS and sum(map(len, parts)) == len(values)


def test_drawing_takes_little_of_the_time(tmp_path: Path, monkeypatch):
    """A picture that takes 0.1 s is drawn no more often than every 5 s."""
    import cmsolvers.training.monitors.loss_picture as module

    clock, times = [0.0], []
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    picture = LossPicture(tmp_path / "p.png", tmp_path / "log.csv", every=2)

    def draw():
        times.append(clock[0])
        clock[0] += 0.1

    monkeypatch.setattr(picture, "draw", draw)
    for step in range(20):
        clock[0] = step + 1.0
        picture.stepped(StepReport(step, 1.0, 0.1, None, 1.0, False))
    assert times == [2.0, 8.0, 14.0, 20.0]


def test_no_matplotlib_is_one_warning(tmp_path: Path, monkeypatch):
    original = builtins.__import__

    def refuse(name, *rest, **more):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    made = trainer(
        CSVLog(tmp_path / "log.csv"), LossPicture(tmp_path / "p.png", tmp_path / "log.csv")
    )
    with pytest.warns(RuntimeWarning, match="LossPicture failed at step 0.*matplotlib") as told:
        made.run(progress=False)
    assert len(told) == 1 and made.step == STEPS and not (tmp_path / "p.png").exists()


def test_a_picture_that_fails_on_the_way_is_one_warning(tmp_path: Path, monkeypatch):
    picture = LossPicture(tmp_path / "p.png", tmp_path / "log.csv", every=2)
    (tmp_path / "log.csv").write_text("step,loss\n1,what\n")
    made = trainer(picture)
    with pytest.warns(RuntimeWarning, match="LossPicture failed at step 2.*ValueError") as told:
        made.run(progress=False)
    assert len(told) == 1 and made.step == STEPS


def test_without_a_log_there_is_no_picture(tmp_path: Path):
    LossPicture(tmp_path / "p.png", tmp_path / "log.csv").draw()
    assert list(tmp_path.iterdir()) == []
