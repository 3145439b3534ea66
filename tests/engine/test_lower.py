"""What the forms of a run are lowered to: launches, second outputs, steps that are too wide."""

import math

import pytest
import torch

import cmsolvers as cm
from cmsolvers import denoisers, noise
from cmsolvers.denoisers import EDM, ConsistencyFunction
from cmsolvers.denoisers.clipping import clipped
from cmsolvers.denoisers.guidance import guided
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.engine import catalogue
from cmsolvers.engine.lower import lower
from cmsolvers.engine.program import Call, Draw, Launch, Show, Wants
from cmsolvers.engine.trace import lifted, trace
from cmsolvers.ops.step import MAX_INPUTS
from cmsolvers.solvers.ddim import posterior
from cmsolvers.solvers.heun import heun_step
from support.formulas import formula_of, sampler_of, spans, traced
from support.launches import counted_launches

F64, F32, F16 = torch.float64, torch.float32, torch.float16
N = 6
SIGMAS = cm.karras_sigmas(N, 0.05, 20.0)  # to 0 at the end
LEVELS = SIGMAS.tolist()
TO_LAST = LEVELS[:-1]
DATA = Gaussian(0.5, 0.2)


def net(x, c):
    return 0.3 * (x * 1.7).sin() + 0.1 * c.reshape([-1] + [1] * (x.ndim - 1)).to(x.dtype)


def weak(x, c):
    return net(x + 1.0, c)


def other(x, c):
    return 0.2 * (x * 0.7).cos()


RAW = EDM(net)
GUIDED = guided(EDM(net), 2.0, unconditional={}, weak=EDM(weak))
MULTISTEP = {
    "dpmpp_2m": formula_of(cm.dpmpp_2m),
    "dpmpp_3m_sde": formula_of(cm.dpmpp_3m_sde, eta=0.0),
    "unipc": formula_of(cm.unipc, order=3, variant="bh2"),
    "lms": formula_of(cm.lms, order=4),
    "deis": formula_of(cm.deis, order=3),
    "ipndm": formula_of(cm.ipndm, order=4),
}


def program_of(formula, denoiser, levels=LEVELS, dtype=F64, fused=True, shown=False, **settings):
    run = traced(formula, levels, **settings)
    return lower(run, denoiser, dtype, Wants(fused=fused, shown=shown))


def launches(program):
    return [[op for op in step if isinstance(op, Launch)] for step in program.steps]


def latent(shape=(4, 2, 3), dtype=F64):
    return (20.0 * noise.normal(shape, 5, dtype=F64)).to(dtype)


# --- one launch per evaluation ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, F32])
def test_heun_of_a_network(dtype):
    """Two launches per step, c_in of the next level as second output, one scaling at the start."""
    program = program_of(heun_step, EDM(net, dtype=dtype))
    steps = launches(program)
    scale, *first = steps[0]
    assert scale.out is None and not scale.inputs and scale.second == RAW.coefficients(20.0).c_in
    assert [len(step) for step in [first, *steps[1:]]] == [2] * (N - 1) + [1]
    assert program.launches == 2 * N
    for step, to in zip([first, *steps[1:-1]], LEVELS[1:], strict=False):
        predictor, corrector = step
        c_in = RAW.coefficients(to).c_in
        assert predictor.out is None and predictor.second == c_in  # the state itself is not needed
        # In the precision of the states the network's input is the state.
        assert (corrector.out is None) == (dtype is None) and corrector.second == c_in
        assert len(predictor.inputs) == 1 and len(corrector.inputs) == 2
        assert predictor.dtype == corrector.dtype == (dtype or F64)
    assert steps[-1][0].second is None and steps[-1][0].other is None


@pytest.mark.parametrize("wanted", [{"states": True}, {"shown": True}], ids=["states", "shown"])
@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "unipc"])
def test_states_are_written_where_they_are_wanted(name, wanted):
    """The network's input stays the state, so nothing else changes."""
    run = traced(heun_step if name == "heun" else MULTISTEP[name], LEVELS)
    plain = lower(run, RAW, F32, Wants(fused=True))
    seen = lower(run, RAW, F32, Wants(fused=True, **wanted))
    assert plain.states[-1] is not None and None not in seen.states
    assert None in plain.states
    rows = [
        [op.row for step in program.steps for op in step if isinstance(op, Launch)]
        for program in (plain, seen)
    ]
    assert "shown" in wanted or rows[0] == rows[1]


@pytest.mark.parametrize("kind", ["callable", "edm", "x0"])
def test_dpmpp_2m_is_one_launch_per_step(kind):
    """The D before is a form over the state and the output before: nothing is stored for it."""
    denoiser = {"callable": DATA, "edm": RAW, "x0": denoisers.from_x0(net, process=cm.Karras())}[
        kind
    ]
    program = program_of(formula_of(cm.dpmpp_2m), denoiser)
    steps = launches(program)
    extra = 1 if kind == "edm" else 0
    assert [len(step) for step in steps] == [1 + extra] + [1] * (N - 1)
    scaled = [s[-1].second for s in steps]
    if kind == "edm":
        assert scaled == [RAW.coefficients(s).c_in for s in TO_LAST[1:]] + [None]
    else:
        assert scaled == [None] * N
    assert max(len(op.inputs) for step in steps for op in step) <= 3


@pytest.mark.parametrize("name", MULTISTEP)
@pytest.mark.parametrize("kind", ["callable", "edm", "guided"])
def test_multistep_solvers_launch_once_per_step(name, kind):
    """What a network needs beside it is one scaling per evaluation where D or d is stored."""
    denoiser = {"callable": DATA, "edm": RAW, "guided": GUIDED}[kind]
    program = program_of(MULTISTEP[name], denoiser)
    moves = [[op for op in step if op.inputs] for step in launches(program)]
    most = 2 if kind == "guided" else 1
    assert all(len(step) <= most for step in moves)
    assert all(len(op.inputs) <= MAX_INPUTS for step in moves for op in step)


@pytest.mark.parametrize("name", ["dpmpp_3m_sde", "unipc"])
def test_three_outputs_are_kept_as_second_outputs(name):
    """Three pairs of state and output are more than a launch takes."""
    program = program_of(MULTISTEP[name], RAW)
    for i, step in enumerate(launches(program)):
        (move,) = (op for op in step if op.inputs)
        if i < N - 3:  # later steps read it
            assert move.second is True and move.basis == RAW.coefficients(LEVELS[i])[:2]
    plain = program_of(MULTISTEP[name], DATA)
    assert all(op.second is None for step in launches(plain) for op in step)  # D is there already


def test_guided_heun_has_four_inputs():
    program = program_of(heun_step, GUIDED)
    steps = launches(program)
    assert program.launches == 2 * N
    assert [len(op.inputs) for op in steps[1]] == [2, 4]
    calls = [op for step in program.steps for op in step if isinstance(op, Call)]
    assert [call.leaf for call in calls] == [0, 1] * (2 * N - 1)
    joined = guided(EDM(net), 2.0, unconditional={})
    calls = [op for s in program_of(heun_step, joined).steps for op in s if isinstance(op, Call)]
    assert all(len(call.outs) == 2 for call in calls) and len(calls) == 2 * N - 1


def test_noise_is_made_in_the_launch():
    ancestral = lambda step: posterior(step, 1.0)  # noqa: E731
    program = program_of(ancestral, RAW)
    assert program.launches == N + 1
    assert [step[-1].w_z > 0 for step in launches(program)] == [True] * (N - 1) + [False]
    assert [step[-1].draw for step in launches(program)][:-1] == list(range(N - 1))
    told = program_of(ancestral, RAW, fused=False)
    draws = [op for step in told.steps for op in step if isinstance(op, Draw)]
    assert [op.span for op in draws] == [(s, to) for s, _, to, _ in spans(TO_LAST)]
    assert all(op.w_z == 0.0 for step in launches(told) for op in step)
    churned = trace(heun_step, lifted(LEVELS, 3.0, 0.0, math.inf))
    program = lower(churned, RAW, F64, Wants(fused=True))
    assert [len(step) for step in launches(program)] == [3] * (N - 1) + [2]  # the lift is one


def test_callbacks_are_shown_the_state_and_the_answer():
    for denoiser in (DATA, RAW, GUIDED):
        program = program_of(heun_step, denoiser, shown=True)
        shows = [op for step in program.steps for op in step if isinstance(op, Show)]
        assert len(shows) == N and all(op.answer is not None for op in shows)
        assert [op.entry["sigma"] for op in shows] == TO_LAST


# --- slots --------------------------------------------------------------------------------------


@pytest.mark.parametrize("denoiser", [DATA, RAW, GUIDED], ids=["callable", "edm", "guided"])
@pytest.mark.parametrize("formula", [heun_step, *MULTISTEP.values()], ids=["heun", *MULTISTEP])
def test_slots_are_few_and_never_the_users(formula, denoiser):
    """The engine writes neither to the user's x nor to what a network returned."""
    program = program_of(formula, denoiser)
    for step in program.steps:
        for op in step:
            if isinstance(op, Launch):
                written = [slot for slot in (op.out, op.other) if slot is not None]
                assert len(set(written)) == len(written)
                assert 0 not in written  # the user's x
                kinds = [program.slots[slot] for slot in written]
                assert None not in kinds
            if isinstance(op, Call):
                assert all(program.slots[slot] is None for slot in op.outs)
    long = program_of(formula, denoiser, cm.karras_sigmas(40, 0.05, 20.0).tolist())
    assert len(long.slots) <= 16  # the memory of a run does not grow with its steps


# --- steps that are wide ------------------------------------------------------------------------


def wide(count):
    """A step of so many evaluations, each of which reads all slopes before: explicit and silly."""

    def formula(step):
        s, to = step.sigma, step.to
        slopes = [step.slope(step.x, s)]
        if to == 0:
            return step.x - s * slopes[0]
        for k in range(1, count):
            level = s + (to - s) * k / count
            mean = sum_of(slopes) / len(slopes)
            slopes.append(step.slope(step.x + (level - s) * mean, level))
        return step.x + (to - s) * sum_of(slopes) / count

    return formula


def sum_of(forms):
    total = forms[0]
    for form in forms[1:]:
        total = total + form
    return total


def wide_by_hand(model, x, levels, count):
    for s, _, to, _ in spans(levels):
        slopes = [(x - model(x, s)) / s]
        if to == 0:
            x = x - s * slopes[0]
            continue
        for k in range(1, count):
            level = s + (to - s) * k / count
            y = x + (level - s) * sum(slopes) / len(slopes)
            slopes.append((y - model(y, level)) / level)
        x = x + (to - s) * sum(slopes) / count
    return x


def long_memory(step):
    """Six past outputs, with weights that sum to that of one."""
    d = step.D(step.x, step.sigma)
    weights = [0.5, -0.4, 0.3, -0.2, 0.1, -0.05][: step.index]
    total = (1.0 - sum(weights)) * d
    for k, w in enumerate(weights, start=1):
        total = total + w * step.past(k)
    return step.to / step.sigma * step.x + (step.sigma - step.to) / step.sigma * total


def long_memory_by_hand(model, x, levels):
    past = []
    for s, _, to, _ in spans(levels):
        d = model(x, s)
        weights = [0.5, -0.4, 0.3, -0.2, 0.1, -0.05][: len(past)]
        total = (1.0 - sum(weights)) * d
        for w, old in zip(weights, reversed(past), strict=False):
            total = total + w * old
        past.append(d)
        x = to / s * x + (s - to) / s * total
    return x


DENOISERS = {
    "callable": DATA,
    "edm": RAW,
    "guided": GUIDED,
    "clipped": clipped(EDM(net), -0.2, 0.2),
}
each_denoiser = pytest.mark.parametrize("denoiser", DENOISERS.values(), ids=DENOISERS)


def close(got, expected):
    assert (got - expected).abs().max() < 1e-11 * expected.abs().max()


@each_denoiser
@pytest.mark.parametrize("count", [4, 5, 6, 9])
def test_steps_of_many_evaluations(denoiser, count):
    program = program_of(wide(count), denoiser)
    inputs = [len(op.inputs) for step in launches(program) for op in step]
    assert max(inputs) <= MAX_INPUTS
    got = sampler_of(wide(count))(denoiser, latent(), SIGMAS)
    close(got, wide_by_hand(denoiser, latent(), LEVELS, count))


@each_denoiser
def test_steps_that_read_many_past_outputs(denoiser):
    levels = cm.karras_sigmas(10, 0.05, 20.0).tolist()
    program = program_of(long_memory, denoiser, levels)
    assert max(len(op.inputs) for step in launches(program) for op in step) <= MAX_INPUTS
    got = sampler_of(long_memory)(denoiser, latent(), levels)
    close(got, long_memory_by_hand(denoiser, latent(), levels))


def test_what_is_split_costs_one_launch_more():
    """Five slopes of a callable are five outputs: the last row is two launches, the others one."""
    program = program_of(wide(5), DATA, TO_LAST)
    assert [len(step) for step in launches(program)] == [4 + 2] * (N - 1)
    program = program_of(wide(4), DATA, TO_LAST)
    assert [len(step) for step in launches(program)] == [4] * (N - 1)


# --- programs and what is run ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [f.name for f in catalogue.SOLVERS.values() if f.space == "sigma" and not f.adaptive]
)
@pytest.mark.parametrize("kind", ["callable", "edm", "guided"])
def test_programs_count_the_launches_of_a_run(name, kind, monkeypatch):
    """`Program.launches` is what a run takes."""
    from cmsolvers.engine import run as run_module

    made, original = [], run_module.lower
    monkeypatch.setattr(
        run_module, "lower", lambda *a, **k: made.append(original(*a, **k)) or made[-1]
    )
    monkeypatch.setattr(run_module, "_PROGRAMS", type(run_module._PROGRAMS)(64))
    denoiser = {"callable": DATA, "edm": EDM(net), "guided": GUIDED}[kind]
    if name == "consistency_sample":
        denoiser = ConsistencyFunction(net)
    unit = torch.ones(4, 2, 3, dtype=F64)
    with counted_launches() as seen:
        getattr(cm, name)(denoiser, latent(), SIGMAS, noise_sampler=lambda *_: unit)
    (program,) = made
    assert program.launches == len(seen)
