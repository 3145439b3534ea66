"""Checks of what a captured training step is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cmsolvers import checks as check

_RECIPE = (
    "for example torch.optim.AdamW(parameters, lr=torch.tensor(1e-3, device=...), fused=True, "
    "capturable=True)"
)


def device_of(network: nn.Module, name: str = "network") -> torch.device:
    """The one device of a network's parameters."""
    devices = sorted({str(p.device) for p in network.parameters()})
    if len(devices) != 1:
        raise ValueError(
            f"{name} must have its parameters on one device; "
            f"got {' and '.join(devices) or 'no parameters'}"
        )
    return torch.device(devices[0])


def rates_of(optimizer: torch.optim.Optimizer, device: torch.device) -> list[Tensor]:
    """The tensors that hold the learning rates, of an optimiser that a graph can run."""
    for place, group in enumerate(optimizer.param_groups):
        where, rate = f"optimizer.param_groups[{place}]", group["lr"]
        if group.get("capturable") is not True:
            raise ValueError(
                f"{where} must be capturable; got capturable={group.get('capturable')}: {_RECIPE}"
            )
        if not isinstance(rate, Tensor):
            raise TypeError(
                f"{where} must have a tensor as lr, so that replays read a new one; "
                f"got lr={rate!r}: {_RECIPE}"
            )
        if rate.device != device:
            raise ValueError(
                f"{where} must have its lr on the network's device, {device}; "
                f"got {rate.device}: {_RECIPE}"
            )
    return [group["lr"] for group in optimizer.param_groups]


def checked_step(step: int | Tensor, device: torch.device) -> int | Tensor:
    """The number of a step: an int >= 0, or an int64 tensor of one entry on the device."""
    if not isinstance(step, Tensor):
        return check.count("step", step, least=0)
    if step.dtype is not torch.int64 or step.numel() != 1 or step.device != device:
        raise ValueError(
            f"step must be an int or an int64 tensor of one entry on {device}; "
            f"got {check.describe(step)}"
        )
    return step


def given_rates(
    lr: float | Sequence[float] | Tensor | None, groups: int, device: torch.device
) -> Sequence[float | Tensor | None]:
    """One learning rate per group of parameters; None leaves it as it is."""
    if lr is None:
        return [None] * groups
    if isinstance(lr, Tensor):
        if lr.numel() != 1 or lr.device != device:
            raise ValueError(
                f"lr must be numbers or a tensor of one entry on {device}; got {check.describe(lr)}"
            )
        return [lr] * groups
    if isinstance(lr, Sequence):
        if len(lr) != groups:
            raise ValueError(
                f"lr must hold one number per group of parameters, {groups}; got {len(lr)}"
            )
        return [check.non_negative(f"lr[{g}]", rate) for g, rate in enumerate(lr)]
    return [check.non_negative("lr", lr)] * groups


def check_loss(loss: object) -> None:
    """Check that backward can start from what a loss returned."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss must return a tensor of one entry; got {check.describe(loss)}")
    if loss.numel() != 1:
        raise ValueError(f"loss must return a tensor of one entry; got shape {list(loss.shape)}")
    if not loss.requires_grad:
        raise ValueError("loss must depend on the network's parameters; it has no gradient")
