"""Exact flow maps against closed forms, an integration of another kind, and each other."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from cmsolvers import noise, oracles
from cmsolvers.processes import VP, TrigFlow
from cmsolvers.tasks import metrics
from cmsolvers.tasks.exact_problems import ExactProblem
from cmsolvers.tasks.few_step_problems import PROBLEMS

F64 = torch.float64
MADE = {name: make() for name, make in PROBLEMS.items()}
TRIG = TrigFlow(0.5)
# (path, a noisy level, one in the middle, one near the data)
PATHS = {
    "karras": ("karras", 80.0, 0.7, 0.05),
    "flow": ("flow", 1.0, 0.4, 0.05),
    "trigflow": (TRIG, 1.5, 0.9, 0.1),
    "vp": (VP(), 1.0, 0.5, 0.1),
}
every_problem = pytest.mark.parametrize("name", sorted(MADE))
every_path = pytest.mark.parametrize("path", sorted(PATHS))


def states(problem: ExactProblem, path, level: float, n: int = 24) -> torch.Tensor:
    """Draws from the marginal at a level."""
    process = TRIG if path is TRIG else path if isinstance(path, VP) else None
    alpha = 1.0 if path == "karras" else 1.0 - level if path == "flow" else process.alpha(level)
    sigma = level if path in ("karras", "flow") else process.sigma(level)
    return alpha * problem.sample(n, 5) + sigma * noise.normal((n, problem.size), 6, dtype=F64)


def by_hand(data: oracles.Oracle, x: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """dx/d ln sigma = x - D(x, sigma) of the older oracles, by a method of another order."""
    found = solve_ivp(
        lambda s, y: (
            torch.from_numpy(y).view_as(x) - data(torch.from_numpy(y).view_as(x), math.exp(s))
        ).flatten(),
        (math.log(start), math.log(end)),
        x.flatten().numpy(),
        method="RK45",
        rtol=1e-10,
        atol=1e-11,
    )
    return torch.from_numpy(found.y[:, -1].copy()).view_as(x)


@every_problem
@every_path
def test_two_maps_are_one(name, path):
    problem, (path, high, middle, low) = MADE[name], PATHS[path]
    x = states(problem, path, high)
    at_once = problem.flow_map(x, high, low, path)
    stop = problem.flow_map(x, high, middle, path)
    torch.testing.assert_close(
        problem.flow_map(stop, middle, low, path), at_once, atol=1e-9, rtol=0
    )
    # And back: towards noise trajectories come together, so an error only shrinks.
    torch.testing.assert_close(problem.flow_map(at_once, low, high, path), x, atol=1e-7, rtol=1e-9)
    assert torch.equal(problem.flow_map(x, high, high, path), x)


@every_problem
def test_the_map_is_what_another_integrator_finds(name):
    problem = MADE[name]
    x = states(problem, "karras", 20.0, 8)
    if problem.modes == 1:
        data: oracles.Oracle = _PerCoordinate(problem)
    else:
        data = oracles.GaussianMixture(problem.means, problem.stds[:, 0], problem.weights)
    other = by_hand(data, x, 20.0, 0.01)
    torch.testing.assert_close(problem.flow_map(x, 20.0, 0.01, "karras"), other, atol=2e-8, rtol=0)
    # Negative control: data that are a thousandth wider.
    wider = ExactProblem("wider", problem.means, 1.001 * problem.stds, problem.weights)
    assert (wider.flow_map(x, 20.0, 0.01, "karras") - other).abs().max() > 1e-5


class _PerCoordinate:
    """A Gaussian whose coordinates are independent: an isotropic oracle for each."""

    def __init__(self, problem: ExactProblem) -> None:
        self.parts = [
            oracles.Gaussian(float(std), float(mean))
            for std, mean in zip(problem.stds[0], problem.means[0], strict=True)
        ]

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.cat([part(x[:, i : i + 1], sigma) for i, part in enumerate(self.parts)], 1)


def test_the_closed_form_is_the_solution_of_the_ode():
    """A mixture of two equal components is a Gaussian too, but is solved step by step."""
    one = MADE["gaussian"]
    two = ExactProblem("two", one.means.repeat(2, 1), one.stds.repeat(2, 1), torch.tensor([0.3, 1]))
    x = states(one, "flow", 1.0)
    for start, end in ((1.0, 0.0), (1.0, 0.3), (0.2, 0.9)):
        closed = one.flow_map(x, start, end, "flow")
        torch.testing.assert_close(
            two.flow_map(x, start, end, "flow"), closed, atol=1e-11, rtol=1e-11
        )


@every_problem
def test_coordinates_are_names_of_one_map(name):
    problem = MADE[name]
    x = states(problem, "karras", 3.0)
    found = problem.flow_map(x, 3.0, 0.2, "karras")
    for path in ("flow", TRIG, VP()):
        if path == "flow":
            (start, scale), (end, after) = ((t := s / (1 + s), 1 - t) for s in (3.0, 0.2))
        else:
            start, end = (path.t_of_sigma(s) for s in (3.0, 0.2))
            scale, after = path.alpha(start), path.alpha(end)
        moved = problem.flow_map(scale * x, start, end, path) / after
        torch.testing.assert_close(moved, found, atol=1e-10, rtol=1e-10)


@every_problem
@every_path
def test_velocity_is_the_derivative_of_the_map(name, path):
    problem, (path, high, middle, low) = MADE[name], PATHS[path]
    for level, step in ((high, -1e-4), (middle, 1e-4), (low, 1e-4)):
        x = states(problem, path, level)
        near = [problem.flow_map(x, level, level + k * step, path) for k in range(3)]
        slope = (-1.5 * near[0] + 2 * near[1] - 0.5 * near[2]) / step
        velocity = problem.velocity(x, level, path)
        torch.testing.assert_close(velocity, slope, atol=2e-5, rtol=2e-4)
        assert not torch.allclose(-velocity, slope, atol=2e-5, rtol=2e-4)


@every_problem
def test_velocity_and_denoiser_are_one(name):
    problem = MADE[name]
    x = states(problem, "flow", 0.3)
    d = problem.denoiser("flow")(x, 0.3)
    torch.testing.assert_close(problem.velocity(x, 0.3, "flow"), (x - d) / 0.3)
    torch.testing.assert_close(problem.denoiser()(x / 0.7, 0.3 / 0.7), d)
    clean, unit = problem.conditional_means(x, 0.3, "flow")
    torch.testing.assert_close(0.7 * clean + 0.3 * unit, x)


@every_problem
def test_pure_noise_and_clean_data_are_levels_like_others(name):
    problem = MADE[name]
    z = noise.normal((16, problem.size), 2, dtype=F64)
    torch.testing.assert_close(
        problem.flow_map(z, 1.0, 0.0, "flow"),
        problem.flow_map(z, 1.0 - 1e-9, 1e-9, "flow"),
        atol=1e-5,
        rtol=0,
    )
    mean = problem.mean.expand(16, -1)
    torch.testing.assert_close(problem.denoiser("flow")(z, 1.0), mean)
    torch.testing.assert_close(problem.velocity(z, 1.0, "flow"), z - mean)
    torch.testing.assert_close(problem.denoiser()(z, 0.0), z)


def test_levels_of_each_sample():
    problem = MADE["ring"]
    x = states(problem, "flow", 0.6, 3)
    start, end = torch.tensor([0.6, 0.3, 0.5], dtype=F64), torch.tensor([0.1, 0.3, 0.8], dtype=F64)
    moved = problem.flow_map(x, start, end, "flow")
    for i in range(3):
        alone = problem.flow_map(x[i : i + 1], float(start[i]), float(end[i]), "flow")
        torch.testing.assert_close(moved[i : i + 1], alone, atol=1e-10, rtol=0)
    assert torch.equal(moved[1], x[1])
    assert problem.flow_map(x.float(), start, end, "flow").dtype is torch.float32


@every_problem
def test_noise_is_carried_to_the_data(name):
    problem = MADE[name]
    n = 512
    z = noise.normal((n, problem.size), 4, dtype=F64)
    made = problem.flow_map(z, 1.0, 0.0, "flow")
    floor = metrics.sliced_wasserstein(problem.sample(n, 8), problem.sample(n, 9))
    assert metrics.sliced_wasserstein(made, problem.sample(n, 8)) < 1.5 * floor
    assert metrics.sliced_wasserstein(made + 0.25, problem.sample(n, 8)) > 2 * floor
    assert problem.modes_found(made) == problem.modes


@every_problem
def test_samples_are_a_function_of_the_seed(name):
    problem = MADE[name]
    x = problem.sample(20_000, 3)
    assert torch.equal(problem.sample(17, 3), x[:17])
    for other in (problem.sample(17, 4), problem.sample(17, 3, draw=1)):
        assert not torch.equal(other, x[:17])
    assert problem.sigma_data == pytest.approx(0.5, abs=1e-12)
    spread = (x - x.mean(0)).square().mean().sqrt()
    assert float(spread) == pytest.approx(0.5, rel=0.02)
    shares = torch.bincount(problem.component(x), minlength=problem.modes) / len(x)
    torch.testing.assert_close(shares.double(), problem.weights, atol=0.012, rtol=0)
    torch.testing.assert_close(
        problem.shares(x).sum(), torch.tensor(0.999).double(), atol=1e-3, rtol=0
    )


def test_modes_that_are_missing_are_missed():
    problem = MADE["ring"]
    x = problem.sample(4000, 3)
    own = problem.component(x)
    assert problem.modes_found(x) == 8
    assert problem.modes_found(x[own != 2]) == 7
    assert problem.modes_found(x[own < 3]) == 3
    # A disc covers the modes without being in them; a mean is nowhere.
    assert problem.shares(0.7 * noise.normal((4000, 2), 1, dtype=F64)).sum() < 0.5
    assert problem.modes_found(0.0 * x) == 0


BAD = {
    "size": (lambda p: p.flow_map(torch.zeros(2, 3), 1.0, 0.0, "flow"), ValueError, r"\[B, 2\]"),
    "level": (lambda p: p.flow_map(torch.zeros(2, 2), -1.0, 0.0, "flow"), ValueError, "start"),
    "end": (lambda p: p.flow_map(torch.zeros(2, 2), 1.0, "a", "flow"), TypeError, "end"),
    "path": (lambda p: p.velocity(torch.zeros(2, 2), 1.0, "straight"), ValueError, "path"),
    "rows": (lambda p: p.velocity(torch.zeros(2, 2), torch.ones(3), "flow"), ValueError, "level"),
    "count": (lambda p: p.sample(0, 1), ValueError, "n must"),
    "share": (lambda p: p.shares(torch.zeros(2, 2), inside=1.0), ValueError, "inside"),
    "means": (lambda p: ExactProblem("a", [1.0], [1.0], [1.0]), ValueError, "means"),
    "stds": (lambda p: ExactProblem("a", [[1.0]], [[0.0]], [1.0]), ValueError, "stds must be pos"),
    "shape": (lambda p: ExactProblem("a", [[1.0]], [1.0], [1.0]), ValueError, "stds must have"),
    "weights": (lambda p: ExactProblem("a", [[1.0]], [[1.0]], [1.0, 1.0]), ValueError, "weights"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input(name):
    call, error, text = BAD[name]
    with pytest.raises(error, match=text):
        call(MADE["ring"])
