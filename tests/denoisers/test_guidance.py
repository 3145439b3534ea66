"""Guidance and limits of D: against the formulas, under every sampler, folded into its steps."""

import math
from functools import partial

import pytest
import torch

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.denoisers import EDM, ConsistencyFunction, from_eps
from cmsolvers.denoisers.clipping import clipped, thresholded
from cmsolvers.denoisers.guidance import autoguided, guided
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.engine.answers import leaves
from cmsolvers.engine.lower import lower
from cmsolvers.engine.program import Call, Launch, Wants
from cmsolvers.solvers.heun import heun_step
from cmsolvers.tasks.editing import Inpaint, conditioned
from cmsolvers.tasks.likelihood import log_likelihood
from support.algorithms import TABLE
from support.algorithms.row import SEED, Path, fresh
from support.columns import column
from support.formulas import traced
from support.launches import counted_launches

F64 = torch.float64
SIGMAS = cm.karras_sigmas(6, 0.05, 20.0)
SHAPE = (4, 2, 3)
INTERVAL = (0.3, 5.0)
SCALES = torch.tensor([0.0, 1.0, 2.5, -0.5], dtype=F64)
LABELS = torch.tensor([0.3, -0.2, 0.9, 0.5], dtype=F64)
NONE = torch.zeros(4, dtype=F64)


def latent(dtype=F64, scale=20.0):
    return (scale * noise.normal(SHAPE, 5, dtype=F64)).to(dtype)


def net(x, c, label, gain=1.0):
    return gain * (x * 1.3).sin() + column(label, x) + 0.1 * column(c, x)


def plain(x, sigma, label, gain=1.0):
    return 0.4 * (0.7 * x).sin() * column(label, x) + 0.1 * gain * column(sigma, x).cos()


def weak(x, sigma, label, gain=1.0):
    return 0.2 * x.cos() + gain * column(label, x)


MODELS = {
    "callable": plain,
    "edm": EDM(net),
    "low": EDM(lambda x, c, **extra: net(x, c, **extra), dtype=torch.float32),
    "eps": from_eps(lambda x, t, **extra: 0.1 * net(x, 0.01 * t, **extra), process=cm.Karras()),
}


def by_hand(x, sigma, first, second, scale, interval=(0.0, math.inf)):
    """D_u + w (D_c - D_u) as published, with a level that is the same for all."""
    level = torch.full((len(x),), float(sigma), dtype=x.dtype)
    d_c = first(x, level)
    if not interval[0] < float(sigma) <= interval[1]:
        return d_c
    d_u = second(x, level)
    w = column(scale, x) if isinstance(scale, torch.Tensor) else scale
    return d_u + w * (d_c - d_u)


def close(got, expected, rtol=1e-10):
    error = (got.double() - expected.double()).abs().max() / expected.abs().max()
    assert error < rtol, error


def pair(model, kind="labels", **options):
    """(guided denoiser, its two sides)."""
    own = {"label": LABELS, "gain": 0.8}, {"label": NONE, "gain": 0.8}
    other = weak if kind == "two" else None
    one = guided(model, conditional=own[0], unconditional=own[1], weak=other, **options)
    second = other or model
    return one, lambda x, s: model(x, s, **own[0]), lambda x, s: second(x, s, **own[1])


each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@each_model
@pytest.mark.parametrize("scale", [3.0, 0.0, 1.0, SCALES], ids=["3", "0", "1", "tensor"])
@pytest.mark.parametrize("kind", ["batched", "twice", "two"])
def test_plain_call_is_the_formula(model, scale, kind):
    x = latent()
    denoiser, first, second = pair(
        model, kind, scale=scale, interval=INTERVAL, batched=kind == "batched"
    )
    for sigma in (20.0, 5.0, 1.0, 0.3, 0.1):
        expected = by_hand(x, sigma, first, second, scale, INTERVAL)
        close(denoiser(x, sigma), expected, 1e-6 if model is MODELS["low"] else 1e-12)
        as_tensor = denoiser(x, torch.full((4,), sigma, dtype=F64))
        close(as_tensor, expected, 1e-6 if model is MODELS["low"] else 1e-12)
    mixed = torch.tensor([20.0, 5.0, 1.0, 0.3], dtype=F64)
    rows = [by_hand(x, s, first, second, scale, INTERVAL)[i] for i, s in enumerate(mixed.tolist())]
    close(denoiser(x, mixed), torch.stack(rows), 1e-6)
    close(
        denoiser(x, torch.tensor(1.0, dtype=F64)),
        by_hand(x, 1.0, first, second, scale),
        1e-6,
    )


def test_guided_gaussians_are_a_gaussian():
    """Two Gaussians of one width: D is that of the mean m_u + w (m_c - m_u), so the flow is too."""
    x = latent()
    denoiser = autoguided(Gaussian(0.5, 0.7), Gaussian(0.5, 0.2), 3.0)
    target = Gaussian(0.5, 0.2 + 3.0 * 0.5)
    close(denoiser(x, 2.0), target(x, 2.0), 1e-14)
    close(cm.heun_pf_ode(denoiser, x, SIGMAS), cm.heun_pf_ode(target, x, SIGMAS), 1e-12)


def told(row):
    if not row.path:
        return {"seed": SEED}, fresh(SHAPE)
    path = Path(SHAPE)
    return {"noise_sampler": path}, lambda i, a, b: path(a, b)


def chosen():
    """The first row of each sampler, and all with churn."""
    seen = set()
    for row in TABLE:
        if row.sampler not in seen or "s_churn" in row.options:
            seen.add(row.sampler)
            yield row


each_row = pytest.mark.parametrize("row", list(chosen()), ids=lambda row: row.name)


def run_both(row, denoiser, model):
    """A sampler on the denoiser, and the published algorithm on the model by hand."""
    options, drawn = told(row)
    seen = []
    got, info = row.sampler(
        denoiser, latent(), SIGMAS, callback=seen.append, return_info=True, **options, **row.options
    )
    expected = row.algorithm(model, latent(), SIGMAS.tolist(), drawn)
    close(got, expected)
    assert info.nfe == row.nfe(6, True)
    for entry in seen:
        close(entry["denoised"], model(entry["x"], entry["sigma_hat"]))
    again = row.sampler(denoiser, latent(), SIGMAS, **options, **row.options)
    assert torch.equal(again, got)


@each_row
@pytest.mark.parametrize(
    "name, kind, scale",
    [("edm", "batched", 2.5), ("edm", "twice", SCALES), ("callable", "two", 3.0)],
    ids=["one-call", "scales", "two-models"],
)
def test_every_sampler_runs_it(row, name, kind, scale):
    denoiser, first, second = pair(
        MODELS[name], kind, scale=scale, interval=INTERVAL, batched=kind == "batched"
    )
    run_both(row, denoiser, lambda x, s: by_hand(x, s, first, second, scale, INTERVAL))


@each_row
def test_a_network_guided_by_another_network(row):
    """Sides with other coefficients each."""
    strong, feeble = EDM(net), EDM(net, sigma_data=0.9, c_noise="sigma")
    denoiser = guided(
        strong, -1.5, conditional={"label": LABELS}, unconditional={"label": NONE}, weak=feeble
    )
    run_both(
        row,
        denoiser,
        lambda x, s: by_hand(
            x,
            s,
            lambda x, s: strong(x, s, label=LABELS),
            lambda x, s: feeble(x, s, label=NONE),
            -1.5,
        ),
    )


@each_row
@pytest.mark.parametrize("name", ["edm", "callable"])
def test_every_sampler_clips(row, name):
    model, args = MODELS[name], {"label": LABELS}
    denoiser = clipped(lambda x, s: plain(x, s, **args), -0.2, 0.3)
    inner = plain
    if name == "edm":
        bound = EDM(lambda x, c: net(x, c, LABELS))
        denoiser, inner = clipped(bound, -0.2, 0.3), model

    def hand(x, s):
        return inner(x, torch.full((4,), float(s), dtype=F64), **args).clamp(-0.2, 0.3)

    assert (hand(latent(), 1.0).abs() >= 0.2).any()
    run_both(row, denoiser, hand)


@each_row
def test_limits_of_guided_denoisers(row):
    one, first, second = pair(MODELS["edm"], scale=4.0)

    def hand(x, s):
        return by_hand(x, s, first, second, 4.0).clamp(-1, 1)

    run_both(row, clipped(one), hand)
    other, its, none = pair(MODELS["callable"], scale=4.0, rescale=0.7)

    def limited(x, s):
        d_c = its(x, torch.full((4,), float(s), dtype=F64))
        return thresholds(rescaled(by_hand(x, s, its, none, 4.0), d_c, 0.7).clamp(-2, 2))

    run_both(row, thresholded(clipped(other, -2, 2), 0.9, 0.2), limited)


def rescaled(d, d_c, phi):
    """Lin et al. (2023), eq. 15 and 16."""
    wanted, found = (v.flatten(1).std(1).reshape(-1, 1, 1) for v in (d_c, d))
    return phi * (d * wanted / found) + (1 - phi) * d


def thresholds(d, q=0.9, floor=0.2):
    """Saharia et al. (2022): s is a quantile of each sample's absolute values, no less than 1."""
    s = torch.quantile(d.flatten(1).abs(), q, dim=1).clamp(min=floor).reshape(-1, 1, 1)
    return d.clamp(-s, s) / s * floor


def test_rescale():
    x, phi = latent(), 0.7
    denoiser, first, second = pair(MODELS["edm"], scale=6.0, rescale=phi)
    d_c = first(x, torch.full((4,), 2.0, dtype=F64))
    close(denoiser(x, 2.0), rescaled(by_hand(x, 2.0, first, second, 6.0), d_c, phi), 1e-12)
    full, *_ = pair(MODELS["edm"], scale=6.0, rescale=1.0)
    torch.testing.assert_close(full(x, 2.0).flatten(1).std(1), d_c.flatten(1).std(1))
    flat = guided(lambda x, s: 0 * x + 2, 3.0, unconditional={}, rescale=1.0)
    assert torch.equal(flat(x, 1.0), torch.full_like(x, 2.0))
    assert flat(x[:0], 1.0).shape == (0, 2, 3) and flat(x[:, 0, 0], 1.0).shape == (4,)


@pytest.mark.parametrize("q", [0.0, 0.31, 0.5, 0.995, 1.0])
def test_thresholds_are_quantiles(q):
    x = latent(scale=1.0) * torch.tensor([0.1, 1.0, 4.0, 9.0], dtype=F64).reshape(-1, 1, 1)
    got = thresholded(lambda x, s: x, q)(x, 1.0)
    close(got, thresholds(x, q, 1.0), 1e-14)
    assert torch.equal(got[0], x[0])
    for row in range(4):
        assert torch.equal(thresholded(lambda x, s: x, q)(x[row : row + 1], 1.0)[0], got[row])
    low = thresholded(lambda x, s: x, q)(x.half(), 1.0)
    assert low.dtype == torch.float16
    assert thresholded(lambda x, s: x)(x[:0], 1.0).shape == (0, 2, 3)


def test_adaptive_solvers_run_it():
    """Levels are tensors there: the interval is settled on the device, one sample at a time."""
    x, ends = latent(), [20.0, 0.05]
    denoiser = autoguided(Gaussian(0.5, 0.7), Gaussian(0.5, 0.2), 3.0)
    exact = Gaussian(0.5, 1.7).consistency(x, 20.0, 0.05)
    close(cm.rk_pf_ode(denoiser, x, ends, rtol=1e-8, atol=1e-8), exact, 1e-6)
    args = {"label": LABELS, "scale": SCALES, "null": NONE}

    def each(x, sigma, label, scale, null):
        own = {"conditional": {"label": label}, "unconditional": {"label": null}}
        return guided(plain, scale, interval=INTERVAL, **own)(x, sigma)

    own = {"conditional": {"label": LABELS}, "unconditional": {"label": NONE}}
    whole = guided(plain, SCALES, interval=INTERVAL, **own)
    expected = cm.rk_pf_ode(whole, x, ends, mode="masked")
    close(cm.rk_pf_ode(each, x, ends, extra_args=args), expected, 1e-12)


HELD = {"conditional": {"label": LABELS}, "unconditional": {"label": NONE}}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("outer", ["alone", "clipped", "both", "weak", "conditioned", "known"])
def test_what_belongs_to_a_sample_follows_it(outer, batched):
    """Scales, labels, images and masks where samples leave the batch, or come several times."""
    x, y = latent(), latent(scale=1.0)
    inner = guided(plain, SCALES, interval=INTERVAL, batched=batched, **HELD)
    mask = torch.arange(4 * 6).reshape(4, 2, 3) % 5 < torch.arange(4).reshape(4, 1, 1)
    denoiser = {
        "alone": lambda: inner,
        "clipped": lambda: clipped(inner, -3.0, 3.0),
        "both": lambda: guided(inner, SCALES, unconditional={}, batched=batched),
        "weak": lambda: guided(inner, SCALES, weak=clipped(inner), batched=batched),
        "conditioned": lambda: conditioned(inner, y, Inpaint(mask)),
        "known": lambda: guided(conditioned(inner, y, Inpaint(mask)), SCALES, unconditional={}),
    }[outer]()
    for solver in (cm.rk_pf_ode, partial(cm.dpm_adaptive, seed=3)):
        expected, info = solver(denoiser, x, [20.0, 0.05], mode="masked", return_info=True)
        assert len(set(info.nfe.tolist())) > 1
        close(solver(denoiser, x, [20.0, 0.05]), expected, 1e-12)


def test_likelihood_with_rows_of_its_own():
    y, levels, options = latent(scale=1.0), [2.0, 0.3], {"trace": "exact", "rtol": 1e-4}
    found = log_likelihood(guided(plain, SCALES, **HELD), y, levels, **options).log_density
    for k, scale in enumerate(SCALES):
        own = {"conditional": {"label": LABELS[k]}, "unconditional": {"label": NONE[k]}}
        one = guided(plain, scale, batched=False, **own)
        same = log_likelihood(one, y[k : k + 1], levels, **options).log_density
        close(found[k : k + 1], same, 1e-10)


def test_a_batch_of_both_sides_nests():
    """The inner scale and image have B rows where the outer call has 2 B."""
    x, y = latent(), latent(scale=1.0)
    inner = guided(plain, SCALES, **HELD)
    for side in (inner, conditioned(inner, y, Inpaint(torch.eye(3, dtype=torch.bool)[:2]))):
        for level in (2.0, torch.full((4,), 2.0, dtype=F64)):
            one, two = (guided(side, SCALES, unconditional={}, batched=b) for b in (True, False))
            close(one(x, level), two(x, level), 1e-14)


def test_rows_that_nobody_told_of():
    x = latent()
    with pytest.raises(ValueError, match=r"\[B\] = \[3\]; got \[4\].*mode='masked'"):
        guided(plain, SCALES, **HELD)(x[:3], 1.0)
    with pytest.raises(ValueError, match=r"shape of y.*mode='masked'"):
        conditioned(lambda x, s: x, x, Inpaint(torch.ones(3, dtype=torch.bool)))(x[:3], 1.0)


def test_likelihood_of_it():
    """The density of the Gaussian that two guided ones are, by tangents through the composition."""
    x = latent(scale=0.5) + 1.5
    denoiser = autoguided(Gaussian(0.5, 0.7), Gaussian(0.5, 0.2), 3.0)
    for one in (denoiser, clipped(denoiser, -5e3, 5e3)):
        found = log_likelihood(one, x, [500.0, 0.05], trace="exact").log_density
        same = log_likelihood(Gaussian(0.5, 1.7), x, [500.0, 0.05], trace="exact").log_density
        close(found, same, 1e-9)
    assert (found - Gaussian(0.5, 1.7).log_density(x, 0.05)).abs().max() < 0.02


# --- what it costs ----------------------------------------------------------------------------


@pytest.fixture
def launches():
    """All steps that are launched."""
    with counted_launches() as seen:
        yield seen


def steps_of(launches):
    """Without the scaling of the very first input."""
    return [launch for launch in launches if launch.name == "weighted_step"]


def counting_net(calls):
    def call(x, c, label):
        calls.append(len(x))
        return net(x, c, label)

    return call


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("sampler", [cm.heun_pf_ode, cm.euler_pf_ode, cm.ddpm_ancestral])
def test_a_guided_step_is_one_launch(sampler, batched, launches):
    calls = []
    denoiser = guided(
        EDM(counting_net(calls)),
        3.0,
        conditional={"label": LABELS},
        unconditional={"label": NONE},
        interval=INTERVAL,
        batched=batched,
    )
    _, info = sampler(denoiser, latent(), SIGMAS, seed=1, return_info=True)
    steps = steps_of(launches)
    assert len(steps) == info.nfe and len(launches) == info.nfe + 1
    assert max(launch.inputs for launch in steps) == (4 if sampler is cm.heun_pf_ode else 2)
    assert steps[0].options["second"] > 0  # c_in of the next level goes with it
    heun = traced(heun_step, SIGMAS.tolist())
    levels = heun.levels if sampler is cm.heun_pf_ode else SIGMAS[:-1].tolist()
    inside = sum(INTERVAL[0] < s <= INTERVAL[1] for s in levels)
    assert 0 < inside < len(levels) == info.nfe
    assert sorted(set(calls)) == ([4, 8] if batched else [4])
    assert len(calls) == (info.nfe if batched else info.nfe + inside)


def test_weights_of_0_call_one_side_only():
    def refuse(x, sigma):
        raise AssertionError("not to be called")

    x = latent()
    for sampler in (cm.heun_pf_ode, cm.euler_pf_ode):
        assert torch.equal(
            sampler(autoguided(Gaussian(0.5), refuse, 1.0), x, SIGMAS),
            sampler(Gaussian(0.5), x, SIGMAS),
        )
        one = autoguided(refuse, EDM(lambda x, c: x.sin()), 0.0)
        close(sampler(one, x, SIGMAS), sampler(EDM(lambda x, c: x.sin()), x, SIGMAS), 1e-12)


def test_clipping_is_a_flag_of_the_step(launches):
    denoiser = clipped(EDM(lambda x, c: net(x, c, LABELS)), -0.5, 0.5)
    _, info = cm.euler_pf_ode(denoiser, latent(), SIGMAS, return_info=True)
    steps = steps_of(launches)
    assert len(steps) == info.nfe
    assert all(launch.options["clamp"] == (-0.5, 0.5) for launch in steps)
    launches.clear()
    _, info = cm.heun_pf_ode(denoiser, latent(), SIGMAS, return_info=True)
    assert len(steps_of(launches)) == 2 * info.nfe - 1  # D, then the step; the last is D itself


class Fixed(EDM):
    """Two levels with coefficients that are easy to write down; the network sees y itself."""

    def coefficients(self, sigma):
        return {2.0: (0.3, 0.7, 1.0, 0.0), 1.0: (0.6, -0.2, 1.0, 0.0)}[sigma]


def test_rows_over_two_outputs_are_the_algebra():
    """D_k = skip y_k + a F + b G, one entry per sample, done by hand."""
    w = torch.tensor([0.5, 3.0], dtype=F64)
    x, f, g, f2, g2 = torch.arange(1.0, 11.0, dtype=F64).reshape(5, 2)
    d = 0.3 * x + 0.7 * (w * f + (1 - w) * g)
    y = x + (1.0 - 2.0) * (x - d) / 2.0
    d2 = 0.6 * y - 0.2 * (w * f2 + (1 - w) * g2)
    expected = x + (1.0 - 2.0) * 0.5 * ((x - d) / 2.0 + (y - d2) / 1.0)
    for one_call in (False, True):
        sides = Fixed(net), Fixed(net)
        one = guided(
            sides[0], w, unconditional={}, weak=None if one_call else sides[1], batched=one_call
        )
        program = lower(traced(heun_step, (2.0, 1.0)), one, F64, Wants(fused=True))
        (code,) = program.steps
        first, second = (op.row for op in code if isinstance(op, Launch))
        assert len(first) == 3 and len(second) == 5
        assert sum(isinstance(op, Call) for op in code) == (2 if one_call else 4)
        close(sum(a * b for a, b in zip(first, (x, f, g), strict=True)), y, 1e-14)
        close(sum(a * b for a, b in zip(second, (x, f, g, f2, g2), strict=True)), expected, 1e-14)


def test_what_is_folded():
    """Guidance becomes weights of the step; CFG-rescale is not linear, so it is called as it is."""
    x, (denoiser, *_) = latent(), pair(MODELS["edm"], scale=2.0, batched=False)
    assert [leaf.name for leaf in leaves(denoiser, "denoiser", {}, x)] == ["net", "net"]
    rescaled_one, *_ = pair(MODELS["edm"], scale=2.0, rescale=0.5)
    (leaf,) = leaves(rescaled_one, "denoiser", {}, x)
    assert leaf.composed and leaf.name == "denoiser" and leaf.call is rescaled_one


# --- promises of the loop ---------------------------------------------------------------------

DENOISERS = {
    "guided": lambda b: guided(
        EDM(net), 2.0, conditional={"label": LABELS[b]}, unconditional={"label": NONE[b]}
    ),
    "scales": lambda b: guided(
        plain, SCALES[b], conditional={"label": LABELS[b]}, unconditional={"label": NONE[b]}
    ),
    "rescaled": lambda b: guided(
        EDM(net),
        2.0,
        conditional={"label": LABELS[b]},
        unconditional={"label": NONE[b]},
        rescale=0.5,
    ),
    "clipped": lambda b: clipped(EDM(lambda x, c: net(x, c, LABELS[b])), -0.3, 0.3),
    "thresholded": lambda b: thresholded(lambda x, s: plain(x, s, LABELS[b]), 0.8, 0.2),
    "nested": lambda b: clipped(DENOISERS["guided"](b)),
}
each_denoiser = pytest.mark.parametrize("make", DENOISERS.values(), ids=DENOISERS)
WHOLE = slice(None)


@each_denoiser
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampler", [cm.heun_pf_ode, cm.ddpm_ancestral])
def test_batch_splits_bit_for_bit(make, dtype, sampler):
    x = latent(dtype)
    whole = sampler(make(WHOLE), x, SIGMAS, seed=3)
    assert whole.dtype == dtype and whole.isfinite().all()
    part = slice(1, 3)
    key = noise.key(3, 2, offset=1)
    assert torch.equal(sampler(make(part), x[part], SIGMAS, seed=key), whole[part])


@each_denoiser
@pytest.mark.parametrize("sampler", [cm.heun_pf_ode, cm.ddpm_ancestral])
def test_derivatives(make, sampler):
    x = latent(scale=2.0)[:2, :1].clone().requires_grad_()
    denoiser = make(slice(0, 2))
    assert torch.autograd.gradcheck(lambda x: denoiser(x, 1.3), (x,))
    assert torch.autograd.gradcheck(
        lambda x: sampler(denoiser, x, SIGMAS[2:], seed=1, grad=True), (x,), atol=1e-5
    )


def test_derivatives_in_both_networks():
    weight = torch.tensor([0.4, 0.9], dtype=F64, requires_grad=True)
    x = latent(scale=2.0)[:2]

    def call(w):
        one = autoguided(
            EDM(lambda x, c: (w[0] * x).sin()), EDM(lambda x, c: (w[1] * x).cos()), 2.0
        )
        return cm.heun_pf_ode(one, x, SIGMAS, grad=True)

    assert torch.autograd.gradcheck(call, (weight,))


@each_denoiser
def test_compiles_whole(make):
    torch._dynamo.reset()
    denoiser, x, s = make(WHOLE), latent(), torch.full((4,), 0.7, dtype=F64)
    compiled = torch.compile(lambda x, s: denoiser(x, s), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, s), denoiser(x, s), rtol=1e-12, atol=1e-12)


@each_denoiser
def test_layouts_and_the_users_x(make):
    x = latent()
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    before = turned.clone()
    got = cm.heun_pf_ode(make(WHOLE), turned, SIGMAS)
    close(got, cm.heun_pf_ode(make(WHOLE), x, SIGMAS), 1e-12)
    assert torch.equal(turned, before)


def test_bad_outputs_of_either_side_are_named():
    def broken(x, sigma):
        y = 0 * x
        y[2] = math.nan
        return y

    for one in (autoguided(broken, Gaussian(0.5), 2.0), autoguided(Gaussian(0.5), broken, 2.0)):
        with pytest.raises(ValueError, match="step 0, sigma 20, sample 2"):
            cm.heun_pf_ode(one, latent(), SIGMAS, check_nan=True)


def test_consistency_functions_can_be_clipped():
    f = ConsistencyFunction(lambda x, c: net(x, c, LABELS))
    got = cm.consistency_sample(clipped(f, -0.1, 0.2), latent(), [20.0, 1.0], seed=1)
    z = noise.normal(SHAPE, 1, stream=noise.STEPS, dtype=F64)
    middle = f(latent(), 20.0).clamp(-0.1, 0.2) + math.sqrt(1 - 0.002**2) * z
    close(got, f(middle, 1.0).clamp(-0.1, 0.2), 1e-12)


def test_nested_extra_arguments_are_batched():
    seen = []

    def model(x, sigma, cond, mode, table):
        seen.append((len(x), cond["label"].shape, mode, table.shape))
        return 0 * x

    table = torch.zeros(4, 9)
    one = guided(
        model,
        2.0,
        conditional={"cond": {"label": LABELS}},
        unconditional={"cond": {"label": NONE}},
    )
    cm.euler_pf_ode(one, latent(), [1.0, 0.5], extra_args={"mode": "a", "table": table})
    assert seen == [(8, (8,), "a", (8, 9))]


# --- bad input --------------------------------------------------------------------------------

DATA = Gaussian(0.5)
BAD = {
    "denoiser": (lambda: guided(3, 1.0, unconditional={}), TypeError, "denoiser must be callable"),
    "unconditional": (
        lambda: guided(DATA, 1.0, unconditional=3),
        TypeError,
        "unconditional must be None or a dict with str keys; got 3",
    ),
    "keys": (
        lambda: guided(DATA, 1.0, unconditional={3: 1}),
        TypeError,
        "unconditional must be None or a dict with str keys",
    ),
    "neither": (
        lambda: guided(DATA, 1.0),
        TypeError,
        "unconditional must be a dict with str keys where weak is None; got None",
    ),
    "conditional": (
        lambda: guided(DATA, 1.0, unconditional={}, conditional=[1]),
        TypeError,
        "conditional must be None or a dict",
    ),
    "scale": (lambda: autoguided(DATA, DATA, "2"), TypeError, "scale must be a number; got '2'"),
    "scale-nan": (lambda: autoguided(DATA, DATA, math.nan), ValueError, "scale must be a number"),
    "scale-inf": (lambda: autoguided(DATA, DATA, math.inf), ValueError, "scale must be finite"),
    "scale-ints": (
        lambda: autoguided(DATA, DATA, torch.tensor([1, 2])),
        TypeError,
        "scale must be float64",
    ),
    "scale-2d": (
        lambda: autoguided(DATA, DATA, torch.ones(2, 2)),
        ValueError,
        r"scale must be a number or have shape \[B\]; got shape \[2, 2\]",
    ),
    "scale-grad": (
        lambda: autoguided(DATA, DATA, torch.ones(4, requires_grad=True)),
        ValueError,
        "scale must not require a gradient",
    ),
    "scale-rows": (
        lambda: autoguided(DATA, DATA, torch.ones(3))(latent(), 1.0),
        ValueError,
        r"scale must be a number or have shape \[B\] = \[4\]; got \[3\]",
    ),
    "scale-rows-in-a-run": (
        lambda: cm.heun_pf_ode(autoguided(DATA, DATA, torch.ones(3)), latent(), SIGMAS),
        ValueError,
        r"scale must be a number or have shape \[B\] = \[4\]; got \[3\]",
    ),
    "weak": (lambda: autoguided(DATA, None, 1.0), TypeError, "weak must be callable; got None"),
    "interval": (
        lambda: autoguided(DATA, DATA, 2.0, interval=3.0),
        TypeError,
        r"interval must be \(low, high\); got 3.0",
    ),
    "interval-order": (
        lambda: autoguided(DATA, DATA, 2.0, interval=(2.0, 1.0)),
        ValueError,
        r"interval\[0\] must be below interval\[1\]; got 2 and 1",
    ),
    "interval-negative": (
        lambda: autoguided(DATA, DATA, 2.0, interval=(-2.0, 1.0)),
        ValueError,
        r"interval\[0\] must not be negative",
    ),
    "rescale": (
        lambda: guided(DATA, 2.0, unconditional={}, rescale=1.5),
        ValueError,
        r"rescale must be in \[0, 1\]; got 1.5",
    ),
    "batched": (
        lambda: guided(DATA, 2.0, unconditional={}, batched=1),
        TypeError,
        "batched must be True or False; got 1",
    ),
    "names": (
        lambda: guided(DATA, 2.0, conditional={"label": LABELS}, unconditional={})(latent(), 1.0),
        TypeError,
        "label must be given in both conditional and unconditional to be batched; batched=False",
    ),
    "none": (
        lambda: guided(DATA, 2.0, conditional={"label": LABELS}, unconditional={"label": None})(
            latent(), 1.0
        ),
        TypeError,
        "label must be a tensor of 4 rows on both sides to be batched.* and None; batched=False",
    ),
    "rows": (
        lambda: cm.heun_pf_ode(
            guided(DATA, 2.0, conditional={"c": LABELS[:3]}, unconditional={"c": NONE[:3]}),
            latent(),
            SIGMAS,
        ),
        TypeError,
        "c must be a tensor of 4 rows on both sides",
    ),
    "output": (
        lambda: autoguided(DATA, lambda x, s: x[:1], 2.0)(latent(), 1.0),
        ValueError,
        r"denoiser must return the shape of x, \[4, 2, 3\]",
    ),
    "output-in-a-run": (
        lambda: cm.heun_pf_ode(autoguided(DATA, lambda x, s: None, 2.0), latent(), SIGMAS),
        TypeError,
        "denoiser must return a torch.Tensor; it returned None",
    ),
    "output-of-both": (
        lambda: cm.heun_pf_ode(
            guided(EDM(lambda x, c: x[:4]), 2.0, unconditional={}), latent(), SIGMAS
        ),
        ValueError,
        r"net must return the shape of x, \[8, 2, 3\]; it returned \[4, 2, 3\]",
    ),
    "x": (lambda: autoguided(DATA, DATA, 2.0)([1.0], 1.0), TypeError, "x must be a torch.Tensor"),
    "sigma": (
        lambda: autoguided(DATA, DATA, 2.0)(latent(), 0.0),
        ValueError,
        "sigma must be positive",
    ),
    "clip": (lambda: clipped(3), TypeError, "denoiser must be callable; got 3"),
    "clip-low": (lambda: clipped(DATA, -math.inf), ValueError, "low must be finite"),
    "clip-high": (
        lambda: clipped(DATA, 1.0, -1.0),
        ValueError,
        "low must be below high; got 1 and -1",
    ),
    "quantile": (lambda: thresholded(DATA, 1.5), ValueError, r"quantile must be in \[0, 1\]"),
    "floor": (lambda: thresholded(DATA, 0.9, 0.0), ValueError, "floor must be positive; got 0"),
    "threshold": (lambda: thresholded(None), TypeError, "denoiser must be callable"),
}


@pytest.mark.parametrize("call, error, match", BAD.values(), ids=BAD)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


# --- controls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["scale", "interval", "sides"])
def test_other_guidance_is_told_apart(change):
    """The comparison of every sampler fails for a formula that is slightly different."""
    row = next(row for row in TABLE if row.sampler is cm.heun_pf_ode)
    denoiser, first, second = pair(MODELS["edm"], scale=2.5, interval=INTERVAL)
    scale, interval = 2.5, INTERVAL
    if change == "scale":
        scale = 2.5 * (1 + 1e-6)
    elif change == "interval":
        interval = (INTERVAL[0], 3.0)
    else:
        first, second = second, first
    with pytest.raises(AssertionError):
        run_both(row, denoiser, lambda x, s: by_hand(x, s, first, second, scale, interval))
