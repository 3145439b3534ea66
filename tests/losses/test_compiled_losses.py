"""Losses compiled whole: the same values and gradients, and the same masks in both passes."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cmsolvers import losses, noise
from cmsolvers.denoisers import EDM, ConsistencyFunction

BACKENDS = ("eager", pytest.param("aot_eager", marks=pytest.mark.slow))
X0 = noise.normal((6, 3), seed=1)
HIGH = torch.linspace(0.5, 3.0, 6, dtype=torch.float64)
LOW = HIGH * 0.8
ZEROS = torch.where(torch.arange(6) < 3, 0.0, LOW)


class Net(nn.Module):
    """A network with what a pass changes: dropout and running statistics."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 3)
        self.norm, self.dropout = nn.BatchNorm1d(8), nn.Dropout(p)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.last(self.dropout(functional.silu(self.norm(self.first(x))))) * (1 + c[:, None])


def nets(p: float) -> tuple[Net, Net, Net]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(p), Net(p), Net(p).eval()


PAIR = (HIGH, LOW)
LOSSES: dict[str, Callable[..., Tensor]] = {
    "training": lambda f, t, d, **o: losses.ict(f, X0, levels=PAIR, **o),
    "training, EMA": lambda f, t, d, **o: losses.ct(f, X0, target=t, levels=PAIR, **o),
    "training, to 0": lambda f, t, d, **o: losses.ict(f, X0, levels=(2.0, 0.0), **o),
    "tuning": lambda f, t, d, **o: losses.ect(f, X0, levels=(HIGH, ZEROS), **o),
    "tuning, drawn": lambda f, t, d, **o: losses.ect(f, X0, **o),
    "distillation": lambda f, t, d, **o: losses.cd(f, X0, target=t, teacher=d, levels=PAIR, **o),
    "distillation, Euler": lambda f, t, d, **o: losses.cd(
        f, X0, teacher=d, levels=(2.0, 1.0), solver="euler", distance=losses.mean_abs, **o
    ),
    "score": lambda f, t, d, **o: losses.dsm(f, X0, levels=HIGH, **o),
}


def outcome(
    name: str, p: float, seed: object, backend: str | None
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Loss, gradients, and the student's buffers after the pass."""
    student, target, teacher = nets(p)
    f = (EDM if name == "score" else ConsistencyFunction)(student)
    t, d = ConsistencyFunction(target), EDM(teacher)

    def loss() -> Tensor:
        return LOSSES[name](f, t, d, key=seed, step=2).loss

    run = loss
    if backend is not None:
        torch._dynamo.reset()
        run = torch.compile(loss, fullgraph=True, backend=backend)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        value = run()
    value.backward()
    return value.detach(), [w.grad for w in student.parameters()], list(student.buffers())


SHORT = (("training", 0.5), ("tuning", 0.0), ("distillation", 0.0))
"""The cases that run always: a compilation takes seconds."""
CASES = [
    pytest.param(name, p, seed, marks=() if (name, p) in SHORT else pytest.mark.slow)
    for name in LOSSES
    for p, seed in ((0.0, 3), (0.5, None))
]


@pytest.mark.filterwarnings("error::UserWarning:torch._dynamo")
@pytest.mark.parametrize("name, p, seed", CASES)
def test_compiled_losses_are_those_of_eager(name, p, seed):
    value, gradients, buffers = outcome(name, p, seed, None)
    compiled, also, left = outcome(name, p, seed, "aot_eager")
    torch.testing.assert_close(compiled, value, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(also, gradients, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(left, buffers, rtol=1e-6, atol=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training", "distillation"])
def test_compiled_by_inductor(name):
    value, gradients, _ = outcome(name, 0.0, 3, None)
    compiled, also, _ = outcome(name, 0.0, 3, "inductor")
    torch.testing.assert_close(compiled, value, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(also, gradients, rtol=1e-4, atol=1e-5)


# --- random functions ----------------------------------------------------------------------------


class Random(nn.Module):
    """Its output is what a random function makes, and nothing else."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw, self.scale = draw, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.draw(torch.ones_like(x)) * self.scale


def images(x: Tensor) -> Tensor:
    return functional.dropout2d(x.reshape(2, 3, 1, 3), 0.5).reshape(6, 3)


REPLAYED: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.Dropout": nn.Dropout(0.5),
    "dropout": lambda x: functional.dropout(functional.dropout(x, p=0.3), 0.4, training=True),
    "dropout, in place": lambda x: functional.dropout(x * 1.0, 0.4, True, True),
    "dropout2d": images,
    "torch.dropout": lambda x: torch.dropout(x, 0.5, train=True),
    "bernoulli_": lambda x: x * x.new_empty(6, 1).bernoulli_(0.5) / 0.5,
    "normal_": lambda x: x + torch.empty(3).normal_(0.0, 2.0),
    "rand, written to": lambda x: x * torch.rand(6, 3).mul_(2.0).floor_(),
    "randn, randint": lambda x: x * torch.randn(3) + torch.randint(0, 9, (6, 1)),
    "randperm": lambda x: x * torch.randperm(6)[:, None],
}


def apart(draw: Callable[[Tensor], Tensor], backend: str) -> Tensor:
    """The distance of what student and target drew."""
    net = Random(draw)

    def loss() -> Tensor:
        return losses.ct(net, X0, key=0, step=0, levels=PAIR).loss

    torch._dynamo.reset()
    return torch.compile(loss, fullgraph=True, backend=backend)()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", REPLAYED)
def test_student_and_target_draw_the_same(name, backend):
    assert apart(REPLAYED[name], backend) == 0


@pytest.mark.slow
def test_inductor_draws_the_same_for_both():
    assert apart(nn.Dropout(0.5), "inductor") == 0


def test_without_the_record_they_differ(monkeypatch):
    """The control: a kept number that is not used again."""
    monkeypatch.setattr(losses.evaluation.randomness._Drawn, "again", lambda self: self)
    assert apart(nn.Dropout(0.5), "eager") > 0


def test_every_run_draws_anew():
    net = Random(nn.Dropout(0.5))
    torch._dynamo.reset()

    def loss() -> Tensor:
        value = losses.ict(net, X0, key=0, step=0, levels=PAIR).loss
        return value, net(X0, HIGH)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (a, first), (b, second) = compiled(), compiled()
    assert a == b == 0 and not torch.equal(first, second)


def attention(x: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5)[0]


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled_dot_product_attention": attention,
    "multi_head_attention_forward": lambda x: HEADS(x[None], x[None], x[None])[0][0],
    "alpha_dropout": nn.AlphaDropout(0.5),
    "rrelu": nn.RReLU(),
    "bernoulli": lambda x: torch.bernoulli(0.5 * x),
}
HEADS = nn.MultiheadAttention(3, 1, dropout=0.5, batch_first=True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_replayed_is_an_error(name):
    with pytest.raises(Exception, match=f"{name} of a network in training cannot draw the same"):
        apart(REFUSED[name], "eager")


def test_nothing_is_refused_where_nothing_is_drawn():
    quiet = copy.deepcopy(HEADS).eval()
    for draw in (
        lambda x: quiet(x[None], x[None], x[None])[0][0],
        nn.AlphaDropout(0.5).eval(),
        nn.RReLU().eval(),
        lambda x: functional.scaled_dot_product_attention(x[None], x[None], x[None])[0],
    ):
        assert apart(draw, "eager") == 0


def test_another_sequence_of_draws_is_an_error():
    student, target = Random(nn.Dropout(0.5)), Random(lambda x: x * torch.rand(3))

    def loss() -> Tensor:
        return losses.ict(student, X0, target=target, key=0, step=0, levels=PAIR).loss

    torch._dynamo.reset()
    with pytest.raises(Exception, match="student and target must call the same random functions"):
        torch.compile(loss, fullgraph=True, backend="eager")()


COLD = """
import torch, cmsolvers as cm
from cmsolvers import denoisers, losses
from cmsolvers.denoisers import conversions
f = cm.ConsistencyFunction(lambda x, c: 0.1 * x)
D = cm.EDM(lambda x, c: 0.1 * x)
V = denoisers.from_v(lambda x, t: 0.1 * x, process=cm.VP(), coordinates="process")
x0, sigma = torch.ones(4, 3), torch.full((4,), 2.0)
more = {"key": 0, "step": 1}
pair = (sigma, sigma / 2)
calls = {
    "score": lambda: losses.dsm(D, x0, levels=sigma, **more).loss,
    "process": lambda: losses.dsm(V, x0, levels=sigma / 4, **more).loss,
    "training": lambda: losses.ict(f, x0, levels=pair, **more).loss,
    "tuning": lambda: losses.ect(f, x0, **more).loss,
    "distillation": lambda: losses.cd(f, x0, teacher=D, levels=pair, **more).loss,
    "eps": lambda: conversions.to_eps(D)(x0, sigma),
}
compiled = torch.compile(calls["NAME"], fullgraph=True, backend="eager")()
torch.testing.assert_close(compiled, calls["NAME"]())
"""


@pytest.mark.parametrize("name", [pytest.param("process", marks=pytest.mark.slow), "distillation"])
def test_in_a_fresh_process(name):
    """Nothing that an earlier call computed may be needed."""
    command = [sys.executable, "-W", "ignore", "-c", COLD.replace("NAME", name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


class Writes(nn.Module):
    """A network that writes to its input, as one with in-place activations in front does."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        made: Tensor = self.last(x.mul_(2.0).tanh_())
        return made


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_network_that_writes_to_its_input_gets_a_copy(backend: str) -> None:
    torch.manual_seed(0)
    model = ConsistencyFunction(Writes())
    x0 = torch.linspace(-1.0, 1.0, 24).reshape(8, 3)

    def value(x0: Tensor) -> Tensor:
        return losses.ict(model, x0, key=0, step=5, levels=(2.0, 0.5)).loss

    compiled = torch.compile(value, backend=backend, fullgraph=True)(x0)
    torch.testing.assert_close(compiled, value(x0), rtol=1e-5, atol=0)
