"""Every way to call the step: weights, noise, x0, clamp and second output, for any batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from support.cases import Case

F64, F16, BF16 = torch.float64, torch.float16, torch.bfloat16


def row(batch: int, k: int, scale: float = 1.0) -> Tensor:
    """Weights that differ from sample to sample; about one in four is zero."""
    generator = torch.Generator().manual_seed(77 + k)
    values = scale * torch.randn(batch, generator=generator, dtype=F64)
    return torch.where(torch.arange(batch) % 4 == k % 4, 0.0, values)


@dataclass(frozen=True)
class Mode:
    """One way to call the step: how many inputs, and weights and options for a batch size."""

    inputs: int
    weights: Callable[[int], Any]
    options: Callable[[int], dict[str, Any]] = field(default=lambda b: {})

    def arguments(self, case: Case) -> tuple[Tensor, list[Tensor], Any, dict[str, Any]]:
        x = case.make(0)
        batch = x.shape[0] if x.dim() else 1
        inputs = [case.make(k + 1) for k in range(self.inputs)]
        return x, inputs, self.weights(batch), self.options(batch)


NOISY = {"w_z": 0.7, "seed": 11, "draw": 3, "offset": 5}

MODES = {
    "scale": Mode(0, lambda b: (0.3,)),
    "noise": Mode(0, lambda b: (0.0,), lambda b: {**NOISY, "w_z": 1.0}),
    "x and noise": Mode(0, lambda b: (0.9,), lambda b: NOISY),
    "one": Mode(1, lambda b: (0.25, 0.75)),
    "one and noise": Mode(1, lambda b: (1.0, -0.01), lambda b: NOISY),
    "two": Mode(2, lambda b: (0.5, -0.3, 1.7)),
    "three and noise": Mode(3, lambda b: (0.5, -0.3, 1.7, 0.1), lambda b: NOISY),
    "four": Mode(4, lambda b: (0.5, -0.3, 1.7, 0.1, -2.0)),
    "four and noise": Mode(4, lambda b: (0.5, -0.3, 1.7, 0.1, -2.0), lambda b: NOISY),
    "dropped": Mode(4, lambda b: (0.0, 0.0, 1.7, 0.0, -2.0)),
    "nothing": Mode(2, lambda b: (0.0, 0.0, 0.0)),
    "x0": Mode(1, lambda b: (0.4, 0.6), lambda b: {"x0": (0.3, 0.8)}),
    "clamp": Mode(1, lambda b: (0.4, 0.6), lambda b: {"clamp": (-0.5, 0.75)}),
    "x0, clamp, noise": Mode(
        2, lambda b: (0.4, 0.6, 0.1), lambda b: {"x0": (0.3, 0.8), "clamp": (-1, 1), **NOISY}
    ),
    "second scaled": Mode(1, lambda b: (0.4, 0.6), lambda b: {"second": 0.3}),
    "second bfloat16": Mode(
        1, lambda b: (0.4, 0.6), lambda b: {"second": 0.3, "second_dtype": BF16, **NOISY}
    ),
    "second float16": Mode(1, lambda b: (0.4, 0.6), lambda b: {"second": 0.3, "second_dtype": F16}),
    "second float64": Mode(1, lambda b: (0.4, 0.6), lambda b: {"second": 0.3, "second_dtype": F64}),
    "second x0": Mode(1, lambda b: (0.4, 0.6), lambda b: {"second": "x0"}),
    "second x0 of F": Mode(
        2, lambda b: (0.4, 0.6, 0.2), lambda b: {"second": "x0", "x0": (0.3, 0.8)}
    ),
    "second x0, clamp": Mode(
        2,
        lambda b: (0.4, 0.6, 0.2),
        lambda b: {"second": "x0", "x0": (0.3, 0.8), "clamp": (-0.5, 0.5), **NOISY},
    ),
    "second x0, weight 0": Mode(
        1, lambda b: (0.4, 0.0), lambda b: {"second": "x0", "x0": (0.3, 0.8)}
    ),
    "pair": Mode(0, lambda b: (1.0,), lambda b: {"second": ("pair", 0.9, 0.2), **NOISY}),
    "pair, float16": Mode(
        1,
        lambda b: (0.9, 0.2),
        lambda b: {"second": ("pair", 0.9, 0.2), "second_dtype": F16, **NOISY},
    ),
    "pair, noise only in it": Mode(
        0, lambda b: (0.9,), lambda b: {"second": ("pair", 0.0, 0.2), **NOISY, "w_z": 0.0}
    ),
    "rows": Mode(2, lambda b: [row(b, k) for k in range(3)]),
    "rows in one tensor": Mode(2, lambda b: torch.stack([row(b, k) for k in range(3)], 1)),
    "rows, float32 and 0-dim": Mode(2, lambda b: [row(b, 0).float(), torch.tensor(0.3), 0.7]),
    "rows and noise": Mode(1, lambda b: (1.0, 0.1), lambda b: {**NOISY, "w_z": row(b, 2)}),
    "rows, x0, clamp": Mode(
        2,
        lambda b: [row(b, 0), row(b, 1), 0.3],
        lambda b: {"x0": (row(b, 2), row(b, 3)), "clamp": (-0.8, 0.5), **NOISY},
    ),
    "rows, x0": Mode(1, lambda b: (0.3, row(b, 1)), lambda b: {"x0": (row(b, 2), 0.7)}),
    "rows, second": Mode(1, lambda b: (0.3, row(b, 1)), lambda b: {"second": row(b, 2)}),
    "rows, pair": Mode(
        0, lambda b: (row(b, 0),), lambda b: {"second": ("pair", row(b, 1), row(b, 3)), **NOISY}
    ),
    "rows, second x0": Mode(
        2, lambda b: (row(b, 0), 0.5, row(b, 1)), lambda b: {"second": "x0", "x0": (0.5, row(b, 2))}
    ),
}
