"""The state of torch's CPU generator: put back, it gives the same numbers again."""

from __future__ import annotations

import pytest
import torch

from cmsolvers.ops.binary import C
from cmsolvers.ops.generator import PUT_STATE, STATE

generator = torch.default_generator


def drawn() -> list[torch.Tensor]:
    """Numbers of all kinds; a single normal leaves its twin for the next call."""
    return [torch.rand(5), torch.randn(1), torch.randn(1, dtype=torch.float64), torch.randperm(700)]


@pytest.mark.parametrize("before", [0, 1, 3, 700])
def test_same_numbers_again(before: int) -> None:
    torch.manual_seed(3)
    for _ in range(before):
        torch.randn(1)
    kept, torchs = STATE(), generator.get_state()
    first = drawn()
    other = drawn()
    PUT_STATE(kept)
    assert torch.equal(generator.get_state(), torchs)
    second = drawn()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])


def test_a_state_does_not_follow_the_generator() -> None:
    torch.manual_seed(4)
    kept = STATE()
    want = torch.rand(3)
    torch.manual_seed(5)
    PUT_STATE(kept)
    assert torch.equal(torch.rand(3), want)


@pytest.mark.skipif(C is None, reason="needs the extension")
@pytest.mark.parametrize("bad", [b"", b"0" * 5000, "state", None])
def test_another_state_is_refused(bad: object) -> None:
    before = generator.get_state()
    with pytest.raises(TypeError, match="cpu_generator_state"):
        PUT_STATE(bad)
    assert torch.equal(generator.get_state(), before)
