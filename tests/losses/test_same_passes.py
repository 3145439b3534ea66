"""What the passes of one loss share: dropout masks and running statistics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import losses, noise
from cmsolvers.denoisers.oracles import Gaussian

F64 = torch.float64


def data(n: int = 64, std: float = 0.5, dim: int = 3) -> Tensor:
    return std * noise.normal((n, dim), 3, dtype=torch.float64)


# --- dropout -------------------------------------------------------------------------------------


def devices() -> list[str]:
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", devices())
def test_dropout_masks_are_the_same_in_both_passes(device: str):
    masks = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            masks.append(self.dropout(torch.ones_like(x)))
            return x * masks[-1]

    net, x0 = Net().train(), data(64).float().to(device)
    torch.manual_seed(0)
    given = {"key": 0, "step": 0, "levels": (2.0, 1.0)}
    losses.ict(net, x0, **given)
    assert torch.equal(masks[0], masks[1])
    losses.cd(net, x0, teacher=Gaussian(0.5), **given)
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_without_replay_the_masks_differ():
    dropout = nn.Dropout(0.5)
    torch.manual_seed(0)
    same = losses.SameRandomness("cpu")
    first = dropout(torch.ones(64))
    assert not torch.equal(first, dropout(torch.ones(64)))
    with same.replay():
        assert torch.equal(first, dropout(torch.ones(64)))


def test_replay_leaves_the_generator_where_it_stood():
    same = losses.SameRandomness("cpu")
    torch.rand(3)
    state = torch.get_rng_state()
    with same.replay():
        torch.rand(10)
    assert torch.equal(state, torch.get_rng_state())


# --- running statistics -----------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, "average"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_those_of_the_students_pass(target: str | None, momentum: Any):
    """One pass is counted, the student's; and the backward pass goes through."""
    norm = nn.BatchNorm1d(3, momentum=momentum, affine=False).double()
    norm.train()
    weight = torch.ones((), dtype=F64, requires_grad=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return weight * self.norm(x)

    x0 = data(256)
    student, alone = Net(), copy.deepcopy(norm)
    other = None if target is None else copy.deepcopy(student)
    value = losses.ict(student, x0, target=other, key=5, step=0, levels=(40.0, 2.0)).loss
    noisy = x0 + 40.0 * noise.normal(x0.shape, 5, stream=noise.TRAINING, dtype=F64)
    alone(noisy)
    torch.testing.assert_close(norm.running_var, alone.running_var)
    torch.testing.assert_close(norm.running_mean, alone.running_mean)
    assert norm.num_batches_tracked == 1
    if other is not None:
        assert other.norm.num_batches_tracked == 0 and (other.norm.running_var == 1).all()
    value.backward()
    assert weight.grad.isfinite()
    norm(2.0 * noisy)  # the control: outside a loss the statistics do move
    assert norm.num_batches_tracked == 2
