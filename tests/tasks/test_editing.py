"""Editing: orthogonal operators, algorithm 4 as published, exact parts and exact statistics."""

import importlib.util
import math
import sys
from functools import partial

import pytest
import torch

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.denoisers import EDM, ConsistencyFunction
from cmsolvers.denoisers.clipping import clipped
from cmsolvers.denoisers.oracles import Gaussian, GaussianMixture
from cmsolvers.tasks import editing
from cmsolvers.tasks.editing import (
    Colorize,
    Inpaint,
    SuperResolve,
    conditioned,
    denoise,
    edit,
    stroke,
)
from cmsolvers.tasks.interpolation import interpolate, slerp
from support import ROOT

F64 = torch.float64
SHAPE = (3, 3, 6, 4)
MASK = torch.zeros(6, 4, dtype=torch.bool)
MASK[1:4, 2:] = True
LEVELS = [20.0, 3.0, 0.8]


class Rotation(editing.Operator):
    """One of a user's own: a random orthogonal matrix on pixels, half of the entries known."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        matrix = torch.randn(24, 24, dtype=F64, generator=generator)
        self.q = torch.linalg.qr(matrix).Q

    def check(self, name, x):
        assert x.shape[-2:] == (6, 4)

    def transform(self, x):
        return x.flatten(-2) @ self.q.to(x)

    def inverse(self, coefficients):
        return (coefficients @ self.q.T.to(coefficients)).unflatten(-1, (6, 4))

    def known(self, coefficients):
        return torch.arange(24) % 2 == 0

    def measure(self, x):
        return self.transform(x)[..., ::2]

    def lift(self, measured):
        full = torch.zeros(*measured.shape[:-1], 24, dtype=measured.dtype)
        full[..., ::2] = measured
        return self.inverse(full)


OPERATORS = {
    "inpaint": Inpaint(MASK),
    "inpaint-each": Inpaint(torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.5),
    "colorize": Colorize(),
    "colorize-weights": Colorize([1.0, 1.0, 0.0]),
    "super-2": SuperResolve(2),
    "super-1": SuperResolve(1),
    "own": Rotation(),
}
each_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def image(shape=SHAPE, seed=7, dtype=F64):
    return (0.5 * noise.normal(shape, seed, stream=noise.OTHER, dtype=F64)).to(dtype)


def net(x, c):
    return 0.3 * (x * 1.7).sin() + 0.1 * c.reshape([-1] + [1] * (x.ndim - 1)).to(x.dtype)


F = ConsistencyFunction(net)


# --- operators --------------------------------------------------------------------------------


@each_operator
def test_operators_are_orthogonal(operator):
    size = math.prod(SHAPE[1:])
    basis = torch.eye(size, dtype=F64).reshape(size, *SHAPE[1:])
    if operator is OPERATORS["inpaint-each"]:
        operator = Inpaint(operator.mask[:1])
    a = operator.transform(basis).reshape(size, size)
    torch.testing.assert_close(a @ a.T, torch.eye(size, dtype=F64), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        operator.inverse(operator.transform(basis)), basis, atol=1e-14, rtol=0
    )


@each_operator
def test_restore_is_the_formula_with_the_matrix(operator):
    """A^-1 [(A y) (1 - omega) + (A x) omega], omega the unknown entries."""
    x, y = image(), image(seed=8)
    got = operator.restore(x, y)
    ax, ay = operator.transform(x), operator.transform(y)
    omega = (~operator.known(ax)).double()
    torch.testing.assert_close(got, operator.inverse(ay * (1 - omega) + ax * omega))
    torch.testing.assert_close(operator.measure(got), operator.measure(y), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(operator.restore(got, y), got, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(operator.restore(y, y), y, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(operator.kept(y), operator.restore(torch.zeros_like(y), y))


@each_operator
def test_lifting_keeps_the_measurement(operator):
    y = image()
    measured = operator.measure(y)
    lifted = operator.lift(measured)
    assert lifted.shape == y.shape
    torch.testing.assert_close(operator.measure(lifted), measured, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(operator.kept(lifted), operator.kept(y), rtol=1e-13, atol=1e-13)


def test_first_coefficients():
    x = image()
    grey = 0.2989 * x[:, 0] + 0.5870 * x[:, 1] + 0.1140 * x[:, 2]
    norm = math.sqrt(0.2989**2 + 0.5870**2 + 0.1140**2)
    torch.testing.assert_close(Colorize().transform(x)[:, 0], grey / norm)
    torch.testing.assert_close(Colorize().measure(x)[:, 0], grey / (0.2989 + 0.5870 + 0.1140))
    means = torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(SuperResolve(2).transform(x)[..., 0], 2 * means)
    torch.testing.assert_close(SuperResolve(2).measure(x), means)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_any_factor(factor):
    x = image((2, 1, 3 * factor, 2 * factor))
    operator = SuperResolve(factor)
    assert operator.transform(x).shape == (2, 1, 3, 2, factor**2)
    torch.testing.assert_close(operator.inverse(operator.transform(x)), x)
    torch.testing.assert_close(
        operator.transform(x).square().sum((1, 2, 3, 4)), x.square().sum((1, 2, 3))
    )


# --- edits ------------------------------------------------------------------------------------


@each_operator
def test_edit_is_algorithm_4(operator):
    """Song et al. (2023), algorithm 4; its mask is 1 where nothing is known."""
    y, seed, end = image(), 11, 0.002
    omega = (~operator.known(operator.transform(y))).double()

    def put_back(x, y):
        return operator.inverse(operator.transform(y) * (1 - omega) + operator.transform(x) * omega)

    z = [noise.normal(SHAPE, seed, stream=noise.LATENT, dtype=F64)]
    z += [noise.normal(SHAPE, seed, draw=i, stream=noise.STEPS, dtype=F64) for i in range(2)]
    start = operator.inverse(operator.transform(y) * (1 - omega))
    x = put_back(F(start + LEVELS[0] * z[0], LEVELS[0]), y)
    for level, noise_ in zip(LEVELS[1:], z[1:], strict=True):
        x = put_back(F(x + math.sqrt(level**2 - end**2) * noise_, level), y)
    got, info = edit(F, y, LEVELS, operator=operator, seed=seed, return_info=True)
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)
    assert info.nfe == 3


SAMPLERS = {
    "consistency": (cm.consistency_sample, F, LEVELS),
    "heun": (cm.heun_pf_ode, EDM(net), [20.0, 3.0, 0.4, 0.0]),
    "ddpm": (cm.ddpm_ancestral, EDM(net), [20.0, 3.0, 0.4, 0.0]),
    "callable": (cm.euler_pf_ode, Gaussian(0.5, 0.2), [20.0, 3.0, 0.4, 0.0]),
}
each_sampler = pytest.mark.parametrize("sampler, model, levels", SAMPLERS.values(), ids=SAMPLERS)


@each_sampler
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.float16])
def test_known_pixels_come_back_to_the_bit(sampler, model, levels, dtype):
    y = image(dtype=dtype)
    y[:, :, MASK] = math.nan  # nothing there is read
    got = edit(model, y, levels, operator=Inpaint(MASK), sampler=sampler, seed=1)
    assert got.dtype == dtype and got.isfinite().all()
    assert torch.equal(got[:, :, ~MASK], y[:, :, ~MASK])
    assert not torch.equal(got[:, :, MASK], torch.zeros_like(got[:, :, MASK]))


@each_sampler
@each_operator
def test_measurements_come_back(sampler, model, levels, operator):
    y = image()
    got = edit(model, y, levels, operator=operator, sampler=sampler, seed=1)
    torch.testing.assert_close(operator.measure(got), operator.measure(y), rtol=1e-12, atol=1e-13)
    if operator is not OPERATORS["super-1"]:
        assert (got - y).abs().max() > 0.01


@pytest.mark.parametrize("sampler", [cm.heun_pf_ode, cm.ddim, cm.dpmpp_2m])
def test_known_part_of_the_ode_is_the_noised_measurement(sampler):
    """Song et al. (2021), appendix I.2: at every level it is y + sigma z."""
    y, levels = image(), [20.0, 6.0, 1.5, 0.4, 0.0]
    _, info = edit(
        EDM(net), y, levels, operator=Inpaint(MASK), sampler=sampler, seed=5, trajectory=True
    )
    z = noise.normal(SHAPE, 5, stream=noise.LATENT, dtype=F64)
    for level, state in zip(levels, info.trajectory, strict=True):
        expected = (y + level * z)[:, :, ~MASK]
        torch.testing.assert_close(state[:, :, ~MASK], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["inpaint", "colorize", "super-2"])
def test_statistics_given_what_is_known(name):
    """Of independent Gaussian pixels the unknown coefficients stay Gaussian, whatever is known."""
    data, operator, n = Gaussian(0.5, 0.2), OPERATORS[name], 4000
    y = image((1, *SHAPE[1:])).expand(n, -1, -1, -1)

    def f(x, sigma):
        return data.consistency(x, sigma)

    mean = operator.transform(torch.full((1, *SHAPE[1:]), 0.2, dtype=F64))
    for sampler, model, levels in (
        (cm.consistency_sample, f, [80.0]),
        (cm.consistency_sample, f, [80.0, 1.0]),
        (cm.heun_pf_ode, data, cm.karras_sigmas(80, 0.002, 80.0)),
    ):
        got = operator.transform(edit(model, y, levels, operator=operator, sampler=sampler, seed=2))
        unknown = (~operator.known(got)).expand(got.shape[1:] if name == "inpaint" else got.shape)
        if name != "inpaint":
            unknown = unknown[0]
        samples, wanted = got[:, unknown], mean[0, unknown]
        sizes = samples.numel()
        assert abs((samples - wanted).mean()) < 5 * 0.5 / math.sqrt(sizes) + 2e-3
        assert abs((samples - wanted).std() - 0.5) < 5 * 0.5 / math.sqrt(2 * sizes) + 4e-3
        known = got[:, ~unknown]
        assert known.std(0).max() < 1e-12


def test_the_rest_follows_what_is_known():
    """Two clusters at (-1, -1) and (1, 1): a known 1 calls for 1, noise helps."""
    data = GaussianMixture(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), 0.1)
    y = torch.tensor([[1.0, math.nan], [-1.0, math.nan]], dtype=F64).repeat(1000, 1)
    operator, levels = Inpaint(torch.tensor([False, True])), cm.karras_sigmas(40, 0.02, 20.0)
    churning = partial(cm.heun_pf_ode, s_churn=20.0)
    right = []
    for sampler in (cm.heun_pf_ode, cm.ddpm_ancestral, churning):
        got = edit(data, y, levels, operator=operator, sampler=sampler, seed=3)
        right.append((got[:, 1].sign() == got[:, 0]).double().mean().item())
    assert right == pytest.approx([0.84, 0.97, 0.99], abs=0.03)
    free = cm.heun_pf_ode(data, 20 * noise.normal((2000, 2), 3, dtype=F64), levels)
    assert (free[:, 1].sign() == y[:, 0]).double().mean().item() == pytest.approx(0.5, abs=0.06)


@each_sampler
def test_seeds_and_batches(sampler, model, levels):
    y, operator = image(dtype=torch.float32), SuperResolve(2)

    def run(y, **options):
        return edit(model, y, levels, operator=operator, sampler=sampler, **options)

    whole = run(y, seed=1)
    assert torch.equal(run(y, seed=1), whole) and not torch.equal(run(y, seed=2), whole)
    assert torch.equal(run(y[1:], seed=noise.key(1, 2, offset=1)), whole[1:])
    seeds = torch.tensor([4, 5, 6])
    assert torch.equal(run(y[:1], seed=seeds[:1]), run(y, seed=seeds)[:1])
    torch.manual_seed(0)
    first = run(y)
    torch.manual_seed(0)
    assert torch.equal(run(y), first)


def test_derivatives():
    y = image((2, 1, 2, 2)).requires_grad_()
    operator = SuperResolve(2)
    assert torch.autograd.gradcheck(
        lambda y: edit(F, y, [3.0, 0.5], operator=operator, seed=1, grad=True), (y,)
    )
    x = image((2, 1, 2, 2), 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: conditioned(F, y.detach(), operator)(x, 0.7), (x,))


# --- strokes, denoising, interpolation --------------------------------------------------------


def test_stroke_is_noise_and_sampling():
    y = image()
    z = noise.normal(SHAPE, 4, stream=noise.LATENT, dtype=F64)
    got = stroke(F, y, [3.0, 0.8], seed=4)
    assert torch.equal(got, cm.consistency_sample(F, y + 3.0 * z, [3.0, 0.8], seed=4))
    levels = [3.0, 0.8, 0.0]
    got = stroke(EDM(net), y, levels, sampler=cm.ddpm_ancestral, seed=4)
    assert torch.equal(got, cm.ddpm_ancestral(EDM(net), y + 3.0 * z, levels, seed=4))
    kept = stroke(F, y, [3.0, 0.8], operator=Inpaint(MASK), seed=4)
    assert torch.equal(kept[:, :, ~MASK], y[:, :, ~MASK])
    assert not torch.equal(kept[:, :, MASK], y[:, :, MASK])


def test_strokes_are_nearer_from_lower_levels():
    y, data = image(), Gaussian(0.5)
    distances = [
        (stroke(data.consistency, y, [level], seed=1) - y).abs().mean()
        for level in (0.1, 0.5, 2.0, 20.0)
    ]
    assert distances == sorted(distances) and distances[0] < 0.2 * distances[-1]


def test_denoise():
    x = image()
    levels = torch.tensor([0.3, 1.0, 7.0], dtype=F64)
    assert torch.equal(denoise(F, x, 2.0), F(x, torch.full((3,), 2.0, dtype=F64)))
    assert torch.equal(denoise(F, x, levels), F(x, levels))
    data = Gaussian(0.5, 0.1)
    exact = data.consistency(x, levels)
    torch.testing.assert_close(denoise(data.consistency, x, levels), exact)


def test_slerp_against_the_formula():
    x1, x2 = image(seed=1), image(seed=2)
    for alpha in (0.0, 0.25, 0.5, 0.9, 1.0):
        got = slerp(x1, x2, alpha)
        for a, b, c in zip(x1, x2, got, strict=True):
            psi = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
            c2 = (torch.sin((1 - alpha) * psi) * a + torch.sin(alpha * psi) * b) / torch.sin(psi)
            torch.testing.assert_close(c, c2, rtol=1e-12, atol=1e-12)
    assert torch.equal(slerp(x1, x2, 0.0), x1) and torch.equal(slerp(x1, x2, 1.0), x2)
    unit = x1 / x1.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(
        slerp(unit, unit.roll(1, 0), 0.3).flatten(1).norm(dim=1), torch.ones(3, dtype=F64)
    )
    assert torch.equal(slerp(x1, x1, 0.5), x1)
    near = x1 * (1 + 1e-9)
    torch.testing.assert_close(slerp(x1, near, 0.5), x1)
    assert slerp(x1, -x1, 0.25).isfinite().all() and slerp(0 * x1, x1, 0.5).isfinite().all()
    assert slerp(x1.half(), x2.half(), 0.5).dtype == torch.float16


def test_interpolation():
    x1, x2 = (20 * image(seed=s) for s in (1, 2))
    got = interpolate(F, x1, x2, [20.0], 5)
    assert got.shape == (5, *SHAPE)
    for k in range(5):
        expected = F(slerp(x1, x2, k / 4), 20.0)
        torch.testing.assert_close(got[k], expected, rtol=1e-12, atol=1e-12)
    for seed in (3, torch.tensor([5, 6, 7]), noise.key(3, 3, offset=2)):
        several = interpolate(F, x1, x2, LEVELS, 3, seed=seed)
        assert torch.equal(several[0], cm.consistency_sample(F, x1, LEVELS, seed=seed))
        assert torch.equal(several[2], cm.consistency_sample(F, x2, LEVELS, seed=seed))
        middle = cm.consistency_sample(F, slerp(x1, x2, 0.5), LEVELS, seed=seed)
        assert torch.equal(several[1], middle)
    ode = interpolate(EDM(net), x1, x2, [20.0, 1.0, 0.0], 2, sampler=cm.heun_pf_ode)
    assert torch.equal(ode[1], cm.heun_pf_ode(EDM(net), x2, [20.0, 1.0, 0.0]))


def test_interpolation_repeats_extra_arguments():
    x1, x2 = (20 * image(seed=s) for s in (1, 2))
    labels, shared = torch.tensor([0.0, 1.0, -2.0], dtype=F64), torch.ones(2, dtype=F64)

    def labelled(x, sigma, label, more):
        return 0.5 * x + label.reshape(-1, 1, 1, 1) + more["shared"].sum() * more["rows"][:, None]

    extra = {"label": labels, "more": {"rows": labels[:, None, None], "shared": shared}}
    options = {"sampler": cm.euler_pf_ode, "extra_args": extra}
    several = interpolate(labelled, x1, x2, [20.0, 1.0, 0.0], 3, **options)
    for k, x in ((0, x1), (1, slerp(x1, x2, 0.5)), (2, x2)):
        expected = cm.euler_pf_ode(labelled, x, [20.0, 1.0, 0.0], extra_args=extra)
        torch.testing.assert_close(several[k], expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(TypeError, match="extra_args must be None or a dict"):
        interpolate(labelled, x1, x2, [20.0, 0.0], 3, sampler=cm.euler_pf_ode, extra_args=[1])


def test_interpolation_of_no_samples():
    x = image()[:0]
    assert slerp(x, x, 0.3).shape == x.shape
    for seed in (3, torch.zeros(0, dtype=torch.int64)):
        assert interpolate(F, x, x, LEVELS, 4, seed=seed).shape == (4, *x.shape)


@pytest.mark.parametrize(
    "sampler", [cm.rk_pf_ode, cm.dpm_adaptive, partial(cm.rk_pf_ode, rtol=1e-3)]
)
def test_solvers_that_take_no_seed(sampler):
    y, levels = image(), [20.0, 0.4, 0.0]
    for operator in (IN, Colorize()):
        got = edit(EDM(net), y, levels, operator=operator, sampler=sampler, seed=2)
        torch.testing.assert_close(operator.measure(got), operator.measure(y), rtol=0, atol=1e-12)
        z = noise.normal(SHAPE, 2, dtype=F64)
        target = conditioned(EDM(net), y, operator)
        expected = sampler(target, operator.kept(y) + 20.0 * z, levels)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    drawn = stroke(EDM(net), y, levels, sampler=sampler, seed=2)
    torch.testing.assert_close(drawn, sampler(EDM(net), y + 20.0 * z, levels), rtol=0, atol=1e-12)
    between = interpolate(EDM(net), 20 * y, 20 * z, levels, 2, sampler=sampler, seed=2)
    torch.testing.assert_close(between[1], sampler(EDM(net), 20 * z, levels), rtol=0, atol=1e-12)


def test_a_function_brings_its_sigma_min():
    """Through wrappers and partial samplers too: each end is an identity only for its own."""
    f, y = ConsistencyFunction(net, sigma_min=0.01), image()
    expected = edit(f, y, LEVELS, operator=IN, seed=1, sigma_min=0.01)
    for model in (f, clipped(f, -1e9, 1e9)):
        for sampler in (cm.consistency_sample, partial(cm.consistency_sample, s_noise=1.0)):
            got = edit(model, y, LEVELS, operator=IN, seed=1, sampler=sampler)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    ends = interpolate(f, 20 * y, 20 * y.flip(0), [20.0], 2)
    assert torch.equal(ends[0], f(20 * y, 20.0))
    for sampler in (partial(cm.consistency_sample, sigma_min=0.002), cm.consistency_sample):
        options = {} if isinstance(sampler, partial) else {"sigma_min": 0.002}
        with pytest.raises(ValueError, match=r"sigma_min must be that of model, 0.01; got 0.002"):
            stroke(f, y, LEVELS, sampler=sampler, **options)


@pytest.mark.parametrize("operator", [Inpaint(MASK), Colorize(), SuperResolve(2)])
def test_edits_keep_the_layout(operator):
    y = image().to(memory_format=torch.channels_last)
    got = edit(F, y, LEVELS, operator=operator, seed=0)
    assert got.stride() == y.stride()
    assert torch.equal(got, edit(F, y.contiguous(), LEVELS, operator=operator, seed=0))


def test_the_example_draws_its_picture(tmp_path, monkeypatch):
    """In a tiny size: it trains, edits and draws; the second run takes the checkpoints."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    path = ROOT / "examples" / "editing.py"
    if not path.exists():
        pytest.skip("needs a checkout: an installed package has no examples")
    spec = importlib.util.spec_from_file_location("editing_example", path)
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "editing_example", example)
    spec.loader.exec_module(example)
    arguments = ["--out", str(tmp_path), "--steps", "6", "3", "--width", "16"]
    picture = example.main(arguments)
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    monkeypatch.setattr(example, "score_trainer", None)
    assert example.main(arguments).read_bytes() == first


# --- bad input --------------------------------------------------------------------------------

Y = image()
IN = Inpaint(MASK)
BAD = {
    "mask": (lambda: Inpaint(MASK.float()), TypeError, "mask must be a bool tensor"),
    "mask-none": (lambda: Inpaint(None), TypeError, "mask must be a bool tensor; got None"),
    "mask-shape": (
        lambda: edit(F, Y, LEVELS, operator=Inpaint(MASK[:5])),
        ValueError,
        r"mask must broadcast to y, shape \[3, 3, 6, 4\]; got \[5, 4\]",
    ),
    "mask-larger": (
        lambda: edit(F, Y, LEVELS, operator=Inpaint(MASK.expand(2, 1, 1, 6, 4))),
        ValueError,
        "mask must broadcast to y",
    ),
    "weights": (lambda: Colorize([1.0, -1.0]), ValueError, "weights must not sum to 0"),
    "weights-none": (lambda: Colorize([]), ValueError, "weights must not sum to 0"),
    "weights-nan": (lambda: Colorize([math.nan]), ValueError, r"weights\[0\] must be a number"),
    "channels": (
        lambda: edit(F, Y[:, :1], LEVELS, operator=Colorize()),
        ValueError,
        r"y must have 3 channels, shape \[B, 3, ...\]; got \[3, 1, 6, 4\]",
    ),
    "factor": (lambda: SuperResolve(2.0), TypeError, "factor must be an int; got 2.0"),
    "factor-0": (lambda: SuperResolve(0), ValueError, "factor must be at least 1; got 0"),
    "patches": (
        lambda: edit(F, Y, LEVELS, operator=SuperResolve(4)),
        ValueError,
        "y must have rows and columns.*in multiples of factor = 4; got shape",
    ),
    "restore": (
        lambda: IN.restore(Y, Y[:1]),
        ValueError,
        r"y must have the shape of x, \[3, 3, 6, 4\]; got \[1, 3, 6, 4\]",
    ),
    "operator": (
        lambda: edit(F, Y, LEVELS, operator=MASK),
        TypeError,
        "operator must be an Operator; got a torch.bool tensor",
    ),
    "model": (lambda: edit(3, Y, LEVELS, operator=IN), TypeError, "model must be callable; got 3"),
    "y": (
        lambda: edit(F, Y.long(), LEVELS, operator=IN),
        TypeError,
        "y must be float64, float32, float16 or bfloat16; got torch.int64",
    ),
    "sigmas": (
        lambda: edit(F, Y, [1.0, 2.0], operator=IN),
        ValueError,
        "sigmas must be strictly descending",
    ),
    "sampler": (
        lambda: edit(F, Y, LEVELS, operator=IN, sampler="heun"),
        TypeError,
        "sampler must be callable; got 'heun'",
    ),
    "option": (
        lambda: edit(F, Y, LEVELS, operator=IN, sead=1),
        TypeError,
        "unexpected keyword argument 'sead'",
    ),
    "sigma_min": (
        lambda: edit(F, Y, LEVELS, operator=IN, sigma_min=0.01),
        ValueError,
        "sigma_min must be that of model, 0.002; got 0.01",
    ),
    "x": (
        lambda: conditioned(F, Y, IN)(Y[:1], 1.0),
        ValueError,
        r"x must have the shape of y, \[3, 3, 6, 4\]; got \[1, 3, 6, 4\]",
    ),
    "stroke": (lambda: stroke(F, None, LEVELS), TypeError, "y must be a torch.Tensor; got None"),
    "stroke-operator": (
        lambda: stroke(F, Y, LEVELS, operator=3),
        TypeError,
        "operator must be an Operator; got 3",
    ),
    "denoise": (lambda: denoise(F, Y, 0.0), ValueError, "sigma must be positive; got 0"),
    "denoise-levels": (
        lambda: denoise(F, Y, torch.ones(2)),
        ValueError,
        r"sigma must have shape \[\] or \[B\] = \[3\]; got \[2\]",
    ),
    "slerp": (
        lambda: slerp(Y, Y[:1], 0.5),
        ValueError,
        "x2 must have the shape and device of x1",
    ),
    "slerp-dtype": (
        lambda: slerp(Y, Y.float(), 0.5),
        TypeError,
        "x2 must have the dtype of x1, torch.float64; got torch.float32",
    ),
    "slerp-alpha": (lambda: slerp(Y, Y, math.inf), ValueError, "alpha must be finite; got inf"),
    "n": (lambda: interpolate(F, Y, Y, LEVELS, 1), ValueError, "n must be at least 2; got 1"),
    "info": (
        lambda: interpolate(F, Y, Y, LEVELS, 2, return_info=True),
        ValueError,
        "return_info must be left out here; got True",
    ),
}


@pytest.mark.parametrize("call, error, match", BAD.values(), ids=BAD)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("operator", [Colorize((0.1, 0.2, 0.71)), SuperResolve(6)])
def test_what_is_kept_between_calls_serves_gradients(operator):
    """The first call in inference mode, and under another default device."""
    y = image(shape=(2, 3, 6, 6))
    with torch.inference_mode(), torch.device("meta"):
        operator.measure(y), operator.restore(y, y)
    x = y.clone().requires_grad_()
    operator.restore(x, y).square().sum().backward()
    assert x.grad.isfinite().all()
