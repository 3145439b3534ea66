"""Inputs that tests and benchmarks of the steps share: a table of shapes, dtypes and layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((64, 2), (5,), (1, 1), (3, 0), (0, 4), (7, 13), (2, 3, 17, 5), (4, 3, 32, 32))


@dataclass(frozen=True)
class Case:
    """One kind of input: `make(k)` gives the k-th tensor of it, always the same."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    input_dtype: torch.dtype
    layout: Callable[[Tensor], Tensor]
    device: str = "cpu"

    def make(self, k: int = 0, *, dtype: torch.dtype | None = None) -> Tensor:
        """Normal values of seed k; tensor 0 is the state, the others are model outputs."""
        generator = torch.Generator().manual_seed(1000 + k)
        values = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        kind = dtype or (self.dtype if k == 0 else self.input_dtype)
        return self.layout(values.to(kind).to(self.device))

    def __str__(self) -> str:
        return self.name


def dense(x: Tensor) -> Tensor:
    """Contiguous."""
    return x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    """Channels last, for 4-D."""
    return x.contiguous(memory_format=torch.channels_last)


def transposed(x: Tensor) -> Tensor:
    """Dense, with its last two dimensions stored in the other order."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def misaligned(x: Tensor) -> Tensor:
    """Contiguous, one element off the alignment of the storage."""
    storage = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    return storage[1:].view(x.shape).copy_(x)


def strided(x: Tensor) -> Tensor:
    """Every second element of a larger tensor: not dense."""
    wide = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)
    return wide[..., ::2].copy_(x)


def cases(device: str = "cpu") -> Iterator[Case]:
    """All inputs: shapes x dtypes, then layouts, then states with a model of lower precision."""
    for shape in SHAPES:
        for dtype in DTYPES:
            yield _case(shape, dtype, dtype, dense, device)
    for layout in (channels_last, transposed, misaligned, strided):
        for dtype in (torch.float32, torch.bfloat16):
            yield _case((2, 3, 17, 5), dtype, dtype, layout, device)
    for state, model in (
        (torch.float64, torch.float32),
        (torch.float64, torch.float16),
        (torch.float32, torch.float16),
        (torch.float32, torch.bfloat16),
    ):
        yield _case((4, 3, 32, 32), state, model, dense, device)
        yield _case((7, 13), state, model, misaligned, device)


def _case(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    model: torch.dtype,
    layout: Callable[[Tensor], Tensor],
    device: str,
) -> Case:
    kinds = [str(d).removeprefix("torch.") for d in dict.fromkeys((dtype, model))]
    name = "-".join(["x".join(map(str, shape)), *kinds, layout.__name__])
    return Case(name, shape, dtype, model, layout, device)
