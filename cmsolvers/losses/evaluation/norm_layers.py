"""Which layers of a model have running statistics, found out at the price of a glance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


class _Known(NamedTuple):
    """What was found in a model. The references are weak: a part's hooks may hold the model."""

    below: list[ref[nn.Module]]
    children: list[int]
    norms: list[int]  # places among the model and its parts below


_KNOWN: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def _children_of(parts: Iterable[nn.Module]) -> list[int]:
    """The children of all parts, as numbers that are theirs as long as they live."""
    return [id(child) for part in parts for child in part._modules.values()]


def norm_layers(model: nn.Module) -> list[_NormBase]:
    """The layers of a model that have running statistics.

    They are looked for once, since a large network has many parts, and again where a part was
    exchanged, added or taken away.
    """
    if torch.compiler.is_compiling():
        return [layer for layer in model.modules() if isinstance(layer, _NormBase)]
    known = _KNOWN.get(model)
    if known is not None:
        parts = [model, *[part() for part in known.below]]
        if None not in parts and _children_of(cast("list[nn.Module]", parts)) == known.children:
            return [cast(_NormBase, parts[place]) for place in known.norms]
    every = list(model.modules())
    norms = [place for place, part in enumerate(every) if isinstance(part, _NormBase)]
    _KNOWN[model] = _Known([ref(part) for part in every[1:]], _children_of(every), norms)
    return [cast(_NormBase, every[place]) for place in norms]
