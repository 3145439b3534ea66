"""What wraps a model, and what is inside."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from cmsolvers.processes.wrappers import layers, owner_of, wrapped_in


def test_layers_from_the_outside_in() -> None:
    net = nn.Linear(2, 2)
    average = AveragedModel(net)
    compiled = torch.compile(average)
    # A compiled module hands on `.module` of what it compiles, which is not what it wraps.
    assert wrapped_in(compiled) is average
    assert wrapped_in(average) is average.module and wrapped_in(net) is None
    outer = DataParallel(compiled)
    assert list(layers(outer)) == [outer, compiled, average, average.module]
    assert list(layers(net)) == [net]


def test_bound_arguments_are_wrappers_only_where_wanted() -> None:
    net = nn.Linear(2, 2)
    bound = partial(DataParallel(net), label=1)
    assert wrapped_in(bound) is None and list(layers(bound)) == [bound]
    assert list(layers(bound, partials=True)) == [bound, bound.func, net]


def test_a_wrapper_of_itself_ends() -> None:
    class Loop:
        def __init__(self) -> None:
            self.module = self

    assert 1 < len(list(layers(Loop()))) < 100


def test_owner() -> None:
    net = nn.Linear(2, 2)
    assert owner_of(net.forward) is net and owner_of(net) is net
