"""The benchmark of losses on a tiny setting: what is counted, measured, resumed and reported."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.cli import main
from cmsolvers.demo.loss_benchmark import (
    ENTRIES,
    Entry,
    Setting,
    benchmark_losses,
    measures,
    network,
    rows_of_losses,
    table,
    training_run,
)
from cmsolvers.demo.loss_benchmark import benchmark as runner
from cmsolvers.demo.loss_benchmark.entry import Course
from cmsolvers.denoisers.flow_maps import AverageVelocity
from cmsolvers.losses import loss_table
from cmsolvers.processes import TrigFlow
from cmsolvers.processes.coordinates import FLOW, KARRAS, Coordinates
from cmsolvers.tasks.few_step_problems import gaussian, ring
from cmsolvers.training import EMA

pytest.importorskip("matplotlib")

TINY = Setting.tiny()


def flow_loss(model, x0, *, key, step, **options):
    """The diagonal of a flow map."""
    z = noise.normal(x0.shape, key, draw=step)
    t = noise.uniform((len(x0), 1), key, draw=step)[:, 0]
    x = torch.lerp(x0, z, t[:, None])
    return (model.velocity(x, t) - (z - x0)).square().mean()


def broken(model, x0, **options):
    raise ValueError("a mistake in a loss")


def diverging(model, x0, *, key, step):
    return flow_loss(model, x0, key=key, step=step) * (math.nan if step == 3 else 1.0)


OWN = Entry("own", flow_loss, rows_of_losses.average_velocity, "flow map")


# --- measures ------------------------------------------------------------------------


class Exact:
    """The exact map, or denoiser, of a problem, wrong by a factor of the output."""

    def __init__(self, problem, coordinates, end=0.0, wrong=1.0):
        self.problem, self.coordinates, self.end, self.wrong = problem, coordinates, end, wrong

    def __call__(self, x, start, end=None):
        end = self.end if end is None else end
        return self.wrong * self.problem.flow_map(x.double(), start, end, self.coordinates).float()


KINDS = {
    "consistency": ("consistency", KARRAS, 0.002),
    "consistency in flow coordinates": ("consistency", FLOW, 0.0),
    "consistency in TrigFlow": ("consistency", Coordinates(TrigFlow(0.5)), 0.0),
    "flow map": ("flow map", FLOW, 0.0),
    "flow map in Karras coordinates": ("flow map", KARRAS, 0.0),
}


@pytest.mark.parametrize("case", sorted(KINDS))
def test_the_exact_map_is_found_exact(case):
    kind, path, end = KINDS[case]
    # The mixture's map takes a while: one kind will do.
    make, samples = (ring, 128) if kind == "flow map" and path is FLOW else (gaussian, 2048)
    problem, setting = runner._problem(make), Setting(samples=samples, latents=32)
    entry = replace(OWN, kind=kind, end=end)
    found = measures.measure(entry, Exact(problem, path, end), problem, setting)
    floor = measures.floor(problem, setting)
    for quality in found.values():
        assert quality.rms < 3e-5  # float32 between the steps
        assert quality.distance < 2.5 * floor
        assert quality.modes == problem.modes
        assert quality.inside == pytest.approx(0.999, abs=0.01)
    # Negative control: five per cent too large.
    wrong = measures.measure(entry, Exact(problem, path, end, 1.05), problem, setting)
    assert all(quality.rms > 0.02 for quality in wrong.values())


def test_the_exact_denoiser_gains_by_more_steps():
    problem = runner._problem(ring)
    entry, setting = ENTRIES["dsm"], Setting(samples=256, latents=64)
    found = measures.measure(entry, problem.denoiser(), problem, setting)
    assert found[1].rms > found[2].rms > found[4].rms > 0.05
    # One step goes to the mean, wherever it starts.
    aim = measures.exact_states(problem, KARRAS, 80.0, 0.0, 64)
    assert found[1].rms == pytest.approx(
        float((aim - problem.mean).square().mean().sqrt()), rel=0.02
    )


def test_levels_of_all_coordinates_are_at_the_same_ratios():
    assert measures.levels(OWN, FLOW, 4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert measures.levels(ENTRIES["ict"], KARRAS, 4) == pytest.approx([80, 3, 1, 1 / 3, 0.002])
    trig = Coordinates(TrigFlow(0.5))
    ratios = [trig.ratio(t) for t in measures.levels(OWN, trig, 2)]
    assert ratios == pytest.approx([80, 1, 0])


def test_steps_with_new_noise_are_those_of_consistency_sample():
    f = cm.ConsistencyFunction(lambda x, c_noise: x.sin(), 0.5)
    x = 80.0 * noise.normal((5, 2), 3)
    grid = measures.levels(ENTRIES["ict"], KARRAS, 4)
    expected = cm.consistency_sample(f, x, grid[:-1], seed=2)
    found = measures.sample(ENTRIES["ict"], f, x, grid, seed=2)
    # Which draws of the seed are taken may differ; at the same ones the arithmetic is the same.
    assert found.shape == expected.shape
    one = measures.sample(ENTRIES["ict"], f, x, [80.0, 0.002], seed=2)
    torch.testing.assert_close(one, cm.consistency_sample(f, x, [80.0], seed=2))
    spread = [(v - v.mean(0)).std() for v in (found, expected)]
    assert all(float(s) > 0 for s in spread)


# --- counting and training ------------------------------------------------------------------------


def test_calls_are_counted_by_rows_and_a_tangent_counts_as_a_call():
    counter = network.Counter()
    net = network.build(2, TINY, True, 0, counter)
    x, t = torch.zeros(8, 2), torch.ones(8)
    net(x, t, t)
    assert counter.rows == 8
    net(x[:2], t[:2], t[:2])
    assert counter.rows == 10
    torch.func.jvp(lambda y: net(y, t, t), (x,), (x + 1,))
    assert counter.rows == 26
    torch.func.jvp(lambda s: net(x, s, t), (t,), (t,))
    assert counter.rows == 42
    EMA(net).module(x, t, t)
    assert counter.rows == 50
    network.uncounted(net)(x, t, t)
    network.CountedTeacher(gaussian().denoiser(), counter)(torch.zeros(8, 8), t)
    assert counter.rows == 58


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_every_recipe_spends_its_budget(name):
    entry = ENTRIES[name]
    done = training_run.train(entry, runner._problem(ring), 0, replace(TINY, calls=24))
    assert done.failure is None and math.isfinite(done.loss)
    per_step = done.calls / done.steps
    assert 24 <= done.calls < 24 + 3 * per_step
    assert per_step > 1 if entry.teacher or entry.target_decay else per_step >= 1


def test_every_loss_of_the_library_has_a_row():
    assert {one.recipe.name for one in loss_table.losses()} <= set(ENTRIES)
    assert set(rows_of_losses.DIFFERENCES) <= set(ENTRIES)


def test_a_training_is_a_function_of_its_seed():
    problem = runner._problem(ring)
    x, t = torch.ones(4, 2), torch.full((4,), 0.5)
    train = partial(training_run.train, ENTRIES["ict"], problem, setting=TINY)
    one, same, other = (train(seed=seed).model(x, t) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_training_brings_the_loss_down():
    setting = replace(TINY, calls=400)
    long = training_run.train(OWN, runner._problem(gaussian), 0, setting)
    short = training_run.train(OWN, runner._problem(gaussian), 0, replace(setting, calls=20))
    assert long.loss < 0.9 * short.loss


def test_the_course_knows_how_far_it_is():
    seen: list[Course] = []

    def options(course):
        seen.append(course)
        return {}

    given = []

    def loss(model, x0, *, teacher=None, **options):
        given.append(teacher)
        return flow_loss(model, x0, **options)

    entry = Entry(
        "rounds", loss, rows_of_losses.average_velocity, "flow map", options=options, rounds=3
    )
    training_run.train(entry, runner._problem(ring), 0, replace(TINY, calls=30))
    assert [course.step for course in seen] == list(range(30))
    assert {course.total for course in seen[1:]} == {30}
    assert [seen[k].round for k in (0, 9, 10, 19, 20, 29)] == [0, 0, 1, 1, 2, 2]
    assert given[9] is None and given[10] is given[19] and given[20] is not given[19]
    assert isinstance(given[10], AverageVelocity)


def test_pairs_are_ends_of_the_exact_map():
    problem, seen = runner._problem(gaussian), []

    def loss(model, x0, *, noise, **options):
        seen.append((x0, noise))
        return flow_loss(model, x0, **options)

    entry = replace(OWN, loss=loss, pairs=True)
    training_run.train(entry, problem, 0, replace(TINY, calls=2))
    (x0, z), (other, _) = seen
    torch.testing.assert_close(problem.flow_map(z, 1.0, 0.0, "flow"), x0)
    assert not torch.equal(x0, other)


# --- the runner ------------------------------------------------------------------------


def test_results_are_kept_and_a_run_goes_on(tmp_path, monkeypatch):
    setting = replace(TINY, calls=6)
    given = {"out": tmp_path, "workers": 1, "progress": False, "setting": setting}
    run = partial(benchmark_losses, problems=[gaussian], **given)
    first = run([OWN], seeds=1)
    monkeypatch.setattr(runner, "train", lambda *given: pytest.fail("was there already"))
    assert run([OWN], seeds=1) == first
    monkeypatch.undo()
    trained = []
    original = runner.train
    monkeypatch.setattr(runner, "train", lambda *given: trained.append(given) or original(*given))
    found = run([OWN], seeds=2)
    assert found[0] == first[0] and [result.seed for result in found] == [0, 1]
    assert len(trained) == 1
    run([OWN], seeds=2, again=True)
    assert len(trained) == 3
    run([OWN], seeds=2, setting=replace(TINY, calls=7))
    assert len(trained) == 5


def test_what_fails_is_told_and_the_rest_is_reported(tmp_path):
    entries = [OWN, replace(OWN, name="broken", loss=broken)]
    run = partial(benchmark_losses, problems=[ring], setting=TINY, seeds=1, out=tmp_path, workers=1)
    with pytest.raises(RuntimeError, match=r"1 of 2 trainings failed:\nbroken on ring, seed 0"):
        run(entries, progress=False)
    assert "`own`" in (tmp_path / "losses.md").read_text()
    (found,) = run([replace(OWN, name="diverging", loss=diverging)], progress=False)
    assert found.failure == "loss nan at step 3" and found.steps == 4
    assert "1 of 1 diverged" in (tmp_path / "losses.md").read_text()


@pytest.mark.slow
def test_worker_processes_give_the_same_results(tmp_path):
    names = ("dsm", "ict")
    run = partial(
        benchmark_losses,
        [ENTRIES[name] for name in names],
        ["ring"],
        seeds=1,
        setting=replace(TINY, calls=10),
        progress=False,
    )
    here, there = (run(out=tmp_path / str(n), workers=n) for n in (1, 2))
    assert [replace(r, seconds=0.0) for r in here] == [replace(r, seconds=0.0) for r in there]


BAD = {
    "entry": (lambda out: benchmark_losses([3], out=out), TypeError, "entries must be"),
    "twice": (lambda out: benchmark_losses([OWN, OWN], out=out), ValueError, "own twice"),
    "none": (lambda out: benchmark_losses([], out=out), ValueError, "entries must not be empty"),
    "problem": (lambda out: benchmark_losses([OWN], ["x"], out=out), ValueError, "problems"),
    "seeds": (lambda out: benchmark_losses([OWN], seeds=0, out=out), ValueError, "seeds"),
    "workers": (lambda out: benchmark_losses([OWN], workers=0, out=out), ValueError, "workers"),
    "kind": (lambda out: replace(OWN, kind="map"), ValueError, "kind"),
    "rounds": (lambda out: replace(OWN, rounds=0), ValueError, "rounds"),
    "start": (lambda out: replace(OWN, start=0.1, end=0.2), ValueError, "end"),
    "decay": (lambda out: replace(OWN, target_decay=1.5), ValueError, "target_decay"),
    "calls": (lambda out: Setting(calls=0), ValueError, "calls"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input(name, tmp_path):
    call, error, text = BAD[name]
    with pytest.raises(error, match=text):
        call(tmp_path)


# --- the command ------------------------------------------------------------------------


def test_the_command_writes_table_numbers_picture_and_page(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_losses.py").write_text(
        "from cmsolvers.demo.loss_benchmark import Entry\n"
        "from cmsolvers.demo.loss_benchmark.rows_of_losses import average_velocity\n"
        "def loss(model, x0, *, key, step):\n"
        "    t = x0.new_full((len(x0),), 0.5)\n"
        "    return model.velocity(x0, t).square().mean()\n"
        "ENTRY = Entry('mine', loss, average_velocity, 'flow map')\n"
        "BROKEN = [Entry('broken', max, average_velocity, 'flow map')]\n"
    )
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.MARKS[0]}old{table.MARKS[1]}\nafter\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    out = tmp_path / "out"
    given = ["--tiny", "--budget", "12", "--workers", "1", "--quiet", "--out", str(out)]
    given += ["--recipes", "dsm", "--own", "my_losses:ENTRY", "--docs", str(page)]
    assert main(["benchmark", "losses", *given, "--own", "my_losses:BROKEN", "--again"]) == 1
    assert "1 of 3 trainings failed" in capsys.readouterr().err
    assert main(["benchmark", "losses", *given]) == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "losses.json").read_text())
    assert [row["recipe"] for row in found["results"]] == ["dsm", "mine"]
    assert found["setting"]["calls"] == 12 and set(found["problems"]) == {"ring"}
    text = (out / "losses.md").read_text().strip()
    assert text in printed and text.count("\n") == 6 and "12 calls" in text
    assert page.read_text() == f"before\n{table.MARKS[0]}{text}{table.MARKS[1]}\nafter\n"
    for picture in (out / "losses.png", tmp_path / "images" / "losses.png"):
        assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--recipes", "nothing"], "--recipes"),
        (["--own", "nothing"], "MODULE:NAME"),
        (["--own", "math:pi"], "Entry"),
        (["--own", "no_such_module:x"], "no_such_module"),
        (["--docs", "no_such_page.md"], "no_such_page"),
        (["--problems", "square"], "problems"),
    ],
)
def test_bad_options_of_the_command(given, text, tmp_path, capsys):
    assert main(["benchmark", "losses", "--tiny", "--out", str(tmp_path), *given]) == 2
    assert text in capsys.readouterr().err


def test_a_page_without_marks_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(ValueError, match="<!-- benchmark -->"):
        table.write_between_marks(page, "table")
    assert page.read_text() == "text\n"
