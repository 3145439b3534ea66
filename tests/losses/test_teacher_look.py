"""The warning where a raw network is given as teacher."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cmsolvers as cm
from cmsolvers import denoisers as de
from cmsolvers import noise, oracles
from cmsolvers.denoisers import conversions
from cmsolvers.engine.mistakes.glances import Glance
from cmsolvers.losses.evaluation import teacher_look
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.teacher_look import look_at_teacher
from support.warned import texts_of

Model = Callable[..., Tensor]
X0 = 0.5 * noise.normal((32, 4), seed=1)
DATA = oracles.Gaussian(0.5)
RINGS = oracles.GaussianMixture([[-0.5] * 4, [0.5] * 4], [0.05, 0.05], [0.5, 0.5])
RINGS_X0 = RINGS.sample(32, generator=torch.Generator().manual_seed(0)).float()
CHAIN = cm.DDPM()
STUDENT = cm.ConsistencyFunction(lambda x, c: 0.0 * x)

warned = partial(texts_of, __file__)


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    teacher_look.ONCE.reset()


def looked(teacher: Model, x0: Tensor = X0, student: Model = STUDENT) -> None:
    """As a loss does it."""
    look_at_teacher(Evaluation(student, x0, noise.key(3, len(x0)), 0, teacher=teacher))


def D(x: Tensor, sigma: Tensor) -> Tensor:
    return DATA.denoiser(x, sigma)


def eps(x: Tensor, sigma: Tensor) -> Tensor:
    return (x - D(x, sigma)) / sigma[:, None]


def score(x: Tensor, sigma: Tensor) -> Tensor:
    return (D(x, sigma) - x) / sigma[:, None] ** 2


def in_flow(model: Model) -> Model:
    def moved(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t)

    moved.coordinates = "flow"  # type: ignore[attr-defined]
    return moved


def of_flow(x: Tensor, t: Tensor) -> Tensor:
    return D(x / (1 - t)[:, None], t / (1 - t))


class Raw(nn.Module):
    """An untrained network."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        made: Tensor = self.drop(self.line(x))
        return made


WRONG: dict[str, Model] = {
    "eps": eps,
    "eps of a chain": conversions.to_eps(D, process=CHAIN),
    "v of a chain": conversions.to_v(D, process=CHAIN),
    "score": score,
    "raw F": conversions.to_edm(D),
    "velocity": in_flow(lambda x, t: (x - of_flow(x, t)) / t[:, None]),
    "zeros": lambda x, sigma: 0.0 * x,
    "minus x": lambda x, sigma: -x,
    "not finite": lambda x, sigma: x / 0.0,
    "a network": Raw().eval(),
    "in parallel": nn.DataParallel(Raw().eval()),
}
RIGHT: dict[str, tuple[Model, Tensor]] = {
    "a function": (D, X0),
    "a method": (DATA.denoiser, X0),
    "a mixture": (RINGS.denoiser, RINGS_X0),
    "a data set": (oracles.DataSet(X0).denoiser, X0),
    "one of its own batch": (oracles.DataSet(X0[:3]).denoiser, X0[:3].repeat(4, 1)),
    "in flow coordinates": (in_flow(of_flow), X0),
    "guided by hand": (lambda x, s: D(x, s) + 7.5 * (D(x, s) - D(0.99 * x, s)), X0),
    "large data": (oracles.Gaussian(100.0).denoiser, 200.0 * X0),
    "tiny data": (lambda x, s: 0.0 * x, 0.001 * X0),
    "no data": (lambda x, s: 0.0 * x, 0.0 * X0),
    "a consistency function": (lambda x, s: DATA.consistency(x, s, 0.002), X0),
    "the identity": (lambda x, s: x, X0),
    "half precision": (lambda x, s: D(x.float(), s).bfloat16(), X0.bfloat16()),
    "double precision": (D, X0.double()),
    "EDM, untrained": (de.EDM(Raw()), X0),
    "from_eps, wrong process": (de.from_eps(lambda x, t: 9.0 * x, process=CHAIN), X0),
    "a partial": (partial(de.EDM(Raw())), X0),
    "clipped": (de.clipped(D), X0),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_raw_network_is_told_once(name: str) -> None:
    (text,) = warned(lambda: looked(WRONG[name]))
    assert text.startswith("teacher must be a denoiser, which gives nearly clean data back; of da")
    assert "denoisers.from_eps, from_v, from_flow or EDM make a denoiser" in text
    assert ("returns what is not finite" in text) == (name == "not finite")
    assert warned(lambda: [looked(WRONG[name]), looked(eps)]) == []


@pytest.mark.parametrize("name", RIGHT)
def test_no_false_alarm(name: str) -> None:
    teacher, x0 = RIGHT[name]
    assert warned(lambda: looked(teacher, x0)) == []


def test_students_in_other_coordinates() -> None:
    trig = cm.TrigFlowMap(lambda x, t: 0.0 * x)
    assert warned(lambda: looked(D, student=trig)) == []
    assert len(warned(lambda: looked(eps, student=trig))) == 1


@pytest.mark.parametrize("kind", ["function", "made anew", "method", "module", "wrapped"])
def test_each_teacher_is_asked_once(kind: str) -> None:
    calls = []

    class Counted(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            calls.append(sigma.shape)
            return D(x, sigma)

        def denoiser(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.forward(x, sigma)

    one = Counted()
    found: dict[str, Callable[[], Model]] = {
        "function": lambda: one.forward,
        "made anew": lambda: lambda x, s: one(x, s),
        "method": lambda: one.denoiser,
        "module": lambda: one,
        "wrapped": lambda: partial(one.denoiser),
    }
    kept = found[kind]()
    for _ in range(3):
        looked(kept if kind == "wrapped" else found[kind]())
    assert calls == [torch.Size([32])]


def test_a_known_teacher_is_not_asked() -> None:
    def net(x: Tensor, c: Tensor) -> Tensor:
        raise AssertionError

    for teacher in (de.EDM(net), de.from_flow(net), de.clipped(de.EDM(net))):
        looked(teacher)
    look_at_teacher(Evaluation(STUDENT, X0, noise.key(3, len(X0)), 0))  # there is none


def test_nothing_else_changes() -> None:
    raw = Raw().train()
    state = torch.random.get_rng_state()
    warned(lambda: looked(raw))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in raw.parameters())


def test_a_device_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has not come yet is said at a later step."""
    come: list[Any] = []
    read = Glance.read
    monkeypatch.setattr(Glance, "read", lambda self: read(self) if come else None)
    assert warned(lambda: looked(eps)) == []
    come.append(1)
    (text,) = warned(lambda: looked(de.EDM(Raw())))
    assert "changes it by" in text


def test_derivatives_and_transforms_are_not_looked_at() -> None:
    def of(x0: Tensor) -> Tensor:
        looked(eps, x0)
        return x0.sum()

    assert warned(lambda: torch.func.grad(of)(X0)) == []
