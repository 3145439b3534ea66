"""Teachers, and the weights that a training begins with."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from cmsolvers.training.models import Model, Spec, load_model
from cmsolvers.training.spec import LEARNED_WEIGHT

NEW = ("conditioning.", f"{LEARNED_WEIGHT}.")
"""Parts that a network may have beyond the one that it begins with: they are 0 at first."""

OWN_TABLE, OUR_TABLE = "model.class_embedding.weight", "conditioning.labels.weight"
"""Where a U-Net of diffusers keeps its labels, and where with further numbers."""


def teacher_of(
    path: str | Path,
    *,
    average: str | None = None,
    kind: str | None = None,
    trusted: Collection[str] = (),
    device: torch.device | str | None = None,
) -> Model:
    """A teacher: in evaluation mode, without gradients.

    Args:
        path: a checkpoint of this library, or a folder of diffusers.
        average: as `load_model`.
        kind: as `load_model`.
        trusted: as `load_model`.
        device: where to.

    Raises:
        OSError, ValueError: as `load_model`.
    """
    found = load_model(path, average, kind=kind, trusted=trusted)
    found.network.requires_grad_(False).eval()
    found.function.eval()
    if device is not None:
        found.function.to(device)
    return found


def digest(network: nn.Module) -> str:
    """A short hash of the weights: a run goes on with the teacher that it began with."""
    found = sha256()
    for name, value in sorted(network.state_dict().items()):
        flat = value.detach().cpu().contiguous().reshape(-1)
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def spec_like(spec: Spec, source: Spec) -> Spec:
    """A spec with the network of another model, for a training that begins with its weights.

    Shape, network and options are those of the source, with its scale of times where they have
    one; so are sigma_data, and the classes where the spec has none.
    """
    options = dict(source.options or {})
    if source.network == "unet" or source.network.startswith("diffusers:"):
        options.setdefault("time_scale", source.row.time_scale)
        for name in ("num_class_embeds", "class_embed_type", "in_channels", "out_channels"):
            options.pop(name, None)
        options.pop("num_embeds_ada_norm", None)
    own = spec.classes is not None
    return replace(
        spec,
        shape=source.shape,
        network=source.network,
        options=options,
        sigma_data=source.sigma_data,
        classes=spec.classes if own else source.classes,
        null_label=spec.null_label if own else source.null_label,
    )


def begin_with(network: nn.Module, spec: Spec, source: Model) -> list[str]:
    """Give a network the weights of a trained one; averages and optimiser are not read.

    What the network reads beyond the source (a second time, labels, further numbers) is 0 at first,
    so that it begins as the same function; a first layer that reads more channels gets zeros for
    them.

    Args:
        network: of `spec.build`.
        spec: of the model to be trained.
        source: a trained model.

    Returns:
        Names of the weights that the source does not have.

    Raises:
        ValueError: networks that do not fit; the text names what differs.

    Warns:
        UserWarning: kinds of models whose networks answer different questions.
    """
    if spec.row.family != source.spec.row.family:
        warnings.warn(
            f"the network of a model {source.spec.kind!r} answers another question than that of "
            f"{spec.kind!r}: the training begins with its weights, but not with what it has learnt",
            stacklevel=2,
        )
    mine, theirs = network.state_dict(), dict(source.network.state_dict())
    if OWN_TABLE in theirs and OWN_TABLE not in mine and OUR_TABLE in mine:
        theirs[OUR_TABLE] = theirs.pop(OWN_TABLE)
    left = [name for name in theirs if name not in mine and not name.startswith(NEW[1])]
    if left:
        raise ValueError(
            f"init must be of the model's network, {spec.network}; its weight {left[0]} has no "
            "place there"
        )
    new = []
    for name, value in mine.items():
        if name not in theirs:
            if not name.startswith(NEW):
                raise ValueError(
                    f"init must be of the model's network, {spec.network}; it has no weight {name}"
                )
            new.append(name)
        else:
            _copy(name, value, theirs[name])
    return new


@torch.no_grad()
def _copy(name: str, mine: Tensor, theirs: Tensor) -> None:
    """Copy a weight; that of a convolution may read more channels than the source."""
    if mine.shape == theirs.shape:
        mine.copy_(theirs)
        return
    wider = mine.ndim == 4 == theirs.ndim and mine.shape[1] > theirs.shape[1]
    if not wider or mine.shape[:1] + mine.shape[2:] != theirs.shape[:1] + theirs.shape[2:]:
        raise ValueError(
            f"init must be of the model's network; {name} must have shape {list(mine.shape)}, and "
            f"has {list(theirs.shape)}"
        )
    mine.zero_()
    mine[:, : theirs.shape[1]].copy_(theirs)
