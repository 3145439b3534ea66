"""Losses in their plain case, with fast calls, and the same without them: one number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import ConsistencyFunction, losses, noise
from cmsolvers.losses.evaluation import drawn_levels, loss_reduction
from cmsolvers.losses.evaluation.combination import Combination
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.evaluation.table_combination import TableCombination
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
    monkeypatch.setattr(pair_rows, "ALIKE", None)
    monkeypatch.setattr(TableCombination, "__sub__", Combination.__sub__)
    torch.testing.assert_close(fast, outcome(name, low), rtol=2e-6, atol=1e-7)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(fast, outcome(name, low * 0.9), rtol=2e-6, atol=1e-7)


def test_rows_of_a_table_are_weights() -> None:
    table = torch.linspace(-2.0, 3.0, 12, dtype=torch.float64).reshape(4, 3) + 0.1
    x = [noise.normal((3, 2), seed=k) for k in range(2)]
    other = torch.tensor([2.0, 0.5, 4.0], dtype=torch.float64)
    for sign in (1.0, -1.0):
        made = TableCombination((x[0], x[1]), table, 1, sign)
        plain = Combination([(x[0], sign * table[1]), (x[1], sign * table[2])])
        assert made.size == plain.size and torch.equal(made.square_sum(), plain.square_sum())
        for found, want in (
            (made, plain),
            (-made, -plain),
            (made * other, plain * other),
            (made / other, plain / other),
            (made + x[0], plain + x[0]),
            (x[0] - made, x[0] - plain),
            (made - made, plain - plain),
        ):
            assert torch.equal(found.tensor(), want.tensor())
        assert not torch.equal(made.tensor(), (-plain).tensor())


def test_rows_meet_again_as_their_table() -> None:
    table = torch.linspace(-2.0, 3.0, 12, dtype=torch.float64).reshape(4, 3)
    x = [noise.normal((3, 2), seed=k) for k in range(4)]
    made, aim = TableCombination((x[0], x[1]), table), TableCombination((x[2], x[3]), table, 2, -1)
    assert (made - aim)._passed()[1] is table
    for others in (
        TableCombination((x[2], x[3]), table, 2),  # another sign
        TableCombination((x[2],), table, 3, -1.0),  # not the next rows
        TableCombination((x[2], x[3]), table.clone(), 2, -1.0),  # another table
        TableCombination((x[2], x[0]), table, 2, -1.0),  # a tensor that is there already
    ):
        found = made - others
        assert found._passed()[1] is not table
        want = made.tensor().double() - others.tensor().double()
        torch.testing.assert_close(found.tensor().double(), want, rtol=1e-5, atol=1e-6)
    exact = sum(table[k][:, None] * x[k].double() for k in range(4))
    torch.testing.assert_close((made - aim).square_sum(), exact.square().sum(1), rtol=1e-5, atol=0)


def test_a_table_without_gradient() -> None:
    table = torch.ones(2, 3, dtype=torch.float64)
    x = noise.normal((3, 2), seed=1)
    free = x.clone().requires_grad_()
    fixed = TableCombination((x, x + 1.0), table)
    assert fixed.detach() is fixed
    found = TableCombination((x, free), table).detach()
    assert not found.tensor().requires_grad and found.terms[0][0] is x


def test_a_state_without_velocity_says_how_to_get_it() -> None:
    state = State(X0, HIGH)
    with pytest.raises(ValueError, match="velocity must be made with the state"):
        _ = state.velocity
    assert State(X0, HIGH, velocity=X0).velocity is X0


def test_a_state_of_another_keeps_the_dtype() -> None:
    half = State(X0.half(), HIGH)
    other = half.at(Combination([(half.x, 0.5), (X0, 0.5)]), 2.0 * HIGH)
    assert other.x.dtype is torch.float16 and torch.equal(other.level, 2.0 * HIGH)
    assert torch.equal(other.x, ((half.x.float() + X0) * 0.5).half())
