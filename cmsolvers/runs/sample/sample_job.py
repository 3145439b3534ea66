"""What is sampled, and how: settings, and the job that follows from them and the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.denoisers import guided
from cmsolvers.runs.sample import sidecar
from cmsolvers.runs.sample.classes import ClassRule
from cmsolvers.runs.sample.plans import Plan, plan_of
from cmsolvers.runs.sample.stores import Array, ArrayStore, PictureStore, Store
from cmsolvers.training.data import Scale
from cmsolvers.training.models import Model, load_model
from cmsolvers.training.picture_pages import CHANNELS, pixels_of

FORMATS = ("png", "npz")
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class SampleSettings:
    """What is sampled, and how.

    Attributes:
        checkpoint: a checkpoint, the folder of a run, or a folder of diffusers.
        num: how many samples, with ids 0 ... num - 1.
        seed: of all noise, in [0, 2^63).
        sampler, steps, levels, schedule, options: see `plan_of`.
        batch: samples at once; it changes nothing but speed and memory.
        classes: see `ClassRule.read`.
        guidance: W of D = D_u + W (D_c - D_u), 1 is none; for models with an input w, w = W - 1.
        device: None is a GPU where there is one.
        precision: of the network: "no", "bf16" or "fp16" (autocast).
        format: "png" or "npz"; None is "png" for images that can be, else "npz".
        average: whose weights; see `load_model`.
        trusted: see `load_model`.
    """

    checkpoint: Path
    num: int = 100
    seed: int = 0
    sampler: str | None = None
    steps: int | None = None
    levels: Sequence[float] | None = None
    schedule: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    batch: int = 64
    classes: str | None = None
    guidance: float | None = None
    device: str | None = None
    precision: str = "no"
    format: str | None = None
    average: str | None = None
    trusted: Sequence[str] = ()

    def __post_init__(self) -> None:
        check.count("num", self.num)
        check.count("batch", self.batch)
        check.count("seed", self.seed, least=0, most=2**63 - 1)
        check.choice("precision", self.precision, list(PRECISIONS))
        if self.format is not None:
            check.choice("format", self.format, FORMATS)
        if self.guidance is not None:
            check.non_negative("guidance", self.guidance)
        if self.num >= 1 << 56:
            raise ValueError(f"num must be below 2^56, as sample ids are; got {self.num}")


class _Autocast(nn.Module):
    """A network in a narrower dtype, with float32 at its doors."""

    def __init__(self, net: nn.Module, kind: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.kind, self.narrow = net, kind, dtype

    def forward(self, x: Tensor, *times: Tensor, **given: Any) -> Any:
        with torch.autocast(self.kind, dtype=self.narrow):
            made = self.net(x, *times, **given)
        if isinstance(made, Tensor):
            return made.to(x.dtype)
        return tuple(one.to(x.dtype) for one in made)


@dataclass(frozen=True)
class Job:
    """All that decides on samples, made before anything is written."""

    settings: SampleSettings
    model: Model
    plan: Plan
    rule: ClassRule | None
    format: str
    scale: Scale | None
    device: torch.device
    about: dict[str, object]

    def store(self, out: Path) -> Store:
        shape = self.model.spec.shape
        if self.format == "png":
            return PictureStore(out, shape)
        if self.scale is None or len(shape) != 3:
            return ArrayStore(out, shape, np.float32)
        return ArrayStore(out, (*shape[1:], shape[0]), np.uint8)

    def values(self, x: Tensor) -> Array:
        """Samples as they are stored."""
        if self.scale is None or len(self.model.spec.shape) != 3:
            plain: Array = x.float().cpu().numpy()
            return plain
        return pixels_of(x, self.scale)

    def labels(self, first: int, count: int) -> Tensor | None:
        """Classes of samples."""
        rule = self.rule
        return None if rule is None else rule.labels(first, count, self.settings.seed)

    def draw(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Samples first ... first + count - 1 as the model sees data, and the NFE of each."""
        spec, given = self.model.spec, self.settings
        key = noise.Key(given.seed, offset=first)
        z = noise.normal((count, *spec.shape), key, stream=noise.LATENT, device=self.device)
        function: Callable[..., Tensor] = self.model.function
        extra: dict[str, Tensor] = {}
        more: dict[str, object] = {}
        labels = self.labels(first, count)
        if labels is not None:
            extra["labels"] = labels.to(self.device)
        w = given.guidance
        if w is not None and "w" in spec.inputs:
            extra["w"] = torch.full((count,), w - 1.0, device=self.device)
        elif w is not None and w != 1.0:
            null = torch.full_like(extra["labels"], int(spec.null or 0))
            function = guided(
                self.model.function,
                w,
                conditional={"labels": extra.pop("labels")},
                unconditional={"labels": null},
            )
            if self.plan.sampler == "adaptive_sde":
                more["mode"] = "masked"  # its score does not say which samples are left
        return self.plan.draw(function, z, key, extra, more)


def prepared(given: SampleSettings, device: torch.device) -> Job:
    """The job of settings; nothing is written.

    Raises:
        OSError: no such checkpoint.
        ValueError: settings that do not fit the model.
    """
    model = load_model(given.checkpoint, given.average, trusted=given.trusted)
    plan = plan_of(
        model,
        given.sampler,
        steps=given.steps,
        levels=given.levels,
        schedule=given.schedule,
        options=given.options,
    )
    spec = model.spec
    rule = ClassRule.read(given.classes, spec.classes, spec.null)
    _check_guidance(given, model)
    scale = Scale.read(model.about["scale"]) if model.about.get("scale") is not None else None
    is_picture = len(spec.shape) == 3 and spec.shape[0] in CHANNELS and scale is not None
    kind = given.format or ("png" if is_picture else "npz")
    if kind == "png" and not is_picture:
        raise ValueError(
            f"format must be 'npz' for samples of shape {list(spec.shape)}"
            + (" without a scale of pixels" if scale is None else "")
        )
    digest = sidecar.digest_of(model)
    narrow = PRECISIONS[given.precision]
    network: nn.Module = model.network.to(device)
    if narrow is not None:
        network = _Autocast(network, device.type, narrow)
    model = Model(spec, network, spec.wrap(network).eval(), model.about)
    settings: dict[str, object] = {
        "checkpoint": digest,
        "num": given.num,
        "seed": given.seed,
        "sampler": plan.sampler,
        "schedule": plan.schedule,
        "levels": list(plan.levels),
        "steps": plan.steps,
        "options": dict(plan.options),
        "classes": None if rule is None else rule.text,
        "guidance": given.guidance,
        "precision": given.precision,
        "format": kind,
        "shape": list(spec.shape),
        "pixels": None if scale is None else {"low": scale.low, "high": scale.high},
    }
    about: dict[str, object] = {
        "settings": settings,
        "checkpoint": {
            "path": str(given.checkpoint),
            "kind": spec.kind,
            "step": model.about.get("step"),
            "average": given.average,
        },
        "versions": sidecar.versions(),
    }
    return Job(given, model, plan, rule, kind, scale, device, about)


def _check_guidance(given: SampleSettings, model: Model) -> None:
    spec = model.spec
    if given.guidance is None:
        if "w" in spec.inputs:
            raise ValueError("guidance must be given: the network has the input w")
        return
    if "w" in spec.inputs or given.guidance == 1.0:
        return
    if spec.row.model != "denoiser":
        raise ValueError(
            f"guidance must be left out for {spec.row.about}, whose network has no input w"
        )
    if spec.classes is None or spec.null is None:
        raise ValueError(
            "guidance must be left out: the model has no classes with an empty label beside them"
        )
