"""The README's examples run, in order, as a reader would paste them."""

from __future__ import annotations

import re

import pytest

from cmsolvers.engine import catalogue
from support import ROOT

README = (ROOT / "README.md").read_text()


def test_python_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    samples = names["samples"]
    assert abs(float(samples.mean()) + 0.2) < 0.15  # type: ignore[attr-defined]
    assert names["info"].nfe == 35  # type: ignore[attr-defined]
    assert names["two_steps"].shape == names["one_step"].shape  # type: ignore[attr-defined]


def test_examples_of_the_page_on_steps_run() -> None:
    page = (ROOT / "docs" / "steps.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        quick = block.replace("fullgraph=True", 'fullgraph=True, backend="eager"')
        exec(compile(quick, "steps.md", "exec"), names)
    assert names["x"].shape == (16, 2)  # type: ignore[attr-defined]


def test_examples_of_the_page_on_mistakes_run() -> None:
    page = (ROOT / "docs" / "mistakes.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "mistakes.md", "exec"), names)
    assert abs(names["y"].std() - 0.5) < 0.05  # type: ignore[attr-defined]


def test_examples_of_the_page_on_runs_run() -> None:
    page = (ROOT / "docs" / "runs.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "runs.md", "exec"), names)
    assert (names["samples"] - names["whole"]).abs().max() < 1e-6  # type: ignore[operator]
    assert abs(names["ratio"] - 1).max() == 0  # type: ignore[operator]
    assert names["net"].weight.grad.norm() > 0  # type: ignore[attr-defined]


def test_examples_of_the_page_on_data_run(capsys) -> None:
    pytest.importorskip("PIL")
    page = (ROOT / "docs" / "data.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "data.md", "exec"), names)
    shape, fingerprint = capsys.readouterr().out.splitlines()
    assert f"print(data.shape, data.class_names)  # {shape}\n" in page
    assert re.fullmatch("[0-9a-f]{16}", fingerprint)
    assert names["batch"].step == 99  # type: ignore[attr-defined]


def test_examples_of_the_page_on_flow_maps_run() -> None:
    page = (ROOT / "docs" / "flow_maps.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "flow_maps.md", "exec"), names)
    for samples in ("one_step", "four_steps", "with_noise", "by_function"):
        assert abs(names[samples].std() - 0.5) < 0.05, samples  # type: ignore[attr-defined]
    assert names["two_steps"].shape == names["x"].shape  # type: ignore[attr-defined]


def test_examples_of_the_page_on_own_solvers_run(capsys) -> None:
    page = (ROOT / "docs" / "own_solver.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, object] = {}
    before = dict(catalogue.SOLVERS)
    try:
        for block in blocks:
            exec(compile(block, "own_solver.md", "exec"), names)
    finally:
        for name in catalogue.SOLVERS.keys() - before.keys():
            del catalogue.SOLVERS[name]
    assert abs(names["samples"].std() - 0.5) < 0.1  # type: ignore[attr-defined]
    assert names["info"].nfe == 36  # type: ignore[attr-defined]
    assert "step 0 of too_short: the spread must be 1; 0.50625 x0" in capsys.readouterr().out
    errors = names["errors"]
    assert 3.7 < errors[1] / errors[2] < 4.3  # type: ignore[index]
    assert abs(names["y"].std() - 0.5) < 0.1  # type: ignore[attr-defined]
    assert "noise_sampler" in names["midpoint"].__doc__  # type: ignore[operator]


def test_the_shortest_trainings_run() -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "training.md", "exec"), names)
    for samples in ("samples", "few_steps", "from_noise", "from_average"):
        far = (names[samples].abs() - 0.5).abs()  # type: ignore[attr-defined]
        assert (far < 0.2).float().mean() > 0.7, samples  # at one of the four points
    found = names["found"]
    assert found.step == 200 and "step-00000300" in found.skipped[0]  # type: ignore[attr-defined]
    assert 0.0085 < names["made"].error < 0.0095  # type: ignore[attr-defined]


def test_first_two_commands_are_demo_and_test() -> None:
    first = re.search(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    assert first is not None
    assert [line.split("#")[0].strip() for line in first.group(1).strip().splitlines()] == [
        "make demo",
        "make test",
    ]


def test_pictures_exist() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path
