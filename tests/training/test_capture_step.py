"""A captured training step: the same step, whether a graph runs it or not."""

from __future__ import annotations

import contextlib
import copy
import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import losses, noise
from cmsolvers.denoisers import EDM, ConsistencyFunction
from cmsolvers.training import EMA, CapturedStep, capture_step, power_decay, update_averages
from cmsolvers.training import captured_step as module
from support.waits import Waits

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ],
    ),
]
on_gpu = DEVICES[1].marks


class Job:
    """A small training with everything in it: dropout, a target average, a counter in a buffer."""

    def __init__(self, device: str = "cpu", dropout: float = 0.2) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Linear(4, 32), nn.BatchNorm1d(32), nn.SiLU(), nn.Dropout(dropout), nn.Linear(32, 4)
        ).to(device)
        self.optimizer = adamw(self.network)
        self.target = EMA(self.network, 0.9)
        self.averages = {"target": self.target, "wide": EMA(self.network, power_decay(0.1))}
        self.device = device

    def batch(self, k: int) -> dict[str, Tensor]:
        x = noise.normal((16, 4), seed=1, draw=k, device=self.device)
        return {"x": x, "scale": torch.tensor(1.0 + 0.1 * k, device=self.device)}

    def loss(self, batch: dict[str, Tensor], step: Tensor) -> Tensor:
        aim = self.target.module(batch["x"]).detach() + 0.1 * step.to(torch.float32).sqrt()
        return batch["scale"] * (self.network(batch["x"]) - aim).square().mean()

    def captured(self, **options) -> CapturedStep:
        arguments = {"clip": 0.5, "averages": self.averages, **options}
        return capture_step(self.loss, self.network, self.optimizer, self.batch(0), **arguments)

    def state(self) -> list[Tensor]:
        nets = [self.network, *(ema.module for ema in self.averages.values())]
        found = [t for net in nets for t in net.state_dict().values()]
        found += [
            t for entries in self.optimizer.state_dict()["state"].values() for t in entries.values()
        ]
        return [t.detach().cpu().clone() for t in found]

    def run(self, step: CapturedStep, count: int, first: int = 0) -> list[Tensor]:
        losses = []
        for k in range(first, first + count):
            torch.manual_seed(100 + k)
            losses.append(step(self.batch(k), k, rate(k)))
        return losses


def rate(k: int) -> float:
    return 1e-2 * math.cos(0.05 * k)


def adamw(network: nn.Module, **options) -> torch.optim.Optimizer:
    device = next(network.parameters()).device
    given = {"lr": torch.tensor(1e-2, device=device), "fused": True, "capturable": True}
    return torch.optim.AdamW(network.parameters(), **(given | options))


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.cpu(), b.cpu())


def by_hand(job: Job, count: int) -> list[Tensor]:
    losses = []
    for k in range(count):
        torch.manual_seed(100 + k)
        job.optimizer.param_groups[0]["lr"].fill_(rate(k))
        job.optimizer.zero_grad()
        loss = job.loss(job.batch(k), torch.tensor([k], device=job.device))
        loss.backward()
        nn.utils.clip_grad_norm_(job.network.parameters(), 0.5)
        job.optimizer.step()
        update_averages(job.averages.values(), job.network)
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("device", DEVICES)
def test_is_the_step_written_by_hand(device):
    """To the bit: losses, weights, buffers, averages and the optimiser's state of 20 steps."""
    job, other = Job(device), Job(device)
    step = job.captured()
    assert_same(job.run(step, 20), by_hand(other, 20))
    assert_same(job.state(), other.state())
    assert [ema.steps for ema in job.averages.values()] == [20, 20]
    assert (step.graph is not None) == (device == "cuda")
    third = Job(device)  # negative control: another learning rate in one step
    third.run(third.captured(), 19)
    third.captured()(third.batch(19), 19, 1.01 * rate(19))
    assert not torch.equal(third.state()[0], job.state()[0])


@pytest.mark.parametrize("device", DEVICES)
def test_goes_on_from_a_checkpoint(device):
    whole, first = Job(device), Job(device)
    expected = whole.run(whole.captured(), 10)
    losses = first.run(first.captured(), 6)
    second = Job(device)
    second.network.load_state_dict(first.network.state_dict())
    for name, ema in second.averages.items():
        ema.load_state_dict(first.averages[name].state_dict())
    step = second.captured()
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    with pytest.raises(RuntimeError, match=r"optimizer must keep the tensors.*call reset\(\)"):
        step(second.batch(6), 6)
    step.reset()
    assert_same(losses + second.run(step, 4, first=6), expected)
    assert_same(second.state(), whole.state())


@pytest.mark.parametrize("device", DEVICES)
def test_a_loss_is_a_tensor_of_its_own(device):
    job = Job(device)
    losses = job.run(job.captured(warmup=1), 6)
    kept = [float(loss) for loss in losses]
    assert len(set(kept)) == 6 and all(loss.shape == () for loss in losses)
    assert not any(loss.requires_grad for loss in losses)
    assert len({loss.data_ptr() for loss in losses}) == 6


@pytest.mark.parametrize("device", DEVICES)
def test_clipping_limits_the_norm(device):
    for clip in (0.0, 0.5):
        job = Job(device)
        step = job.captured(clip=clip)
        for k in range(5):
            step({name: 50.0 * t for name, t in job.batch(k).items()}, k)
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in job.network.parameters()))
            assert norm == pytest.approx(0.5, rel=1e-3) if clip else norm > 10.0


def test_the_number_of_the_step_is_a_tensor():
    network, seen = nn.Linear(1, 1), []

    def loss(batch, step):
        assert step.dtype is torch.int64 and step.shape == (1,)
        seen.append(int(step))
        return network(batch).sum()

    step = capture_step(loss, network, adamw(network), torch.ones(2, 1))
    for k in (0, 7, torch.tensor([9]), torch.tensor(2**40)):
        step(torch.ones(2, 1), k)
    assert seen == [0, 7, 9, 2**40] and int(step.step) == 2**40


def test_learning_rates():
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    network = nn.Sequential(first, second)
    groups = [
        {"params": part.parameters(), "lr": torch.tensor(0.1 * (i + 1))}
        for i, part in enumerate(network)
    ]
    optimizer = torch.optim.AdamW(groups, lr=torch.tensor(1.0), fused=True, capturable=True)
    held = [group["lr"] for group in optimizer.param_groups]
    step = capture_step(lambda x, k: network(x).sum(), network, optimizer, torch.ones(1, 1))

    def after(lr):
        step(torch.ones(1, 1), 0, lr)
        assert all(g["lr"] is h for g, h in zip(optimizer.param_groups, held, strict=True))
        return pytest.approx([float(h) for h in held])

    assert after(None) == [0.1, 0.2]
    assert after(0.3) == [0.3, 0.3]
    assert after([0.4, 0.5]) == [0.4, 0.5]
    assert after(torch.tensor(0.6)) == [0.6, 0.6]


class Pair(NamedTuple):
    x: Tensor
    more: dict[str, object]


def test_batches_may_be_nested():
    network = nn.Linear(2, 1, bias=False)

    def loss(batch, step):
        assert isinstance(batch, Pair) and batch.more["name"] == "a"
        y, z = batch.more["list"]
        return network(batch.x * y + z).sum()

    def pair(scale, **more):
        given = {"list": [torch.full((3, 1), scale), torch.zeros(2)], "name": "a", **more}
        return Pair(torch.ones(3, 2), given)

    step = capture_step(loss, network, adamw(network), pair(0.0))
    for scale in (1.0, -2.0):
        expected = float(3 * scale * network.weight.detach().sum())
        assert float(step(pair(scale), 0)) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"batch\[1\]\['name'\] must be 'a', as captured; got 'b'"):
        step(pair(1.0, name="b"), 0)


def test_what_it_is_given_is_left_alone():
    job = Job()
    step, batch = job.captured(), job.batch(3)
    before = {name: t.clone() for name, t in batch.items()}
    step(batch, 3)
    assert all(torch.equal(batch[name], before[name]) for name in batch)
    for t in batch.values():
        t.fill_(math.nan)  # the step has copies
    assert all(t.isfinite().all() for t in job.state())


def test_works_where_gradients_are_off():
    job, other = Job(), Job()
    with torch.no_grad():
        losses = job.run(job.captured(), 3)
    assert_same(losses, by_hand(other, 3))


def test_reads_nothing_on_the_host():
    """Nothing in a step would wait for a GPU; the negative control does."""
    job = Job()
    step = job.captured()
    job.run(step, 1)
    with Waits() as waits:
        job.run(step, 3)
    assert waits.count == 0
    with Waits() as waits:
        float(step(job.batch(0), 0))
    assert waits.count == 1


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"batch": {}}, ValueError, r"batch\['x'\] is missing"),
        ({"batch": {"y": 1}}, ValueError, r"batch\['y'\] is new"),
        ({"batch": torch.ones(2)}, ValueError, r"batch\['x'\] is missing"),
        ({"x": torch.ones(15, 4)}, ValueError, r"batch\['x'\] must be .*\[16, 4\].*\[15, 4\]"),
        ({"x": torch.ones(16, 4).double()}, ValueError, r"batch\['x'\] must be .*float32.*float64"),
        ({"scale": 1.0}, TypeError, r"batch\['scale'\] must be a tensor, as captured; got 1.0"),
        ({"step": -1}, ValueError, "step must"),
        ({"step": 0.5}, TypeError, "step must"),
        ({"step": torch.zeros(1)}, ValueError, "step must be an int or an int64 tensor"),
        ({"step": torch.zeros(2).long()}, ValueError, "step must be an int or an int64 tensor"),
        ({"lr": -1.0}, ValueError, "lr must"),
        ({"lr": math.nan}, ValueError, "lr must"),
        ({"lr": "fast"}, (TypeError, ValueError), "lr must"),
        ({"lr": [0.1, 0.1]}, ValueError, "lr must hold one number per group of parameters, 1"),
        ({"lr": torch.ones(2)}, ValueError, "lr must be numbers or a tensor of one entry"),
    ],
)
def test_bad_calls_change_nothing(given, error, text):
    job = Job()
    step = job.captured()
    job.run(step, 2)
    before = job.state(), int(step.step), float(job.optimizer.param_groups[0]["lr"])
    batch = given.pop("batch", None)
    if batch is None:
        batch = {**job.batch(5), **{n: given.pop(n) for n in ("x", "scale") if n in given}}
    with pytest.raises(error, match=text):
        step(batch, **{"step": 5, "lr": 0.5, **given})
    assert_same(job.state(), before[0])
    assert (int(step.step), float(job.optimizer.param_groups[0]["lr"])) == before[1:]
    assert [ema.steps for ema in job.averages.values()] == [2, 2]


NET = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"loss": 1}, TypeError, "loss must be"),
        ({"network": print}, TypeError, r"network must be a torch\.nn\.Module"),
        ({"network": nn.SiLU()}, ValueError, "optimizer must train parameters of network"),
        ({"network": nn.Linear(1, 1)}, ValueError, "optimizer must train parameters of network"),
        ({"optimizer": None}, TypeError, r"optimizer must be a torch\.optim\.Optimizer; got None"),
        (
            {"optimizer": torch.optim.AdamW(NET.parameters(), lr=torch.tensor(1e-3), fused=True)},
            ValueError,
            r"optimizer\.param_groups\[0\] must be capturable; got capturable=False.*fused=True",
        ),
        (
            {"optimizer": torch.optim.SGD(NET.parameters(), lr=torch.tensor(1e-3))},
            ValueError,
            r"must be capturable; got capturable=None",
        ),
        (
            {"optimizer": torch.optim.AdamW(NET.parameters(), fused=True, capturable=True)},
            TypeError,
            r"must have a tensor as lr, so that replays read a new one; got lr=0\.001",
        ),
        ({"clip": -1.0}, ValueError, "clip must"),
        ({"warmup": 0}, ValueError, "warmup must"),
        ({"graph": 1}, TypeError, "graph must"),
        ({"averages": [NET]}, TypeError, r"averages\[0\] must be an EMA; got .*Linear"),
        ({"averages": [EMA(nn.Linear(2, 1))]}, ValueError, "network must have the parameters and"),
        (
            {"example_batch": {"x": torch.ones(2, device="meta")}},
            ValueError,
            r"batch\['x'\] must be on the network's device, cpu; got meta",
        ),
        (
            {"averages": [EMA(nn.Linear(1, 1, device="meta"))]},
            ValueError,
            r"averages\[0\] must be on the network's device, cpu; got meta",
        ),
    ],
)
def test_bad_arguments(given, error, text):
    arguments = {
        "loss": lambda x, k: NET(x).sum(),
        "network": NET,
        "optimizer": adamw(NET),
        "example_batch": torch.ones(2, 1),
        **given,
    }
    with pytest.raises(error, match=text):
        capture_step(**arguments)


@pytest.mark.parametrize(
    ("result", "error", "text"),
    [
        (lambda x: 1.0, TypeError, "loss must return a tensor of one entry; got 1.0"),
        (lambda x: NET(x), ValueError, r"loss must return a tensor of one entry; got shape \[2, 1"),
        (lambda x: x.sum(), ValueError, "loss must depend on the network's parameters"),
    ],
)
def test_bad_losses(result, error, text):
    step = capture_step(lambda x, k: result(x), NET, adamw(NET), torch.ones(2, 1))
    with pytest.raises(error, match=text):
        step(torch.ones(2, 1), 0)


RECIPES = {
    "dsm": (EDM, losses.dsm),
    "ect": (ConsistencyFunction, losses.ect),
    "ict": (ConsistencyFunction, partial(losses.ict, times=losses.DoublingPairs(total=40))),
}


class Timed(nn.Module):
    """A network of (x, c_noise)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.layers(torch.cat((x, c_noise[:, None].to(x.dtype)), dim=1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", RECIPES)
def test_losses_of_the_library_draw_by_the_tensor(name, device):
    """Noise, levels and schedules of step k are those that the number k gives."""
    around, recipe = RECIPES[name]
    one, other = (around(Timed()).to(device) for _ in range(2))
    data = noise.normal((16, 2), seed=1, device=device)
    optimizer = adamw(other)
    step = capture_step(lambda x0, k: recipe(one, x0, key=7, step=k).loss, one, adamw(one), data)
    for k in (0, 1, 2, 3, 4, 30):
        expected = recipe(other, data, key=7, step=k).loss
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(step(data, k), expected.detach(), rtol=1e-6, atol=0.0)


class PretendedGraphs:
    """Stands in for torch.cuda on the CPU: what is recorded has no effect until it is replayed."""

    def __init__(self, job: Job, captured: CapturedStep) -> None:
        self.job, self.captured, self.log = job, captured, []
        self.fails = False

    def held(self) -> list[Tensor]:
        nets = [self.job.network, *(ema.module for ema in self.job.averages.values())]
        found = [t for net in nets for t in (*net.parameters(), *net.buffers())]
        return found + [
            t for entries in self.job.optimizer.state.values() for t in entries.values()
        ]

    @contextlib.contextmanager
    def graph(self, graph, pool=None, stream=None):
        assert stream is self and pool == "pool"
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        assert all(p.grad is None for p in self.job.network.parameters())
        self.log.append("capture")
        before = [t.detach().clone() for t in self.held()]
        random = torch.get_rng_state()
        yield
        torch.set_rng_state(random)
        with torch.no_grad():
            for t, old in zip(self.held(), before, strict=True):
                t.copy_(old)

    def replay(self):
        self.log.append("replay")
        self.captured._value.copy_(self.captured._run())

    def stream_of(self, device):
        return self

    def wait_stream(self, other):
        self.log.append("wait")

    @contextlib.contextmanager
    def on(self, what):
        yield


@pytest.fixture
def pretended(monkeypatch):
    """A job, its captured step and the pretended torch.cuda that runs it."""
    job = Job()
    step = job.captured(pool="pool")
    fake = PretendedGraphs(job, step)
    step._captures = True
    cuda = type("cuda", (), {})()
    cuda.CUDAGraph = lambda: type(
        "G", (), {"replay": lambda _: fake.replay(), "pool": lambda _: 7}
    )()
    cuda.graph, cuda.Stream, cuda.current_stream = fake.graph, fake.stream_of, fake.stream_of
    cuda.stream = cuda.device = fake.on
    replaced = type("torch", (), {"__getattr__": lambda _, name: getattr(torch, name)})()
    replaced.cuda = cuda
    monkeypatch.setattr(module, "torch", replaced)
    return job, step, fake


def test_the_way_through_warm_up_capture_and_replays(pretended):
    """Which call does what, with the right numbers in the end: no step is lost or done twice."""
    job, step, fake = pretended
    losses = job.run(step, 3)
    assert fake.log == ["wait", "wait"] * 3 and step.graph is None
    losses += job.run(step, 4, first=3)
    assert fake.log[6:] == ["capture", "replay", "replay", "replay", "replay"]
    assert step.graph is not None and step.pool == 7 and "a graph" in repr(step)
    step.reset()
    assert step.graph is None and "no graph" in repr(step)
    losses += job.run(step, 4, first=7)
    assert fake.log[11:] == ["wait", "wait"] * 3 + ["capture", "replay"]
    other = Job()
    assert_same(losses, by_hand(other, 11))
    assert_same(job.state(), other.state())


def test_a_capture_that_fails_changes_nothing(pretended):
    job, step, fake = pretended
    losses = job.run(step, 3)
    before = job.state()
    fake.fails = True
    with pytest.raises(RuntimeError, match=r"could not be captured.*\.item.*permitted"):
        job.run(step, 1, first=3)
    assert_same(job.state(), before)
    fake.fails = False
    losses += job.run(step, 3, first=3)
    assert_same(losses, by_hand(Job(), 6))


class TestCuda:
    pytestmark = on_gpu

    @pytest.mark.parametrize("dropout", [0.0, 0.2])
    def test_same_bits_as_uncaptured_over_20_steps(self, dropout):
        job, other = Job("cuda", dropout), Job("cuda", dropout)
        step, plain = job.captured(), other.captured(graph=False)
        assert_same(job.run(step, 20), other.run(plain, 20))
        assert_same(job.state(), other.state())
        assert step.graph is not None and plain.graph is None

    def test_a_replay_does_not_wait(self):
        job = Job("cuda")
        step = job.captured()
        job.run(step, 4)
        batches, number = [job.batch(k) for k in range(4, 8)], torch.tensor([8], device="cuda")
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            losses = [step(batch, 4 + k, 1e-3) for k, batch in enumerate(batches)]
            step(batches[0], number, losses[0].abs())
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(math.isfinite(float(loss)) for loss in losses)

    def test_a_replay_is_behind_what_was_queued_before(self):
        """On whatever stream it is called from."""
        job, other = Job("cuda"), Job("cuda")
        step, stream = job.captured(), torch.cuda.Stream()
        losses = []
        for k in range(6):
            batch, late = job.batch(k), {n: torch.zeros_like(t) for n, t in job.batch(k).items()}
            torch.manual_seed(100 + k)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                torch.cuda._sleep(20_000_000)
                for name, t in batch.items():
                    late[name].copy_(t)
                losses.append(step(late, k, rate(k)))
            torch.cuda.current_stream().wait_stream(stream)
        assert_same(losses, by_hand(other, 6))

    @pytest.mark.parametrize("fault", ["item", "cpu", "choice"])
    def test_a_loss_that_waits_is_an_error(self, fault):
        network = nn.Linear(2, 1).cuda()
        wait = {
            "item": lambda y: y.sum() * y.sum().item(),
            "cpu": lambda y: y.cpu().sum(),
            "choice": lambda y: y.sum() if y.sum() > 0 else -y.sum(),
        }[fault]
        batch = torch.ones(3, 2, device="cuda")
        step = capture_step(lambda x, k: wait(network(x)), network, adamw(network), batch, warmup=1)
        step(batch, 0)
        before = network.weight.detach().clone()
        with pytest.raises(RuntimeError, match="the training step could not be captured"):
            step(batch, 1)
        torch.cuda.synchronize()
        assert torch.equal(network.weight, before)

    def test_weights_changed_in_place_are_seen(self):
        job, other = Job("cuda"), Job("cuda")
        step, plain = job.captured(), other.captured(graph=False)
        for j, s in ((job, step), (other, plain)):
            j.run(s, 5)
            with torch.no_grad():
                for p in j.network.parameters():
                    p.mul_(0.5)
        assert_same(job.run(step, 3, first=5), other.run(plain, 3, first=5))

    def test_steps_share_a_pool(self):
        first, second = Job("cuda"), Job("cuda")
        one = first.captured()
        first.run(one, 4)
        two = second.captured(pool=one.pool)
        second.run(two, 4)
        assert_same(first.run(one, 3, first=4), second.run(two, 3, first=4))

    def test_compiled_network(self):
        network = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 4)).cuda()
        compiled, batch = torch.compile(network), torch.randn(16, 4, device="cuda")
        step = capture_step(
            lambda x, k: compiled(x).square().mean(), network, adamw(network), batch
        )
        losses = [float(step(batch, k)) for k in range(6)]
        assert losses == sorted(losses, reverse=True) and step.graph is not None

    def test_one_launch_of_a_graph(self):
        job = Job("cuda")
        step = job.captured()
        job.run(step, 4)
        batch = job.batch(4)
        with torch.profiler.profile() as profile:
            step(batch, 4, 1e-3)
            torch.cuda.synchronize()
        calls = [e.name for e in profile.events()]
        assert sum(name.startswith("cudaGraphLaunch") for name in calls) == 1
        assert sum(name.startswith("cudaLaunchKernel") for name in calls) < 12
