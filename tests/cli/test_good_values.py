"""Good values of options: each one reaches what it is said to decide."""

from __future__ import annotations

from pathlib import Path

from cmsolvers import cli
from cmsolvers.demo import DemoSettings, work_precision


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


# --- precision, demo ----------------------------------------------------------------------------


def test_count_and_seed_of_a_precision_run(tmp_path, monkeypatch):
    asked = []

    def measure(problem, shown):
        asked.append((problem.count, problem.seed))
        raise ValueError("seen")

    monkeypatch.setattr(work_precision, "measure", measure)
    out = ("--out", tmp_path, "--quiet")
    assert run("precision", "--count", 64, "--seed", 3, *out) == run("precision", *out) == 2
    assert asked == [(64, 3), (1 << 15, 0)]


def test_options_of_the_demo(tmp_path, monkeypatch):
    asked, kept = [], [True, False]

    def run_demo(out, settings, **options):
        asked.append((out, settings, options))
        row = {"what": "a", "value": 1.0, "relation": ">=", "bound": 2.0}
        return {"targets": [row | {"kept": entry} for entry in kept]}

    monkeypatch.setattr("cmsolvers.demo.run_demo", run_demo)
    assert run("demo", "--out", tmp_path, "--tiny", "--seed", 4, "--workers", 1, "--quiet") == 0
    assert run("demo", "--check") == 1
    kept[1] = True
    assert run("demo", "--check") == 0
    assert asked[0] == (tmp_path, DemoSettings.tiny(4), {"workers": 1, "progress": False})
    assert asked[1] == (Path("demo-output"), DemoSettings(), {"workers": None, "progress": True})
