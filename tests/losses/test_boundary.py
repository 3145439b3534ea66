"""The warning where a raw network is given to a consistency loss."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from cmsolvers import ConsistencyFunction, losses, noise
from cmsolvers.denoisers import EDM
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.engine.mistakes.glances import Glance
from cmsolvers.losses import boundary
from support.warned import texts_of

DATA = Gaussian(0.5)
X0 = 0.5 * noise.normal((16, 3), seed=1)


class Net(nn.Module):
    """A raw network: scaled x, a level, dropout and running statistics."""

    def __init__(self):
        super().__init__()
        self.line, self.drop, self.norm = nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)
        self.calls = []

    def forward(self, x, c):
        self.calls.append(float(c[0]))
        return self.norm(self.drop(self.line(x)))


class Own(nn.Module):
    """A consistency function that the library does not know; e is where it is the identity."""

    def __init__(self, e=0.002):
        super().__init__()
        self.net, self.e, self.calls = Net(), e, 0

    def forward(self, x, sigma):
        self.calls += 1
        gone = (sigma - self.e)[:, None]
        return 0.25 / (gone**2 + 0.25) * x + gone * self.net(x, sigma)


class Wrapped(nn.Module):
    """As modules around modules are made for several devices."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args):
        self.calls += 1
        return self.module(*args)


@pytest.fixture(autouse=True)
def nothing_said():
    boundary.ONCE.reset()


def train(student, x0=X0, **more):
    return losses.ict(student, x0, key=3, step=0, levels=(1.0, 0.5), bad_rows="keep", **more).loss


def distill(student, x0=X0, **more):
    def teacher(x, s, **_):
        return DATA.denoiser(x, s)

    return losses.cd(
        student, x0, key=3, step=0, levels=(1.0, 0.5), teacher=teacher, bad_rows="keep", **more
    ).loss


warned = partial(texts_of, __file__)


@pytest.mark.parametrize("loss", [train, distill])
@pytest.mark.parametrize("model", [Net(), lambda x, s: 0.0 * x, lambda x, s: -x])
def test_a_raw_network_is_told_once(loss, model):
    (text,) = warned(lambda: loss(model))
    assert text.startswith("model must be a consistency function, f(x, sigma_min) = x; at sigma")
    assert "it changes data by " in text and "ConsistencyFunction(net, sigma_data)" in text
    assert warned(lambda: [loss(model), loss(Net())]) == []


RIGHT = {
    "a consistency function": lambda: ConsistencyFunction(Net()),
    "EDM": lambda: EDM(Net()),
    "one in a module": lambda: Wrapped(ConsistencyFunction(Net())),
    "one in two": lambda: Wrapped(Wrapped(ConsistencyFunction(Net()))),
    "one of the user": Own,
    "with the boundary elsewhere": lambda: Own(0.05),
    "with the boundary at 0": lambda: Own(0.0),
    "the exact one": lambda: lambda x, s: DATA.consistency(x, s, 0.002),
    "the exact denoiser": lambda: DATA.denoiser,
    "the identity": lambda: lambda x, s: x,
}


@pytest.mark.parametrize("loss", [train, distill])
@pytest.mark.parametrize("name", RIGHT)
def test_no_false_alarm(loss, name):
    student = RIGHT[name]()
    assert warned(lambda: [loss(student), loss(student, 10.0 * X0)]) == []
    tiny = lambda x, s: 0.0 * x  # noqa: E731 - data that is small beside the level
    assert warned(lambda: loss(tiny, 0.01 * X0)) == []


def test_one_evaluation_of_what_is_not_known():
    known, wrapped, own = ConsistencyFunction(Net()), Wrapped(ConsistencyFunction(Net())), Own()
    for student in (known, wrapped, own):
        train(student)
    assert (len(known.net.calls), wrapped.calls, own.calls) == (2, 2, 3)
    train(own)
    assert own.calls == 5
    assert own.net.calls[:3] == pytest.approx([1.0, 0.002, 0.5])


def test_the_look_leaves_no_trace():
    """The same loss, gradient, generator and statistics as with a student that is not looked at."""
    found = []
    for looked in (False, True):
        boundary.ONCE.reset()
        torch.manual_seed(0)
        student = Own()
        if not looked:
            boundary.ONCE.is_first(id(student))
        value = train(student)
        value.backward()
        norm = student.net.norm
        seen = (value, student.net.line.weight.grad, norm.running_mean, norm.num_batches_tracked)
        found.append((*(part.detach().clone() for part in seen), torch.get_rng_state()))
        assert student.calls == 2 + looked
    assert all(map(torch.equal, *found))


def test_extra_arguments_reach_it():
    seen = []

    def student(x, s, y):
        seen.append((float(s[0]), y))
        return y * x

    assert warned(lambda: train(student, extra_args={"y": 1.0})) == []
    assert seen == [(1.0, 1.0), (pytest.approx(0.002), 1.0), (0.5, 1.0)]


def test_what_came_late_is_said_at_a_later_step(monkeypatch):
    """As on a GPU: nothing waits."""
    late = []

    def read(glance, known=Glance.read):
        return known(glance) if late else None

    monkeypatch.setattr(Glance, "read", read)
    net = Net()
    assert warned(lambda: train(net)) == []
    late.append(True)
    assert len(warned(lambda: train(net))) == 1 and not boundary.ONCE.waits


def test_a_student_that_is_not_a_number_is_told_too():
    (text,) = warned(lambda: train(lambda x, s: x * math.nan))
    assert "returns what is not finite" in text


def test_nothing_is_looked_at_where_functions_are_transformed():
    def student(x, s):
        return 0.0 * x

    assert warned(lambda: torch.func.grad(lambda x: train(student, x))(X0)) == []
