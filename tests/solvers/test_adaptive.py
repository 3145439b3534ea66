"""Adaptive solvers against the papers' algorithms and scipy; samples and their companions."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from cmsolvers import noise
from cmsolvers.denoisers.oracles import GaussianMixture
from cmsolvers.engine.adaptive import method as method_module
from cmsolvers.ops.norms import root_mean_square
from cmsolvers.solvers import dpm_adaptive, rk_pf_ode
from cmsolvers.solvers.tableaux import TABLEAUX
from support.adaptive_cases import (
    ALONE,
    EXACT,
    METHODS,
    MIXTURE,
    MODES,
    SOLVERS,
    START,
    elementwise,
    own_seed,
    rate,
    worst,
)
from support.exact import assert_same_bits, threads
from support.orders import F64, FIRST, LAST, slope


def rk_by_the_book(table, denoiser, x, first, last, *, rtol, atol, h, pcoeff=0.2, icoeff=0.65):
    """HNW's loop for one sample in ln sigma: (x, accepted, rejected, NFE)."""

    def f(t, y):
        return y - denoiser(y, math.exp(t))

    t, end, k = math.log(first), math.log(last), table.embedded_order + 1
    alpha, beta = (pcoeff + icoeff) / k, pcoeff / k
    accepted, rejected, nfe, last_error, retry, slope = 0, 0, 0, None, False, None
    while t > end:
        step = min(h, t - end)
        if slope is None:
            slope, nfe = f(t, x), nfe + 1
        slopes = [slope]
        for c, row in zip(table.c[1:], table.a, strict=True):
            y = x - step * sum(w * s for w, s in zip(row, slopes, strict=True))
            slopes.append(f(t - c * step, y))
        nfe += len(table.a)
        new = x - step * sum(w * s for w, s in zip(table.b, slopes, strict=True))
        wrong = step * sum(
            (w - v) * s for w, v, s in zip(table.b, table.b_low, slopes, strict=True)
        )
        scale = atol + rtol * torch.maximum(x.abs(), new.abs())
        error = max((wrong / scale).square().mean().sqrt().item(), 1e-10)
        before = error if last_error is None else last_error  # of an accepted step
        if error <= 1:
            grow = 0.9 * error**-alpha * before**beta
            factor = max(0.2, min(grow, 1.0 if retry else 10.0))
            cut = step < h
            t, x, accepted, retry = (end if cut else t - step), new, accepted + 1, False
            last_error = max(error, 1e-4)
            slope = slopes[-1] if table.reuses_last else None
        else:
            factor = max(0.2, 0.9 * min(1.0, error ** (-1 / k)))
            rejected, retry = rejected + 1, True
        h = step * factor
    return x, accepted, rejected, nfe


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", METHODS)
def test_runge_kutta_as_in_the_book(name, mode):
    x = torch.stack([START[:, 0], START.flip(0)[:, 0]], 1)
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    two = GaussianMixture([[-1.0, 0.5], [0.8, 0.9]], [0.3, 0.4])
    y, info = rk_pf_ode(
        two, x, [FIRST, LAST], method=name, first_step=1.5, mode=mode, return_info=True, **tolerance
    )
    for b in range(len(x)):
        expected, accepted, rejected, nfe = rk_by_the_book(
            TABLEAUX[name], two, x[b : b + 1], FIRST, LAST, h=1.5, **tolerance
        )
        assert worst(y[b : b + 1], expected) < 1e-10 * expected.abs().max()
        assert info.accepted[b] == accepted and info.rejected[b] == rejected
        assert info.nfe[b] == nfe
    assert info.rejected.min() > 0 and info.finished.all()


def dpm_by_the_paper(
    denoiser, x, first, last, order, tolerance, *, rtol, atol, h, eta=0.0, draw=None
):
    """Algorithm 1 or 2 and its comparison, eps in place of a network, for one sample."""

    def sigma(t):
        return math.exp(-t)

    def eps(y, t):
        return (y - denoiser(y, sigma(t))) / sigma(t)

    def ancestral(s, to):
        up = min(to, eta * math.sqrt(to**2 * (s**2 - to**2) / s**2))
        return math.sqrt(to**2 - up**2)

    t, end, before, inverse = -math.log(first), -math.log(last), x, None
    accepted, rejected = 0, 0
    while t < end - 1e-13:
        t_next = min(end, t + h)
        size, s, to = t_next - t, sigma(t), sigma(t_next)
        t_down = min(end, -math.log(ancestral(s, to))) if eta else t_next
        k = t_down - t
        e = eps(x, t)
        if order == 2:
            low = x - sigma(t_down) * math.expm1(k) * e
            u = x - sigma(t + k / 2) * math.expm1(k / 2) * e
            high = x - sigma(t_down) * math.expm1(k) * eps(u, t + k / 2)
            more = torch.zeros_like(x)
        else:
            r1, r2 = 1 / 3, 2 / 3
            u1 = x - sigma(t + r1 * k) * math.expm1(r1 * k) * e
            d1 = eps(u1, t + r1 * k) - e
            u2 = (
                x
                - sigma(t + r2 * k) * math.expm1(r2 * k) * e
                - sigma(t + r2 * k) * (r2 / r1) * (math.expm1(r2 * k) / (r2 * k) - 1) * d1
            )
            d2 = eps(u2, t + r2 * k) - e
            straight = x - sigma(t_down) * math.expm1(k) * e
            low = straight - sigma(t_down) / (2 * r1) * math.expm1(k) * d1
            high = straight - sigma(t_down) / r2 * (math.expm1(k) / k - 1) * d2
            phi = math.expm1(k) / k - 1
            more = -sigma(t_down) * phi * (d2 / r2 - d1 / r1)
        if tolerance == "published":
            delta = torch.clamp(rtol * torch.maximum(low.abs(), before.abs()), min=atol)
            more = torch.zeros_like(x)
        else:
            delta = torch.clamp(rtol * high.abs().clamp(min=to), min=atol)
        error = max((wrong / delta).square().mean().sqrt().item() for wrong in (low - high, more))
        inverse = 1 / (error + 1e-8)
        factor = 1 + math.atan(inverse ** (1 / order) - 1)
        if factor >= 0.81:
            x, before, t = high, low, t_next
            if eta:
                x = x + math.sqrt(max(to**2 - sigma(t_down) ** 2, 0.0)) * draw(accepted)
            accepted += 1
        else:
            rejected += 1
        h = size * factor
    return x, accepted, rejected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order, eta", [(2, 0.0), (3, 0.0), (2, 1.0), (3, 0.6)])
@pytest.mark.parametrize("tolerance", ["published", "result"])
def test_dpm_solver_as_in_the_paper(order, eta, tolerance, mode):
    options = {"rtol": 0.01, "atol": 0.002}
    y, info = dpm_adaptive(
        MIXTURE,
        START,
        [FIRST, LAST],
        order=order,
        eta=eta,
        h_init=2.0,
        seed=5,
        tolerance=tolerance,
        mode=mode,
        return_info=True,
        **options,
    )
    for b in range(len(START)):
        expected, accepted, rejected = dpm_by_the_paper(
            MIXTURE,
            START[b : b + 1],
            FIRST,
            LAST,
            order,
            tolerance,
            h=2.0,
            eta=eta,
            draw=lambda k, b=b: noise.normal(
                (1, 1), 5, stream=noise.STEPS, draw=k, offset=b, dtype=F64
            ),
            **options,
        )
        assert worst(y[b : b + 1], expected) < 1e-10 * max(1.0, expected.abs().max())
        assert info.accepted[b] == accepted and info.rejected[b] == rejected
        assert info.nfe[b] == (order - 1) * (accepted + rejected) + accepted
    assert info.rejected.sum() > 0


@pytest.mark.parametrize("tolerance", [1e-6, 1e-8])
def test_as_good_and_as_cheap_as_scipy(tolerance):
    """RK45 of scipy on each sample by itself, with the same tolerances."""
    options = {"rtol": tolerance, "atol": tolerance}
    theirs = [
        solve_ivp(rate, (FIRST, LAST), [v], method="RK45", **options) for v in START[:, 0].tolist()
    ]
    errors = torch.tensor([r.y[0, -1] for r in theirs])[:, None] - EXACT
    y, info = rk_pf_ode(
        MIXTURE, START, [FIRST, LAST], coordinate="sigma", return_info=True, **options
    )
    assert worst(y) < 3 * errors.abs().max()
    assert info.nfe.sum() < 1.2 * sum(r.nfev for r in theirs)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "heun21-log_sigma"])
def test_the_error_follows_the_tolerance(name):
    low_order = name in ("heun21-sigma", "dpm2")
    tolerances = [1e-3, 1e-4, 1e-5] if low_order else [1e-4, 1e-5, 1e-6, 1e-7]
    errors = []
    for tolerance in tolerances:
        y = SOLVERS[name](MIXTURE, START, [FIRST, LAST], rtol=tolerance, atol=tolerance)
        errors.append(worst(y))
        assert errors[-1] < 100 * tolerance
    assert 0.7 < slope(errors, [1 / t for t in tolerances]) < 1.3


# --- companions ----------------------------------------------------------------------------------


def companions_case(name, dtype):
    """(x, options) on which the samples take different steps."""
    tolerance = {"sde": 0.05, "heun21": 1e-3, "dpm2": 1e-3, "dpm2-eta": 1e-3}.get(name, 1e-5)
    x = (1.0 if name == "sde" else 20.0) * noise.normal((7, 3, 5), seed=1, dtype=dtype)
    x[3] *= 3
    x[5] *= 0.01
    return x, {"rtol": tolerance, "atol": tolerance, "return_info": True}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_sample_does_not_depend_on_its_companions(name, mode, dtype):
    x, options = companions_case(name, dtype)

    def run(rows, mode):
        more = {**own_seed(name, rows), "mode": mode}
        return ALONE[name](elementwise, x[rows], [20.0, 0.05], **more, **options)

    whole, info = run(list(range(7)), mode)
    assert len(set(info.accepted.tolist())) > 1, "the samples must differ for this to mean anything"
    for rows in ([0], [3], [6, 2], [5, 4, 3, 1, 0]):
        part, counts = run(rows, mode)
        assert_same_bits(part, whole[rows], name)
        for field in ("nfe", "accepted", "rejected"):
            assert torch.equal(getattr(counts, field), getattr(info, field)[rows])
    again, counts = run(list(range(7)), MODES[mode == "compact"])
    assert_same_bits(again, whole, "the other mode")
    assert torch.equal(counts.nfe, info.nfe)


def test_a_norm_over_the_batch_fails(monkeypatch):
    x, options = companions_case("dopri54", F64)
    right = method_module.scaled_error
    monkeypatch.setattr(
        method_module,
        "scaled_error",
        lambda *a, **o: right(*a, **o).square().mean().sqrt().expand(len(a[0])),
    )
    whole, _ = rk_pf_ode(elementwise, x, [20.0, 0.05], **options)
    alone, _ = rk_pf_ode(elementwise, x[3:4], [20.0, 0.05], **options)
    assert not torch.equal(whole[3:4], alone)


def test_the_norm_of_a_sample_does_not_depend_on_batch_or_threads():
    """With the control that torch's own sum does."""
    by_torch = []
    for n in (1, 7, 90_001, 200_003, 1_000_003):
        x = 20 * noise.normal((3, n), seed=1)
        with threads(2):
            whole = root_mean_square(x.clone())
            each = [root_mean_square(x[b : b + 1].clone()) for b in range(3)]
            squares = x.square()
            by_torch.append(
                torch.equal(
                    squares.sum(1), torch.cat([squares[b : b + 1].sum(1) for b in range(3)])
                )
            )
        assert_same_bits(whole, torch.cat(each))
        expected = x.double().square().mean(1).sqrt()
        assert worst(whole / expected, torch.ones(3)) < 1e-6
    assert not all(by_torch)
    assert root_mean_square(torch.empty(2, 0)).tolist() == [0.0, 0.0]
