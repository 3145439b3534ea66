"""Losses on problems with exact answers, each with a negative control that must fail."""

from __future__ import annotations

import copy
import math
import sys
import types
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cmsolvers import losses, noise
from cmsolvers.denoisers import EDM, ConsistencyFunction
from cmsolvers.denoisers.oracles import Gaussian, GaussianMixture
from cmsolvers.losses.evaluation.combination import of
from cmsolvers.losses.formulas import perceptual
from cmsolvers.schedules import karras_sigmas
from support.orders import slope

F64 = torch.float64
SIGMA_MIN = 0.002


def data(n: int = 64, std: float = 0.5, dim: int = 3) -> Tensor:
    return std * noise.normal((n, dim), 3, dtype=torch.float64)


# --- distillation at the exact consistency function ----------------------------------------------


def distillation_errors(solver: str = "heun", *, shift: float = 0.0) -> tuple[list, list]:
    """Root mean square of f minus target at the exact function, and the steps."""
    gauss = Gaussian(0.5)

    def exact(x: Tensor, sigma: Tensor) -> Tensor:
        return gauss.consistency(x, sigma * (1 + shift), SIGMA_MIN)

    def target(x: Tensor, sigma: Tensor) -> Tensor:
        return gauss.consistency(x, sigma, SIGMA_MIN)

    steps, errors = [], []
    for n in (16, 32, 64, 128, 256, 512):
        # One pair of a grid with n levels from 2 to 0.2: ln-steps halve with n.
        sigma, sigma_next = 1.0, 1.0 * 0.1 ** (1 / n)
        value = losses.cd(
            exact,
            data(),
            key=5,
            step=0,
            teacher=gauss.denoiser,
            target=target,
            levels=(sigma, sigma_next),
            solver=solver,
        )
        steps.append(sigma - sigma_next)
        errors.append(math.sqrt(float(value.loss)))
    return errors, steps


def test_distillation_loss_vanishes_at_the_order_of_the_solver():
    # One step of a method of order p misses by h^(p + 1).
    assert -slope(*distillation_errors("heun")) == pytest.approx(3, abs=0.1)
    assert -slope(*distillation_errors("euler")) == pytest.approx(2, abs=0.1)


def test_distillation_loss_stays_when_student_is_told_the_wrong_level():
    errors, steps = distillation_errors("heun", shift=0.01)
    assert abs(slope(errors, steps)) < 0.1
    assert errors[-1] > 100 * distillation_errors("heun")[0][-1]


def test_distillation_loss_summed_over_a_grid_falls_at_second_order():
    """Errors over a grid add up: order 2 for Heun."""
    gauss = Gaussian(0.5)

    def exact(x: Tensor, sigma: Tensor) -> Tensor:
        return gauss.consistency(x, sigma, SIGMA_MIN)

    totals = []
    counts = [20, 40, 80, 160, 320]
    for n in counts:
        grid = karras_sigmas(n + 1, SIGMA_MIN, 80.0, append_zero=False).tolist()
        total = 0.0
        for high, low in pairwise(grid):
            found = losses.cd(
                exact, data(16), key=1, step=0, teacher=gauss.denoiser, levels=(high, low)
            )
            total += math.sqrt(float(found.loss))
        totals.append(total)
    assert slope(totals[2:], counts[2:]) == pytest.approx(2, abs=0.1)


# --- consistency training and distillation -------------------------------------------------------


class Bent(nn.Module):
    """A small non-linear function of x and sigma with a few parameters, smooth in all."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.7, -0.3, 0.2, 0.4], dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.double()[:, None] if x.ndim > 1 else sigma
        a, b, c, d = self.w
        return a * torch.tanh(x / (1 + s)) + b * x / (1 + s * s).sqrt() + c * torch.sin(d * x) * s


def expected_gradients(n: int, *, same_noise: bool = True) -> tuple[Tensor, Tensor]:
    """Expected gradients of CT and of CD with the exact score, by quadrature over x0 and z.

    Data are two points, so E over x0 is a sum; E over z is Gauss-Hermite. The score is exact.
    """
    points, sigma = torch.tensor([-0.6, 0.9], dtype=torch.float64), 0.8
    sigma_next = sigma * (1 - 1.0 / n)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z, w = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    mixture = GaussianMixture(points, 1e-9, [0.5, 0.5])
    model = Bent()

    def gradient(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        s, t = x.new_full((len(x),), sigma), x.new_full((len(x),), sigma_next)
        with torch.no_grad():
            aim = model(y[:, None], t)
        value = (weight * (model(x[:, None], s) - aim).square().mean(1)).sum()
        # The stop-gradient loss is O(1/n^2), its gradient O(1/n): n times it has a limit.
        return torch.autograd.grad(n * value, model.parameters())[0]

    x0 = points.repeat_interleave(len(z))
    zz, ww = z.repeat(2), w.repeat(2) / 2
    x = x0 + sigma * zz
    if same_noise:
        ct = gradient(x, x0 + sigma_next * zz, ww)
    else:
        i, j = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
        grid_x0 = points.repeat_interleave(i.numel())
        zi, zj = z[i.flatten()].repeat(2), z[j.flatten()].repeat(2)
        wij = (w[i] * w[j]).flatten().repeat(2) / 2
        ct = gradient(grid_x0 + sigma * zi, grid_x0 + sigma_next * zj, wij)
    denoised = mixture.denoiser(x[:, None], sigma)[:, 0]
    step = x + (sigma_next - sigma) * (x - denoised) / sigma
    return ct, gradient(x, step, ww)


def library_gradients(n: int, solver: str, samples: int = 300_000) -> tuple[Tensor, Tensor]:
    """The same from the library's losses, by Monte Carlo: both see the same samples and noise."""
    points = torch.tensor([-0.6, 0.9], dtype=torch.float64)
    x0, model = points.repeat(samples // 2)[:, None], Bent()
    mixture = GaussianMixture(points, 1e-9, [0.5, 0.5])
    common = {
        "weight": lambda s, t: n * torch.ones_like(s),
        "key": 3,
        "step": 0,
        "levels": (0.8, 0.8 * (1 - 1.0 / n)),
    }
    ct = losses.ct(model, x0, **common).loss
    cd = losses.cd(model, x0, teacher=mixture, solver=solver, **common).loss
    return tuple(torch.autograd.grad(value, model.parameters())[0] for value in (ct, cd))


@pytest.mark.parametrize(("solver", "tolerance"), [("euler", 0.1), ("heun", 0.2)])
def test_gradients_of_the_library_losses_meet_at_the_same_rate(solver: str, tolerance: float):
    counts = [16.0, 32.0, 64.0]
    gaps = []
    for n in counts:
        ct, cd = library_gradients(int(n), solver)
        gaps.append(float((ct - cd).norm() / cd.norm()))
    assert slope(gaps, counts) == pytest.approx(1, abs=tolerance)
    # And they are the gradients of the quadrature.
    torch.testing.assert_close(ct, expected_gradients(64)[0], rtol=0.01, atol=1e-4)


def gradient_gaps(**options: bool) -> tuple[list[float], list[float]]:
    counts = [8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
    gaps = []
    for n in counts:
        ct, cd = expected_gradients(int(n), **options)
        gaps.append(float((ct - cd).norm() / cd.norm()))
    return gaps, counts


def test_expected_gradients_of_training_and_distillation_meet_at_first_order():
    assert slope(*gradient_gaps()) == pytest.approx(1, abs=0.1)


def test_expected_gradients_do_not_meet_with_different_noise():
    gaps, counts = gradient_gaps(same_noise=False)
    assert slope(gaps, counts) < 0.5
    assert gaps[-1] > 1


def test_training_pairs_share_their_noise():
    seen = []

    def f(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((x, sigma))
        return x

    x0 = data(8)
    high, low = torch.linspace(1, 2, 8).double(), torch.linspace(0.5, 1, 8).double()
    losses.ict(f, x0, key=9, step=4, levels=(high, low))
    z = noise.normal(x0.shape, 9, stream=noise.TRAINING, draw=4, dtype=torch.float64)
    for (x, sigma), level in zip(seen, (high, low), strict=True):
        torch.testing.assert_close(sigma, level)
        torch.testing.assert_close(x, x0 + level[:, None] * z)


def test_student_sits_at_the_larger_level_and_target_gets_no_gradient():
    order = []

    class Net(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name, self.w = name, nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            order.append((self.name, float(sigma[0]), torch.is_grad_enabled()))
            return self.w * x

    student, target = Net("student"), Net("target")
    given = {"key": 0, "step": 0, "levels": (2.0, 1.0)}
    losses.ict(student, data(4).float(), target=target, **given).loss.backward()
    assert order == [("student", 2.0, True), ("target", 1.0, False)]
    assert student.w.grad is not None
    assert target.w.grad is None


def test_weight_is_taken_at_the_pair_and_lambda_is_one_by_default():
    x0 = data(4)
    given = {"key": 1, "step": 0, "levels": (2.0, 1.5)}
    plain = losses.ct(lambda x, s: x, x0, **given).per_sample
    z = noise.normal(x0.shape, 1, stream=noise.TRAINING, dtype=torch.float64)
    torch.testing.assert_close(plain, (0.5 * z).square().mean(1))
    weighted = losses.ct(lambda x, s: x, x0, weight=losses.inverse_gap, **given).per_sample
    torch.testing.assert_close(weighted, plain / 0.5)


# --- score matching ------------------------------------------------------------------------------


def test_consistency_function_is_the_identity_at_sigma_min_to_the_bit():
    net = nn.Linear(3, 3)
    f = ConsistencyFunction(lambda x, c: net(x) * 1e3, sigma_min=SIGMA_MIN)
    x = data(16).float()
    assert torch.equal(f(x, SIGMA_MIN), x)
    assert torch.equal(f(x, torch.full((16,), SIGMA_MIN, dtype=torch.float64)), x)


def test_score_matching_is_least_at_the_exact_denoiser():
    gauss = Gaussian(0.5)
    x0, sigma = data(4096), torch.logspace(-1, 0.5, 4096).double()

    def value(scale: float, shift: float) -> float:
        def denoiser(x: Tensor, s: Tensor) -> Tensor:
            return gauss.denoiser(x, s) * scale + shift

        return float(losses.dsm(denoiser, x0, key=2, step=0, levels=sigma).loss)

    best = value(1.0, 0.0)
    assert all(value(1 + e, 0) > best for e in (-0.1, 0.1))
    assert all(value(1, e) > best for e in (-0.05, 0.05))


def test_score_matching_gradient_vanishes_in_expectation_at_the_exact_denoiser():
    """EDM with F = 0 is exact when the data have sigma_data; a wrong sigma_data is not."""

    def gradient(sigma_data: float) -> float:
        w = torch.zeros((), dtype=torch.float64, requires_grad=True)
        model = EDM(lambda x, c: w * x, sigma_data)
        x0 = 0.5 * noise.normal((200_000, 1), 0, dtype=torch.float64)
        loss = losses.dsm(model, x0, key=1, step=0, levels=0.7, sigma_data=sigma_data).loss
        return abs(float(torch.autograd.grad(loss, w)[0]))

    assert gradient(0.5) < 0.01
    assert gradient(0.8) > 0.1


def test_edm_weight_makes_an_untrained_loss_one():
    x0 = data(100_000, dim=1)
    for sigma in (0.05, 0.5, 5.0):
        model = EDM(lambda x, c: torch.zeros_like(x))
        found = losses.dsm(model, x0, key=4, step=0, levels=sigma)
        assert float(found.loss) == pytest.approx(1, abs=0.02)


def test_losses_of_a_sample_do_not_depend_on_its_companions():
    x0, sigma = data(12).float(), torch.linspace(0.1, 3, 12).double()
    model = EDM(lambda x, c: torch.tanh(x) * c[:, None])
    ids = torch.arange(12)

    def run(chosen: Tensor) -> Tensor:
        key = noise.key(7, len(chosen), ids=chosen)
        return losses.dsm(model, x0[chosen], key=key, step=3, levels=sigma[chosen]).per_sample

    whole = run(ids)
    some = torch.tensor([10, 2, 7])
    assert torch.equal(run(some), whole[some])


# --- distances -----------------------------------------------------------------------------------


NORMS = {
    "mean_abs": losses.mean_abs,
    "mean_square": losses.mean_square,
    "square_sum": losses.square_sum,
    "norm": losses.norm,
    "pseudo_huber": losses.pseudo_huber(),
    "elementwise_huber": losses.elementwise_huber(),
}


def test_norms_against_their_formulas():
    a, b = data(5, dim=4), data(5, dim=4).flip(0) + 0.1
    d = a - b
    c = 0.00054 * 2
    expected = {
        "mean_abs": d.abs().mean(1),
        "mean_square": (d * d).mean(1),
        "square_sum": (d * d).sum(1),
        "norm": (d * d).sum(1).sqrt(),
        "pseudo_huber": ((d * d).sum(1) + c * c).sqrt() - c,
        "elementwise_huber": ((d * d + 1e-6).sqrt() - 1e-3).mean(1),
    }
    for name, norm in NORMS.items():
        found = norm(of(a) - b)
        torch.testing.assert_close(found, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_zero_with_finite_gradient_at_equal_inputs(name: str):
    a = data(3).requires_grad_()
    value = NORMS[name](of(a) - a.detach().clone())
    assert float(value.detach().abs().max()) == 0
    assert bool(torch.autograd.grad(value.sum(), a)[0].isfinite().all())


def test_norms_of_half_precision_do_not_overflow():
    a = torch.full((2, 4), 300.0, dtype=torch.float16)
    assert losses.mean_square(of(a) - (-a)).tolist() == [360000.0, 360000.0]


def test_a_distance_between_tensors_takes_the_place_of_a_norm():
    given = {"key": 1, "step": 0, "levels": (2.0, 1.5)}
    net = nn.Linear(3, 3).double()
    between = losses.Between(lambda a, b: (a - b).square().mean(1))
    values = []
    for distance in (between, losses.mean_square):
        found = losses.cd(
            lambda x, s: net(x), data(4), teacher=Gaussian(0.5), distance=distance, **given
        )
        values.append((found.per_sample, torch.autograd.grad(found.loss, net.weight)[0]))
    torch.testing.assert_close(*values)
    with pytest.raises(TypeError, match="function must be callable"):
        losses.Between(3)


def test_lpips_adapter_resizes_and_takes_one_channel():
    seen = []

    def model(a: Tensor, b: Tensor) -> Tensor:
        seen.append(tuple(a.shape))
        return (a - b).square().mean((1, 2, 3), keepdim=True)

    distance = losses.lpips_distance(model=model, size=32).function
    a = torch.rand(2, 1, 8, 8)
    assert distance(a, a).tolist() == [0, 0]
    assert seen == [(2, 3, 32, 32)]
    with pytest.raises(ValueError, match="LPIPS needs images"):
        distance(a[:, 0], a[:, 0])


# --- dropout -------------------------------------------------------------------------------------


def devices() -> list[str]:
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", devices())
def test_dropout_masks_are_the_same_in_both_passes(device: str):
    masks = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            masks.append(self.dropout(torch.ones_like(x)))
            return x * masks[-1]

    net, x0 = Net().train(), data(64).float().to(device)
    torch.manual_seed(0)
    given = {"key": 0, "step": 0, "levels": (2.0, 1.0)}
    losses.ict(net, x0, **given)
    assert torch.equal(masks[0], masks[1])
    losses.cd(net, x0, teacher=Gaussian(0.5), **given)
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_without_replay_the_masks_differ():
    dropout = nn.Dropout(0.5)
    torch.manual_seed(0)
    same = losses.SameRandomness("cpu")
    first = dropout(torch.ones(64))
    assert not torch.equal(first, dropout(torch.ones(64)))
    with same.replay():
        assert torch.equal(first, dropout(torch.ones(64)))


def test_replay_leaves_the_generator_where_it_stood():
    same = losses.SameRandomness("cpu")
    torch.rand(3)
    state = torch.get_rng_state()
    with same.replay():
        torch.rand(10)
    assert torch.equal(state, torch.get_rng_state())


# --- score matching by hand -------------------------------------------------------------------


def test_the_default_weight_of_score_matching_has_sigma_data():
    """D = x, x0 = 0, sigma 1.5, sd 2: (1.5^2 + 2^2) / (1.5 * 2)^2 (1.5 z)^2."""
    x0 = torch.zeros(5, 1, dtype=F64)
    z = noise.normal((5, 1), 7, stream=noise.TRAINING, dtype=F64)
    given = {"key": 7, "step": 0, "levels": 1.5}
    loss = losses.dsm(lambda x, s: x, x0, sigma_data=2.0, **given).per_sample
    torch.testing.assert_close(loss, 6.25 / 9 * (1.5 * z[:, 0]) ** 2, rtol=1e-12, atol=0.0)
    other = losses.dsm(lambda x, s: x, x0, **given).per_sample
    torch.testing.assert_close(other, 2.5 / 0.5625 * (1.5 * z[:, 0]) ** 2, rtol=1e-12, atol=0.0)


def test_the_teacher_gets_extra_args_unless_it_has_its_own():
    seen = []

    def model(name):
        def call(x, sigma, **extra):
            seen.append((name, extra))
            return 0.5 * x

        return call

    models, shared, own = [model(n) for n in ("student", "target", "teacher")], {"a": 1}, {"b": 2}
    for teacher_args, expected in ((None, shared), (own, own), ({}, {})):
        seen.clear()
        student, target, teacher = models
        losses.cd(
            student,
            data(8),
            key=1,
            step=0,
            levels=(2.0, 1.0),
            target=target,
            teacher=teacher,
            extra_args=shared,
            teacher_args=teacher_args,
        )
        assert {name for name, _ in seen} == {"student", "target", "teacher"}
        for name, extra in seen:
            assert extra == (expected if name == "teacher" else shared)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_get_levels_in_float32(dtype: torch.dtype):
    seen = []

    def model(x, sigma):
        assert x.dtype is dtype and sigma.dtype is torch.float32
        seen.append(sigma[0].item())
        return 0.5 * x

    x0, high, low = data(8).to(dtype), 80.1, 79.9  # one number in half precision
    assert torch.tensor(high).to(torch.bfloat16) == torch.tensor(low).to(torch.bfloat16)
    given = {"key": 1, "step": 0, "levels": (high, low)}
    losses.ict(model, x0, **given)
    losses.cd(model, x0, teacher=model, **given)
    losses.dsm(model, x0, key=1, step=0, levels=high)
    rounded = {torch.tensor(v).item() for v in (high, low)}
    assert {level for level in seen if level > 1} == rounded  # the looks at models are below


# --- the clean sample as target ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["training", "distillation"])
@pytest.mark.parametrize("target", [None, "another"])
def test_at_level_zero_the_target_is_the_data(kind: str, target: str | None):
    """As in easy consistency tuning; the other samples are what they are without such a one."""
    x0, f = data(8), nn.Linear(3, 3).double()
    student = lambda x, s: f(x) / (1 + s.reshape(-1, 1))  # noqa: E731
    other = None if target is None else lambda x, s: student(x, s) / s.reshape(-1, 1)

    def loss(x0: Tensor, high: Any, low: Any, offset: int = 0) -> Tensor:
        more = {"key": noise.Key(3, offset), "step": 0, "reduction": "none", "target": other}
        more |= {"distance": losses.mean_square, "levels": (high, low)}
        if kind == "training":
            return losses.ict(student, x0, **more).loss
        return losses.cd(student, x0, teacher=student, **more).loss

    high = torch.linspace(1.0, 3.0, 8, dtype=F64)
    low = high / 2
    low[[2, 5]] = 0.0
    got = loss(x0, high, low)
    noisy = x0 + high[:, None] * noise.normal(x0.shape, 3, stream=noise.TRAINING, dtype=F64)
    scale = 1 / high if kind == "training" else torch.ones_like(high)
    clean = (student(noisy, high) - x0).square().mean(1) * scale
    torch.testing.assert_close(got[[2, 5]], clean[[2, 5]])
    for b in (0, 1, 3, 4, 6, 7):
        torch.testing.assert_close(got[b : b + 1], loss(x0[b : b + 1], high[b], low[b], b))
        assert not torch.allclose(got[b], clean[b])  # the control
    torch.testing.assert_close(loss(x0, 2.0, 0.0), loss(x0, 2.0, torch.zeros(8, dtype=F64)))
    assert torch.autograd.grad(got.sum(), f.weight)[0].isfinite().all()


def test_at_level_zero_alone_the_target_is_not_called():
    def never(x: Tensor, sigma: Tensor) -> Tensor:
        raise AssertionError

    given = {"key": 1, "step": 0, "target": never}
    assert losses.ict(same, X0, levels=(1.0, 0.0), **given).loss > 0
    assert losses.ict(same, X0, levels=(1.0, torch.zeros(4)), **given).loss > 0
    with pytest.raises(AssertionError):
        losses.ict(same, X0, levels=(1.0, 0.1), **given)


# --- running statistics -----------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, "average"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_those_of_the_students_pass(target: str | None, momentum: Any):
    """One pass is counted, the student's; and the backward pass goes through."""
    norm = nn.BatchNorm1d(3, momentum=momentum, affine=False).double()
    norm.train()
    weight = torch.ones((), dtype=F64, requires_grad=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return weight * self.norm(x)

    x0 = data(256)
    student, alone = Net(), copy.deepcopy(norm)
    other = None if target is None else copy.deepcopy(student)
    value = losses.ict(student, x0, target=other, key=5, step=0, levels=(40.0, 2.0)).loss
    noisy = x0 + 40.0 * noise.normal(x0.shape, 5, stream=noise.TRAINING, dtype=F64)
    alone(noisy)
    torch.testing.assert_close(norm.running_var, alone.running_var)
    torch.testing.assert_close(norm.running_mean, alone.running_mean)
    assert norm.num_batches_tracked == 1
    if other is not None:
        assert other.norm.num_batches_tracked == 0 and (other.norm.running_var == 1).all()
    value.backward()
    assert weight.grad.isfinite()
    norm(2.0 * noisy)  # the control: outside a loss the statistics do move
    assert norm.num_batches_tracked == 2


# --- bad input -----------------------------------------------------------------------------------

X0 = torch.zeros(4, 3)


def same(x: Tensor, sigma: Tensor) -> Tensor:
    return x


BAD = [
    ({"levels": (1.0, 1.0)}, ValueError, r"levels must be \(t, s\) with t above s"),
    ({"levels": (1.0, 2.0)}, ValueError, r"levels must be \(t, s\) with t above s"),
    ({"levels": (-1.0, 1.0)}, ValueError, "levels must be positive"),
    ({"levels": (2.0, -0.5)}, ValueError, "levels must not be negative"),
    ({"levels": (2.0, torch.tensor([1.0, 0.5, -0.1, 0.0]))}, ValueError, "levels must not be neg"),
    ({"levels": (0.0, 0.0)}, ValueError, "levels must be positive"),
    ({"levels": (torch.ones(3), 0.5)}, ValueError, "levels must have shape"),
    ({"levels": (torch.ones(4, dtype=torch.int64), 0.5)}, TypeError, "levels must be floating"),
    ({"levels": (float("nan"), 0.5)}, ValueError, "levels"),
    ({"x0": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "x0"),
    ({"x0": [1.0]}, TypeError, "x0 must be a torch.Tensor"),
    ({"model": 3}, TypeError, "model must be callable"),
    ({"target": 3}, TypeError, "target must be callable"),
    ({"model": lambda x, s: x[:2]}, ValueError, "model must return the shape"),
    ({"model": lambda x, s: None}, TypeError, "model must return"),
    ({"distance": "l3"}, TypeError, "distance must be callable"),
    ({"distance": 4}, TypeError, "distance must be callable"),
    ({"distance": lambda r: r.square_sum().sum()}, ValueError, "one number per sample"),
    ({"weight": lambda s, t: torch.ones(2)}, ValueError, "weight must return"),
    ({"weight": 3}, TypeError, "weight must be callable; got 3"),
    ({"reduction": "max"}, ValueError, "reduction must be"),
    ({"extra_args": 3}, TypeError, "extra_args"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD)
def test_bad_input_of_consistency_losses(change: dict, error: type, text: str):
    given = {"model": same, "x0": X0, "levels": (2.0, 1.0), "key": 0, "step": 0} | change
    model, x0 = given.pop("model"), given.pop("x0")
    for loss in (losses.ct, losses.ict, losses.ect):
        with pytest.raises(error, match=text):
            loss(model, x0, **given)
    with pytest.raises(error, match=text):
        losses.cd(model, x0, teacher=same, **given)


def test_bad_input_of_the_others():
    given = {"key": 0, "step": 0, "levels": (2.0, 1.0)}
    with pytest.raises(ValueError, match='solver must be "heun", "euler" or a callable'):
        losses.cd(same, X0, teacher=same, solver="rk4", **given)
    with pytest.raises(TypeError, match="solver must return a State"):
        losses.cd(same, X0, teacher=same, solver=lambda teacher, x, end: x.x, **given)
    with pytest.raises(ValueError, match="teacher must be given to cd; got None"):
        losses.cd(same, X0, **given)
    with pytest.raises(ValueError, match="model must return"):
        losses.dsm(lambda x, s: x[:1], X0, key=0, step=0, levels=1.0)
    with pytest.raises(ValueError, match="levels must be positive"):
        losses.dsm(same, X0, key=0, step=0, levels=torch.zeros(4))
    with pytest.raises(ValueError, match="levels must be positive and finite; got inf"):
        losses.dsm(same, X0, key=0, step=0, levels=torch.tensor([1.0, 1.0, math.inf, 1.0]))
    with pytest.raises(ValueError, match="c must not be negative"):
        losses.pseudo_huber(-1.0)
    with pytest.raises(ValueError, match="c must be positive"):
        losses.elementwise_huber(0.0)
    with pytest.raises(ValueError, match="sigma_data"):
        losses.edm_weight(-1)


def test_extra_arguments_come_in_any_mapping():
    def scaled(x: Tensor, sigma: Tensor, *, factor: float = 0.0) -> Tensor:
        return factor * x

    def value(extra: object) -> Tensor:
        return losses.dsm(scaled, data(), key=1, step=0, levels=1.0, extra_args=extra).loss

    assert torch.equal(value(types.MappingProxyType({"factor": 0.5})), value({"factor": 0.5}))
    with pytest.raises(TypeError, match="extra_args must be None or a dict with str keys"):
        value(types.MappingProxyType({1: 0.5}))


def test_losses_take_samples_of_any_shape():
    def shrink(x, sigma):
        return 0.5 * x

    for shape in ((5,), (5, 1), (5, 1, 1)):
        x0 = data(5).float().flatten()[:5].reshape(shape)
        score = losses.dsm(shrink, x0, key=0, step=0, levels=1.0).loss
        training = losses.ict(shrink, x0, key=0, step=0, levels=(1.0, 0.5)).loss
        if len(shape) == 1:
            first = score, training
        assert (score, training) == first
    none = losses.ict(shrink, torch.zeros(0, 3), key=0, step=0, levels=(1.0, 0.5))
    assert none.per_sample.shape == (0,)


def test_lpips_is_loaded_once(monkeypatch):
    made = []

    class LPIPS(nn.Module):
        def __init__(self, net: str) -> None:
            super().__init__()
            made.append(net)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=LPIPS))
    perceptual._loaded.cache_clear()
    assert losses.lpips_distance() and losses.lpips_distance(size=64)
    assert made == ["vgg"]
    perceptual._loaded.cache_clear()
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match="lpips_distance needs `pip install lpips`"):
        losses.lpips_distance()


def test_score_matching_compiles_whole():
    def loss(x0, sigma):
        return losses.dsm(EDM(lambda x, c: x.tanh()), x0, key=1, step=0, levels=sigma).loss

    x0, sigma = data(6).float(), torch.linspace(0.1, 3.0, 6)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x0, sigma), loss(x0, sigma))


def test_combinations_take_tensors_on_either_side():
    x, y, w = data(4), data(4).flip(0) + 0.3, torch.linspace(0.5, 2.0, 4, dtype=F64)
    c, column = of(x), w[:, None]
    cases = {
        "y - c": (y - c, y - x),
        "c - y": (c - y, x - y),
        "y + c": (y + c, y + x),
        "w * c": (w * c, column * x),
        "c * w": (c * w, column * x),
        "c / w": (c / w, x / column),
        "joined": (w * c - c + y, column * x - x + y),
    }
    for name, (found, expected) in cases.items():
        torch.testing.assert_close(found.tensor(), expected, rtol=1e-12, atol=1e-14, msg=name)
    assert len((w * c - c).terms) == 1
    with pytest.raises(TypeError):
        w / c
    with pytest.raises(TypeError):
        torch.exp(c)
