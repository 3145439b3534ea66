"""Folders of diffusers: models and pipelines read as models of this library, and written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from cmsolvers.training.diffusers_schedulers import Described, described
from cmsolvers.training.networks import DIFFUSERS, DiffusersNetwork
from cmsolvers.training.networks.diffusers_base import model_class
from cmsolvers.training.networks.diffusers_networks import ADAPTERS
from cmsolvers.training.spec import Model, Spec

OWN = "cmsolvers_model.json"
"""The spec of an exported network, beside what diffusers wrote."""

CONDITIONING = "cmsolvers_conditioning.safetensors"
"""What an adapter learnt beside the model: a second time, further numbers."""

PIXELS = {"mean": 127.5, "std": 63.75, "low": 0.0, "high": 255.0}
"""The scale of images in [-1, 1], which pipelines without an encoder have."""


def is_diffusers_folder(path: str | Path) -> bool:
    """Whether a folder holds a model or pipeline of diffusers."""
    found = Path(path)
    if (found / "model_index.json").is_file():
        return True
    try:
        config = json.loads((found / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "_diffusers_version" in config


def read_folder(path: str | Path, *, kind: str | None = None) -> Model:
    """The model of a folder of diffusers, in evaluation mode.

    Args:
        path: a pipeline (model_index.json, with unet/ or transformer/ and scheduler/), or a model
            (config.json) with a scheduler_config.json or what `export_network` wrote beside it.
        kind: what stands around the network, for a model without a scheduler.

    Raises:
        ImportError: diffusers is missing.
        OSError: a file is missing or cannot be read.
        ValueError: a model or scheduler of another kind; no safetensors (nothing that is pickled
            is read).
    """
    top = Path(path)
    index = _json(top / "model_index.json") if (top / "model_index.json").is_file() else {}
    folder = top if not index else _part(top, index)
    config = _json(folder / "config.json")
    name = config.get("_class_name")
    if name not in ADAPTERS:
        raise ValueError(f"{folder}: the model must be one of {', '.join(ADAPTERS)}; got {name}")
    about: dict[str, object] = {"source": str(top)}
    if index and "vae" not in index:
        about["scale"] = dict(PIXELS)
    if (folder / OWN).is_file():
        own = _json(folder / OWN)
        spec = Spec.read(own.get("spec"))
        about |= own.get("about", {})
    else:
        spec = _spec(folder, config, _scheduler(top, folder, kind))
    network = spec.build(0)
    assert isinstance(network, DiffusersNetwork)
    network.adopt(_pretrained(folder, str(name)))
    if network.conditioning is not None:
        network.conditioning.load_state_dict(load_file(folder / CONDITIONING))
    network.requires_grad_(False).eval()
    return Model(spec, network, spec.wrap(network), about)


def export_network(model: Model, path: str | Path) -> None:
    """Write the network as a folder that `from_pretrained` of its class in diffusers reads.

    What the adapter learnt beside the model (a second time, further numbers) and the spec are
    beside it, so that `load_model` reads the whole again.

    Args:
        model: around a network "unet" or "diffusers:...".
        path: a new or empty folder.

    Raises:
        FileExistsError: path is a file, or a folder with something in it.
        TypeError: a network of another kind.
    """
    network = model.network
    if not isinstance(network, DiffusersNetwork):
        raise TypeError(
            f"model must have a network 'unet' or 'diffusers:...' to be exported; "
            f"got {model.spec.network!r}"
        )
    folder = Path(path)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(f"path must be a new or empty folder; {folder} is not")
    folder.mkdir(parents=True, exist_ok=True)
    network.model.save_pretrained(folder, safe_serialization=True)
    if network.conditioning is not None:
        state = network.conditioning.state_dict()
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(tensors, folder / CONDITIONING)
    about = {"scale": model.about["scale"]} if "scale" in model.about else {}
    spec = replace(model.spec, learned_weight=0)
    text = json.dumps({"spec": spec.about(), "about": about}, indent=2, sort_keys=True)
    (folder / OWN).write_text(text + "\n")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be JSON; {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a table; got {type(found).__name__}")
    return found


def _part(top: Path, index: dict[str, Any]) -> Path:
    """The folder of a pipeline's network."""
    for name in ("unet", "transformer"):
        if name in index:
            return top / name
    raise ValueError(f"{top}: the pipeline must have a unet or a transformer; it has {list(index)}")


def _scheduler(top: Path, folder: Path, kind: str | None) -> Described:
    if kind is not None:
        return Described(kind)
    for place in (top / "scheduler", folder):
        if (place / "scheduler_config.json").is_file():
            return described(_json(place / "scheduler_config.json"))
    raise ValueError(
        f"{top} must have scheduler/scheduler_config.json, which says what the network predicts; "
        'there is none (give the kind of model, such as "edm", "eps" or "flow")'
    )


def _spec(folder: Path, config: dict[str, Any], about: Described) -> Spec:
    """The spec of a model that this library did not write."""
    size, name = config.get("sample_size"), str(config["_class_name"])
    if isinstance(size, int):
        size = [size, size]
    if not isinstance(size, list) or len(size) != 2:
        raise ValueError(f"{folder}/config.json must have a sample_size; got {size}")
    options = {key: value for key, value in config.items() if not key.startswith("_")}
    options["time_scale"] = about.time_scale
    is_dit = name == "DiTTransformer2DModel"
    classes = config.get("num_embeds_ada_norm" if is_dit else "num_class_embeds")
    spec = Spec(
        about.kind,
        (config["in_channels"], *size),
        DIFFUSERS + name,
        options,
        classes=classes,
        null_label=is_dit or classes is None,
        wrapper=about.wrapper,
    )
    numbers: dict[str, Any] = dict(about.numbers)
    return replace(spec, **numbers)


def _pretrained(folder: Path, name: str) -> nn.Module:
    try:
        model: nn.Module = model_class(name).from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
    except OSError as error:
        raise OSError(f"{folder} must hold safetensors of a {name}: {error}") from error
    return model
