"""Networks that return the same memory at every call, as a captured graph does."""

from itertools import cycle

import pytest
import torch

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.denoisers import EDM
from cmsolvers.denoisers.guidance import guided
from cmsolvers.engine import catalogue
from cmsolvers.engine.outputs import Outputs

SIGMAS = cm.karras_sigmas(9, 0.05, 20.0)
T = [1.0, 0.8, 0.6, 0.5, 0.3, 0.1]
VP = cm.VP()
SHAPE = (5, 3, 4)
FIXED = [facts for facts in catalogue.SOLVERS.values() if not facts.adaptive]
SIGMA = [facts.name for facts in FIXED if facts.space == "sigma"]
TIME = [facts.name for facts in FIXED if facts.space == "time"]


def answer(x, c, phase=0.0):
    return 0.3 * (1.7 * x + phase).sin() + 0.1 * c.reshape(-1, 1, 1).to(x.dtype)


class Static:
    """A network with so many output buffers, used in turn; 0 makes a new tensor at each call."""

    def __init__(self, buffers, phase=0.0):
        self.count, self.phase, self.rings = buffers, phase, {}

    def __call__(self, x, c):
        y = answer(x, c, self.phase)
        if not self.count:
            return y
        key = tuple(y.shape), y.dtype
        if key not in self.rings:
            self.rings[key] = cycle([torch.empty_like(y) for _ in range(self.count)])
        return next(self.rings[key]).copy_(y)


KINDS = {
    "plain": lambda n: Static(n),
    "edm": lambda n: EDM(Static(n)),
    "guided": lambda n: guided(Static(n), 2.0, unconditional={}, weak=Static(n, 1.0)),
    "guided-edm": lambda n: guided(EDM(Static(n)), 2.0, unconditional={}, weak=EDM(Static(n, 1.0))),
    "guided-one-call": lambda n: guided(EDM(Static(n)), 2.0, unconditional={}),
}


def in_sigma(name, kind, buffers, **options):
    x = 20 * noise.normal(SHAPE, 3)
    if name == "restart":
        options["restarts"] = [(0.3, 3.0, 2, 1)]
    if name == "consistency_sample":
        options["sigma_min"] = 0.04
    return getattr(cm, name)(KINDS[kind](buffers), x, SIGMAS, seed=1, **options)


EQUATIONS = {
    "reverse": lambda n: VP.reverse(Static(n)),
    "flow": lambda n: VP.probability_flow(Static(n)),
    "own": lambda n: cm.SDE(Static(n), lambda t: 0.1 * (1 + t)),
}


def in_time(name, kind, buffers, **options):
    return getattr(cm, name)(EQUATIONS[kind](buffers), noise.normal(SHAPE, 3), T, seed=1, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SIGMA)
def test_samplers_on_noise_levels(name, kind):
    expected = in_sigma(name, kind, 0)
    for buffers in (1, 2, 3):
        assert torch.equal(in_sigma(name, kind, buffers), expected), buffers
    seen = []
    shown = in_sigma(name, kind, 1, callback=lambda e: seen.append(e["x"]))
    assert torch.equal(shown, expected) and len(seen) > 3


@pytest.mark.parametrize(
    "name, kind",
    [
        (name, kind)
        for name in TIME
        for kind in EQUATIONS
        if (name, kind) != ("predictor_corrector", "own")  # it runs SDEs of the library alone
    ],
)
def test_solvers_in_time(name, kind):
    expected = in_time(name, kind, 0)
    for buffers in (1, 2, 3):
        assert torch.equal(in_time(name, kind, buffers), expected), buffers


def test_both_sides_in_one_buffer():
    """Two networks behind one buffer: the second call of an evaluation overwrites the first."""

    def run(shared):
        buffer = torch.empty(SHAPE)
        ends = [lambda x, c, p=p: answer(x, c, p) for p in (0.0, 1.0)]
        if shared:
            ends = [lambda x, c, f=f: buffer.copy_(f(x, c)) for f in ends]
        one = guided(EDM(ends[0]), 2.0, unconditional={}, weak=EDM(ends[1]))
        return cm.heun_pf_ode(one, 20 * noise.normal(SHAPE, 3), SIGMAS)

    assert torch.equal(run(True), run(False))


@pytest.mark.parametrize("name", ["heun_pf_ode", "dpmpp_2m", "dpm_fast"])
def test_memory_that_comes_back_only_later(name):
    """Addresses change for eight calls, then they do not: nothing may rely on the first ones."""
    kept, buffer = [], torch.empty(SHAPE)

    def late(x, sigma):
        y = answer(x, sigma)
        kept.append(y)  # so that no address is used again by itself
        return y if len(kept) <= 8 else buffer.copy_(y)

    x = 20 * noise.normal(SHAPE, 3)
    expected = getattr(cm, name)(answer, x, SIGMAS, seed=1)
    assert torch.equal(getattr(cm, name)(late, x, SIGMAS, seed=1), expected)
    assert len(kept) > 8


@pytest.mark.parametrize("buffers", [1, 2])
def test_callbacks_and_noise_samplers_notice_nothing(buffers):
    """They are called once per step even where a run had to begin anew."""
    entries, asked, x = [], [], 20 * noise.normal(SHAPE, 3)

    def unit(a, b):
        asked.append((a, b))
        return noise.normal(SHAPE, 7, draw=len(asked))

    def run(count, **options):
        asked.clear()
        return cm.dpm_2_ancestral(Static(count), x, SIGMAS, noise_sampler=unit, **options)

    expected = run(0)
    spans = list(asked)
    assert len(spans) == 8
    assert torch.equal(run(buffers), expected) and asked == spans
    assert torch.equal(run(buffers, callback=entries.append), expected) and asked == spans
    assert [e["i"] for e in entries] == list(range(9))
    _, info = run(buffers, return_info=True, trajectory=True)
    assert info.nfe == 17 and len(info.trajectory) == 10 and asked == spans


# --- controls: without the protection the results differ ------------------------------------


@pytest.fixture
def unprotected(monkeypatch):
    monkeypatch.setattr(Outputs, "take", lambda self, outs, shown, *, held: outs)


@pytest.mark.parametrize("name", ["heun_pf_ode", "dpmpp_2m", "unipc", "dpm_fast"])
def test_without_protection_the_results_differ(name, unprotected):
    expected = in_sigma(name, "plain", 0)
    assert not torch.equal(in_sigma(name, "plain", 1), expected)


@pytest.mark.parametrize("name", ["stochastic_heun", "sra1"])
@pytest.mark.parametrize("kind", ["flow", "own"])
def test_without_protection_the_results_in_time_differ(name, kind, unprotected):
    assert not torch.equal(in_time(name, kind, 1), in_time(name, kind, 0))
