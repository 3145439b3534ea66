"""The loss by noise level: bins, windows, and what stays when a run goes on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cmsolvers.training.monitors import LevelBins, level_bins
from cmsolvers.training.monitors.level_bins import LevelSums, level_name
from cmsolvers.training.reports import StepReport
from support.monitored import BATCH, STEPS, Killed, Silent, loss, poisoned, trainer


def table(path: Path) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)


class Reports(Silent, list):
    def stepped(self, report):
        self.append(report)


def report(levels, losses, step=0, skipped=False) -> StepReport:
    tensors = [torch.tensor(v, dtype=torch.float64) for v in (levels, losses)]
    return StepReport(step, 0.0, 0.1, None, 0.1, skipped, *tensors)


def test_bins_have_equal_shares_of_a_factor_of_ten():
    sums = LevelSums(4)
    levels = [0.1, 0.17, 0.18, 1.0, 99.0, 100.0, 0.0, -1.0, 1e-30, 1e30]
    sums.add(report(levels, list(range(10))))
    found = {b[:2]: b[2:] for b in sums.bins()}
    assert found == {
        (0.0, 1e-12): (2, 6.5),
        (1e-12, 1.778e-12): (1, 8.0),
        (0.1, 0.1778): (2, 0.5),
        (0.1778, 0.3162): (1, 2.0),
        (1.0, 1.778): (1, 3.0),
        (56.23, 100.0): (1, 4.0),
        (100.0, 177.8): (1, 5.0),
        (5.623e11, 1e12): (1, 9.0),
    }
    names = [level_name(b) for b in sums.bins()]
    assert names[0] == "0" and names[2] == "0.1 to 0.18" and len(set(names)) == len(names)
    sums.clear()
    assert list(sums.bins()) == []


@pytest.mark.parametrize("per_decade", [1, 2, 3, 5, 10])
def test_an_edge_belongs_to_the_bin_above(per_decade: int):
    sums = LevelSums(per_decade)
    edges = [10.0 ** (k / per_decade) for k in range(-4 * per_decade, 4 * per_decade)]
    sums.add(report(edges, [1.0] * len(edges)))
    found = list(sums.bins())
    assert [b.samples for b in found] == [1] * len(edges)
    np.testing.assert_allclose([b.low for b in found], edges, rtol=1e-3)
    assert [a.high for a in found[:-1]] == [b.low for b in found[1:]]


def test_what_is_not_finite_or_was_skipped_does_not_count():
    sums = LevelSums()
    sums.add(report([1.0, 1.0, math.nan, math.inf], [2.0, math.nan, 1.0, 1.0]))
    sums.add(report([1.0], [50.0], skipped=True))
    sums.add(StepReport(0, 1.0, 0.1, None, 0.1, False))
    assert [b[2:] for b in sums.bins()] == [(1, 2.0)]


@pytest.mark.parametrize(("late", "at_once"), [(0, 1 << 16), (9, 1 << 16), (0, 20)])
def test_rows_are_means_over_windows(tmp_path: Path, late: int, at_once: int, monkeypatch):
    monkeypatch.setattr(level_bins, "_AT_ONCE", at_once)
    path, reports = tmp_path / "levels.csv", Reports()
    made = trainer(LevelBins(path, 8, 3), reports, loss=poisoned(2), late=late)
    made.run(progress=False)
    found = table(path)
    assert path.read_text().startswith("step,first,low,high,samples,loss\n")
    assert sorted({tuple(row[:2]) for row in found}) == [(8, 0), (16, 8), (20, 16)]
    # Independently: sample by sample.
    for end, first, low, high, samples, mean in found:
        terms = [
            float(term)
            for r in reports
            if first <= r.step < end and r.step != 2
            for level, term in zip(r.levels, r.per_sample, strict=True)
            if 0.999 * low <= level < 0.999 * high
        ]
        assert len(terms) == samples
        assert mean == pytest.approx(np.mean(terms), rel=1e-9)
    assert found[:, 4].sum() == BATCH * (STEPS - 1)
    # All bins together are the mean loss.
    good = [v for k, v in enumerate(made.history) if k != 2]
    assert found[:, 4] @ found[:, 5] / found[:, 4].sum() == pytest.approx(np.mean(good), rel=1e-5)
    assert np.mean(found[:, 5]) != pytest.approx(np.mean(good), rel=1e-2)  # negative control


def test_a_killed_run_goes_on_with_each_step_once(tmp_path: Path):
    run, left = tmp_path / "run", tmp_path / "left"
    monitors = LevelBins(run / "levels.csv", 4), Killed(run, 11, left)
    trainer(*monitors).run(progress=False, folder=run, every=6)
    assert table(left / "levels.csv")[-1, 0] == 8
    trainer(LevelBins(left / "levels.csv", 4)).resume(left).run(
        progress=False, folder=left, every=6
    )
    np.testing.assert_array_equal(table(left / "levels.csv"), table(run / "levels.csv"))
    assert sorted(set(table(run / "levels.csv")[:, 0])) == [4, 6, 8, 12, 16, 18, 20]


def test_a_loss_that_is_a_number_alone_has_no_levels(tmp_path: Path):
    path = tmp_path / "levels.csv"
    trainer(LevelBins(path, 4), loss=lambda *a: loss(*a).loss).run(progress=False)
    assert path.read_text() == "step,first,low,high,samples,loss\n"


@pytest.mark.parametrize("options", [{"window": 0}, {"per_decade": 0}, {"per_decade": 101}])
def test_bad_arguments(tmp_path: Path, options: dict[str, int]):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be at"):
        LevelBins(tmp_path / "levels.csv", **options)
