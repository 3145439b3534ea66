"""Plain tensors of one kind, at first sight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cmsolvers.ops.binary import C
from cmsolvers.ops.pair_rows import alike

X = torch.ones(3, 2)

OTHERS = {
    "shape": torch.ones(3, 1),
    "dtype": X.double(),
    "an integer": X.long(),
    "device": torch.ones(3, 2, device="meta"),
    "sparse": X.to_sparse(),
    "no tensor": [[1.0, 1.0]] * 3,
    "None": None,
}


@pytest.mark.skipif(C is None, reason="needs the extension")
def test_alike() -> None:
    for x in (X, X.half(), X.double(), torch.ones(0, 2), torch.ones(2, 3).T):
        assert alike(x, x) and alike(x.clone(), x)
    assert alike(nn.Parameter(X), X) is (type(nn.Parameter(X)) is Tensor)


@pytest.mark.parametrize("what", OTHERS)
def test_others(what: str) -> None:
    assert not alike(OTHERS[what], X)
    assert not alike(X, OTHERS[what])


def test_what_is_no_state() -> None:
    assert not alike(torch.tensor(1.0), torch.tensor(1.0))
    for what in ("an integer", "device", "sparse", "no tensor", "None"):
        assert not alike(OTHERS[what], OTHERS[what])
