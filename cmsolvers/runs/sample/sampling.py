"""Samples of a checkpoint by the thousand: batched, shared among processes, resumable."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.denoisers import guided
from cmsolvers.runs.picture_pages import CHANNELS, LARGEST, pixels_of, scatter, tiles, write_png
from cmsolvers.runs.sample import sidecar
from cmsolvers.runs.sample.classes import ClassRule
from cmsolvers.runs.sample.plans import Plan, plan_of
from cmsolvers.runs.sample.stores import Array, ArrayStore, PictureStore, Store
from cmsolvers.runs.sample.team import Team
from cmsolvers.training.checkpoints import disk
from cmsolvers.training.checkpoints.lock import lock
from cmsolvers.training.data import Scale
from cmsolvers.training.data.array_headers import sized
from cmsolvers.training.models import Model, load_model

FORMATS = ("png", "npz")
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SHOWN = 100
"""Samples in the grid."""
LISTED = 1000
"""Ids of samples that are not finite in samples.json."""


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


@dataclass(frozen=True)
class Sampled:
    """What there is after a run.

    Attributes:
        num: samples asked for.
        made: how many of them this run made.
        not_finite: how many are not finite; they are not among the files.
        nfe: evaluations of the model per sample, the mean; None where nothing was made.
        seconds: of this run.
        out: the folder.
        is_first: whether this is the process that speaks for all.
    """

    num: int
    made: int
    not_finite: int
    nfe: float | None
    seconds: float
    out: Path
    is_first: bool = True


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
class _Job:
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


def _prepared(given: SampleSettings, team: Team) -> _Job:
    device = team.device(given.device)
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
        "steps": given.steps,
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
    return _Job(given, model, plan, rule, kind, scale, device, about)


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


def sample(
    given: SampleSettings, out: Path, *, progress: bool = True, command: str | None = None
) -> Sampled:
    """Sample a checkpoint into a folder; what a killed run left there is not made again.

    Sample i has the same initial noise, noise on the way and class whatever the batch size and the
    number of processes; where the network gives each sample what it would get alone, it is the same
    to the bit. Under torchrun each process makes a contiguous part of the ids. A batch is written
    as soon as it is made, each file whole or not at all.

    Args:
        given: what is sampled.
        out: new or empty, or the folder of such a run. It gets samples.json, a grid.png, and
            images/ or samples.npz (see `stores`).
        progress: show a bar over the samples.
        command: for samples.json.

    Raises:
        FileNotFoundError: no such checkpoint.
        OSError: no room on the disk.
        ValueError: settings that do not fit the model or the samples in `out`.
        KeyboardInterrupt: Ctrl-C; the text says how far it is.
    """
    begun = time.monotonic()
    with Team() as team, ExitStack() as held:
        job = team.together(lambda: _prepared(given, team))
        assert job is not None
        store = job.store(out)

        def look() -> Array:
            old = sidecar.read(out)
            if old is not None:
                sidecar.check_same(out, old, _settings(job))
            elif any((out / name).exists() for name in ("images", "parts", "samples.npz")):
                raise ValueError(
                    f"out must be a new or empty folder, or one with {sidecar.NAME}; {out} has "
                    "files of another run"
                )
            if old is None:
                _check_room(store, given.num, given.num, out)
                return np.zeros(given.num, bool)
            there = store.done(given.num)
            _check_room(store, int((~there).sum()), given.num, out)
            return there

        there = team.together(look)
        assert there is not None
        first, end = team.part(given.num)
        todo = list(batches(there, first, end, given.batch))
        # What can go wrong with options goes wrong in the first batch, before anything is written.
        begin = team.together(lambda: job.draw(todo[0][0], todo[0][1]) if todo else None)

        def prepare() -> None:
            disk.make_folders(out)
            held.enter_context(lock(out / "lock"))
            store.clean()
            if sidecar.read(out) is None:
                sidecar.write(out, {"complete": False, "command": command, **job.about})

        team.together(prepare, first_only=True)
        counts = _work(job, store, team, todo, begin, there[first:end], progress)
        seconds = time.monotonic() - begun
        made, nfe = int(counts[0]), counts[1] / counts[0] if counts[0] else None
        bad = team.together(
            lambda: _finished(job, store, out, made, nfe, seconds, team, command), first_only=True
        )
        return Sampled(given.num, made, bad or 0, nfe, seconds, out, team.is_first)


def _settings(job: _Job) -> Mapping[str, object]:
    found = job.about["settings"]
    assert isinstance(found, dict)
    return found


def batches(there: Array, first: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """(id, length) of the contiguous batches of what is missing in first ... end - 1."""
    missing = np.flatnonzero(~there[first:end]) + first
    if not len(missing):
        return
    gaps = np.flatnonzero(np.diff(missing) > 1) + 1
    for run in np.split(missing, gaps):
        for start in range(0, len(run), size):
            yield int(run[start]), min(size, len(run) - start)


def _check_room(store: Store, missing: int, num: int, out: Path) -> None:
    there = out.absolute()
    while not there.exists():
        there = there.parent
    free, needed = shutil.disk_usage(there).free, store.bytes_of(missing)
    if needed > free:
        raise OSError(
            f"num must fit on the disk: {num:,} samples take about {sized(needed)}, and "
            f"{sized(free)} are free in {there}"
        )


def _work(
    job: _Job,
    store: Store,
    team: Team,
    todo: Sequence[tuple[int, int]],
    begin: tuple[Tensor, Tensor] | None,
    there: Array,
    progress: bool,
) -> list[float]:
    """Make and write all batches; samples made and their NFE, over all processes."""
    made, calls, total = 0, 0, len(there)
    bar: Any = nullcontext()
    if progress and team.is_first and todo:
        text = "sampling" if team.world == 1 else f"sampling, process 1 of {team.world}"
        bar = tqdm(total=total, initial=int(there.sum()), desc=text, unit="sample")
    error: Exception | None = None
    try:
        with bar as shown:
            for i, (first, count) in enumerate(todo):
                x, nfe = begin if i == 0 and begin is not None else job.draw(first, count)
                finite = x.flatten(1).isfinite().all(1)
                kept = torch.where(finite.view(-1, *[1] * (x.ndim - 1)), x, torch.zeros_like(x))
                store.write(first, job.values(kept), finite.cpu().numpy())
                made, calls = made + count, calls + int(nfe.sum())
                if shown is not None:
                    shown.update(count)
    except KeyboardInterrupt:
        written = int(there.sum()) + made
        of = f"{written:,} of {total:,} samples" + (" of process 1" if team.world > 1 else "")
        raise KeyboardInterrupt(f"{of} are written; the same command goes on") from None
    except Exception as caught:
        error = caught

    def ended() -> None:
        if error is not None:
            raise error

    team.together(ended)
    return team.sums([float(made), float(calls)])


def _finished(
    job: _Job,
    store: Store,
    out: Path,
    made: int,
    nfe: float | None,
    seconds: float,
    team: Team,
    command: str | None,
) -> int:
    """Put everything together; how many samples are not finite."""
    num, labels = job.settings.num, job.labels(0, job.settings.num)
    bad = store.not_finite(num)
    store.finish(num, None if labels is None else labels.numpy())
    old = sidecar.read(out) or {}
    about: dict[str, object] = {"complete": True, "command": command, **job.about}
    about["nfe"] = nfe if nfe is not None else old.get("nfe")
    about["not_finite"] = {"count": len(bad), "ids": bad[:LISTED]}
    run: dict[str, object] = {"made": made, "seconds": round(seconds, 3), "processes": team.world}
    run |= {"batch": job.settings.batch, "device": str(job.device)}
    about["last_run"] = run if made else old.get("last_run", run)
    some = store.first(SHOWN)
    if some.dtype == np.uint8 and some.ndim == 4 and some.shape[3] in CHANNELS and len(some):
        write_png(out / "grid.png", tiles(some, 10), most=LARGEST)
    elif some.ndim == 2 and some.shape[1] == 2 and len(some):
        _scatter(out / "grid.png", store, num)
    sidecar.write(out, about)
    return len(bad)


def _scatter(path: Path, store: Store, num: int) -> None:
    try:
        scatter(path, torch.from_numpy(store.first(min(num, 20_000)).copy()))
    except ModuleNotFoundError:
        print("no picture of the points: matplotlib is not installed", file=sys.stderr)
