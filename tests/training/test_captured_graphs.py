"""The graph of a training step: when it is captured, what it replays, and on a GPU."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch import Tensor, nn

from cmsolvers.training import CapturedStep, capture_step
from cmsolvers.training import captured_step as module
from support.capture_job import Job, adamw, assert_same, by_hand, needs_gpu, rate


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
    pytestmark = [pytest.mark.cuda, needs_gpu]  # noqa: RUF012 - as pytest wants it

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
