"""The measurement behind the work-precision plot, on few samples and grids."""

import json

import pytest
import torch

import cmsolvers as cm
from cmsolvers.cli import main
from cmsolvers.demo import work_precision
from cmsolvers.demo.work_precision import FIRST, LAST, Problem


@pytest.fixture(scope="module")
def points():
    patch = pytest.MonkeyPatch()
    patch.setattr(work_precision, "STEPS", (8, 32))
    patch.setattr(work_precision, "TOLERANCES", (1e-2, 1e-6))
    try:
        yield work_precision.measure(Problem(count=256))
    finally:
        patch.undo()


def test_the_exact_solution_is_that_of_a_tight_tolerance():
    problem = Problem(count=512)
    x = cm.rk_pf_ode(problem.data, problem.start, [FIRST, LAST], rtol=1e-9, atol=1e-10)
    assert problem.path_error(x) < 1e-6
    assert problem.distance(x) < 1e-6
    assert problem.path_error(x + 0.01) == pytest.approx(0.01, rel=1e-3)
    assert problem.distance(x + 0.01) == pytest.approx(0.01, rel=1e-3)


def test_the_floor_is_that_of_independent_draws():
    """Expected W1 of n draws goes as 1 / sqrt(n)."""
    assert 1.5 < Problem(count=1024).floor / Problem(count=4096).floor < 2.7


def test_every_sampler_is_measured_and_gains_by_more_calls(points):
    assert {p.name for p in points} == set(work_precision.shown_solvers())
    for name in work_precision.shown_solvers():
        few, many = sorted((p for p in points if p.name == name), key=lambda p: p.nfe)
        assert many.nfe > few.nfe
        assert many.distance < few.distance
        if not few.noisy:
            assert many.error < 0.5 * few.error


def test_what_adds_noise_is_told(points):
    noisy = {p.name for p in points if p.noisy}
    assert {"dpmpp_sde", "euler_ancestral", "restart", "ddpm_ancestral"} <= noisy
    assert noisy.isdisjoint({"heun_pf_ode", "ddim", "dpm_fast", "lms", "rk_pf_ode", "dpm_adaptive"})


def test_the_command_writes_numbers_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work_precision, "STEPS", (8,))
    monkeypatch.setattr(work_precision, "TOLERANCES", (1e-2,))
    assert main(["precision", "--out", str(tmp_path), "--count", "64", "--quiet"]) == 0
    found = json.loads((tmp_path / "precision.json").read_text())
    assert len(found["points"]) == len(work_precision.shown_solvers())
    assert (tmp_path / "precision.png").stat().st_size > 10_000
    assert main(["solvers"]) == 0
    assert "| `heun_pf_ode` |" in capsys.readouterr().out


def test_same_seed_same_numbers():
    one, two = (
        cm.dpmpp_sde(p.data, p.start, torch.tensor([FIRST, 1.0, LAST]), seed=p.seed)
        for p in (Problem(64), Problem(64))
    )
    assert torch.equal(one, two)
