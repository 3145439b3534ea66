"""The look at a model's exact derivative."""

import gc

import pytest
import torch
from torch import nn

from cmsolvers.losses.derivative_check import CALLS, SelfCheck
from cmsolvers.losses.derivatives import total_derivative
from support.derivative_nets import Embedded, point
from support.warned import texts_of

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

BOUNDS = (None, (0.0, 1.0))


@torch.library.custom_op("cmsolvers_tests::fused_sine", mutates_args=())
def fused_sine(x: torch.Tensor) -> torch.Tensor:
    """An op that somebody wrote for inference: in forward mode torch gives it no tangent."""
    return x.sin()


class WrongSine(torch.autograd.Function):
    """A forward mode with a wrong factor."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * tangent * ctx.saved_tensors[0].cos()


def embedded(spoil=lambda t: t):
    torch.manual_seed(0)
    return Embedded(spoil)


def looked_at(net, check=None, autocast=False, **options):
    """The ratio of a first call, and the texts of its warnings."""
    x, t, _, v = point(16, torch.float32)
    check, found = check or SelfCheck(), []

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found.append(
                check.derivative(net, (x, t), (v, 1.0), model=net, bounds=BOUNDS, **options)[1]
            )

    texts = [text for text in texts_of(__file__, run) if "jit.script" not in text]
    return found[0], texts


@pytest.fixture(autouse=True, scope="module")
def _decompositions_are_loaded():
    """Torch warns of its own when it first differentiates in forward mode."""
    total_derivative(torch.sin, (torch.ones(1),), (1.0,))


@pytest.mark.parametrize("autocast", [False, True])
def test_the_ratio_of_a_sound_network_is_one(autocast):
    ratio, texts = looked_at(embedded(), autocast=autocast)
    assert ratio == pytest.approx(1, abs=0.02 if autocast else 2e-3)
    assert texts == []


SPOILED = {
    "detach": (lambda t: t.detach(), "tangents end at detach in Embedding 'time' of Embedded"),
    "data": (lambda t: t.data, "tangents end at data in Embedding 'time' of Embedded"),
    "numbers": (lambda t: torch.tensor(t.tolist()), "tangents end at tolist in Embedding"),
    "an op": (fused_sine, "tangents end at cmsolvers_tests.fused_sine.default in Embedding 'time'"),
    "integers": (lambda t: (1000 * t).long(), "tangents end at long to integers in Embedding"),
    "whole steps": (
        lambda t: (100 * t).round() / 100,
        "levels are rounded by round in Embedding 'time'",
    ),
    "half precision": (lambda t: t.bfloat16(), "levels are rounded to bfloat16 in Embedding"),
    "a wrong formula": (WrongSine.apply, "an autograd.Function with a wrong jvp method, perhaps"),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_network_is_warned_of_with_the_cause(name, autocast):
    spoil, cause = SPOILED[name]
    ratio, texts = looked_at(embedded(spoil), autocast=autocast)
    assert len(texts) == 1 and cause in texts[0]
    # NaN where no finite difference is sure; between whole steps the function is flat indeed.
    assert name == "whole steps" or not abs(ratio - 1) < 0.1


def test_what_is_no_mistake_is_not_noted():
    for fine in (
        lambda t: t + torch.zeros_like(t) + t.new_ones(()),
        lambda t: t if bool((t > 0).all()) else -t,
        lambda t: t.clamp(0, 1).double().float() * t.shape[0] / len(t),
    ):
        assert looked_at(embedded(fine))[1] == []


def test_it_is_said_once():
    check = SelfCheck()
    net = embedded(lambda t: t.detach())
    assert len(looked_at(net, check)[1]) == 1
    assert looked_at(net, check)[1] == []
    assert looked_at(embedded(lambda t: t.detach()), check)[1] == []  # the same line of a user's


def test_calls_are_looked_at_by_their_number_alone():
    """Networks that start at zero have nothing to compare, so a later call is looked at as well."""
    check, net, counts = SelfCheck(), embedded(), []
    nn.init.zeros_(net.last.weight)
    passes = []
    net.register_forward_pre_hook(lambda *_: passes.append(1))
    for call in range(1, CALLS[-1] + 3):
        passes.clear()
        ratio, texts = looked_at(net, check)
        counts.append(len(passes))
        assert texts == []
        if call == 1:
            assert ratio.isnan()
            nn.init.normal_(net.last.weight)
    assert [i + 1 for i, count in enumerate(counts) if count > 1] == list(CALLS)
    assert ratio == pytest.approx(1, abs=2e-3)


def test_it_changes_neither_randomness_nor_statistics_nor_the_derivative():
    x, t, _, v = point(16, torch.float32)

    def run(by):
        net = embedded()
        torch.manual_seed(5)
        found = by(net)
        return found.derivative, torch.get_rng_state(), *net.buffers()

    check = SelfCheck()
    looked = run(lambda net: check.derivative(net, (x, t), (v, 1.0), model=net, bounds=BOUNDS)[0])
    plain = run(lambda net: total_derivative(net, (x, t), (v, 1.0)))
    for a, b in zip(looked, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_models_are_forgotten_when_they_are_gone():
    check = SelfCheck()
    looked_at(embedded(), check)
    gc.collect()
    assert len(check._seen) == 0


def test_where_nothing_can_be_looked_at():
    x, t, _, v = point(16, torch.float32)
    check, net = SelfCheck(), embedded()
    tangents = {"model": net, "bounds": BOUNDS}
    assert (
        check.derivative(net, (x, t), (v, 1.0), method="finite_difference", **tangents)[1] is None
    )
    assert check.derivative(net.eval(), (x[:0], t[:0]), (v[:0], 1.0), **tangents)[1] is None
    unhashable = type("Model", (), {"__hash__": None, "__call__": net.__call__})()
    assert check.derivative(net, (x, t), (v, 1.0), model=unhashable)[1] is None
