"""Continuous-time losses at exact maps, and as the limit of discrete ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmsolvers import ConsistencyFunction
from cmsolvers.denoisers.flow_maps import TrigFlowMap
from cmsolvers.losses.formulas.tangents import Clamped, Normalised, unchanged
from cmsolvers.losses.formulas.weights import inverse_gap, norm, one, square_sum
from cmsolvers.losses.recipes.align_your_flow import ayf_emd, ayf_lmd
from cmsolvers.losses.recipes.consistency import ict
from cmsolvers.losses.recipes.continuous_consistency import (
    continuous_ct,
    rcm,
    scd,
    sct,
)
from cmsolvers.losses.times.continuous_times import Intervals, PowerLaw
from cmsolvers.schedules import karras_sigmas
from support.loss_cases import SmallNet
from support.quantiles import mixture_data, mixture_denoiser, mixture_gradient, mixture_map
from support.stationary import MOVES, STILL, exact_denoiser, exact_map

# --- tangent rules --------------------------------------------------------------------------------


def test_rules_that_are_not_linear_move_the_solution() -> None:
    """Where the velocity of a pair is skewed around its mean: a bias, which a teacher has not."""
    options: dict[str, Any] = {"levels": 0.9, "warmup": None}
    mean, error = mixture_gradient(sct, tangent=unchanged, **options)
    assert (mean / error).abs().max() < STILL
    for rule in (Normalised(), Clamped(0.1)):
        mean, error = mixture_gradient(sct, tangent=rule, **options)
        assert (mean / error).abs().max() > MOVES
    # the larger c is, the more the rule is a number
    mean, error = mixture_gradient(sct, tangent=Normalised(c=100.0), **options)
    assert (mean / error).abs().max() < STILL
    options["teacher"] = mixture_denoiser
    found = scd(mixture_map(), mixture_data(256, 0), key=5, step=0, **options)
    assert found.loss < 1e-24


# --- limits: steps that become smaller ------------------------------------------------------------


def rate(sizes: list[float], errors: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def gradient(loss: Any, model: Any, x0: Tensor, **options: Any) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad][:4]
    found = loss(model, x0, key=2, step=9, reduction="sum", **options).loss
    return torch.cat([g.flatten() for g in torch.autograd.grad(found, parameters)])


X0 = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).reshape(8, 3)
STEPS = [2.0**-k for k in range(4, 10)]


def test_consistency_training_tends_to_its_continuous_form() -> None:
    """The squared distance over t - s, of first order in t - s."""
    model = ConsistencyFunction(SmallNet(1).double())
    wanted = 2.0 * gradient(continuous_ct, model, X0, levels=0.7, weight=torch.ones_like)
    errors = []
    for h in STEPS:
        options: dict[str, Any] = {"distance": square_sum, "weight": inverse_gap}
        found = gradient(ict, model, X0, levels=(0.7, 0.7 - h), **options)
        errors.append(float((found - wanted).norm() / wanted.norm()))
    assert abs(rate(STEPS, errors) - 1.0) < 0.05
    assert errors[-1] < 5e-3


def test_easy_consistency_tuning_tends_to_scm() -> None:
    """The unsquared norm moves f along df/dt of length 1: so does sCM with c = 0.

    d|f - f^-| = dF^T b g / |g|, and b = -sd sin t; d|F - sg(F) - g/|g||^2 = -2 dF^T g / |g|.
    """
    sd, t = 0.5, 0.9
    model = TrigFlowMap(SmallNet(1).double(), sd)
    rule = Normalised(c=0.0)
    wanted = gradient(sct, model, X0, levels=t, warmup=None, tangent=rule, distance=square_sum)
    wanted *= 0.5 * sd * np.sin(t)
    errors = []
    for h in STEPS:
        found = gradient(ict, model, X0, levels=(t, t - h), distance=norm, weight=one)
        errors.append(float((found - wanted).norm() / wanted.norm()))
    assert abs(rate(STEPS, errors) - 1.0) < 0.05
    assert errors[-1] < 5e-3


def test_finer_grids_tend_to_the_integral() -> None:
    """N levels of a Karras grid with weight 1, summed: twice the integral of f^T df, at order 1."""
    model = ConsistencyFunction(SmallNet(1).double())
    x0 = torch.tensor([[0.4, -0.3, 0.9]], dtype=torch.float64)

    def everywhere(loss: Any, levels: Any, **options: Any) -> Tensor:
        high = levels[0] if isinstance(levels, tuple) else levels
        same = torch.full((len(high),), 11, dtype=torch.int64)  # the same noise in all rows
        parameters = [p for p in model.parameters() if p.requires_grad][:4]
        options |= {"key": same, "step": 0, "levels": levels, "reduction": "sum"}
        found = loss(model, x0.expand(len(high), 3), **options).loss
        return torch.cat([g.flatten() for g in torch.autograd.grad(found, parameters)])

    fine = karras_sigmas(20001, 0.002, 10.0, append_zero=False)
    width, middle = fine[:-1] - fine[1:], 0.5 * (fine[:-1] + fine[1:])
    integral = 2.0 * everywhere(continuous_ct, middle, weight=lambda s: width)
    counts, errors = [33, 65, 129, 257, 513], []
    for n in counts:
        grid = karras_sigmas(n, 0.002, 10.0, append_zero=False)
        found = everywhere(ict, (grid[:-1], grid[1:]), distance=square_sum, weight=one)
        errors.append(float((found - integral).norm() / integral.norm()))
    assert abs(rate([1.0 / (n - 1) for n in counts], errors) - 1.0) < 0.1
    assert errors[-1] < 0.02


def test_the_discrete_derivative_is_of_first_order() -> None:
    """Its step along the circle is exact: what is left is the curvature of F."""
    model = TrigFlowMap(SmallNet(1).double(), 0.5)
    options: dict[str, Any] = {"levels": 0.9, "warmup": None, "teacher": exact_denoiser}
    wanted = gradient(rcm, model, X0, **options)
    errors = []
    for h in STEPS:
        found = gradient(rcm, model, X0, derivative="discrete", gap=h, **options)
        errors.append(float((found - wanted).norm() / wanted.norm()))
    assert abs(rate(STEPS, errors) - 1.0) < 0.05
    # where f is exact and x_0 constant, it is exact for any gap: F = (cos t x - x_0) / (sd sin t)
    where = torch.tensor([0.3, -0.2, 0.6], dtype=torch.float64)

    def ideal(x: Tensor, t: Tensor) -> Tensor:
        return (t.cos()[:, None] * 0.5 * x - where) / (0.5 * t.sin()[:, None])

    far: dict[str, Any] = {
        "derivative": "discrete",
        "gap": 0.4,
        "teacher": lambda x, s: where + 0 * x,
    }
    found = rcm(TrigFlowMap(ideal, 0.5), X0, key=0, step=0, levels=0.9, warmup=None, **far)
    assert found.loss < 1e-24


def test_the_start_of_the_path() -> None:
    """At t = 0, and with s = t, nothing is divided by 0."""
    circle = TrigFlowMap(SmallNet(1).double(), 0.5)
    for derivative in ("jvp", "finite_difference", "discrete"):
        found = sct(circle, X0, key=0, step=0, levels=1e-12, derivative=derivative, warmup=None)
        assert bool(found.loss.isfinite())
    pairs = exact_map("average velocity")
    for recipe in (ayf_emd, ayf_lmd):
        for t in (0.5, 1.0):
            found = recipe(pairs, X0, key=0, step=0, levels=(t, t), teacher=pairs)
            assert (
                float(found.per_sample.sum()) < 1e-20
            )  # the diagonal of the exact map is the velocity
            wrong = recipe(pairs, X0, key=0, step=0, levels=(t, t), teacher=exact_map("flow"))
            assert bool(wrong.loss.isfinite())


# --- levels ---------------------------------------------------------------------------------------


def test_the_power_law_is_uniform_in_its_power() -> None:
    levels = PowerLaw(0.01, 50.0, 5.0).sample(20_000, 0, draw=3)
    u = (levels**0.2 - 0.01**0.2) / (50.0**0.2 - 0.01**0.2)
    assert float(u.min()) > 0.0
    assert float(u.max()) < 1.0
    edges = torch.linspace(0, 1, 21, dtype=torch.float64)
    counts = torch.histogram(u, edges).hist
    assert float(((counts - 1000.0) ** 2 / 1000.0).sum()) < 45.0  # 19 degrees of freedom, 0.07 %
    assert torch.equal(levels[:7], PowerLaw(0.01, 50.0, 5.0).sample(7, 0, draw=3))


def test_intervals() -> None:
    t, s = Intervals(-0.8, 1.0).sample(20_000, 0)
    logit = torch.logit(t - s)
    assert abs(float(logit.mean()) + 0.8) < 0.03
    assert abs(float(logit.std()) - 1.0) < 0.03
    share = s / (1.0 - (t - s))
    assert abs(float(share.mean()) - 0.5) < 0.01
    assert float(s.min()) >= 0.0
    assert float(t.max()) <= 1.0
    correlation = torch.corrcoef(torch.stack([share, logit]))[0, 1]
    assert abs(float(correlation)) < 0.03


@pytest.mark.parametrize("bad", [{"std": 0.0}, {"mean": float("nan")}])
def test_bad_intervals(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Intervals(**bad)


@pytest.mark.parametrize("bad", [{"sigma_min": 0.0}, {"sigma_max": 1e-3}, {"rho": 0.0}])
def test_bad_power_laws(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        PowerLaw(**bad)
