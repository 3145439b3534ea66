"""Checkpoints of networks whose output for a sample does not depend on the others, to the bit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cmsolvers.training import write_checkpoint
from cmsolvers.training.data import Scale
from cmsolvers.training.models import Spec

NETWORK = "import:support.sampled_models:Elementwise"


class Elementwise(nn.Module):
    """F = tanh(a x + c_noise / 4 + b[label]): nothing but elementwise operations.

    `seen` counts the samples that all networks were called for.
    """

    seen = 0

    def __init__(
        self, shape: tuple[int, ...], classes: int | None = None, nan_above: float = 1e9
    ) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-0.5, 0.8, torch.Size(shape).numel()).view(shape))
        self.b = nn.Parameter(torch.linspace(-1, 1, (classes or 0) + 1))
        self.nan_above = nan_above

    def forward(
        self, x: Tensor, c_noise: Tensor, end: Tensor | None = None, *, labels: Tensor | None = None
    ) -> Tensor:
        Elementwise.seen += len(x)
        shift = c_noise / 4 if end is None else (c_noise - end) / 4
        if labels is not None:
            shift = shift + self.b[labels]
        made = torch.tanh(self.a * x + shift.to(x.dtype).view(-1, *[1] * (x.ndim - 1)))
        large = x.flatten(1)[:, 0] > self.nan_above
        return torch.where(large.view(-1, *[1] * (x.ndim - 1)), torch.nan, made)


def checkpoint(
    path: Path,
    kind: str = "score",
    shape: tuple[int, ...] = (1, 4, 4),
    *,
    scale: Scale | None = Scale.between(0.0, 255.0),  # noqa: B008
    nan_above: float | None = None,
    **given: object,
) -> Path:
    """A checkpoint of `Elementwise`; its seed is fixed."""
    options = {} if nan_above is None else {"nan_above": nan_above}
    spec = Spec(kind, shape, NETWORK, options, **given)
    about: dict[str, object] = {"spec": spec.about()}
    if scale is not None:
        about["scale"] = scale.about()
    write_checkpoint(path, {"network": spec.build(0).state_dict()}, about)
    return path


def files_of(out: Path) -> dict[str, bytes]:
    """Samples of a run's folder: name -> content."""
    found = {
        str(file.relative_to(out)): file.read_bytes()
        for file in sorted(out.rglob("*"))
        if file.is_file() and file.name != "samples.json"
    }
    assert not any(part.startswith(".") for name in found for part in name.split("/"))
    return found
