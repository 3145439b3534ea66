"""Running statistics are those of the layers that a model has now, also after an exchange."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import ConsistencyFunction
from cmsolvers.losses import ict
from cmsolvers.losses.evaluation.norm_layers import norm_layers
from cmsolvers.losses.evaluation.randomness import couples_samples, same_statistics

X0 = torch.linspace(-1, 1, 24).reshape(8, 3)


class Net(nn.Module):
    """A network whose normalisation can be exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 3)
        self.norm: nn.Module = nn.Identity()
        self.blocks = nn.Sequential(nn.Tanh(), nn.Tanh())

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        made: Tensor = self.last(self.blocks(self.norm(self.first(x))))
        return made


def exchange(net: Net) -> None:
    net.norm = nn.BatchNorm1d(8)


def add(net: Net) -> None:
    net.blocks.append(nn.BatchNorm1d(8))


def rebuild(net: Net) -> None:
    """The dict of children is another one afterwards."""
    del net.blocks[0]
    net.blocks.append(nn.BatchNorm1d(8))


def by_the_dict(net: Net) -> None:
    net._modules["norm"] = nn.BatchNorm1d(8)


def below(net: Net) -> None:
    net.blocks[1] = nn.Sequential(nn.Tanh(), nn.BatchNorm1d(8))


CHANGES = [exchange, add, rebuild, by_the_dict, below]


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_comes_later_is_noticed(change: Callable[[Net], None]) -> None:
    model = ConsistencyFunction(Net())
    ict(model, X0, key=0, step=0, levels=(2.0, 1.0))
    assert norm_layers(model) == []
    change(model.net)
    (layer,) = norm_layers(model)
    assert isinstance(layer, nn.BatchNorm1d) and couples_samples(model)
    ict(model, X0, key=0, step=0, levels=(2.0, 1.0))
    assert int(layer.num_batches_tracked) == 1  # the student's pass, not the target's
    model(X0, 2.0)
    assert int(layer.num_batches_tracked) == 2  # the control


@pytest.mark.parametrize("change", CHANGES)
def test_statistics_of_a_layer_that_comes_later_are_kept(change: Callable[[Net], None]) -> None:
    net = Net()
    with same_statistics(net):
        net(X0, X0)
    change(net)
    with same_statistics(net):
        net(X0, X0)
    (layer,) = norm_layers(net)
    assert int(layer.num_batches_tracked) == 0


def test_converted_layers_are_noticed() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    (before,) = norm_layers(net)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert converted is net
    (after,) = norm_layers(net)
    assert isinstance(after, nn.SyncBatchNorm) and after is not before
    gone = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    norm_layers(gone)
    gone[1] = nn.Identity()
    assert norm_layers(gone) == [] and not couples_samples(gone)


def test_a_model_is_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    exchange(net)
    first = norm_layers(net)

    def refused(self: nn.Module) -> None:
        raise AssertionError("looked through again")

    monkeypatch.setattr(Net, "modules", refused)
    assert norm_layers(net) == first == [net.norm]
    add(net)
    with pytest.raises(AssertionError, match="looked through again"):
        norm_layers(net)


def test_no_model_is_held() -> None:
    """Not even one that its own normalisation layer holds."""
    net = Net()
    exchange(net)
    net.norm.register_forward_hook(lambda *_, kept=net: None)
    norm_layers(net)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_a_model_that_is_a_norm_itself() -> None:
    layer = nn.BatchNorm1d(3)
    assert norm_layers(layer) == [layer] and norm_layers(layer) == [layer]
