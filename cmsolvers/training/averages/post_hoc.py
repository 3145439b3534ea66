"""An average of any width, after the training: put together from snapshots of a few."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.training.averages.power_decay import power_decay
from cmsolvers.training.averages.profiles import Fit, Profile, fit

POOR = 0.1
"""Relative error of a profile from which `reconstruct` warns."""


@dataclass(frozen=True)
class Snapshot:
    """A power-function average as it was at some step.

    Attributes:
        step: of the training.
        profile: of the average; its end is the number of updates that it had seen.
        read: gives its tensors by name.
        dtypes: of tensors that are stored in a narrower one than the average's.
    """

    step: int
    profile: Profile
    read: Callable[[], Mapping[str, Tensor]]
    dtypes: Mapping[str, torch.dtype]


@dataclass(frozen=True)
class Reconstruction:
    """An average that nobody tracked.

    Attributes:
        tensors: the state dict of the network, on the CPU, as `average.module` would have it.
        sigma_rel: relative width of its profile.
        step: of the training that it ends at.
        updates: that an average would have seen then; the end of the profile.
        fit: the weights of the snapshots, in their order, and how far off the profile is.
    """

    tensors: dict[str, Tensor]
    sigma_rel: float
    step: int
    updates: float
    fit: Fit

    @property
    def error(self) -> float:
        """Relative error of the profile, see `Fit`."""
        return self.fit.error

    def state_dict(self) -> dict[str, Tensor]:
        """What `EMA.load_state_dict` takes."""
        return {**self.tensors, "ema_steps": torch.tensor(round(self.updates))}


def reconstruct(
    snapshots: Sequence[Snapshot], sigma_rel: float, step: int | None = None
) -> Reconstruction:
    """The power-function average of another width, or of an earlier step.

    Its weights are a weighted sum of the snapshots', with the weights of `fit`. Snapshots are read
    one at a time; beside that one, memory holds 8 bytes per weight of the network. Entries that are
    not finite (masks) and integers (counters) are those of the first snapshot at or after `step`.

    Args:
        snapshots: of one training, any order.
        sigma_rel: relative width, in (0, 12^-1/2]; near the widths of the snapshots and above is
            cheap, far below needs many of them.
        step: of the training, at most that of the last snapshot, which is what None means. At
            snapshots it comes out well, between them much less: the profile's end is an edge.

    Raises:
        ValueError: no snapshots, a width or step out of range, or snapshots of other networks.

    Warns:
        RuntimeWarning: the profile is off by more than 10 %.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
        (2024), section 3.2 and appendix C.
    """
    gamma = power_decay(sigma_rel).gamma
    if not snapshots:
        raise ValueError("snapshots must hold at least one; got none")
    ordered = sorted(range(len(snapshots)), key=lambda k: snapshots[k].step)
    steps = [snapshots[k].step for k in ordered]
    step = steps[-1] if step is None else check.count("step", step)
    if step > steps[-1]:
        raise ValueError(f"step must be at most that of the last snapshot, {steps[-1]}; got {step}")
    # Skipped steps are no updates; snapshots tell how many there were.
    ends = [snapshots[k].profile.end for k in ordered]
    end = float(np.interp(step, [0, *steps], [0.0, *ends]))
    found = fit([s.profile for s in snapshots], Profile(gamma, end))
    if found.error > POOR:
        warnings.warn(
            f"the profile of sigma_rel={sigma_rel:g} at step {step} is {found.error:.0%} off; "
            "a width nearer to those of the snapshots, a step that has one, or more snapshots "
            "make it better",
            RuntimeWarning,
            stacklevel=2,
        )
    kept = next(k for k in ordered if snapshots[k].step >= step)
    tensors = _weighted(snapshots, found.weights, kept)
    return Reconstruction(tensors, float(sigma_rel), step, end, found)


def _weighted(
    snapshots: Sequence[Snapshot], weights: Sequence[float], kept: int
) -> dict[str, Tensor]:
    """The weighted sum, in float64; what no sum makes sense of is that of one snapshot."""
    sums: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    shapes: dict[str, torch.Size] = {}
    for place, (snapshot, weight) in enumerate(zip(snapshots, weights, strict=True)):
        members = snapshot.read()
        if place and {n: t.shape for n, t in members.items()} != shapes:
            raise ValueError(
                f"snapshots must be of one network; that of step {snapshot.step} has other tensors"
            )
        shapes = {n: t.shape for n, t in members.items()}
        for name, value in members.items():
            if place == kept and (not _is_averaged(value) or not value.isfinite().all()):
                rest[name] = value
            if not _is_averaged(value):
                continue
            wide = value.to(torch.complex128 if value.is_complex() else torch.float64)
            if not wide.isfinite().all():
                wide = torch.where(wide.isfinite(), wide, 0.0)
            if name in sums:
                sums[name].add_(wide, alpha=weight)
            else:
                sums[name] = wide * weight
        dtypes = {n: t.dtype for n, t in members.items()} | dict(snapshot.dtypes)
        del members, value
    made = dict(rest)
    for name in list(sums):
        value = sums.pop(name).to(dtypes[name])
        if name in rest:
            value = torch.where(rest[name].isfinite(), value, rest[name].to(value.dtype))
        made[name] = value
    return made


def _is_averaged(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()
