"""samples.json: what made the samples of a folder, and whether a run may go on there."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cmsolvers import noise
from cmsolvers.training.checkpoints import replace_file
from cmsolvers.training.models import Model
from cmsolvers.version import __version__

NAME = "samples.json"
FORMAT = "cmsolvers-samples-1"


def digest_of(model: Model) -> str:
    """16 hex digits of the weights and of what stands around them, wherever they were read from."""
    found = hashlib.sha256(json.dumps(model.spec.about(), sort_keys=True).encode())
    for name, value in sorted(model.network.state_dict().items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        found.update(plain.view(torch.uint8).numpy().data if plain.numel() else b"")
    return found.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of what decides on the bits of samples."""
    return {
        "cmsolvers": __version__,
        "noise": str(noise.VERSION),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def read(out: Path) -> dict[str, Any] | None:
    """What is written in a folder; None where nothing is.

    Raises:
        ValueError: a file of another kind.
    """
    path = out / NAME
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} must be of `cmsolvers sample`; it is not: give another --out")
    return found


def write(out: Path, about: Mapping[str, object]) -> None:
    """Write it, whole or not at all."""
    replace_file(out / NAME, json.dumps({"format": FORMAT, **about}, indent=2) + "\n")


def check_same(out: Path, old: Mapping[str, Any], settings: Mapping[str, object]) -> None:
    """Check that samples of these settings may join those in a folder.

    Raises:
        ValueError: one of the settings differs; the text names it.
    """
    known = old.get("settings")
    known = known if isinstance(known, dict) else {}
    # As JSON has them: lists for tuples.
    wanted = json.loads(json.dumps(settings))
    for name in sorted({*known, *wanted}, key=lambda each: (each == "levels", each)):
        if known.get(name) != wanted.get(name):
            raise ValueError(
                f"{name} must be {_short(known.get(name))}, as {out / NAME} says of the samples "
                f"there; got {_short(wanted.get(name))}: give another --out"
            )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
