"""Checkpoints to damage, and what their folders hold."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

Groups = dict[str, dict[str, Tensor]]


def content(path: Path) -> dict[str, bytes]:
    """File name -> bytes."""
    assert path.is_dir()
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def names_in(folder: Path) -> list[str]:
    """Everything below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def some_groups(seed: int = 0, size: int = 40) -> Groups:
    """A state of several kinds of tensors, other values for each seed."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(size, generator=generator)
    return {
        "network": {"layer.weight": weights, "layer.bias": weights[:3].double()},
        "optimizer": {"0.exp_avg": weights.bfloat16(), "0.step": torch.tensor(float(seed))},
        "average.ema": {"layer.weight": torch.complex(weights, weights + 1), "on": weights > 0},
    }


def bits(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, tuple[object, ...]]:
    """Everything that makes two states equal to the bit."""
    return {
        f"{group}/{name}": (value.dtype, tuple(value.shape), _bytes(value))
        for group, members in groups.items()
        for name, value in members.items()
    }


def _bytes(value: Tensor) -> bytes:
    value = value.detach().resolve_conj().resolve_neg()
    if value.is_complex():
        value = torch.view_as_real(value)
    if not value.numel():
        return b""
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def nan_with_payload() -> Tensor:
    """NaNs that differ from each other: quiet, signalling, negative."""
    raw = struct.pack("<4I", 0x7FC00001, 0x7F800001, 0xFFC12345, 0x7FFFFFFF)
    return torch.frombuffer(bytearray(raw), dtype=torch.float32)
