"""What the loop of the t-space solvers promises, for every solver."""

# ruff: noqa: E731 - a table binds the variables of its loops as defaults of lambdas

import inspect
import math
from itertools import pairwise

import pytest
import torch

import cmsolvers as cm
from cmsolvers import milstein, noise, predictor_corrector, sra1, stochastic_heun
from cmsolvers.ops.norms import sums_of_squares
from support.launches import counted_launches
from support.sde_cases import F64, OWN, REVERSE, SEED, VP, T, close, latent, two_normals, z

RUNS = {
    "milstein": lambda x, **o: milstein(OWN, x, T, **o),
    "milstein-additive": lambda x, **o: milstein(REVERSE, x, T, **o),
    "heun": lambda x, **o: stochastic_heun(REVERSE, x, T, **o),
    "heun-own": lambda x, **o: stochastic_heun(OWN, x, T, **o),
    "sra1": lambda x, **o: sra1(REVERSE, x, T, **o),
    "sra1-forward": lambda x, **o: sra1(VP, x, T[::-1], **o),
    "sra1-own": lambda x, **o: sra1(cm.SDE(OWN.drift, lambda t: 0.1 * (1 + t)), x, T, **o),
    "pc": lambda x, **o: predictor_corrector(REVERSE, x, T, **o),
    "pc-denoise": lambda x, **o: predictor_corrector(
        REVERSE, x, T, predictor="ancestral", corrector_steps=2, denoise=True, **o
    ),
}
each_run = pytest.mark.parametrize("sample", RUNS.values(), ids=RUNS)
SHAPE = (7, 3, 5, 3)


@each_run
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_batch_splits_bit_for_bit(sample, dtype):
    x = latent(dtype, SHAPE)
    whole = sample(x, seed=11)
    assert whole.dtype == dtype
    for cut in (1, 4):
        rest = sample(x[cut:], seed=noise.key(11, 7 - cut, offset=cut))
        assert torch.equal(torch.cat([sample(x[:cut], seed=11), rest]), whole)


@each_run
def test_lower_precision_stays_near(sample):
    x = latent(torch.float16, SHAPE)
    exact = sample(x.double(), seed=1)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 0.03)):
        got = sample(x.to(dtype), seed=1).double()
        assert (got - exact).abs().max() < tolerance * exact.abs().max()


@each_run
def test_seeds_layouts_and_the_users_x(sample):
    x = latent(torch.float32, (7, 3, 5, 6))[..., ::2]
    before = x.clone()
    got = sample(x, seed=3)
    assert torch.equal(x, before) and torch.equal(got, sample(x, seed=3))
    assert not torch.equal(got, sample(x, seed=4))
    torch.testing.assert_close(got, sample(x.contiguous(), seed=3), rtol=1e-5, atol=1e-5)
    wide = x.contiguous(memory_format=torch.channels_last)
    last = sample(wide, seed=3)
    torch.testing.assert_close(last, got, rtol=1e-5, atol=1e-5)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    first = sample(x)
    torch.manual_seed(0)
    assert torch.equal(sample(x), first)
    assert sample(latent(torch.float32, (0, 3, 5)), seed=3).shape == (0, 3, 5)


@each_run
def test_callbacks_trajectories_and_nan_checks_change_nothing(sample, capsys):
    x, entries, copies = latent(torch.float32, SHAPE), [], []

    def callback(entry):
        entries.append(entry)
        copies.append(entry["x"].clone())

    plain = sample(x, seed=3)
    assert torch.equal(sample(x, seed=3, callback=callback), plain)
    assert [e["i"] for e in entries] == [0, 1, 2, 3]
    assert sorted(e["t"] for e in entries) == sorted(t for t, _ in times_of(sample, entries))
    for entry, copy in zip(entries, copies, strict=True):
        assert torch.equal(entry["x"], copy)
    got, info = sample(x, seed=3, trajectory=True, check_nan=True, progress=True)
    assert torch.equal(got, plain) and info.trajectory.shape == (5, *SHAPE)
    assert torch.equal(info.trajectory[:4], torch.stack(copies))
    assert torch.equal(info.trajectory[4], plain) and sorted(info.levels) == sorted(T)
    _, some = sample(x, seed=3, trajectory=[0.3])
    assert torch.equal(some.trajectory[0], info.trajectory[info.levels.index(0.3)])
    assert "NFE" in capsys.readouterr().err


def times_of(sample, entries):
    """The steps that the entries tell of must be those of T, forward or backward."""
    steps = [(e["t"], e["t_next"]) for e in entries]
    assert steps in (list(pairwise(T)), list(pairwise(T[::-1])))
    return steps


@each_run
def test_own_noise_of_library_noise_is_the_library(sample):
    x, draws = latent(F64, SHAPE), iter(range(100))
    options = {"noise_sampler": lambda a, b: z(x, next(draws))}
    if sample in SRA1_RUNS:
        noises = two_normals(x)
        steps, areas = iter(range(4)), iter(range(4))
        options = {
            "noise_sampler": lambda a, b: noises(next(steps))[0],
            "area_sampler": lambda a, b: noises(next(areas))[1],
        }
    close(sample(x, **options), sample(x, seed=SEED), rtol=1e-12)


SRA1_RUNS = [RUNS[name] for name in ("sra1", "sra1-forward", "sra1-own")]


def test_who_is_asked_for_which_interval():
    asked, x = [], latent()

    def sampler(a, b):
        asked.append((a, b))
        return torch.zeros_like(x)

    for sample in (RUNS["milstein"], RUNS["heun"], RUNS["sra1"]):
        asked.clear()
        sample(x, noise_sampler=sampler)
        assert asked == list(pairwise(T))
    asked.clear()
    sra1(REVERSE, x, T, area_sampler=sampler, seed=1)
    assert asked == list(pairwise(T))
    asked.clear()
    predictor_corrector(REVERSE, x, T, corrector_steps=2, noise_sampler=sampler)
    assert asked == [e for t, u in pairwise(T) for e in ((t, u), (u, u), (u, u))]


def test_half_of_the_noise_of_sra1_can_be_built_in():
    """With increments alone the area is draw 2 i + 1, and the seed still governs."""
    x = latent()
    own = lambda a, b: torch.ones_like(x)
    steps = iter(range(4))
    area = lambda a, b: z(x, 2 * next(steps) + 1)
    got = sra1(REVERSE, x, T, noise_sampler=own, seed=SEED)
    assert torch.equal(got, sra1(REVERSE, x, T, noise_sampler=own, area_sampler=area))
    torch.manual_seed(3)
    first = sra1(REVERSE, x, T, noise_sampler=own)
    torch.manual_seed(3)
    assert torch.equal(first, sra1(REVERSE, x, T, noise_sampler=own))


@each_run
def test_derivatives_flow_through_a_run(sample):
    x = latent(F64, (2, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sample(x, seed=1, grad=True), (x,))
    with torch.no_grad():
        assert not sample(x, seed=1, grad=True).requires_grad


@each_run
def test_without_grad_nothing_is_recorded(sample):
    x = latent(F64, (2, 3))
    plain, wanted = sample(x, seed=1), x.clone().requires_grad_()
    with pytest.warns(UserWarning, match="x requires a gradient.*grad=True records"):
        got = sample(wanted, seed=1)
    assert not got.requires_grad and torch.equal(got, plain)
    recorded = sample(wanted, seed=1, grad=True)
    assert recorded.requires_grad
    close(recorded.detach(), plain, rtol=1e-13)


@each_run
def test_forward_mode_through_a_run(sample):
    x = latent(F64, (2, 3))
    _, tangent = torch.func.jvp(lambda x: sample(x, seed=1), (x,), (torch.ones_like(x),))
    slope = (sample(x + 1e-5, seed=1) - sample(x - 1e-5, seed=1)) / 2e-5
    torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=1e-8)


def test_derivatives_in_the_diffusion():
    x, weight = latent(F64, (2, 3)), torch.tensor(0.4, dtype=F64, requires_grad=True)
    for solver, dependent in ((milstein, True), (stochastic_heun, True), (sra1, False)):

        def run(w, solver=solver, dependent=dependent):
            g = (lambda x, t: w * x.sin()) if dependent else (lambda t: w * t)
            sde = cm.SDE(lambda x, t: -x, g, state_dependent=dependent)
            return solver(sde, x, T, seed=1, grad=True)

        assert torch.autograd.gradcheck(run, (weight,))


@pytest.mark.parametrize("solver", [stochastic_heun, sra1, predictor_corrector])
def test_models_that_return_their_input_or_a_view_of_it(solver):
    x = latent(torch.float32, (4, 6, 6))
    view = VP.reverse(lambda x, t: x.transpose(1, 2))
    expected = solver(VP.reverse(lambda x, t: x.transpose(1, 2).clone()), x, T, seed=1)
    assert torch.equal(solver(view, x, T, seed=1), expected)
    same = solver(VP.reverse(lambda x, t: x.clone()), x, T, seed=1)
    assert torch.equal(solver(VP.reverse(lambda x, t: x), x, T, seed=1), same)


def test_a_diffusion_that_is_its_input():
    x = latent(torch.float32, (4, 6))
    view = cm.SDE(lambda x, t: -x, lambda x, t: x, state_dependent=True)
    copied = cm.SDE(lambda x, t: -x, lambda x, t: x.clone(), state_dependent=True)
    for solver in (milstein, stochastic_heun):
        assert torch.equal(solver(view, x, T, seed=1), solver(copied, x, T, seed=1))


def test_first_bad_output_is_named_with_its_own_time():
    def broken(x, t):
        y = -x
        if t[0] < 0.55:
            y[3, 0] = math.nan
        return y

    x = latent()
    bad = VP.reverse(broken)
    for solver, place in (
        (milstein, "step 2, t 0.5, sample 3"),
        (stochastic_heun, "step 1, t 0.5, sample 3"),
        (predictor_corrector, "step 1, t 0.5, sample 3"),
        (sra1, "step 2, t 0.5, sample 3"),
    ):
        with pytest.raises(ValueError, match=f"sde must give finite values.*{place}"):
            solver(bad, x, T, check_nan=True, seed=1)


@pytest.mark.parametrize("solver", [milstein, stochastic_heun, sra1, predictor_corrector])
def test_signatures_show_the_shared_options(solver):
    names = set(inspect.signature(solver).parameters)
    assert {"seed", "noise_sampler", "callback", "trajectory", "check_nan"} <= names
    with pytest.raises(TypeError, match=rf"{solver.__name__}\(\) got an unexpected keyword"):
        solver(REVERSE, latent(), T, sead=1)


@pytest.mark.parametrize(
    "solver, launches",
    [
        (cm.euler_maruyama, 1),
        (milstein, 1),
        (stochastic_heun, 2),
        (sra1, 2),
        (predictor_corrector, 2),
    ],
)
def test_launches_a_step(solver, launches):
    """All noise is made inside them, that of SRA1's two normals too."""
    with counted_launches() as counted:
        solver(REVERSE, latent(torch.float32), T, seed=1)
    assert len(counted) == 4 * launches
    assert all("seed" in launch.options for launch in counted)


def test_extra_args_reach_the_model():
    seen = []

    def score(x, t, *, label):
        seen.append((tuple(t.shape), round(t[0].item(), 6), label))
        return -x

    for solver, nodes in (
        (stochastic_heun, [t for pair in pairwise(T) for t in pair]),
        (sra1, [v for t, u in pairwise(T) for v in (t, t + 0.75 * (u - t))]),
        (predictor_corrector, [t for pair in pairwise(T) for t in pair]),
    ):
        seen.clear()
        solver(VP.reverse(score), latent(), T, seed=1, extra_args={"label": 3})
        assert seen == [((5,), round(t, 6), 3) for t in nodes]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 24, 1000])
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.float16, torch.bfloat16])
def test_norms_are_each_samples_own(size, dtype):
    x = latent(dtype, (9, size))
    whole = sums_of_squares(x)
    exact = x.double().square().sum(1)
    torch.testing.assert_close(whole.double(), exact, rtol=2e-6, atol=0)
    for b in range(9):
        assert torch.equal(sums_of_squares(x[b : b + 1]), whole[b : b + 1])
