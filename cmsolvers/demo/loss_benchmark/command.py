"""`cmsolvers benchmark losses`, from names on a command line to files."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cmsolvers import checks as check
from cmsolvers.demo.loss_benchmark import table
from cmsolvers.demo.loss_benchmark.benchmark import benchmark_losses
from cmsolvers.demo.loss_benchmark.entry import Entry
from cmsolvers.demo.loss_benchmark.rows_of_losses import ENTRIES
from cmsolvers.demo.loss_benchmark.setting import Setting


def run(
    out: Path,
    *,
    recipes: Sequence[str] | None = None,
    own: Sequence[str] = (),
    problems: Sequence[str] | None = None,
    seeds: int | None = None,
    first_seed: int = 0,
    budget: int | None = None,
    tiny: bool = False,
    workers: int | None = None,
    again: bool = False,
    docs: Path | None = None,
    progress: bool = True,
) -> str:
    """Run the benchmark; the table is returned.

    Args:
        out: folder for the results.
        recipes: names of `ENTRIES`; None is all, or with `own` none of them.
        own: entries of a user's, each "module:name" of an `Entry` or of a list of entries. Modules
            of the current folder are found.
        problems: names; None is all, and with `tiny` the ring alone.
        seeds: how many; None is 3, and with `tiny` 1.
        first_seed: the first of them.
        budget: network calls of a training; None is that of the setting.
        tiny: the short form.
        workers: as in `benchmark_losses`.
        again: as in `benchmark_losses`.
        docs: a page with the marks of `table.MARKS`, which gets the table; the picture is written
            to images/losses.png beside it.
        progress: show a bar.

    Raises:
        TypeError, ValueError: as `benchmark_losses`; names that are not known.
        OSError: a page that cannot be read.
    """
    if recipes is None:
        recipes = [] if own else list(ENTRIES)
    entries = [ENTRIES[check.choice("--recipes", name, tuple(ENTRIES))] for name in recipes]
    for given in own:
        entries += _own(given)
    setting = Setting.tiny() if tiny else Setting()
    if budget is not None:
        setting = replace(setting, calls=check.count("--budget", budget))
    if docs is not None and not docs.is_file():
        raise FileNotFoundError(f"--docs must be a page that is there; got {docs}")
    found = benchmark_losses(
        entries,
        problems if problems is not None else ["ring"] if tiny else None,
        seeds=(1 if tiny else 3) if seeds is None else seeds,
        first_seed=first_seed,
        setting=setting,
        out=out,
        workers=workers,
        again=again,
        progress=progress,
    )
    text = (out / "losses.md").read_text().rstrip("\n")
    if docs is not None:
        table.write_between_marks(docs, text)
        images = docs.parent / "images"
        images.mkdir(exist_ok=True)
        shutil.copyfile(out / "losses.png", images / "losses.png")
    return f"{text}\n\n{len(found)} trainings; picture: {out / 'losses.png'}"


def _own(given: str) -> list[Entry]:
    """What "module:name" names."""
    module, separator, name = given.partition(":")
    if not (module and separator and name):
        raise ValueError(f"--own must be MODULE:NAME; got {given!r}")
    here = str(Path.cwd())
    if here not in sys.path:  # worker processes get the path, too
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--own must name an Entry in a module; {given}: {error}") from error
    entries = list(found) if isinstance(found, (list, tuple)) else [found]
    for entry in entries:
        if not isinstance(entry, Entry):
            raise TypeError(f"--own must name an Entry or a list of them; {given}: {type(entry)}")
    return entries
