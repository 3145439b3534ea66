"""Mistakes that make garbage are told, by a warning or by `check=True`; right use is not."""

import itertools
import math
from functools import partial

import pytest
import torch

import cmsolvers as cm
from cmsolvers import denoisers as de
from cmsolvers import noise, oracles, schedules
from cmsolvers.denoisers import conversions
from cmsolvers.engine import catalogue
from cmsolvers.engine.mistakes import criteria, glances, watching
from support.columns import column
from support.warned import texts_of

DATA = oracles.GaussianMixture(
    torch.tensor([[-0.45, -0.45], [0.45, 0.45]]), [0.15, 0.15], [0.5, 0.5]
)
D = DATA.denoiser
CHAIN = cm.DDPM()
LEVELS = cm.karras_sigmas(20)
Z = noise.normal((500, 2), seed=0)
NOISE = 80.0 * Z


def eps(x, s):
    return (x - D(x, s)) / column(s)


def score(x, s):
    return (D(x, s) - x) / column(s) ** 2


def raw(x, s):
    """F of EDM's preconditioning."""
    root = (column(s) ** 2 + 0.25).sqrt()
    return (D(x, s) - 0.25 / root**2 * x) * root / (0.5 * column(s))


EPS_OF_A_CHAIN = conversions.to_eps(D, process=CHAIN)
TIMES = torch.linspace(999, 0, 21, dtype=torch.float64)
BARS, SCALED_LINEAR = CHAIN.alphas_bar, cm.DDPM(schedule="scaled_linear")
V_OF_A_CHAIN = conversions.to_v(D, process=CHAIN)
EPS_OF_VP = conversions.to_eps(D, process=cm.VP())
F_OF_TRIGFLOW = conversions.to_trigflow(D)
KARRAS_OF_IT, VP_OF_IT = (de.from_eps(EPS_OF_A_CHAIN, process=p) for p in (cm.Karras(), cm.VP()))
AS_NOISE = "of the noise or more. Is the process of its network the one"
AS_IS, SCALED = "multiplied by sigmas[0]", "as timesteps do"
BACKWARDS = "as alphas_cumprod does, or sqrt(1 - alphas_cumprod)."

# denoiser, x, levels -> part of the warning (None: there is none), part of the error of check=True
MISTAKES = {
    "noise that is not scaled": (D, Z, LEVELS, AS_IS, AS_IS),
    "noise of another grid": (D, 14.6 * Z, LEVELS, AS_IS, AS_IS),
    "timesteps": (D, 999.0 * Z, TIMES, SCALED, SCALED),
    "timesteps, trailing": (D, Z, CHAIN.timesteps(20).double(), SCALED, SCALED),
    "timesteps, leading": (D, Z, CHAIN.timesteps(50, "leading", 1).double(), SCALED, SCALED),
    "alphas_cumprod": (D, Z, BARS, BACKWARDS, BACKWARDS),
    "some of alphas_cumprod": (D, Z, BARS[::50], BACKWARDS, BACKWARDS),
    "sqrt(1 - alphas_cumprod)": (D, Z, (1 - BARS).sqrt().flip(0), BACKWARDS, BACKWARDS),
    "of latent diffusion": (D, Z, SCALED_LINEAR.alphas_bar[::50], BACKWARDS, BACKWARDS),
    "an eps network": (eps, NOISE, LEVELS, "as an eps network does", "as an eps network does"),
    "eps of a chain": (EPS_OF_A_CHAIN, NOISE, LEVELS, AS_NOISE, AS_NOISE),
    "v of a chain": (V_OF_A_CHAIN, NOISE, LEVELS, AS_NOISE, AS_NOISE),
    "eps of VP": (EPS_OF_VP, NOISE, LEVELS, "is not finite", "must return finite values at sigma"),
    "F of TrigFlow": (F_OF_TRIGFLOW, NOISE, LEVELS, None, "must return the mean of the clean data"),
    "a score": (score, NOISE, LEVELS, "is not gone", "it returns the score"),
    "a chain as Karras": (KARRAS_OF_IT, NOISE, LEVELS, "is not gone", AS_NOISE),
    "a chain as VP": (VP_OF_IT, NOISE, LEVELS, None, "Is the process of its network the one"),
    "a raw network": (raw, NOISE, LEVELS, None, "and so nearly clean data as it is"),
    "the noise as it is": (lambda x, s: x, NOISE, LEVELS, AS_NOISE, AS_NOISE),
}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    forget(monkeypatch)


def forget(monkeypatch):
    watching.ONCE.reset()
    monkeypatch.setattr(watching, "_LOOKS", itertools.count())


warned = partial(texts_of, __file__)


@pytest.mark.parametrize("sampler", [cm.dpmpp_2m, cm.heun_pf_ode], ids=lambda s: s.__name__)
@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(sampler, name):
    denoiser, x, levels, warning, error = MISTAKES[name]
    texts = warned(lambda: sampler(denoiser, x, levels))
    if warning is None:
        assert texts == []
    else:
        assert any(warning in text for text in texts), texts
        assert warned(lambda: sampler(denoiser, x, levels)) == []  # once
    with pytest.raises(ValueError) as caught:
        sampler(denoiser, x, levels, check=True)
    assert error in str(caught.value)


@pytest.mark.parametrize("name", ["noise that is not scaled", "an eps network"])
def test_mistakes_of_adaptive_runs(name):
    denoiser, x, _, warning, error = MISTAKES[name]
    assert warned(lambda: cm.rk_pf_ode(denoiser, x, [80.0, 0.1]))[0].count(warning) == 1
    with pytest.raises(ValueError, match=error.replace("[", r"\[")):
        cm.rk_pf_ode(denoiser, x, [80.0, 0.1], check=True)


def labelled(x, s, of=None):
    """D of all data, or of one of its two classes."""
    side = torch.tensor([[-0.45], [0.45]])[of] if of is not None else None
    return D(x, s) if side is None else side + oracles.Gaussian(0.15).denoiser(x - side, s)


def guidance(scale, **more):
    return de.guided(labelled, scale, conditional={"of": 0}, unconditional={"of": None}, **more)


CHAIN_LEVELS = schedules.ddpm_sigmas(20)
START = CHAIN_LEVELS[0].item()
CLEAN = 0.45 * Z[:, :1].sign().expand(500, 2)
RIGHT = {
    "a mixture": D,
    "a Gaussian": oracles.Gaussian(0.5).denoiser,
    "a Gaussian of variance sigma": oracles.Gaussian(80.0**0.5).denoiser,
    "a data set": oracles.DataSet(0.45 * Z[:20].sign()).denoiser,
    "a function": lambda x, s: D(x, s),
    "zero": lambda x, s: 0.0 * x,
    "EDM untrained": de.EDM(lambda x, c: 0.0 * x),
    "EDM that returns noise": de.EDM(lambda x, c: x.flip(0)),
    "EDM": de.EDM(conversions.to_edm(D)),
    "clipped": de.clipped(D),
    "clipped EDM": de.clipped(de.EDM(conversions.to_edm(D))),
    "thresholded": de.thresholded(D),
    "guided": guidance(3.0, batched=False),
    "guided much": guidance(10.0, batched=False),
    "guided, rescaled": guidance(3.0, batched=False, rescale=0.7),
    "clipped, guided": de.clipped(guidance(7.5, batched=False)),
    "autoguided": de.autoguided(D, oracles.Gaussian(0.5).denoiser, 1.5),
    **{
        f"{name} of {type(process).__name__}": getattr(de, f"from_{name}")(
            getattr(conversions, f"to_{name}")(D, process=process), process=process
        )
        for name in ("eps", "v", "x0", "score")
        for process in (CHAIN, cm.VP(), cm.Karras())
    },
}


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", RIGHT)
def test_no_false_alarm_of_denoisers(name, check):
    runs = [
        lambda: cm.dpmpp_2m(RIGHT[name], NOISE, LEVELS, check=check),
        lambda: cm.dpmpp_2m_sde(RIGHT[name], START * Z, CHAIN_LEVELS, seed=0, check=check),
        lambda: cm.heun_pf_ode(RIGHT[name], NOISE[:20], cm.karras_sigmas(5), check=check),
        lambda: cm.rk_pf_ode(RIGHT[name], NOISE[:20], [80.0, 0.05], rtol=1e-3, check=check),
    ]
    assert warned(lambda: [run() for run in runs]) == []


STARTS = {
    "from pictures": (CLEAN + 0.4 * Z, cm.karras_sigmas(10, sigma_max=0.4)),
    "from pictures, near 1": (CLEAN + 0.995 * Z, cm.karras_sigmas(10, sigma_max=0.995)),
    "of a chain, in between": (CLEAN + CHAIN_LEVELS[12] * Z, CHAIN_LEVELS[12:]),
    "to a level": (NOISE, LEVELS[:10]),
    "to a small level": (NOISE, LEVELS[:-1]),
    "a truncated start": (0.7 * NOISE, LEVELS),
    "zeros": (0.0 * NOISE, LEVELS),
    "a few numbers": (torch.tensor([[1.0], [-3.0]]), LEVELS),
    "large data": (NOISE + 100.0 * Z.flip(0), LEVELS),
    "one step": (NOISE, [80.0, 0.0]),
    "whole numbers": (NOISE, [80.0, 60.0, 40.0, 20.0, 0.0]),
    "even steps": (1000.0 * Z, cm.karras_sigmas(20, 0.002, 1000.0, rho=1.0)),
    "decades": (1000.0 * Z, [1000.0, 100.0, 10.0, 1.0, 0.0]),
    "half precision": (NOISE.bfloat16(), LEVELS),
    "double precision": (NOISE.double(), LEVELS),
    "a level of 1": (CLEAN + Z, cm.exponential_sigmas(10, sigma_max=1.0)),
    "even steps below 1": (CLEAN + 0.999 * Z, torch.linspace(0.999, 0.0, 11)),
}


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", STARTS)
def test_no_false_alarm_of_starts(name, check):
    x, levels = STARTS[name]

    def model(x, s):
        return oracles.Gaussian(0.5).denoiser(x.float(), s.float()).to(x.dtype)

    model = (lambda x, s: 100.0**2 / (100.0**2 + column(s) ** 2) * x) if "large" in name else model
    assert warned(lambda: cm.dpmpp_2m(model, x, levels, check=check)) == []


ON_LEVELS = sorted(name for name, facts in catalogue.SOLVERS.items() if facts.space != "time")


def f(x, s):
    """A consistency function of Gaussian data."""
    return oracles.Gaussian(0.5).consistency(x, s, 0.002)


def carried(x, t, s):
    """The flow map of Gaussian data."""
    return x * ((0.25 + s**2) / (0.25 + t**2)).sqrt().reshape(-1, 1)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", [name for name in ON_LEVELS if name != "flow_sde"])
def test_no_false_alarm_of_samplers(name, check):
    sampler, levels = getattr(cm, name), LEVELS
    if catalogue.SOLVERS[name].adaptive:
        levels = LEVELS[:-1]
    if name == "consistency_sample":
        assert warned(lambda: sampler(f, NOISE, [80.0], check=check)) == []
        levels = [80.0, 1.0]
    maps = {"consistency_sample": f, "flow_map_sample": carried}
    model = maps.get(name, D)
    assert warned(lambda: sampler(model, NOISE, levels, check=check)) == []


@pytest.mark.parametrize("check", [False, True])
def test_part_of_a_run_is_judged_by_its_own_levels(check):
    part = {"start": 10, "stop": 15, "check": check}
    x = CLEAN + LEVELS[10] * Z
    assert warned(lambda: cm.heun_pf_ode(D, x, LEVELS, **part)) == []
    first = {"stop": 5, "check": check}
    assert warned(lambda: cm.heun_pf_ode(D, NOISE, LEVELS, **first)) == []
    if check:
        with pytest.raises(ValueError, match="x must hold noise of its level 59"):
            cm.heun_pf_ode(D, Z, LEVELS, start=1, check=True)


def test_other_coordinates_have_other_levels(monkeypatch):
    """Times of a flow begin just below 1 and its state is unit noise; neither is a mistake."""

    class Flow:
        coordinates = "flow"

        def __call__(self, x, s):
            return D(x, s)

    steps = 1 - torch.linspace(0.001, 1, 10, dtype=torch.float64) ** 2
    assert warned(lambda: cm.euler_pf_ode(D, Z, steps)) != []
    forget(monkeypatch)
    assert warned(lambda: cm.euler_pf_ode(Flow(), Z, steps)) == []
    assert warned(lambda: cm.euler_pf_ode(Flow(), Z, steps, check=True)) == []
    with pytest.raises(ValueError, match="x must be finite"):
        cm.euler_pf_ode(Flow(), math.nan * Z, steps, check=True)


UPWARD = {
    "alphas_cumprod": BARS.flip(0)[::50],
    "alphas_cumprod from the end": BARS[torch.arange(999, -1, -50)],
    "timesteps": torch.arange(1.0, 1000.0, 50.0, dtype=torch.float64),
}


@pytest.mark.parametrize("name", UPWARD)
def test_ascending_levels_are_looked_at_too(name):
    (text,) = warned(lambda: cm.dpmpp_2m(D, Z, UPWARD[name]))
    assert ("as timesteps do" if "time" in name else "as alphas_cumprod does") in text
    with pytest.raises(ValueError, match="sigmas must be noise levels"):
        cm.dpmpp_2m(D, Z, UPWARD[name], check=True)


@pytest.mark.parametrize("top", [0.95, 3.0, 80.0])
def test_inversions_are_no_mistake(top):
    up = cm.karras_sigmas(20, 0.002, top, append_zero=False).flip(0)
    data = DATA.sample(100, generator=torch.Generator().manual_seed(0)).float()
    assert warned(lambda: cm.dpmpp_2m(D, data, up)) == []
    assert warned(lambda: cm.dpmpp_2m(D, data, up, check=True)) == []


def flow_of(net, **options):
    return de.from_flow(net, **options)


EXACT_FLOW = conversions.to_flow(D)


def velocity(x, t):
    return EXACT_FLOW(x, t.clamp(max=1 - 1e-6))


def test_a_flow_model_is_looked_at_from_t_1_on():
    times = cm.flow_times(20, 3.0)
    assert warned(lambda: cm.heun_pf_ode(flow_of(velocity), Z, times, check=True)) == []
    with pytest.raises(ValueError, match="x must be noise of standard deviation 1 at the first"):
        cm.heun_pf_ode(flow_of(velocity), 80.0 * Z, times, check=True)
    late = flow_of(lambda x, t: velocity(x, t / 1000))
    with pytest.raises(ValueError, match="Does its network read 1000 t"):
        cm.heun_pf_ode(late, Z, times, check=True)
    right = flow_of(lambda x, t: velocity(x, t / 1000), c_noise=lambda t: 1000 * t)
    assert warned(lambda: cm.heun_pf_ode(right, Z, times, check=True)) == []


SHARP = oracles.GaussianMixture([[-1.0] * 4, [1.0] * 4], [0.05, 0.05], [0.5, 0.5])


@pytest.mark.parametrize("n", [3, 4, 5])
def test_few_steps_are_no_fault_of_the_network(n):
    x = 80.0 * noise.normal((200, 4), seed=0)
    cm.euler_ancestral(SHARP, x, cm.karras_sigmas(n), seed=0, check=True)
    cm.heun_pf_ode(SHARP, x, cm.karras_sigmas(n), check=True)


def test_starts_with_less_noise_are_meant():
    for part in (0.45 * NOISE, NOISE * (torch.arange(2) == 0)):
        assert warned(lambda x=part: cm.heun_pf_ode(D, x, LEVELS, check=True)) == []
    f = cm.ConsistencyFunction(lambda x, c: 0.0 * x, sigma_min=0.1)
    cm.consistency_sample(f, NOISE, [80.0, 1.0], sigma_min=0.1, seed=0, check=True)


@pytest.mark.parametrize("wrong", ["long", "bool"])
def test_a_first_run_has_the_errors_of_every_run(wrong):
    for _ in range(2):
        with pytest.raises(TypeError, match="denoiser must return the dtype of x"):
            cm.euler_pf_ode(lambda x, s: getattr(x, wrong)(), NOISE, LEVELS)


def test_each_line_of_the_user_is_warned_once():
    def first():
        cm.dpmpp_2m(D, Z, LEVELS)

    def second():
        cm.dpmpp_2m(D, Z, LEVELS[1:])

    assert [len(warned(run)) for run in (first, second, first, second)] == [1, 1, 0, 0]


def test_looking_changes_nothing_and_asks_nothing_more():
    calls = []

    def model(x, s, y):
        calls.append(float(s[0]))
        return y * D(x, s)

    one = {"extra_args": {"y": 1.0}, "return_info": True}
    first, info = cm.heun_pf_ode(model, NOISE, LEVELS, **one)
    assert info.nfe == len(calls) == 39
    calls.clear()
    again, info = cm.heun_pf_ode(model, NOISE, LEVELS, **one)
    assert info.nfe == len(calls) == 39 and torch.equal(first, again)
    calls.clear()
    checked, info = cm.heun_pf_ode(model, NOISE, LEVELS, check=True, **one)
    assert info.nfe == 39 and len(calls) == 43 and torch.equal(first, checked)
    assert calls[:2] == [80.0, 40.0] and calls[-2] == pytest.approx(calls[-1] / 3)


def test_a_watched_denoiser_keeps_its_attributes():
    class Model:
        scale = 2.0

        def __call__(self, x, s):
            return D(x, s)

    spy = watching._Spy(Model())
    assert spy.scale == 2.0 and spy.glance() is None
    with pytest.raises(AttributeError, match="other"):
        _ = spy.other


def test_the_same_method_is_looked_at_once(monkeypatch):
    looked = []
    monkeypatch.setattr(criteria, "about_levels", lambda levels: looked.append(1))
    for _ in range(3):
        cm.dpmpp_2m(DATA.denoiser, NOISE, LEVELS)  # a new method object each time
    assert len(looked) == 1
    cm.dpmpp_2m(DATA.denoiser, NOISE, LEVELS[1:])
    assert len(looked) == 2
    models = [lambda x, s: 0.0 * x for _ in range(300)]
    for model in models:
        cm.euler_pf_ode(model, NOISE, [80.0, 0.0])
    assert len(looked) == watching._MOST_LOOKS


def test_errors_of_values():
    bad = NOISE.clone()
    bad[7, 1] = math.nan
    with pytest.raises(ValueError, match="x must be finite; got NaN or infinity in sample 7"):
        cm.dpmpp_2m(D, bad, LEVELS, check=True)
    with pytest.raises(ValueError, match="denoiser must return finite values at sigma 80; got NaN"):
        cm.dpmpp_2m(lambda x, s: x / 0.0, NOISE, LEVELS, check=True)
    with pytest.raises(ValueError, match="f must return clean data x0"):
        cm.consistency_sample(eps, NOISE, [80.0], check=True)
    with pytest.raises(TypeError, match="check must be True or False; got 1"):
        cm.dpmpp_2m(D, NOISE, LEVELS, check=1)
    with pytest.raises(ValueError, match="check must not be set for a captured run"):
        cm.capture(cm.dpmpp_2m, D, NOISE, LEVELS, check=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'check'"):
        sde = cm.VP().reverse(cm.VP().score_of(D))
        cm.euler_maruyama(sde, Z, [1.0, 0.1], check=True)


def test_nothing_is_looked_at_where_functions_are_transformed():
    def end(x):
        return cm.euler_pf_ode(D, x, [80.0, 1.0, 0.0], grad=True, check=True).sum()

    assert warned(lambda: torch.func.grad(end)(Z)) == []
    assert torch.func.grad(end)(Z).shape == Z.shape


def test_derivatives_do_not_see_the_looks():
    x = NOISE.clone().requires_grad_()

    def slope():
        return torch.autograd.grad(cm.euler_pf_ode(D, x, LEVELS, grad=True).square().sum(), x)[0]

    first = slope()
    assert len(watching.ONCE._known) == 1 and torch.equal(first, slope())


def test_a_number_that_has_not_come_is_none():
    assert glances.Glance(torch.tensor([1.0, 2.0])).read() == [1.0, 2.0]
    assert glances.Glance(torch.tensor(math.nan)).read() is None
    assert glances.Glance(torch.tensor(math.inf)).read() == [math.inf]
    assert glances.root_mean_square(torch.tensor([3.0, -4.0])).item() == pytest.approx(12.5**0.5)
    assert glances.root_mean_square(torch.ones(0, 3)).item() == 0


def test_what_came_late_is_said_by_a_later_run(monkeypatch):
    """As on a GPU, whose numbers are on their way while the run has ended on the host."""
    late = []

    def read(glance, known=glances.Glance.read):
        return known(glance) if late else None

    monkeypatch.setattr(glances.Glance, "read", read)
    assert warned(lambda: cm.dpmpp_2m(eps, NOISE, LEVELS)) == []
    late.append(True)
    (text,) = warned(lambda: cm.dpmpp_2m(eps, NOISE, LEVELS))
    assert "as an eps network does" in text and not watching.ONCE.waits


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    levels = LEVELS
    texts = warned(lambda: [cm.dpmpp_2m(eps, NOISE.cuda(), levels) for _ in range(2)])
    torch.cuda.synchronize()
    texts += warned(lambda: cm.dpmpp_2m(eps, NOISE.cuda(), levels))
    assert sum("as an eps network does" in text for text in texts) == 1
    run = cm.capture(cm.dpmpp_2m, lambda x, s: 0.0 * x, NOISE.cuda(), levels)
    assert torch.equal(run(NOISE.cuda()), torch.zeros_like(NOISE.cuda()))
