"""Formulas that stand twice, as a solver and as an operator's rule, must not drift apart."""

import pytest

import cmsolvers as cm
from cmsolvers.engine.symbols import Ask, Noise, State
from cmsolvers.engine.time_steps import trace_in_time as _trace
from cmsolvers.ops import rules
from support.formulas import changed, formula_of, moved, traced

LEVELS = cm.karras_sigmas(24, 0.002, 80.0, append_zero=False).tolist()
TIMES = [1.0, 0.83, 0.5, 0.21, 0.02]
PROCESSES = {"vp": cm.VP(), "sub-vp": cm.SubVP(), "ve": cm.VE(), "karras": cm.Karras()}


def assert_same(got, expected):
    """To 1e-15 of the largest weight."""
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert abs(a - b) <= 1e-15 * max(map(abs, expected)), (got, expected)


def rows_of(formula, levels=LEVELS):
    """(level, next level, weights of x and of each D) of each step."""
    for step in traced(formula, levels).steps:
        terms = step.result.terms
        yield step.start, step.to, [terms.get(step.x, 0.0), *(terms.get(a, 0.0) for a in step.asks)]


def test_euler_is_the_rule():
    for s, to, row in rows_of(formula_of(cm.euler_pf_ode), [*LEVELS, 0.0]):
        assert_same(row, rules.pf_ode(s, to))


def test_heun_is_the_rule():
    for s, to, row in rows_of(formula_of(cm.heun_pf_ode)):
        assert_same(row, rules.heun(s, to))
    (*_, (s, _, row)) = rows_of(formula_of(cm.heun_pf_ode), [*LEVELS, 0.0])
    assert_same(row, rules.pf_ode(s, 0.0))  # the last step to 0 is Euler's


def euler_maruyama_rows(sde, times):
    found = _trace(cm.euler_maruyama.__wrapped__, sde, tuple(times), {}, 1)
    for step in found.steps:
        yield step.start, step.to - step.start, step.result.terms


def weight_of(terms, kind):
    (weight,) = (w for symbol, w in terms.items() if isinstance(symbol, kind))
    return weight


@pytest.mark.parametrize("p", PROCESSES.values(), ids=PROCESSES)
def test_euler_maruyama_is_the_rule(p):
    """x + drift dt + w_z z, in both directions; the drift is a x + b score."""
    score = p.score_of(cm.oracles.Gaussian(0.5))
    for sde in (p.reverse(score), p.probability_flow(score), p):
        for t, dt, terms in euler_maruyama_rows(sde, TIMES if sde is not p else TIMES[::-1]):
            if sde is p:
                a, b, g = p.drift_factor(t), 0.0, p.diffusion(t)
            else:
                a, b, g = sde.terms(t)
            size = max(map(abs, terms.values()))
            assert abs(weight_of(terms, State) - (1.0 + dt * a)) <= 1e-15 * size
            if b:
                assert abs(weight_of(terms, Ask) - dt * b) <= 1e-15 * size
            if g:
                w_z = rules.euler_maruyama(g, dt)
                assert abs(weight_of(terms, Noise) - w_z) <= 1e-15 * w_z
            assert len(terms) == 1 + bool(b) + bool(g)


def test_a_formula_that_drifts_is_seen():
    def drifted(step, row):
        return moved(row, 1e-13, *step.traced.asks)

    with pytest.raises(AssertionError):
        for s, to, row in rows_of(changed(formula_of(cm.heun_pf_ode), drifted)):
            assert_same(row, rules.heun(s, to))
