"""The table of losses: its rows, and what stays of it when a run goes on."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from cmsolvers.training import RunFolder
from cmsolvers.training.monitors import CSVLog
from cmsolvers.training.monitors.logged_table import LoggedTable
from support.monitored import STEPS, Killed, Silent, poisoned, trainer


def rows(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text().splitlines()[1:]]


def timeless(path: Path) -> list[list[str]]:
    """Rows without the seconds, which no two runs share."""
    return [row[:4] + row[5:] for row in rows(path)]


@pytest.mark.parametrize("late", [0, 7])
def test_a_row_per_step(tmp_path: Path, late: int):
    path = tmp_path / "logs" / "log.csv"
    made = trainer(CSVLog(path), loss=poisoned(3, 4), late=late).run(progress=False)
    assert path.read_text().startswith("step,loss,lr,grad_norm,seconds,skipped\n")
    found = rows(path)
    assert [int(row[0]) for row in found] == list(range(1, STEPS + 1))
    losses = [float(row[1]) for row in found]
    bad = [3, 4]
    assert [v for k, v in enumerate(losses) if k not in bad] == [
        v for k, v in enumerate(made.history) if k not in bad
    ]
    assert all(math.isnan(losses[k]) for k in bad)
    assert [float(row[2]) for row in found] == [made.settings.rate(k) for k in range(STEPS)]
    assert all(float(row[3]) > 0 for k, row in enumerate(found) if k not in bad)
    assert all(float(row[4]) > 0 for row in found)
    assert [int(row[5]) for row in found] == [int(k in bad) for k in range(STEPS)]


def test_rows_of_several_steps(tmp_path: Path):
    path = tmp_path / "log.csv"
    made = trainer(CSVLog(path, 6), loss=poisoned(3, 4)).run(progress=False)
    found = rows(path)
    assert [int(row[0]) for row in found] == [6, 12, 18, 20]
    first = [v for k, v in enumerate(made.history[:6]) if k not in (3, 4)]
    means = [np.mean(first), *(np.mean(made.history[k : k + 6]) for k in (6, 12, 18))]
    np.testing.assert_allclose([float(row[1]) for row in found], means, rtol=1e-12)
    assert [int(row[5]) for row in found] == [2, 0, 0, 0]


@pytest.mark.parametrize("broken", ["12,0.5,0.0", "1"])
@pytest.mark.parametrize("every", [1, 6])
def test_a_killed_run_goes_on_with_each_step_once(tmp_path: Path, every: int, broken: str):
    run, left = tmp_path / "run", tmp_path / "left"
    killed = Killed(run, 11, left)
    trainer(CSVLog(run / "log.csv", every), killed).run(progress=False, folder=run, every=8)
    assert int(rows(left / "log.csv")[-1][0]) == (11 if every == 1 else 8)
    with open(left / "log.csv", "a") as file:
        file.write(broken)  # a row that a kill broke off
    again = trainer(CSVLog(left / "log.csv", every)).resume(left)
    assert again.step == 8
    again.run(progress=False, folder=left, every=8)
    assert timeless(left / "log.csv") == timeless(run / "log.csv")
    steps = [int(row[0]) for row in rows(left / "log.csv")]
    assert len(steps) == len(set(steps)) and steps == sorted(steps)


def test_cutting_back_leaves_the_first_rows_as_they_are(tmp_path: Path):
    path = tmp_path / "log.csv"
    made = trainer(CSVLog(path))
    made.run(12, progress=False)
    made.save(tmp_path / "saved")
    before = path.read_bytes()
    made.run(progress=False)
    assert path.read_bytes().startswith(before)
    trainer(CSVLog(path)).load(tmp_path / "saved").run(12, progress=False)
    assert path.read_bytes() == before


def test_a_run_that_begins_anew_has_a_table_of_its_own(tmp_path: Path):
    path = tmp_path / "log.csv"
    trainer(CSVLog(path)).run(5, progress=False)
    trainer(CSVLog(path)).run(3, progress=False)
    assert [int(row[0]) for row in rows(path)] == [1, 2, 3]


@pytest.mark.parametrize(("every", "steps"), [(1, [*range(1, 13)]), (5, [5, 10, 12])])
def test_steps_that_nobody_logged_have_their_losses(tmp_path: Path, every: int, steps: list[int]):
    made = trainer(Silent()).run(12, progress=False)
    made.save(tmp_path / "saved")
    path = tmp_path / "log.csv"
    trainer(CSVLog(path, every)).load(tmp_path / "saved").run(14, progress=False)
    found = rows(path)
    assert [int(row[0]) for row in found][: len(steps)] == steps
    begin = 0
    for row, end in zip(found, steps, strict=False):
        assert float(row[1]) == pytest.approx(np.mean(made.history[begin:end]), rel=1e-12)
        assert row[2:] == [""] * 4
        begin = end
    assert int(found[-1][0]) == 14 and found[-1][2] != ""


def test_a_file_of_something_else_is_told_before_the_first_step(tmp_path: Path):
    path = tmp_path / "log.csv"
    path.write_text("a diary\nwith lines\n")
    made = trainer(CSVLog(path))
    with pytest.raises(ValueError, match=r"log\.csv must be free or begin with 'step,loss"):
        made.run(progress=False)
    assert made.step == 0 and path.read_text() == "a diary\nwith lines\n"


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path):
    (tmp_path / "file").write_text("")
    made = trainer(CSVLog(tmp_path / "file" / "log.csv"), CSVLog(tmp_path / "other.csv"))
    with pytest.warns(
        RuntimeWarning, match="CSVLog failed at step 0, the run goes on without"
    ) as w:
        made.run(progress=False)
    assert len(w) == 1 and made.step == STEPS
    assert len(rows(tmp_path / "other.csv")) == STEPS


@pytest.mark.filterwarnings("ignore:settings.steps is 22")
def test_a_disk_that_gets_full_is_one_warning(tmp_path: Path, monkeypatch):
    """The log ends there, and the next process goes on with it."""
    log = CSVLog(tmp_path / "log.csv")
    made = trainer(log)

    def full(rows):
        raise OSError(28, "No space left on device")

    class Fills(Silent):
        def stepped(self, report):
            if report.step == 9:
                monkeypatch.setattr(log._rows, "add", full)

    made._books.audience._monitors.append(Fills())
    with pytest.warns(RuntimeWarning, match="CSVLog failed at step 11.*No space left") as told:
        made.run(progress=False)
    assert len(told) == 1 and made.step == STEPS
    made.save(tmp_path / "saved")
    assert len(rows(tmp_path / "log.csv")) == 10
    trainer(CSVLog(tmp_path / "log.csv"), steps=22).load(tmp_path / "saved").run(progress=False)
    assert [float(row[1]) for row in rows(tmp_path / "log.csv")][:STEPS] == made.history


def test_a_run_that_cannot_save_at_its_end_closes_its_log(tmp_path: Path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "save", full)
    log = CSVLog(tmp_path / "log.csv", 100)
    with pytest.raises(OSError, match="No space left"):
        trainer(log).run(7, progress=False, folder=tmp_path)
    assert [row[0] for row in rows(tmp_path / "log.csv")] == ["7"]
    assert log._rows._descriptor is None


def test_bad_arguments(tmp_path: Path):
    with pytest.raises(ValueError, match="every must be at least 1; got 0"):
        CSVLog(tmp_path / "log.csv", 0)


def test_a_table_is_read_as_it_grows(tmp_path: Path):
    path = tmp_path / "t.csv"
    table = LoggedTable(path)
    assert table.read() == {}
    path.write_text("step,loss\n1,0.5\n2,\n3,0.2")
    found = table.read()
    assert found["step"].tolist() == [1.0, 2.0]
    np.testing.assert_array_equal(found["loss"], [0.5, math.nan])
    with open(path, "a") as file:
        file.write("5\n4,nan\n")
    found = table.read()
    assert found["step"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert found["loss"][2] == 0.25
    shutil.copy(path, tmp_path / "copy")
    path.write_text("step,loss\n1,7\n")
    assert table.read()["loss"].tolist() == [7.0]
    path.write_text("step,loss\n1,7,8\n")
    with pytest.raises(ValueError):
        LoggedTable(path).read()
