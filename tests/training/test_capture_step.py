"""A captured training step is the step, whether a graph runs it or not."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import losses, noise
from cmsolvers.denoisers import EDM, ConsistencyFunction
from cmsolvers.training import capture_step
from support.capture_job import Job, adamw, assert_same, by_hand, needs_gpu, rate
from support.waits import Waits

on_gpu = pytest.param("cuda", marks=[pytest.mark.cuda, needs_gpu])
each_device = pytest.mark.parametrize("device", ["cpu", on_gpu])


@each_device
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


@each_device
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


@each_device
def test_a_loss_is_a_tensor_of_its_own(device):
    job = Job(device)
    losses = job.run(job.captured(warmup=1), 6)
    kept = [float(loss) for loss in losses]
    assert len(set(kept)) == 6 and all(loss.shape == () for loss in losses)
    assert not any(loss.requires_grad for loss in losses)
    assert len({loss.data_ptr() for loss in losses}) == 6


@each_device
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


@each_device
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
