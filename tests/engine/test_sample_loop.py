"""What the one loop promises: callbacks, noise, buffers, derivatives, folding, NaN records."""

import inspect
import math
import warnings
import weakref
from itertools import pairwise

import pytest
import torch

import cmsolvers as cm
from cmsolvers import denoisers, noise, training
from cmsolvers.denoisers import EDM, ConsistencyFunction
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.engine import Option, catalogue, solver, time_solver
from cmsolvers.engine.forms import form_of
from cmsolvers.engine.lower import lower
from cmsolvers.engine.program import Launch, Wants
from cmsolvers.engine.symbols import Past
from cmsolvers.engine.trace import lifted, trace
from cmsolvers.solvers.heun import heun_step
from support.formulas import changed, sampler_of, scaled, traced
from support.launches import counted_launches

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


def test_an_average_is_told_what_to_hand_over():
    average = training.EMA(EDM(torch.nn.Linear(3, 3)))
    with pytest.raises(TypeError, match=r"denoiser must be callable; .*EMA: its \.module is"):
        cm.heun_pf_ode(average, latent((2, 3)), SIGMAS)


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
        "euler_maruyama-own",
    ],
)
def test_derivatives_flow_through_a_run(name):
    x = latent((2, 3), F64, 2.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: RUNS[name](x, seed=1, grad=True), (x,))
    with torch.no_grad():
        assert not RUNS[name](x, seed=1, grad=True).requires_grad


def test_derivatives_in_the_network():
    weight = torch.tensor(0.4, dtype=F64, requires_grad=True)
    x = latent((2, 3), F64)

    def call(w):
        return cm.heun_pf_ode(EDM(lambda x, c: (w * x).sin()), x, SIGMAS, grad=True)

    assert torch.autograd.gradcheck(call, (weight,))


@each_run
def test_without_grad_nothing_is_recorded(sample):
    """The same values, and one warning where x asks for a gradient that nobody records."""
    x = latent((2, 3, 5, 3), F64, 2.0)
    plain = sample(x, seed=1)
    wanted = x.clone().requires_grad_()
    with pytest.warns(UserWarning, match="x requires a gradient.*grad=True records") as caught:
        got = sample(wanted, seed=1)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert not got.requires_grad and torch.equal(got, plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded = sample(wanted, seed=1, grad=True)
        assert recorded.requires_grad and torch.equal(recorded, plain)
        assert not sample(x, seed=1, grad=True).requires_grad
        with torch.no_grad():
            sample(wanted, seed=1)


def test_without_grad_the_network_records_nothing():
    weight, seen = torch.tensor(0.4, dtype=F64, requires_grad=True), []

    def net(x, c):
        seen.append((weight * x).sin())
        return seen[-1]

    for grad in (False, True):
        seen.clear()
        got = cm.heun_pf_ode(EDM(net), latent((2, 3), F64), SIGMAS, grad=grad)
        assert got.requires_grad == grad and all(out.requires_grad == grad for out in seen)


@pytest.mark.parametrize("name", ["heun", "heun-raw-churn", "lms-raw", "euler_maruyama-own"])
@pytest.mark.parametrize("grad", [False, True])
def test_forward_mode_through_a_run(name, grad):
    """Tangents need no recording: with and without `grad`."""
    x = latent((2, 3), F64)

    def run(x):
        return RUNS[name](x, seed=1, grad=grad)

    _, tangent = torch.func.jvp(run, (x,), (torch.ones_like(x),))
    slope = (run(x + 1e-5) - run(x - 1e-5)) / 2e-5
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


# --- traces and programs ----------------------------------------------------------------------

LEVELS = tuple(SIGMAS.tolist())


def test_traces_are_cached_and_say_what_they_need():
    churned = trace(heun_step, lifted(LEVELS, 3.0, 0.0, math.inf))
    assert trace(heun_step, lifted(LEVELS, 3.0, 0.0, math.inf)) is churned
    assert churned.normals and max(len(step.asks) for step in churned.steps) == 2
    assert len(churned.levels) == 11 and churned.visited == LEVELS
    assert not traced(heun_step, LEVELS).normals


class Fixed(EDM):
    """Two levels with coefficients that are easy to write down; the network sees y itself."""

    def coefficients(self, sigma):
        return {2.0: (0.3, 0.7, 1.0, 0.0), 1.0: (0.6, -0.2, 1.0, 0.0)}[sigma]


def rows_of(formula, denoiser, levels):
    """Rows of the launches of a run, over the state and the outputs of the networks."""
    program = lower(traced(formula, levels), denoiser, F64, Wants(fused=True))
    return [op.row for step in program.steps for op in step if isinstance(op, Launch)]


def test_lowering_is_the_algebra():
    """Rows over (x, F_0, F_1) against the same step done by hand on vectors."""
    x, f0, f1 = 1.3, -0.4, 2.1
    d0 = 0.3 * x + 0.7 * f0
    y = x + (1.0 - 2.0) * (x - d0) / 2.0
    d1 = 0.6 * y - 0.2 * f1
    expected = x + (1.0 - 2.0) * 0.5 * ((x - d0) / 2.0 + (y - d1) / 1.0)
    rows = rows_of(heun_step, Fixed(edm_net), (2.0, 1.0))
    assert [len(row) for row in rows] == [2, 3]
    assert rows[0][0] * x + rows[0][1] * f0 == pytest.approx(y, rel=1e-14)
    got = rows[1][0] * x + rows[1][1] * f0 + rows[1][2] * f1
    assert got == pytest.approx(expected, rel=1e-14)


def noisy_predictor(step):
    """A two-stage step with noise in its first stage: cannot be written over F alone."""
    s, to = step.sigma, step.to
    d = step.D(step.x, s)
    if to == 0:
        return d
    up = 0.3 * to
    down = math.sqrt(to * to - up * up)
    y = down / s * step.x + (1 - down / s) * d + up * step.z()
    return to / s * step.x + 0.5 * (1 - to / s) * (d + step.D(y, to))


def two_step(step):
    """An Adams-Bashforth step of constant weights: reads one past D."""
    s, to, d = step.sigma, step.to, step.D(step.x, step.sigma)
    if step.index and to:
        d = 1.25 * d - 0.25 * step.past(1)
    return to / s * step.x + (1 - to / s) * d


def two_slopes(step):
    """x' = x + h (1.25 d - 0.25 d_past) on slopes d = (x - D) / s."""
    d = step.slope(step.x, step.sigma)
    if step.index:
        d = 1.25 * d - 0.25 * step.past_slope(1)
    return step.x + (step.to - step.sigma) * d


NOISY = sampler_of(noisy_predictor, noise="fresh")
TWO_STEP, TWO_SLOPES = sampler_of(two_step), sampler_of(two_slopes)


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
        got = TWO_SLOPES(model, x, LEVELS)
        torch.testing.assert_close(got, by_hand(model, x), rtol=1e-12, atol=1e-12)
        assert torch.equal(TWO_SLOPES(model, x, LEVELS, callback=seen.append), got)
        for e in seen:
            expected = model(e["x"], torch.full((4,), e["sigma_hat"], dtype=F64))
            torch.testing.assert_close(e["denoised"], expected)
    low = TWO_SLOPES(lambda x, s: denoiser(x, s).to(torch.float32), x, LEVELS)
    torch.testing.assert_close(low, by_hand(denoiser, x), rtol=1e-5, atol=1e-4)


def test_kept_slopes_cost_no_launch():
    for model in (DATA, denoisers.from_x0(edm_net, process=cm.Karras())):
        with counted_launches() as launches:
            TWO_SLOPES(model, latent(), LEVELS)
        assert len(launches) == len(LEVELS) - 1


def test_a_past_slope_in_a_step_of_two_evaluations():
    """Adams-Moulton in place of Heun's corrector, by hand: of a callable and of a network."""

    def formula(step):
        y, h = two_slopes(step), step.to - step.sigma
        if not step.index or step.to == 0:
            return y
        d, new = (step.x - form_of(step.traced.asks[0])) / step.sigma, step.slope(y, step.to)
        return step.x + h * (0.4 * new + 0.7 * d - 0.1 * step.past_slope(1))

    def by_hand(model, y):
        past = None
        for s, to in pairwise(LEVELS):
            d = (y - model(y, torch.full((4,), s, dtype=F64))) / s
            end = y + (to - s) * (d if past is None else 1.25 * d - 0.25 * past)
            if past is not None and to:
                new = (end - model(end, torch.full((4,), to, dtype=F64))) / to
                end = y + (to - s) * (0.4 * new + 0.7 * d - 0.1 * past)
            y, past = end, d
        return y

    x, sampler = latent((4, 6), F64), sampler_of(formula)
    for model in (DATA, EDM(edm_net)):
        torch.testing.assert_close(
            sampler(model, x, LEVELS), by_hand(model, x), rtol=1e-12, atol=1e-12
        )


def test_rows_on_slopes_check_themselves():
    levels = (2.0, 1.0, 0.5)
    assert traced(two_slopes, levels).steps[1].result.terms

    def unbalanced(step, row):
        ask = step.traced.asks[0]
        return row + 0.1 * row.terms[ask] * form_of(ask)

    def read_as_outputs(step):
        d = step.slope(step.x, step.sigma)
        if step.index:
            d = 1.25 * d - 0.25 * step.past(1)
        return step.x + (step.to - step.sigma) * d

    with pytest.raises(ArithmeticError, match="spread"):
        traced(changed(two_slopes, lambda _, row: scaled(row, 1.1, Past)), levels)
    with pytest.raises(ArithmeticError, match="sum to 1"):
        traced(changed(two_slopes, unbalanced), levels)
    with pytest.raises(ArithmeticError, match="sum to 1"):
        traced(read_as_outputs, levels)


def test_states_that_a_formula_asks_about_check_themselves():
    """Not only the last row: every state that the model is asked about."""
    levels = (2.0, 1.0, 0.5)

    def heun_at(change):
        def formula(step):
            y = step.x + (step.to - step.sigma) * step.slope(step.x, step.sigma)
            step.D(change(y), step.to)
            return y

        return formula

    assert len(traced(heun_at(lambda y: y), levels).levels) == 4
    with pytest.raises(ArithmeticError, match="sum to 1"):
        traced(heun_at(lambda y: 1.01 * y), levels)

    def at_another_level(step):
        y = step.x + (step.to - step.sigma) * step.slope(step.x, step.sigma)
        return step.x + (step.to - step.sigma) * step.slope(y, 1.1 * step.to)

    with pytest.raises(ArithmeticError, match="spread"):
        traced(at_another_level, levels)


def test_noise_checks_itself():
    """Wrong size, two fresh normals in a step, and one beside the noise that lifts the state."""
    levels = (2.0, 1.0, 0.5)

    def ancestral(size, second=False):
        def formula(step):
            up = 0.3 * step.to
            down = math.sqrt(step.to**2 - up**2)
            row = step.x + (down - step.sigma) * step.slope(step.x, step.sigma)
            if second:
                return row + math.sqrt(0.5) * up * (step.z() + step.z())
            return row + size * up * step.z()

        return formula

    right, two = ancestral(1.0), ancestral(1.0, second=True)
    assert traced(right, levels).normals and traced(two, levels, noise="Brownian").normals
    for size in (0.9, 1.1, 0.0):
        with pytest.raises(ArithmeticError, match="spread"):
            traced(ancestral(size), levels)
    with pytest.raises(ArithmeticError, match="one fresh normal"):
        traced(two, levels)
    with pytest.raises(ArithmeticError, match="one fresh normal"):
        trace(right, lifted(levels, 1.0, 0.0, math.inf))
    with pytest.raises(ArithmeticError, match="spread"):
        sampler_of(ancestral(1.1), noise="fresh")(DATA, latent(), levels)


def ask(slip):
    def slipping(step):
        slip(step)
        return heun_step(step)

    return slipping


@pytest.mark.parametrize(
    "formula, error, text",
    [
        (ask(lambda step: step.x + 1.0), TypeError, "to a form only forms may be added"),
        (ask(lambda step: step.past(0)), IndexError, r"past\(k\) counts steps back from 1; got 0"),
        (ask(lambda step: step.past_slope(-1)), IndexError, r"past_slope\(k\) counts .* got -1"),
        (ask(lambda step: step.past(2)), IndexError, r"past\(2\) needs 2 steps before this one"),
        (ask(lambda step: step.dt), AttributeError, "on noise levels has no 'dt'; it has D, .*z$"),
        (ask(lambda step: step.slope(step.sigma, step.x)), TypeError, "take a form and a number"),
        (ask(lambda step: step.D(torch.ones(2), 1.0)), TypeError, "got a torch.float32 tensor"),
        (ask(lambda step: step.z(2.5)), ArithmeticError, r"a level in \(0, 2\]; got 2\.5"),
        (ask(lambda step: step.z(0.0)), ArithmeticError, r"a level in \(0, 2\]; got 0"),
        (lambda step: None, TypeError, "must return a form; it returned None"),
        (lambda step: torch.ones(()) * heun_step(step), TypeError, r"numbers, such as float\(w\)"),
    ],
)
def test_slips_of_formulas_are_named(formula, error, text):
    with pytest.raises(error, match=f"step 0 of .*: .*{text}"):
        traced(formula, (2.0, 1.0, 0.5))


def test_slips_of_declarations_are_named():
    def formula(step, share=0.5):
        return heun_step(step)

    def named(name, checked=lambda _, value: value):
        return Option(name, 0.5, checked, "how much.")

    def declare(option, make=solver):
        make(order="1", nfe="n", source="here", options=[option])(formula)

    for make in (solver, time_solver):
        with pytest.raises(TypeError, match="declare 'size', which the formula does not take"):
            declare(named("size"), make)
        with pytest.raises(TypeError, match=r"'share' of formula must take .name, value.: float"):
            declare(named("share", float), make)
        with pytest.raises(TypeError, match="'share' of formula must return the value; it "):
            declare(named("share", lambda *_: None), make)
    with pytest.raises(TypeError, match="draws must be callable; got 2"):
        time_solver(order="1", nfe="n", source="here", draws=2)

    def seeded(step, seed):
        return heun_step(step)

    with pytest.raises(TypeError, match="options of seeded declare 'seed', which every solver has"):
        solver(order="1", nfe="n", source="here", options=[named("seed")])(seeded)
    assert not {"formula", "seeded"} & catalogue.SOLVERS.keys()


@pytest.mark.parametrize("sampler", [NOISY, TWO_STEP], ids=["noisy-predictor", "two-step"])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_formulas_that_need_d_itself_work_on_raw_networks(sampler, dtype):
    x = latent((4, 6), F64)

    def net(x, c):
        return edm_net(x, c.to(x.dtype))

    denoiser = EDM(net, dtype=dtype)
    seen = []
    got = sampler(denoiser, x, SIGMAS, seed=1)
    expected = sampler(lambda x, s: denoiser(x, s), x, SIGMAS, seed=1)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(sampler(denoiser, x, SIGMAS, seed=1, callback=seen.append), got)
    assert len(seen) == len(LEVELS) - 1
    for e in seen:
        torch.testing.assert_close(e["denoised"], denoiser(e["x"], e["sigma_hat"]))


def test_folding_reads_the_network_alone():
    """Each evaluation after the first gets its input from the step before: no extra launch."""
    with counted_launches() as launches:
        cm.heun_pf_ode(EDM(edm_net), latent(), SIGMAS)
    assert [launch.name for launch in launches] == ["scale_input"] + 11 * ["weighted_step"]
    with counted_launches() as launches:
        cm.heun_pf_ode(denoisers.from_x0(edm_net, process=cm.Karras()), latent(), SIGMAS)
    assert len(launches) == 11


@pytest.mark.parametrize(
    "sampler",
    [NOISY, TWO_STEP, TWO_SLOPES],
    ids=["noisy-predictor", "two-step", "two-slopes"],
)
def test_past_outputs_that_are_views_survive(sampler):
    """A kept D may lie in a buffer of the loop; that buffer must then not be written."""
    x = latent((6, 6, 6), F64)
    for view in (lambda x, s: x.transpose(1, 2), lambda x, s: x):
        copied = lambda x, s, v=view: v(x, s).clone()  # noqa: E731
        for make in (lambda f: f, EDM):
            expected = sampler(make(copied), x, LEVELS, seed=1)
            assert torch.equal(sampler(make(view), x, LEVELS, seed=1), expected)


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


def test_trajectory_at_levels_as_float32_holds_them():
    levels = [3.3, 1.7, 0.4, 0.1]
    wanted = torch.tensor([3.3, 0.4, 0.1])
    assert wanted[1].item() != 0.4
    _, info = cm.euler_pf_ode(DATA, latent((2, 3), F64), levels, trajectory=wanted)
    assert info.levels == (3.3, 0.4, 0.1)  # as the run has them
    _, info = cm.rk_pf_ode(DATA, latent((2, 3), F64), levels, trajectory=wanted)
    assert info.levels == (3.3, 0.4, 0.1)
    with pytest.raises(ValueError, match=r"levels that the run visits; got 0\.4099"):
        cm.euler_pf_ode(DATA, latent((2, 3), F64), levels, trajectory=torch.tensor([0.41]))


@pytest.mark.parametrize("name", ["deis", "ipndm", "lms", "heun_pf_ode", "dpmpp_2m_sde"])
def test_levels_that_float32_does_not_hold(name):
    """They are refused for float32 states and below, and right for float64 ones."""
    levels = [2.0, 1e-20, 1e-39, 1e-41]
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(ValueError, match=r"float32 holds where x is torch.*; got 1e-41"):
            getattr(cm, name)(DATA, latent((2, 3), dtype), levels, seed=1)
    for dtype, held in ((F64, levels), (torch.float32, levels[:2])):
        assert getattr(cm, name)(DATA, latent((2, 3), dtype), held, seed=1).isfinite().all()


def test_trajectory_carries_derivatives():
    x = latent().double().requires_grad_()
    _, info = cm.euler_pf_ode(DATA, x, SIGMAS, trajectory=[SIGMAS[1].item()], grad=True)
    (gradient,) = torch.autograd.grad(info.trajectory.sum(), x)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", ["heun_pf_ode", "dpmpp_2m", "unipc", "dpm_fast", "lms"])
def test_outputs_of_changing_dtype_are_let_go(name):
    """A launch converts them; the run must not hold on to what it has converted."""
    alive, count = weakref.WeakSet(), [0, 0]

    def network(x, c):
        count[0] += 1
        out = (0.1 * x).to(torch.float16 if count[0] % 2 else torch.float32)
        alive.add(out)
        count[1] = max(count[1], len(alive))
        return out

    getattr(cm, name)(EDM(network), latent((2, 3), torch.float32), cm.karras_sigmas(60))
    assert count[0] >= 60 and count[1] < 10


def lifts(levels, **options):
    """sigma_hat / sigma of each step, as the callback sees them."""
    seen = []
    cm.euler_pf_ode(DATA, latent((2, 3), F64), levels, seed=1, callback=seen.append, **options)
    return [entry["sigma_hat"] / entry["sigma"] for entry in seen]


def test_churn_is_spread_over_the_steps():
    """Karras et al. (2022), algorithm 2: gamma = min(s_churn / n, sqrt 2 - 1)."""
    levels = cm.karras_sigmas(9, 0.1, 20.0)
    assert lifts(levels, s_churn=1.8) == pytest.approx([1.2] * 9, rel=1e-14)
    assert lifts(levels, s_churn=1.0) == pytest.approx([1 + 1 / 9] * 9, rel=1e-14)
    assert lifts(levels, s_churn=9.0) == pytest.approx([math.sqrt(2.0)] * 9, rel=1e-14)
    assert lifts(levels, s_churn=0.0) == [1.0] * 9


def test_churn_holds_at_both_ends_of_its_interval():
    levels = [8.0, 4.0, 2.0, 1.0, 0.5]
    assert lifts(levels, s_churn=0.8, s_tmin=2.0, s_tmax=4.0) == [1.0, 1.2, 1.2, 1.0]
    outside = {"s_tmin": math.nextafter(2.0, 3.0), "s_tmax": math.nextafter(4.0, 3.0)}
    assert lifts(levels, s_churn=0.8, **outside) == [1.0] * 4


# --- what planted faults passed by --------------------------------------------------------------


@pytest.mark.parametrize("sampler", [cm.euler_pf_ode, cm.ddim])
@pytest.mark.parametrize("kind", ["callable", "edm"])
def test_a_trajectory_is_made_of_copies(sampler, kind):
    """Each state is that of a run that ends there; the loop writes to its buffers again."""
    model = DATA if kind == "callable" else EDM(edm_net)
    x, levels = latent((2, 3), F64), SIGMAS.tolist()
    _, info = sampler(model, x, levels, trajectory=True)
    for k in range(1, len(levels)):
        torch.testing.assert_close(info.trajectory[k], sampler(model, x, levels[: k + 1]))


@pytest.mark.parametrize("sampler", [cm.heun_pf_ode, cm.dpmpp_2m, cm.unipc])
def test_a_weak_side_alone_has_its_own_scalings(sampler):
    """At scale 0 only the weak network is called, on its own c_in x, with other data deviations."""
    x = latent((2, 3), F64)
    for strong, weak in ((0.5, 3.0), (3.0, 0.5)):
        weaker = EDM(edm_net, weak)
        both = denoisers.autoguided(EDM(lambda x, c: 1e3 * x, strong), weaker, 0.0)
        got, expected = sampler(both, x, SIGMAS), sampler(weaker, x, SIGMAS)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", [cm.heun_pf_ode, cm.dpmpp_2m, cm.lms, cm.dpmpp_2m_sde])
@pytest.mark.parametrize("kind", ["callable", "edm"])
def test_under_vmap_no_buffer_is_used_again(sampler, kind):
    """Lanes of a transform are runs of their own, also where the loop reuses memory elsewhere."""
    model = (lambda x, s: x / (1 + s[:, None] ** 2)) if kind == "callable" else EDM(edm_net)
    lanes = torch.stack([latent((2, 3), F64, scale) for scale in (1.0, 2.0, 5.0)])

    def run(x):
        return sampler(model, x, SIGMAS, noise_sampler=lambda *_: torch.ones_like(x))

    together = torch.func.vmap(run)(lanes)
    for lane, alone in zip(together, lanes, strict=True):
        torch.testing.assert_close(lane, run(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", [f.name for f in catalogue.SOLVERS.values() if f.space == "sigma" and not f.adaptive]
)
def test_a_model_may_return_a_view_of_its_input(name):
    """Rolled by one, say, from an offset into a padded copy or into the input itself."""
    wide = latent((4, 6), F64)

    def view(x, s):
        return x.flatten()[: x.numel()].view_as(x)

    def offset(x, s):
        padded = torch.cat((x.new_zeros(3), x.flatten()))
        return padded[3:].view_as(x)

    def copied(x, s):
        return x.clone()

    sampler = getattr(cm, name)
    expected = sampler(copied, wide, SIGMAS, seed=1)
    for model in (view, offset, lambda x, s: x[:], lambda x, s: x):
        assert torch.equal(sampler(model, wide, SIGMAS, seed=1), expected)
