"""Samples of a checkpoint by the thousand: batched, shared among processes, resumable."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cmsolvers.runs.sample import sidecar
from cmsolvers.runs.sample.sample_job import Job, SampleSettings, prepared
from cmsolvers.runs.sample.stores import Array, Store
from cmsolvers.runs.sample.team import Team
from cmsolvers.training.checkpoints import FolderInUseError, disk
from cmsolvers.training.checkpoints.lock import lock
from cmsolvers.training.data.array_headers import sized
from cmsolvers.training.picture_pages import CHANNELS, LARGEST, scatter, tiles, write_png

SHOWN = 100
"""Samples in the grid."""
LISTED = 1000
"""Ids of samples that are not finite in samples.json."""


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
        job = team.together(lambda: prepared(given, team.device(given.device)))
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
            try:
                held.enter_context(lock(out / "lock"))
            except FolderInUseError as error:
                who = str(error).rpartition("in use by ")[2]
                raise ValueError(f"out must be free; {who} writes samples to {out}") from error
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


def _settings(job: Job) -> Mapping[str, object]:
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
    job: Job,
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
    job: Job,
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
