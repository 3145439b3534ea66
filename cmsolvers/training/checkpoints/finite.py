"""A state that is worth keeping is finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def check_finite(
    groups: Mapping[str, Mapping[str, Tensor]], buffers: Mapping[str, Iterable[str]]
) -> None:
    """Check that a state is worth keeping: no NaN anywhere, and no infinity outside of buffers.

    Args:
        groups: as for `write_checkpoint`.
        buffers: group name -> names that may hold infinities, as masks of attention do.

    Raises:
        FloatingPointError: names the first tensor that is not finite.
    """
    for group, members in groups.items():
        masks = set(buffers.get(group, ()))
        for name, value in members.items():
            if value.dtype.is_floating_point and value.element_size() == 1:
                value = value.float()  # float8 has no isfinite
            bad = torch.isnan(value) if name in masks else ~torch.isfinite(value)
            if bad.any():
                raise FloatingPointError(
                    f"what is saved must be finite; {group}/{name} has "
                    f"{int(bad.sum())} entries of {value.numel()} that are not"
                )
