"""Noise of the adaptive solvers: ancestral DPM-Solver, and adaptive SDEs on Brownian paths."""

import math

import pytest
import torch

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.solvers import adaptive_sde, dpm_adaptive
from support.adaptive_cases import MIXTURE, MODES, START, worst
from support.orders import F64, FIRST, LAST, slope


def test_ancestral_steps_keep_the_law():
    data = Gaussian(0.5, 0.3)
    x = math.sqrt(FIRST**2 + 0.25) * noise.normal((10_000, 1), seed=0, dtype=F64) + 0.3
    y = dpm_adaptive(data, x, [FIRST, LAST], eta=1.0, seed=1, rtol=1e-4, atol=1e-4)
    variance = 0.25 + LAST**2
    assert y.mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(variance / 10_000))
    assert y.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / 10_000) + 2e-3)


def test_noise_samplers_are_asked_for_the_whole_batch():
    asked = []

    def sampler(start, end):
        asked.append((start, end))
        assert start.shape == end.shape == (8,) and start.dtype is F64
        return torch.ones(8, 1, dtype=F64)

    dpm_adaptive(MIXTURE, START, [FIRST, LAST], eta=1.0, noise_sampler=sampler)
    assert all((a >= b).all() for a, b in asked) and (asked[-1][0] == asked[-1][1]).any()
    still = dpm_adaptive(MIXTURE, START, [FIRST, LAST], noise_sampler=sampler, eta=0.0)
    assert torch.equal(still, dpm_adaptive(MIXTURE, START, [FIRST, LAST]))
    quiet = dpm_adaptive(MIXTURE, START, [FIRST, LAST], eta=0.5, s_noise=0.0, seed=3)
    assert torch.equal(quiet, dpm_adaptive(MIXTURE, START, [FIRST, LAST], eta=0.5, s_noise=0.0))
    asked.clear()
    sde = cm.SDE(lambda x, t: -x, lambda t: 0.3)
    adaptive_sde(sde, START, [0.0, 1.0], noise_sampler=sampler)
    assert all((a <= b).all() for a, b in asked)


def test_seeds():
    torch.manual_seed(0)
    first = dpm_adaptive(MIXTURE, START, [FIRST, LAST], eta=1.0)
    second = dpm_adaptive(MIXTURE, START, [FIRST, LAST], eta=1.0)
    torch.manual_seed(0)
    assert torch.equal(first, dpm_adaptive(MIXTURE, START, [FIRST, LAST], eta=1.0))
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    dpm_adaptive(MIXTURE, START, [FIRST, LAST], eta=0.0)
    assert torch.equal(before, torch.get_rng_state()), "the ODE draws nothing"


# --- SDEs ----------------------------------------------------------------------------------------

OU = cm.SDE(lambda x, t: -x, lambda t: 0.3)


def by_the_paper(drift, diffusion, x, start, end, path, *, rtol, atol, h, safety=0.9, r=0.9):
    """Algorithm 1 for one sample, increments from its Brownian path."""
    sign = 1.0 if end > start else -1.0
    t, before, accepted, rejected, retry = start, x, 0, 0, False
    while t != end:
        step = min(h, abs(end - t))
        t_next = end if step < h or abs(end - t) <= h else t + sign * h
        dw = path(t, t_next)
        dt = t_next - t
        euler = x + dt * drift(x, t) + diffusion(t) * dw
        wave = x + dt * drift(euler, t_next) + diffusion(t_next) * dw
        improved = 0.5 * (euler + wave)
        delta = torch.clamp(rtol * torch.maximum(euler.abs(), before.abs()), min=atol)
        error = max(((euler - improved) / delta).square().mean().sqrt().item(), 1e-10)
        factor = safety * error**-r
        if error <= 1:
            x, before, t, accepted = improved, euler, t_next, accepted + 1
            h = max(step * max(0.1, min(factor, 1.0 if retry else 10.0)), h if step < h else 0.0)
            retry = False
        else:
            rejected, retry, h = rejected + 1, True, step * max(0.1, factor)
    return x, accepted, rejected


def smooth(b, t):
    """A smooth stand-in for the path of sample b.

    A Brownian path turns the last bit of a time into the eighth digit of an increment, and two
    programs part for good.
    """
    return (1 + 0.3 * b) * torch.sin((4 + b) * torch.as_tensor(t, dtype=F64))


@pytest.mark.parametrize("mode", MODES)
def test_sde_as_in_the_paper(mode):
    p = cm.VP()
    sde = p.reverse(p.score_of(MIXTURE))
    general = cm.SDE(sde.drift, sde.diffusion)
    x = noise.normal((4, 1), seed=3, dtype=F64)
    options = {"rtol": 0.02, "atol": 0.02}

    def drift(y, t):
        return sde.drift(y, torch.full((1,), t, dtype=F64))

    def sampler(t, t_next):
        b = torch.arange(4, dtype=F64)
        root = (t_next - t).abs().sqrt()
        z = torch.where(root > 0, (smooth(b, t_next) - smooth(b, t)) / root, 0.0)
        return z[:, None]

    for kind in (sde, general):
        y, info = adaptive_sde(
            kind,
            x,
            [1.0, 0.2],
            noise_sampler=sampler,
            first_step=0.3,
            exponent=0.5,
            mode=mode,
            return_info=True,
            **options,
        )
        for b in range(4):
            expected, accepted, rejected = by_the_paper(
                drift,
                sde.diffusion,
                x[b : b + 1],
                1.0,
                0.2,
                lambda t, t_next, b=b: smooth(b, t_next) - smooth(b, t),
                h=0.3,
                r=0.5,
                **options,
            )
            assert worst(y[b : b + 1], expected) < 1e-10
            assert info.accepted[b] == accepted and info.rejected[b] == rejected
            assert info.nfe[b] == 2 * accepted + rejected
    assert info.rejected.min() > 0


def exact_ou(x0, path, n=4096):
    """Integrated by parts: x0 / e + 0.3 (W(1) - int e^(s - 1) W(s) ds)."""
    s = torch.linspace(0, 1, n + 1, dtype=F64)
    increments = [path(a, b) for a, b in zip(s.tolist(), s[1:].tolist(), strict=False)]
    w = torch.cat([torch.zeros(1, len(x0), dtype=F64), torch.stack(increments)[..., 0].cumsum(0)])
    integral = torch.trapezoid(torch.exp(s - 1)[:, None] * w, s, dim=0)
    return x0[:, 0] / math.e + 0.3 * (w[-1] - integral)


def test_strong_convergence_on_the_sample_s_own_path():
    x0 = torch.ones(200, 1, dtype=F64)
    exact = exact_ou(x0, noise.BrownianPath(5, 0.0, 1.0, x0.shape, dtype=F64))
    tolerances = [1e-2, 3e-3, 1e-3, 3e-4, 1e-4]

    def errors(seed):
        found = []
        for tolerance in tolerances:
            y, info = adaptive_sde(
                OU, x0, [0.0, 1.0], seed=seed, rtol=0.0, atol=tolerance, return_info=True
            )
            found.append(((y[:, 0] - exact).abs().mean().item(), info.accepted.double().mean()))
        return list(zip(*found, strict=True))

    error, steps = errors(5)
    assert error[-1] < 1e-3
    assert 0.8 < slope(error, steps) < 1.2, "strong order 1 in the number of steps"
    assert errors(6)[0][-1] > 0.05, "another path"


def accepted_increments(draw):
    """W(T) of each sample as the accepted steps add it up, with noise from draw(t, t_next)."""
    log = []

    def sampler(t, t_next):
        z = draw(t, t_next)
        log.append((t, t_next, z[:, 0] * (t_next - t).sqrt()))
        return z

    steep = cm.SDE(lambda x, t: -3 * x, lambda t: 1.0)
    x0 = torch.zeros(10_000, 1, dtype=F64)
    _, info = adaptive_sde(
        steep,
        x0,
        [0.0, 1.0],
        rtol=0.0,
        atol=0.2,
        first_step=0.5,
        exponent=0.5,
        noise_sampler=sampler,
        return_info=True,
    )
    assert info.rejected.sum() > 0.1 * info.accepted.sum()
    total = torch.zeros(10_000, dtype=F64)
    ends = [*(t for t, _, _ in log[1:]), torch.ones(10_000, dtype=F64)]
    for (_, t_next, dw), after in zip(log, ends, strict=True):
        total += torch.where(after >= t_next, dw, 0.0)
    return total


def test_rejection_does_not_bias_the_noise():
    """Large increments are rejected more often: drawn anew they would become rare."""
    path = noise.BrownianPath(1, 0.0, 1.0, (10_000, 1), dtype=F64)
    total = accepted_increments(path.unit)
    assert worst(total, path(0.0, 1.0)[:, 0]) < 1e-5
    assert total.var().item() == pytest.approx(1.0, abs=4 * math.sqrt(2 / 10_000))
    torch.manual_seed(0)
    biased = accepted_increments(lambda *_: torch.randn(10_000, 1, dtype=F64))
    assert biased.var().item() < 0.8, "the control must fail"


def test_the_reverse_sde_ends_in_the_data():
    data, p, n = Gaussian(0.5, 0.3), cm.VP(), 2000
    x = noise.normal((n, 1), seed=0, dtype=F64)
    y = adaptive_sde(p.reverse(p.score_of(data)), x, [1.0, 1e-3], seed=1)
    assert y.mean().item() == pytest.approx(0.3, abs=4 * 0.5 / math.sqrt(n) + 0.01)
    assert y.var().item() == pytest.approx(0.25, rel=4 * math.sqrt(2 / n) + 0.02)


def test_a_diffusion_of_the_shape_of_the_state():
    def drawn(t, t_next):
        return x.sin()

    x = noise.normal((3, 2, 2), seed=0, dtype=F64)
    options = {"rtol": 0.01, "atol": 0.01, "exponent": 0.5, "noise_sampler": drawn}
    plain = adaptive_sde(cm.SDE(lambda x, t: -x, lambda t: 0.3), x, [0.0, 1.0], **options)
    for g in (
        lambda t: torch.full((len(t), 2, 2), 0.3, dtype=F64),
        lambda t: torch.full((2,), 0.3, dtype=F64).reshape(1, 1, 2),
        lambda t: torch.full((len(t), 1, 1), 0.3, dtype=F64),
        lambda t: 0.3 * torch.ones_like(t),
        lambda t: torch.tensor(0.3),
    ):
        y = adaptive_sde(cm.SDE(lambda x, t: -x, g), x, [0.0, 1.0], **options)
        assert worst(y, plain) < 1e-7
    wide = torch.tensor([0.0, 1.0], dtype=F64).reshape(1, 1, 2)
    y = adaptive_sde(cm.SDE(lambda x, t: -x, lambda t: wide * t.max()), x, [0.0, 1.0], seed=1)
    assert worst(y[..., 0], x[..., 0] / math.e) < 0.01
    with pytest.raises(ValueError, match="diffusion must return a number, shape"):
        adaptive_sde(cm.SDE(lambda x, t: -x, lambda t: torch.ones(2, 3)), x, [0.0, 1.0])


def test_trajectory_in_time():
    ts = [0.0, 0.2, 0.7, 1.0]
    y, info = adaptive_sde(OU, START, ts, seed=0, trajectory=True, rtol=0.0, atol=1e-4)
    assert info.levels == tuple(ts) and torch.equal(info.trajectory[-1], y)
    path = noise.BrownianPath(0, 0.0, 1.0, START.shape, dtype=F64)
    change = info.trajectory[2] - info.trajectory[1] * math.exp(-0.5) - 0.3 * path(0.2, 0.7)
    assert change.abs().max() < 0.2
    assert adaptive_sde(OU, START, ts, seed=0, trajectory=[0.7])[1].levels == (0.7,)


@pytest.mark.parametrize("shape", [(), (8,), (8, 1)])
def test_a_diffusion_with_a_parameter_has_its_gradient(shape):
    def end(g):
        sde = cm.SDE(lambda x, t: -x, lambda t: (g * (1 + t.mean())).expand(shape))
        options = {"rtol": 1e3, "atol": 1e3, "first_step": 0.25, "mode": "masked", "grad": True}
        return adaptive_sde(sde, START, [0.0, 1.0], seed=1, **options).sum()

    g = torch.tensor(0.3, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(end(g), g)
    with torch.no_grad():
        measured = (end(g + 1e-4) - end(g - 1e-4)) / 2e-4
        plain = end(g)
    torch.testing.assert_close(slope, measured, rtol=1e-6, atol=0)
    torch.testing.assert_close(end(g).detach(), plain, rtol=1e-12, atol=0)


def test_an_ode_draws_no_seed():
    process = cm.VP()
    ode = process.probability_flow(process.score_of(MIXTURE))
    state = torch.random.get_rng_state()
    y = adaptive_sde(ode, START, [1.0, 0.1])
    assert torch.equal(torch.random.get_rng_state(), state)
    refuse = lambda a, b: pytest.fail("asked")  # noqa: E731
    assert torch.equal(adaptive_sde(ode, START, [1.0, 0.1], noise_sampler=refuse), y)


@pytest.mark.parametrize(
    ("g", "error", "text"),
    [
        (torch.ones(8, dtype=torch.int64), TypeError, "diffusion must return a floating tensor"),
        (torch.ones(3), ValueError, "diffusion must return a number, shape"),
        (math.nan, ValueError, "diffusion must be a number"),
        (None, TypeError, "diffusion must be a number"),
    ],
)
def test_diffusions_are_checked_as_in_other_solvers(g, error, text):
    sde = cm.SDE(lambda x, t: -x, lambda t: g)
    for solver in (adaptive_sde, cm.euler_maruyama):
        with pytest.raises(error, match=text):
            solver(sde, START, [0.0, 1.0], seed=1)
