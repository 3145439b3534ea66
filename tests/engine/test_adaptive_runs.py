"""What adaptive runs count, pass on and show, and how they fail."""

import inspect
import math

import pytest
import torch

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.engine import outputs as outputs_module
from cmsolvers.engine.adaptive import SolverError
from cmsolvers.engine.options import SHARED
from cmsolvers.engine.outputs import Outputs
from cmsolvers.solvers import adaptive_sde, dpm_adaptive, rk_pf_ode
from cmsolvers.solvers.rk_pf_ode import solve
from support.adaptive_cases import (
    ALONE,
    EXACT,
    GAUSSIAN,
    MIXTURE,
    MODES,
    SOLVERS,
    START,
    elementwise,
    reference,
    worst,
)
from support.exact import assert_same_bits
from support.orders import F64, FIRST, LAST
from support.waits import Waits

some_solvers = pytest.mark.parametrize(
    "name", ["heun21-sigma", "dopri54-log_sigma", "dpm2", "dpm3"]
)


@some_solvers
def test_calls_are_counted(name):
    solver, levels, tolerance = SOLVERS[name], [FIRST, LAST], {"rtol": 1e-4, "atol": 1e-4}
    calls = []

    def counted(x, sigma):
        calls.append(len(x))
        return MIXTURE(x, sigma)

    _, info = solver(counted, START[:1], levels, return_info=True, **tolerance)
    assert info.nfe.tolist() == [len(calls)] and info.calls == len(calls)
    calls.clear()
    _, info = solver(counted, START, levels, return_info=True, **tolerance)
    assert info.calls == len(calls) >= info.nfe.max()
    assert sum(calls) <= info.nfe.sum() * 1.3, "finished samples must leave"
    assert info.attempts == (info.accepted + info.rejected).max()
    calls.clear()
    masked = solver(
        counted, START, levels, mode="masked", check_every=5, return_info=True, **tolerance
    )[1]
    assert set(calls) == {8} and masked.attempts == math.ceil(info.attempts / 5) * 5
    assert torch.equal(masked.nfe, info.nfe)


@pytest.mark.parametrize("solver", [rk_pf_ode, dpm_adaptive, adaptive_sde])
def test_help_is_complete_and_defaults_are_shared(solver):
    parameters = inspect.signature(solver).parameters
    text = inspect.getdoc(solver)
    arguments = text[text.index("Args:") : text.index("Returns:")]
    assert all(f"    {name}: " in arguments for name in parameters)
    assert "as in `" not in text and "as there" not in text and "{" not in text
    for option in SHARED:
        assert parameters[option.name].default == option.default


def test_the_warning_about_gradients_points_at_the_caller():
    x = START.clone().requires_grad_()
    with pytest.warns(UserWarning, match="rk_pf_ode runs without autograd; grad=True") as caught:
        y = rk_pf_ode(MIXTURE, x, [FIRST, LAST])
    assert [warning.filename for warning in caught] == [__file__] and not y.requires_grad


def test_masked_mode_need_not_look():
    y, info = rk_pf_ode(
        MIXTURE, START, [FIRST, LAST], mode="masked", check_every=None, max_steps=60,
        return_info=True,
    )  # fmt: skip
    assert info.attempts == 60 and info.finished.all()
    assert_same_bits(y, rk_pf_ode(MIXTURE, START, [FIRST, LAST]))


def test_extra_args_follow_their_samples():
    target = torch.linspace(-2, 2, 8, dtype=F64)
    seen = []

    def denoiser(x, sigma, *, to, nested, table, scale):
        seen.append(len(x))
        assert len(nested["a"][0]) == len(x) and len(table) == 5
        assert torch.equal(nested["a"][0], to)
        return scale * (to[:, None] + 0.04 / (0.04 + sigma[:, None] ** 2) * (x - to[:, None]))

    extra = {"to": target, "nested": {"a": [target]}, "table": torch.zeros(5), "scale": 1.0}
    y = rk_pf_ode(denoiser, START, [FIRST, 0.001], rtol=1e-7, extra_args=extra)
    moved = target[:, None] + (START - target[:, None]) * math.sqrt((0.04 + 1e-6) / 100.04)
    assert worst(y, moved) < 1e-5
    assert len(set(seen)) > 1


@pytest.mark.parametrize("mode", MODES)
@some_solvers
def test_trajectory(name, mode):
    solver = SOLVERS[name]
    levels = [10.0, 5.0, 1.0, 0.1, 0.0]
    options = {"rtol": 1e-4, "atol": 1e-4, "mode": mode}
    y, info = solver(MIXTURE, START, levels, trajectory=True, **options)
    assert info.levels == tuple(levels) and info.trajectory.shape == (5, 8, 1)
    assert torch.equal(info.trajectory[0], START) and torch.equal(info.trajectory[-1], y)
    for k, level in enumerate(levels[1:4], 1):
        assert worst(info.trajectory[k], reference(level)) < 1e-2
    assert torch.equal(y, MIXTURE(info.trajectory[3], 0.1))
    some, info = solver(MIXTURE, START, levels, trajectory=[1.0, 0.1], **options)
    assert info.levels == (1.0, 0.1) and info.trajectory.shape[0] == 2
    assert worst(info.trajectory[0], reference(1.0)) < 1e-2
    assert worst(some, y) < 1e-2


def test_a_final_zero_is_one_evaluation_at_the_level_before():
    for solver in (rk_pf_ode, dpm_adaptive):
        end, info = solver(MIXTURE, START, [FIRST, LAST], return_info=True)
        clean, more = solver(MIXTURE, START, [FIRST, 1.0, LAST, 0.0], return_info=True)
        assert torch.equal(clean, MIXTURE(end, LAST))
        assert torch.equal(more.nfe, info.nfe + 1) and more.calls == info.calls + 1


def test_upwards_and_back():
    there, info = solve(MIXTURE, EXACT, (LAST, FIRST), name="likelihood", rtol=1e-9, atol=1e-9)
    assert worst(there, START) < 1e-5 and info.finished.all()


@pytest.mark.parametrize("name", ["dopri54-log_sigma", "dpm3", "sde"])
@pytest.mark.parametrize("mode", MODES)
def test_dtypes_layouts_and_ownership(name, mode):
    solver = ALONE[name]
    base = noise.normal((3, 2, 4, 4), seed=2, dtype=F64) * (1 if name == "sde" else 10)
    more = {"seed": 0} if name == "sde" else {}
    exact = solver(elementwise, base, [10.0, 0.1], mode=mode, **more)
    for dtype, bound in ((torch.float32, 0.1), (torch.float16, 0.1), (torch.bfloat16, 0.3)):
        x = base.to(dtype).to(memory_format=torch.channels_last)
        kept = x.clone()

        def denoiser(y, sigma, dtype=dtype):
            assert y.dtype is dtype and sigma.dtype is dtype
            return elementwise(y, sigma)

        y = solver(denoiser, x, [10.0, 0.1], mode=mode, rtol=0.01, atol=0.01, **more)
        assert y.dtype is dtype and y.stride() == x.stride() and y.data_ptr() != x.data_ptr()
        assert torch.equal(x, kept) and worst(y, exact) < bound * exact.abs().max()
    for shape in ((0, 3), (2, 0), (4,)):
        x = torch.ones(shape)
        y, info = solver(elementwise, x, [10.0, 0.1], mode=mode, return_info=True, **more)
        assert y.shape == x.shape and info.nfe.shape == shape[:1]


def test_derivatives_pass_through_the_steps():
    x = START.clone().requires_grad_()
    factor = torch.tensor(1.0, dtype=F64, requires_grad=True)
    options = {"rtol": 1e-9, "atol": 1e-9, "grad": True}
    y = rk_pf_ode(lambda y, s: factor * GAUSSIAN(y, s), x, [FIRST, LAST], **options)
    grad, by_factor = torch.autograd.grad(y.sum(), (x, factor))
    assert worst(grad, torch.full_like(grad, math.sqrt(0.26 / 100.25))) < 1e-8

    def at(f):
        return rk_pf_ode(lambda y, s: f * GAUSSIAN(y, s), START, [FIRST, LAST], rtol=1e-11).sum()

    assert by_factor.item() == pytest.approx(((at(1.0001) - at(0.9999)) / 2e-4).item(), rel=1e-5)


def test_callback_and_progress(capsys):
    shown = []
    rk_pf_ode(MIXTURE, START, [FIRST, LAST], callback=shown.append, progress=True)
    assert "rk_pf_ode" in capsys.readouterr().err
    assert [d["i"] for d in shown] == list(range(len(shown)))
    for d in shown:
        rows = len(d["samples"])
        assert d["sigma"].shape == d["sigma_next"].shape == (rows,) and len(d["x"]) == rows
        assert torch.equal(d["denoised"], MIXTURE(d["x"], d["sigma"]))
    assert len(shown[-1]["samples"]) < 8

    def stop(d):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dpm_adaptive(MIXTURE, START, [FIRST, LAST], callback=stop)


# --- networks with one buffer ---------------------------------------------------------------------


class Static:
    """A network with one buffer for its output, as captured graphs and other runtimes have.

    Its first calls make tensors of their own, as those of a compiler that looks on.
    """

    def __init__(self, model, own=0):
        self.model, self.own, self.buffer = model, own, None

    def __call__(self, x, t):
        out = self.model(x, t)
        if self.own > 0:
            self.own -= 1
            return out
        if self.buffer is None:
            self.buffer = torch.empty_like(out)
        return self.buffer[: len(x)].copy_(out)


def static_case(name):
    """(run of a model, the model)."""
    if name == "sde":
        options = {"rtol": 0.05, "atol": 0.05, "seed": 1, "return_info": True}

        def in_time(drift, **more):
            sde = cm.SDE(drift, lambda t: 0.3)
            return adaptive_sde(sde, START, [0.0, 1.0], **options, **more)

        return in_time, lambda x, t: -2 * x
    solver = SOLVERS[name.removesuffix("-eta")]
    options = {"rtol": 1e-3, "atol": 1e-3, "return_info": True}
    if name.endswith("eta"):
        options |= {"seed": 1, "eta": 1.0}
    return lambda d, **more: solver(d, START, [FIRST, LAST], **options, **more), MIXTURE


STATIC = ["heun21-sigma", "dopri54-log_sigma", "dpm3", "dpm2-eta", "sde"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", STATIC)
def test_networks_that_return_the_same_memory(name, mode):
    run, model = static_case(name)
    expected, info = run(lambda x, t: model(x, t).clone(), mode=mode)
    for own in (0, 5):
        for watched in ({}, {"callback": lambda shown: None}):
            y, counts = run(Static(model, own), mode=mode, **watched)
            assert_same_bits(y, expected, f"{name}, static after {own} calls")
            assert torch.equal(counts.nfe, info.nfe) and counts.calls == info.calls


class Trusting(Outputs):
    """Takes every output for a tensor of its own."""

    def take(self, outs, shown, *, held):
        return outs


@pytest.mark.parametrize("name", STATIC)
def test_outputs_taken_for_new_tensors_spoil_the_result(name, monkeypatch):
    run, model = static_case(name)
    expected, _ = run(model)
    monkeypatch.setattr(outputs_module, "Outputs", Trusting)
    try:
        y, _ = run(Static(model))
    except SolverError:
        return
    assert not torch.equal(y, expected)


def test_what_returns_its_input_is_no_network_with_one_buffer():
    calls = []

    def identity(x, sigma):
        calls.append(sigma)
        return x

    for mode in MODES:
        y, info = rk_pf_ode(identity, START, [FIRST, LAST], mode=mode, return_info=True)
        assert worst(y, START) < 1e-12 and info.calls == len(calls)
        calls.clear()


def test_runs_record_nothing_unless_asked():
    x = START.clone().requires_grad_()
    with pytest.warns(UserWarning, match="rk_pf_ode runs without autograd; grad=True"):
        assert not rk_pf_ode(MIXTURE, x, [FIRST, LAST]).requires_grad
    assert rk_pf_ode(MIXTURE, x, [FIRST, LAST], grad=True).requires_grad


# --- failures ------------------------------------------------------------------------------------

WHO = {"who": torch.arange(8)}
FAILURES = {
    "rk": lambda d, **o: rk_pf_ode(d, START, [FIRST, LAST], extra_args=WHO, **o),
    "dpm": lambda d, **o: dpm_adaptive(
        d, START, [FIRST, LAST], rtol=1e-3, atol=1e-3, extra_args=WHO, **o
    ),
}
each_failure = pytest.mark.parametrize("solver", FAILURES.values(), ids=FAILURES)


def sound(x, sigma, who):
    return MIXTURE(x, sigma)


def broken(x, sigma, who):
    """NaN for sample 5 below 2."""
    return torch.where(((sigma < 2) & (who == 5))[:, None], math.nan, MIXTURE(x, sigma))


@pytest.mark.parametrize("mode", MODES)
@each_failure
def test_nan_is_told_and_the_state_is_kept(solver, mode):
    with pytest.raises(SolverError, match=r"gave up on sample 5 at sigma [0-9.]+: its error is"):
        solver(broken, mode=mode)
    try:
        solver(broken, mode=mode, check_every=1)
    except SolverError as failure:
        error = failure
        assert error.x.shape == START.shape and error.sigma.shape == (8,)
        assert error.x.isfinite().all() and error.sigma[5] < FIRST
        assert error.info.accepted[5] > 0 and not error.info.finished[5]
        at = [reference(s, START[b : b + 1]) for b, s in enumerate(error.sigma.tolist())]
        assert worst(error.x, torch.cat(at)) < 0.02 * FIRST
    with pytest.raises(SolverError, match=r"sample 5 at .*: an output of the model is not") as e:
        solver(broken, mode=mode, check_nan=True, check_every=1)
    assert e.value.info.rejected[5] < error.info.rejected[5] - 10, "looking ends the run earlier"


@pytest.mark.parametrize("mode", MODES)
@each_failure
def test_too_few_steps_are_told(solver, mode):
    with pytest.raises(
        SolverError, match=r"gave up on sample 0 at sigma [0-9.]+: max_steps = \d+ tries were not"
    ) as e:
        solver(sound, max_steps=4, mode=mode)
    assert (e.value.info.accepted + e.value.info.rejected).tolist() == [4] * 8
    assert (e.value.sigma < FIRST).any() and (e.value.sigma > LAST).all()


def test_a_jump_in_the_model_underflows():
    """A slope that jumps with the state by ever more than the tolerance allows."""

    def rough(x, sigma):
        return torch.where(sigma[:, None] > 1, x, x + 1e14 * torch.sign(torch.sin(1e16 * x)))

    with pytest.raises(SolverError, match="step size fell below"):
        rk_pf_ode(rough, START, [FIRST, LAST], coordinate="sigma")


def test_t_space_errors_carry_times():
    bad = cm.SDE(lambda x, t: torch.where(t[:, None] > 0.5, math.nan, -x), lambda t: 0.1)
    with pytest.raises(SolverError, match="adaptive_sde gave up on sample 0 at t ") as e:
        adaptive_sde(bad, torch.ones(2, 1), [0.0, 1.0], seed=0)
    assert 0.3 < e.value.t[0] <= 0.5 + 1e-7, "as far as it goes in the float32 of its times"


@pytest.mark.parametrize(
    "solver, more",
    [(rk_pf_ode, {}), (rk_pf_ode, {"method": "heun21"}), (dpm_adaptive, {"eta": 1.0, "seed": 0})],
)
def test_masked_mode_waits_only_when_it_looks(solver, more):
    def waits(mode, steps):
        with Waits() as seen:
            options = {"mode": mode, "check_every": None, "max_steps": steps, "rtol": 0.1, **more}
            solver(elementwise, START, [FIRST, LAST], atol=0.1, **options)
        return seen.count

    assert waits("masked", 80) == waits("masked", 40) < 6
    assert waits("compact", 80) > 20, "the control"


def spoilt(model, call, factor):
    """The model, its output times a factor at one call."""
    calls = []

    def run(x, s):
        calls.append(s)
        return model(x, s) * (factor if len(calls) == call else 1.0)

    return run


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["dopri54", "dpm", "dpm with memory", "sde"])
def test_a_first_try_that_is_no_number_is_tried_smaller(name, factor):
    """And leaves nothing behind in the memory of the step size control."""
    levels, options = [FIRST, LAST], {"return_info": True, "max_steps": 300}
    if name == "sde":
        model = spoilt(lambda x, t: -x, 2, factor)
        sde = cm.SDE(model, lambda t: 0.1)
        y, info = adaptive_sde(sde, START, [0.0, 1.0], seed=1, **options)
    elif name == "dopri54":
        y, info = rk_pf_ode(spoilt(MIXTURE, 4, factor), START, levels, **options)
    else:
        more = {"pcoeff": 0.2, "dcoeff": 0.1} if "memory" in name else {}
        y, info = dpm_adaptive(spoilt(MIXTURE, 2, factor), START, levels, **more, **options)
    assert y.isfinite().all() and info.finished.all() and (info.rejected > 0).all()


def test_samplers_without_noise_check_and_ignore_it():
    refuse = lambda a, b: pytest.fail("asked")  # noqa: E731
    state = torch.random.get_rng_state()
    expected = rk_pf_ode(MIXTURE, START, [FIRST, LAST])
    for options in ({"seed": 3}, {"seed": None}, {"noise_sampler": refuse}):
        assert torch.equal(rk_pf_ode(MIXTURE, START, [FIRST, LAST], **options), expected)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, options in (("seed", {"seed": 1.5}), ("noise_sampler", {"noise_sampler": 3})):
        with pytest.raises(TypeError, match=name):
            rk_pf_ode(MIXTURE, START, [FIRST, LAST], **options)


@pytest.mark.parametrize("mode", MODES)
def test_first_steps_below_the_rounding_of_t_grow(mode):
    options = {"first_step": 1e-300, "mode": mode, "return_info": True, "max_steps": 100}
    for coordinate in ("sigma", "log_sigma"):
        levels = {"coordinate": coordinate, "rtol": 1e-3, "atol": 1e-3}
        y, info = rk_pf_ode(MIXTURE, START, [FIRST, LAST], **levels, **options)
        assert info.finished.all() and worst(y) < 0.05
    sde = cm.SDE(lambda x, t: -x, lambda t: 0.1)
    assert adaptive_sde(sde, START, [1.0, 2.0], seed=1, **options)[1].finished.all()
    del options["first_step"]  # a hundredth of this is less than the last digit of t
    assert adaptive_sde(sde, START, [1.0, 1 + 1e-14], seed=1, **options)[1].finished.all()


# --- legs, landings and keys ------------------------------------------------------------------


def test_a_run_is_not_finished_after_the_first_of_two_legs():
    levels = [FIRST, 1.0, LAST]
    whole = rk_pf_ode(MIXTURE, START, levels, trajectory=True, return_info=True)[1]
    first = rk_pf_ode(MIXTURE, START, levels[:2], return_info=True)[1]
    between = int(first.accepted.max() + first.rejected.max()) + 2
    assert between < int((whole.accepted + whole.rejected).min())
    with pytest.raises(SolverError, match="max_steps") as caught:
        rk_pf_ode(MIXTURE, START, levels, trajectory=True, max_steps=between)
    assert (caught.value.sigma < 1.0).all() and not caught.value.info.finished.any()


@pytest.mark.parametrize("share", [1e-3, 1e-7, 1e-10])
def test_a_step_cut_to_land_does_not_shrink_the_next_one(share):
    """A stop a hair below the start costs a step more, and not those that grow from its size."""
    options = {"rtol": 1e-4, "atol": 1e-4, "first_step": 0.2, "return_info": True}
    plain = rk_pf_ode(MIXTURE, START, [FIRST, LAST], **options)[1]
    levels = [FIRST, FIRST * (1.0 - share), LAST]
    cut = rk_pf_ode(MIXTURE, START, levels, trajectory=True, **options)[1]
    assert (cut.accepted + cut.rejected <= plain.accepted + plain.rejected + 2).all()


def test_what_is_left_after_a_step_is_no_sliver():
    """A first step that ends a rounding short of the stop lands on it."""
    options = {"coordinate": "sigma", "first_step": 1.0 - 2.0**-51, "return_info": True}
    _, info = rk_pf_ode(lambda x, s: 0.0 * x, START, [2.0, 1.0], **options)
    assert info.accepted.tolist() == [1] * len(START)


@pytest.mark.parametrize("mode", MODES)
def test_a_key_of_one_row_counts_its_ids_up(mode):
    """As every key without a table does: no two samples have the same noise."""
    one, plain = noise.Key(table=torch.tensor([[7, 10]])), noise.Key(7, 10)
    x = torch.ones(4, 2, dtype=F64)
    sde = cm.VP().reverse(lambda x, t: -x)
    for run in (
        lambda key: adaptive_sde(sde, x, [1.0, 0.1], seed=key, mode=mode),
        lambda key: dpm_adaptive(GAUSSIAN, x, [FIRST, LAST], seed=key, eta=1.0, mode=mode),
    ):
        assert_same_bits(run(one), run(plain))
        assert len({tuple(row) for row in run(one).tolist()}) == 4
