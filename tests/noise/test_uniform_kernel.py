"""The kernel of uniforms gives the bits of its plain-torch twin."""

import pytest
import torch

from cmsolvers import noise
from cmsolvers.ops.random import _plain


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 3), (3, 0), (0, 4), (3001, 9)], ids=str)
@pytest.mark.parametrize("kind", ["number", "seeds", "ids", "draws"])
def test_bits_of_the_twin(shape, kind):
    batch, draw = shape[0], 11
    key = {
        "number": lambda: noise.key(2**63 + 5, batch, offset=2**40),
        "seeds": lambda: noise.key(torch.arange(batch), batch),
        "ids": lambda: noise.key(7, batch, ids=torch.arange(batch) * 3),
        "draws": lambda: noise.key(7, batch, draw=torch.tensor(5)),
    }[kind]()
    if kind == "draws":
        draw = 0
    made = noise.uniform(shape, key, stream=4, draw=draw, dtype=torch.float64)
    twin = torch.empty(shape, dtype=torch.float64)
    _plain(twin, [key.seed, key.offset, 4, draw], key.table)
    assert torch.equal(made, twin)
    if made.numel():
        other = noise.uniform(shape, key, stream=5, draw=draw, dtype=torch.float64)
        assert not torch.equal(made, other)


def test_registration():
    out = torch.empty(4, 5, dtype=torch.float64)
    table = torch.tensor([[3, 0], [4, 0], [5, 1], [6, 2]])
    torch.library.opcheck(torch.ops.cmsolvers.uniform, (out, [7, 0, 4, 0], None))
    torch.library.opcheck(torch.ops.cmsolvers.uniform, (out, [7, 0, 4, 0], table))


@pytest.mark.parametrize(
    ("out", "where", "error", "text"),
    [
        (torch.empty(4, 5), [1, 0, 4, 0], TypeError, "out must be float64"),
        (torch.empty(4, dtype=torch.float64), [1, 0, 4, 0], ValueError, "contiguous"),
        (torch.empty(4, 2, dtype=torch.float64), [1, 0, 4], ValueError, "noise must be"),
    ],
    ids=["dtype", "shape", "place"],
)
def test_bad_input(out, where, error, text):
    if torch.ops.cmsolvers.uniform is None:
        pytest.skip("no extension")
    with pytest.raises(error, match=text):
        torch.ops.cmsolvers.uniform(out, where, None)
