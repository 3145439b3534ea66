"""Losses in their plain case, with fast calls, and the same without them: one number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import ConsistencyFunction, losses, noise
from cmsolvers.losses.evaluation import combination, drawn_levels, loss_reduction
from cmsolvers.losses.evaluation.combination import Combination
from cmsolvers.losses.evaluation.table_rows import TableRow, together
from cmsolvers.ops import pair_rows

X0 = noise.normal((6, 3), seed=1)
HIGH = torch.linspace(0.5, 3.0, 6, dtype=torch.float64)


class Net(nn.Module):
    """With dropout, and one that writes to the times that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.dropout = nn.Linear(3, 8), nn.Linear(8, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.last(self.dropout(self.first(x).tanh())) * c.mul_(2.0).add_(1.0)[:, None]


LOSSES = {
    "ict": lambda f, **o: losses.ict(f, X0, **o),
    "ict, sum": lambda f, **o: losses.ict(f, X0, reduction="sum", weight=None, **o),
    "ct": lambda f, **o: losses.ct(f, X0, **o),
    "ect": lambda f, **o: losses.ect(f, X0, **o),
    "other target": lambda f, **o: losses.ict(f, X0, target=ConsistencyFunction(Net()), **o),
}


def outcome(name: str, low: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    net = Net()
    found = LOSSES[name](ConsistencyFunction(net), key=3, step=2, levels=(HIGH, low))
    found.loss.backward()
    return found.loss, found.per_sample, [w.grad for w in net.parameters()]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("zeros", [False, True])
def test_fast_calls_change_nothing(monkeypatch: pytest.MonkeyPatch, name: str, zeros: bool) -> None:
    low = HIGH * 0.8
    if zeros:
        low[::2] = 0.0
    fast = outcome(name, low)
    monkeypatch.setattr(pair_rows, "FAST_INPUTS", None)
    monkeypatch.setattr(drawn_levels, "LOOK", None)
    monkeypatch.setattr(loss_reduction, "FAST_REDUCED", None)
    monkeypatch.setattr(combination, "together", lambda weights: None)
    torch.testing.assert_close(fast, outcome(name, low), rtol=2e-6, atol=1e-7)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(fast, outcome(name, low * 0.9), rtol=2e-6, atol=1e-7)


def test_rows_of_a_table_are_weights() -> None:
    table = torch.linspace(-2.0, 3.0, 12, dtype=torch.float64).reshape(4, 3) + 0.1
    row, less = TableRow(table, 1), TableRow(table, 1, -1.0)
    other = torch.tensor([2.0, 0.5, 4.0], dtype=torch.float64)
    assert torch.equal((row * -1.0).tensor(), -table[1]) and torch.equal(less.tensor(), -table[1])
    for found, want in (
        (row * other, table[1] * other),
        (other * row, table[1] * other),
        (row / other, table[1] / other),
        (1.0 / row, 1.0 / table[1]),
        (row + less, 0.0 * table[1]),
        (row + other, table[1] + other),
        (0.5 * row, 0.5 * table[1]),
    ):
        torch.testing.assert_close(found, want)


def test_rows_meet_again_as_their_table() -> None:
    table = torch.linspace(-2.0, 3.0, 12, dtype=torch.float64).reshape(4, 3)
    signs = (1.0, 1.0, -1.0, -1.0)
    a, b, c, d = (TableRow(table, k, sign) for k, sign in enumerate(signs))
    assert together([a, b, c * -1.0, d * -1.0]) is table
    assert together([a, b, c, d]) is None  # other signs
    assert together([b, a, c * -1.0, d * -1.0]) is None  # another order
    assert together([a, b]) is None
    x = [noise.normal((3, 2), seed=k) for k in range(4)]
    made, aim = Combination([(x[0], a), (x[1], b)]), Combination([(x[2], c), (x[3], d)])
    exact = sum(table[k][:, None] * x[k].double() for k in range(4))
    torch.testing.assert_close((made - aim).square_sum(), exact.square().sum(1), rtol=1e-5, atol=0)
    both = table[0][:, None] * x[0] + table[1][:, None] * x[1]
    torch.testing.assert_close(made.tensor(), both.float(), rtol=1e-5, atol=1e-6)
