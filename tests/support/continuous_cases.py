"""Fixed inputs of continuous-time losses, and what their formulas need, in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cmsolvers import noise
from cmsolvers.losses.formulas.tangents import (
    Clamped,
    Normalised,
    unchanged,
)
from support.columns import column
from support.loss_cases import SmallNet

SD = 0.5
B, D = 6, 3
X0 = torch.linspace(-1.0, 1.2, B * D, dtype=torch.float64).reshape(B, D)
ANGLES = torch.linspace(0.2, 1.4, B, dtype=torch.float64)
TIMES = torch.linspace(0.4, 0.95, B, dtype=torch.float64)
ENDS = TIMES - torch.linspace(0.05, 0.35, B, dtype=torch.float64)
KEY, STEP = 3, 5


def z() -> Tensor:
    return noise.normal((B, D), KEY, stream=noise.TRAINING, draw=STEP).double()


def net(times: int, seed: int = 0) -> SmallNet:
    return SmallNet(times, seed=seed).double()


def of_sigma(x: Tensor, sigma: Tensor) -> Tensor:
    """A teacher D(x, sigma) in Karras coordinates, the same formula for all who need one."""
    return 0.1 + 0.3 * x / (1.0 + column(sigma) ** 2)


def along(f: Callable[..., Tensor], x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """df(x, t)/dt along v."""
    made: Tensor = torch.func.jvp(f, (x, t), (v, torch.ones_like(t)))[1].detach()
    return made


def trig() -> tuple[Tensor, Tensor, Tensor]:
    """x_t at ANGLES, the velocity of the pair and that of the teacher."""
    cos, sin = column(ANGLES.cos()), column(ANGLES.sin())
    x = cos * X0 + sin * SD * z()
    clean = of_sigma(x / cos, SD * ANGLES.tan())
    # x = cos D + sin (noise): what rotates by a quarter
    return x, cos * SD * z() - sin * X0, (cos * x - clean) / sin


def flow() -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """x_t at TIMES, and the teacher's velocity in flow coordinates."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return (x - of_sigma(x / column(1.0 - t), t / (1.0 - t))) / column(t)

    return column(1.0 - TIMES) * X0 + column(TIMES) * z(), velocity


def compare(
    loss: Any, model: nn.Module, value: Tensor, levels: Any, scale: float = 1.0, **options: Any
) -> None:
    """A recipe against per-sample values of the same parameters, gradients too."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(value.sum(), parameters, retain_graph=True, allow_unused=True)
    found = loss(model, X0, key=KEY, step=STEP, levels=levels, reduction="none", **options)
    torch.testing.assert_close(found.per_sample, value.detach(), rtol=1e-12, atol=1e-13)
    got = torch.autograd.grad(found.loss.sum(), parameters, allow_unused=True)
    assert any(g is not None and bool(g.abs().max() > 1e-3) for g in got)
    for mine, theirs in zip(got, wanted, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def normalised(g: Tensor, norm: str = "l2", c: float = 0.1) -> Tensor:
    size = g.norm(dim=1, keepdim=True)
    return g / ((size if norm == "l2" else size / math.sqrt(D)) + c)


RULES = {
    "l2": (Normalised(), normalised),
    "rms": (Normalised("rms", 0.2), lambda g: normalised(g, "rms", 0.2)),
    "clamped": (Clamped(0.3), lambda g: g.clamp(-0.3, 0.3)),
    "none": (unchanged, lambda g: g),
}
