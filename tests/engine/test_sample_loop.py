"""What the one loop promises: callbacks, noise, buffers, derivatives, folding, NaN records."""

import inspect
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import cmsolvers as cm
from cmsolvers import denoisers, noise
from cmsolvers.denoisers import EDM, ConsistencyFunction
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.engine.plan import Churn, Stage, fold, make_plan
from cmsolvers.engine.run import run
from cmsolvers.solvers.heun import heun_stages

F64 = torch.float64
SIGMAS = cm.karras_sigmas(6, 0.01, 20.0)
DATA = Gaussian(0.5, 0.2)
T = [1.0, 0.8, 0.5, 0.3, 0.1]
VP = cm.VP()


def edm_net(x, c):
    return 0.3 * (x * 1.7).sin() + 0.1 * c.reshape([-1] + [1] * (x.ndim - 1)).to(x.dtype)


def linear_sde(x, **options):
    return cm.euler_maruyama(VP.reverse(VP.score_of(DATA)), x, T, **options)


def own_sde(x, **options):
    sde = cm.SDE(lambda x, t: -x, lambda x, t: 0.1 * x, state_dependent=True)
    return cm.euler_maruyama(sde, x, T, **options)


def raw(sampler, **fixed):
    return lambda x, **o: sampler(EDM(edm_net), x, SIGMAS, **fixed, **o)


RUNS = {
    "euler": lambda x, **o: cm.euler_pf_ode(DATA, x, SIGMAS, **o),
    "euler-churn": lambda x, **o: cm.euler_pf_ode(DATA, x, SIGMAS, s_churn=3.0, **o),
    "heun": lambda x, **o: cm.heun_pf_ode(DATA, x, SIGMAS, **o),
    "heun-churn": lambda x, **o: cm.heun_pf_ode(DATA, x, SIGMAS, s_churn=3.0, **o),
    "heun-raw-churn": raw(cm.heun_pf_ode, s_churn=3.0),
    "ddim": lambda x, **o: cm.ddim(DATA, x, SIGMAS, eta=0.5, **o),
    "ddpm": lambda x, **o: cm.ddpm_ancestral(DATA, x, SIGMAS, **o),
    "ddpm-raw": raw(cm.ddpm_ancestral),
    "dpm_2_ancestral": lambda x, **o: cm.dpm_2_ancestral(DATA, x, SIGMAS, **o),
    "dpm_fast-raw": raw(cm.dpm_fast, eta=0.5),
    "lms": lambda x, **o: cm.lms(DATA, x, SIGMAS, **o),
    "lms-raw": raw(cm.lms),
    "restart": lambda x, **o: cm.restart(DATA, x, SIGMAS, restarts=[(0.5, 3.0, 2, 1)], **o),
    "consistency": lambda x, **o: cm.consistency_sample(
        ConsistencyFunction(edm_net), x, [20.0, 2.0, 0.3], **o
    ),
    "euler_maruyama": linear_sde,
    "euler_maruyama-forward": lambda x, **o: cm.euler_maruyama(VP, x, T[::-1], **o),
    "euler_maruyama-own": own_sde,
}
each_run = pytest.mark.parametrize("sample", RUNS.values(), ids=RUNS)


def latent(shape=(7, 3, 5, 3), dtype=torch.float32, scale=20.0):
    return (scale * noise.normal(shape, 5)).to(dtype)


@each_run
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_batch_splits_bit_for_bit(sample, dtype):
    x = latent(dtype=dtype)
    whole = sample(x, seed=11)
    for cut in (1, 4):
        first = sample(x[:cut], seed=11)
        key = noise.key(11, 7 - cut, offset=cut)
        rest = sample(x[cut:], seed=key)
        assert torch.equal(torch.cat([first, rest]), whole)
    seeds = torch.arange(7, dtype=torch.int64)
    one_each = sample(x, seed=seeds)
    assert torch.equal(sample(x[3:5], seed=seeds[3:5]), one_each[3:5])


@each_run
def test_seeds(sample):
    x = latent()
    noisy = not torch.equal(sample(x, seed=1), sample(x, seed=2))
    assert torch.equal(sample(x, seed=1), sample(x, seed=1))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = sample(x)
    if not noisy:
        assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    assert torch.equal(sample(x), first)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    assert torch.equal(*(sample(x, seed=g) for g in generators))


@each_run
def test_channels_last_gives_the_same_values(sample):
    x = latent()
    wide = x.contiguous(memory_format=torch.channels_last)
    got = sample(wide, seed=3)
    torch.testing.assert_close(got, sample(x, seed=3), rtol=1e-5, atol=1e-5)
    assert got.is_contiguous(memory_format=torch.channels_last)


@each_run
def test_other_layouts_and_the_users_x(sample):
    x = latent((7, 3, 5, 6))[..., ::2]
    before = x.clone()
    got = sample(x, seed=3)
    assert torch.equal(x, before)
    torch.testing.assert_close(got, sample(x.contiguous(), seed=3), rtol=1e-6, atol=1e-6)
    empty = latent((0, 3, 5))
    assert sample(empty, seed=3).shape == (0, 3, 5)


@each_run
def test_callback_changes_nothing_and_its_tensors_stay(sample):
    x, entries, copies = latent(), [], []

    def callback(entry):
        entries.append(entry)
        copies.append(entry["x"].clone())

    shown = sample(x, seed=3, callback=callback)
    assert torch.equal(shown, sample(x, seed=3))
    assert [e["i"] for e in entries] == list(range(len(entries))) and len(entries) >= 3
    for entry, copy in zip(entries, copies, strict=True):
        assert torch.equal(entry["x"], copy)


@each_run
def test_raising_in_the_callback_stops_cleanly(sample, capsys):
    x = latent()
    before, seen = x.clone(), []

    class StopError(Exception):
        pass

    def callback(entry):
        seen.append(entry["i"])
        if entry["i"] == 2:
            raise StopError

    with pytest.raises(StopError):
        sample(x, seed=3, callback=callback, progress=True)
    assert seen == [0, 1, 2] and torch.equal(x, before)
    assert torch.equal(sample(x, seed=3), sample(x, seed=3, progress=True))
    assert "NFE" in capsys.readouterr().err


def test_callback_entries():
    entries = []
    cm.heun_pf_ode(DATA, latent(), SIGMAS, s_churn=3.0, seed=1, callback=entries.append)
    assert [e["sigma"] for e in entries] == SIGMAS[:-1].tolist()
    gamma = min(3.0 / 6, math.sqrt(2) - 1)
    for e in entries:
        assert e["sigma_hat"] == pytest.approx(e["sigma"] * (1 + gamma), rel=1e-14)
        assert torch.equal(e["denoised"], DATA(e["x"], torch.full((7,), e["sigma_hat"])))


def test_noise_sampler_gets_the_interval():
    asked = []

    def sampler(a, b):
        asked.append((a, b))
        return torch.zeros(7, 3, 5, 3)

    levels = SIGMAS.tolist()
    got = cm.ddim(DATA, latent(), SIGMAS, eta=0.5, noise_sampler=sampler)
    assert asked == list(pairwise(levels[:-1]))
    assert got.isfinite().all()
    asked.clear()
    cm.heun_pf_ode(DATA, latent(), SIGMAS, s_churn=3.0, noise_sampler=sampler)
    gamma = min(3.0 / 6, math.sqrt(2) - 1)
    assert asked == [(s, s * (1 + gamma)) for s in levels[:-1]]
    asked.clear()
    linear_sde(latent(), noise_sampler=sampler)
    assert asked == list(pairwise(T))


def test_noise_sampler_of_library_noise_is_the_library():
    x = latent()
    draws = iter(range(100))

    def same(a, b):
        return noise.normal(x.shape, 4, draw=next(draws), stream=noise.STEPS)

    got = cm.ddpm_ancestral(DATA, x, SIGMAS, noise_sampler=same)
    torch.testing.assert_close(
        got, cm.ddpm_ancestral(DATA, x, SIGMAS, seed=4), rtol=1e-5, atol=1e-5
    )


def test_the_denoiser_sees_levels_and_extra_args():
    seen = []

    def denoiser(x, sigma, *, label):
        seen.append((tuple(sigma.shape), sigma.dtype, sigma[0].item(), label))
        return 0 * x

    for dtype in (F64, torch.float32, torch.float16):
        seen.clear()
        cm.euler_pf_ode(denoiser, latent(dtype=dtype), SIGMAS, extra_args={"label": 3})
        levels = SIGMAS[:-1].to(dtype).tolist()
        assert seen == [((7,), dtype, s, 3) for s in levels]


@pytest.mark.parametrize("sampler", [cm.euler_pf_ode, cm.heun_pf_ode, cm.ddim, cm.ddpm_ancestral])
def test_models_that_return_their_input_or_a_view_of_it(sampler):
    """Views of the loop's buffers must not be overwritten while they are still read."""

    def flipped(x, sigma):
        return x.transpose(1, 2)

    x = latent((4, 6, 6))
    expected = sampler(lambda x, s: x.transpose(1, 2).clone(), x, SIGMAS, seed=1)
    assert torch.equal(sampler(flipped, x, SIGMAS, seed=1), expected)
    got = sampler(EDM(lambda x, c: x.transpose(1, 2)), x, SIGMAS, seed=1)
    expected = sampler(EDM(lambda x, c: x.transpose(1, 2).clone()), x, SIGMAS, seed=1)
    assert torch.equal(got, expected)
    torch.testing.assert_close(sampler(lambda x, s: x, x, SIGMAS, s_noise=0.0), x)


def test_results_are_not_shared_between_runs():
    x = latent()
    first = cm.heun_pf_ode(DATA, x, SIGMAS)
    copy = first.clone()
    cm.heun_pf_ode(DATA, 2 * x, SIGMAS)
    assert torch.equal(first, copy)


@pytest.mark.parametrize(
    "name",
    [
        "heun",
        "heun-raw-churn",
        "ddpm",
        "dpm_fast-raw",
        "lms",
        "lms-raw",
        "restart",
        "consistency",
        "euler_maruyama",
    ],
)
def test_derivatives_flow_through_a_run(name):
    x = latent((2, 3), F64, 2.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: RUNS[name](x, seed=1), (x,))
    with torch.no_grad():
        assert not RUNS[name](x, seed=1).requires_grad


def test_derivatives_in_the_network():
    weight = torch.tensor(0.4, dtype=F64, requires_grad=True)
    x = latent((2, 3), F64)

    def call(w):
        return cm.heun_pf_ode(EDM(lambda x, c: (w * x).sin()), x, SIGMAS)

    assert torch.autograd.gradcheck(call, (weight,))


def test_forward_mode_through_a_run():
    x = latent((2, 3), F64)
    _, tangent = torch.func.jvp(lambda x: RUNS["heun"](x), (x,), (torch.ones_like(x),))
    slope = (RUNS["heun"](x + 1e-5) - RUNS["heun"](x - 1e-5)) / 2e-5
    torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=1e-8)


def test_first_bad_output_is_named():
    def broken(x, sigma):
        y = 0 * x
        if sigma[0] < 1:
            y[3, 0] = math.nan
            y[5] = math.inf
        return y

    step = int((SIGMAS >= 1).sum())
    match = rf"denoiser must return finite.*step {step}, sigma {SIGMAS[step]:g}, sample 3"
    with pytest.raises(ValueError, match=match):
        cm.euler_pf_ode(broken, latent(), SIGMAS, check_nan=True)
    cm.euler_pf_ode(broken, latent(), SIGMAS)
    with pytest.raises(ValueError, match=rf"step {step - 1}, sigma {SIGMAS[step]:g}, sample 3"):
        cm.heun_pf_ode(broken, latent(), SIGMAS, check_nan=True)
    net = EDM(lambda x, c: broken(x, c + 1))
    with pytest.raises(ValueError, match="sample 3"):
        cm.heun_pf_ode(net, latent(), SIGMAS, check_nan=True)
    with pytest.raises(ValueError, match="f must return finite"):
        cm.consistency_sample(broken, latent(), [20.0, 0.5], check_nan=True)
    sde = cm.SDE(lambda x, t: broken(x, t), lambda t: 0.1)
    with pytest.raises(ValueError, match=r"sde must give finite.*step 1, t 0.8, sample 3"):
        cm.euler_maruyama(sde, latent(), T, check_nan=True)


def test_nan_check_passes_what_is_finite():
    for sample in RUNS.values():
        assert torch.equal(sample(latent(), seed=1, check_nan=True), sample(latent(), seed=1))


def test_signatures_show_the_shared_options():
    for sampler in (
        cm.euler_pf_ode,
        cm.heun_pf_ode,
        cm.ddim,
        cm.ddpm_ancestral,
        cm.consistency_sample,
        cm.euler_maruyama,
    ):
        names = set(inspect.signature(sampler).parameters)
        assert {"seed", "noise_sampler", "extra_args", "callback", "progress"} <= names
        assert "return_info" in names and "options" not in names
    with pytest.raises(TypeError, match="unexpected keyword"):
        cm.heun_pf_ode(DATA, latent(), SIGMAS, sead=1)


# --- plans ------------------------------------------------------------------------------------


def test_plans_are_cached_and_rows_say_what_they_need():
    levels = tuple(SIGMAS.tolist())
    plan = make_plan("heun", levels, heun_stages, churn=Churn(3.0, 0.0, math.inf))
    assert make_plan("heun", levels, heun_stages, churn=Churn(3.0, 0.0, math.inf)) is plan
    assert plan.noisy and plan.width == 2 and len(plan.levels) == 11
    assert not make_plan("heun", levels, heun_stages).noisy


def test_fold_is_the_algebra():
    """Rows over (x, F_0, F_1) against the same step done by hand on vectors."""
    stages = heun_stages((2.0,), 1.0)
    skip_out = [(0.3, 0.7), (0.6, -0.2)]
    x, f0, f1 = 1.3, -0.4, 2.1
    d0 = 0.3 * x + 0.7 * f0
    y = stages[0].w_x * x + stages[0].w_d[0] * d0
    d1 = 0.6 * y - 0.2 * f1
    expected = stages[1].w_x * x + stages[1].w_d[0] * d0 + stages[1].w_d[1] * d1
    rows = fold(stages, skip_out)
    assert rows[0][0] * x + rows[0][1] * f0 == pytest.approx(y, rel=1e-14)
    got = rows[1][0] * x + rows[1][1] * f0 + rows[1][2] * f1
    assert got == pytest.approx(expected, rel=1e-14)


def noisy_predictor(levels, to):
    """A two-stage step with noise in its first stage: cannot be folded over F."""
    s = levels[-1]
    if to == 0:
        return (Stage(0.0, 0.0, (1.0,)),)
    up = 0.3 * to
    down = math.sqrt(to * to - up * up)
    first = Stage(to, down / s, (1 - down / s,), w_z=up)
    return first, Stage(to, to / s, (0.5 * (1 - to / s), 0.5 * (1 - to / s)))


def two_step(levels, to):
    """An Adams-Bashforth step of constant weights: reads one past D."""
    s, past = levels[-1], 0.25 if len(levels) > 1 and to else 0.0
    row = (1 - to / s) * (1 + past)
    return (Stage(to, to / s, (row,), (-(1 - to / s) * past,) if past else ()),)


def two_slopes(levels, to):
    """x' = x + h (1.25 d - 0.25 d_past) on slopes d = (x - D) / s."""
    s, past = levels[-1], 0.25 if len(levels) > 1 else 0.0
    own = (to - s) * (1 + past)
    return (Stage(to, 1 + own / s, (-own / s,), ((s - to) * past,) if past else ()),)


LEVELS = tuple(SIGMAS.tolist())
slope_plan = make_plan("test", LEVELS, two_slopes, keep=1, keep_slopes=True)


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_kept_slopes(dtype):
    """Against the same loop by hand, for a callable and for a network, of low precision too."""
    x = latent((4, 6), F64)

    def net(x, c):
        return edm_net(x, c.to(x.dtype))

    denoiser = EDM(net, dtype=dtype)

    def plain(x, s):
        return denoiser(x, s).to(dtype or F64).to(F64)

    def by_hand(model, y):
        past = None
        for s, to in pairwise(LEVELS):
            d = (y - model(y, torch.full((4,), s, dtype=F64))) / s
            y = y + (to - s) * (d if past is None else 1.25 * d - 0.25 * past)
            past = d
        return y

    for model in (denoiser, plain):
        seen = []
        got = run(slope_plan, model, x)
        torch.testing.assert_close(got, by_hand(model, x), rtol=1e-12, atol=1e-12)
        assert torch.equal(run(slope_plan, model, x, callback=seen.append), got)
        for e in seen:
            expected = model(e["x"], torch.full((4,), e["sigma_hat"], dtype=F64))
            torch.testing.assert_close(e["denoised"], expected)
    low = run(slope_plan, lambda x, s: denoiser(x, s).to(torch.float32), x)
    torch.testing.assert_close(low, by_hand(denoiser, x), rtol=1e-5, atol=1e-4)


def test_kept_slopes_cost_no_launch(monkeypatch):
    from cmsolvers import ops

    launches = []
    original = ops.weighted_step
    monkeypatch.setattr(
        ops, "weighted_step", lambda *a, **k: launches.append(k) or original(*a, **k)
    )
    for model in (DATA, denoisers.from_x0(edm_net)):
        launches.clear()
        run(slope_plan, model, latent())
        assert len(launches) == len(LEVELS) - 1


def test_rows_on_slopes_check_themselves():
    def make(formula):
        return make_plan("control", (2.0, 1.0, 0.5), formula, keep=1, keep_slopes=True)

    def scaled(levels, to):
        (stage,) = two_slopes(levels, to)
        return (replace(stage, w_past=tuple(1.1 * w for w in stage.w_past)),)

    def unbalanced(levels, to):
        (stage,) = two_slopes(levels, to)
        return (replace(stage, w_d=(1.1 * stage.w_d[0],)),)

    with pytest.raises(ArithmeticError, match="spread"):
        make(scaled)
    with pytest.raises(ArithmeticError, match="sum to 1"):
        make(unbalanced)
    with pytest.raises(ArithmeticError, match="one stage a step; got 2"):
        make(heun_stages)
    with pytest.raises(ArithmeticError, match="sum to 1"):  # read as weights of D, they are wrong
        make_plan("control", (2.0, 1.0, 0.5), two_slopes, keep=1)


@pytest.mark.parametrize("formula, keep", [(noisy_predictor, 0), (two_step, 1)])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_plans_that_need_d_itself_work_on_raw_networks(formula, keep, dtype):
    plan = make_plan("test", tuple(SIGMAS.tolist()), formula, keep=keep)
    x = latent((4, 6), F64)

    def net(x, c):
        return edm_net(x, c.to(x.dtype))

    denoiser = EDM(net, dtype=dtype)
    seen = []
    got = run(plan, denoiser, x, seed=1)
    expected = run(plan, lambda x, s: denoiser(x, s), x, seed=1)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(run(plan, denoiser, x, seed=1, callback=seen.append), got)
    for e in seen:
        torch.testing.assert_close(e["denoised"], denoiser(e["x"], e["sigma_hat"]))


def test_folding_reads_the_network_alone():
    """Each evaluation after the first gets its input from the step before: no extra launch."""
    from cmsolvers import ops

    launches = []
    original, scale = ops.weighted_step, ops.scale_input
    patch = pytest.MonkeyPatch()
    patch.setattr(ops, "weighted_step", lambda *a, **k: launches.append(k) or original(*a, **k))
    patch.setattr(ops, "scale_input", lambda *a, **k: launches.append("in") or scale(*a, **k))
    try:
        cm.heun_pf_ode(EDM(edm_net), latent(), SIGMAS)
        assert len(launches) == 12 and launches.count("in") == 1
        launches.clear()
        cm.heun_pf_ode(denoisers.from_x0(edm_net), latent(), SIGMAS)
        assert len(launches) == 11
    finally:
        patch.undo()


@pytest.mark.parametrize(
    "plan",
    [
        make_plan("test", LEVELS, noisy_predictor),
        make_plan("test", LEVELS, two_step, keep=1),
        slope_plan,
    ],
    ids=["noisy-predictor", "two-step", "two-slopes"],
)
def test_past_outputs_that_are_views_survive(plan):
    """A kept D may lie in a buffer of the loop; that buffer must then not be written."""
    x = latent((6, 6, 6), F64)
    for view in (lambda x, s: x.transpose(1, 2), lambda x, s: x):
        expected = run(plan, lambda x, s, v=view: v(x, s).clone(), x, seed=1)
        assert torch.equal(run(plan, view, x, seed=1), expected)
        expected = run(plan, EDM(lambda x, s, v=view: v(x, s).clone()), x, seed=1)
        assert torch.equal(run(plan, EDM(view), x, seed=1), expected)


def test_trajectory_holds_every_state():
    x, seen = latent(), []
    got, info = cm.heun_pf_ode(
        DATA, x, SIGMAS, trajectory=True, callback=lambda e: seen.append(e["x"])
    )
    assert info.levels == tuple(SIGMAS.tolist())
    assert info.trajectory.shape == (len(SIGMAS), *x.shape)
    assert torch.equal(info.trajectory[:-1], torch.stack(seen))
    assert torch.equal(info.trajectory[-1], got) and torch.equal(info.trajectory[0], x)
    assert torch.equal(cm.heun_pf_ode(DATA, x, SIGMAS), got)


def test_trajectory_at_chosen_levels():
    levels = SIGMAS.tolist()
    chosen = [levels[-1], levels[2]]
    _, every = cm.euler_pf_ode(DATA, latent(), SIGMAS, trajectory=True)
    _, some = cm.euler_pf_ode(DATA, latent(), SIGMAS, trajectory=chosen)
    assert some.levels == (levels[2], levels[-1])
    assert torch.equal(some.trajectory, every.trajectory[[2, len(levels) - 1]])


def test_trajectory_carries_derivatives():
    x = latent().double().requires_grad_()
    _, info = cm.euler_pf_ode(DATA, x, SIGMAS, trajectory=[SIGMAS[1].item()])
    (gradient,) = torch.autograd.grad(info.trajectory.sum(), x)
    assert gradient.abs().sum() > 0
