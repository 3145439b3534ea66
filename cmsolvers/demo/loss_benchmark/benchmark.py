"""The benchmark: every recipe on every problem with every seed, side by side, and its report."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeAlias

from tqdm import tqdm

from cmsolvers import checks as check
from cmsolvers.demo.loss_benchmark import measures, results
from cmsolvers.demo.loss_benchmark.entry import Entry
from cmsolvers.demo.loss_benchmark.results import Facts, Result
from cmsolvers.demo.loss_benchmark.rows_of_losses import ENTRIES
from cmsolvers.demo.loss_benchmark.setting import Setting
from cmsolvers.demo.loss_benchmark.training_run import train
from cmsolvers.demo.workers import Workers, one_thread
from cmsolvers.tasks.exact_problems import ExactProblem
from cmsolvers.tasks.few_step_problems import PROBLEMS

Make: TypeAlias = Callable[[], ExactProblem]


def benchmark_losses(
    entries: Sequence[Entry] | None = None,
    problems: Sequence[str | Make] | None = None,
    *,
    seeds: int = 3,
    first_seed: int = 0,
    setting: Setting | None = None,
    out: str | os.PathLike[str] = "losses",
    workers: int | None = None,
    again: bool = False,
    progress: bool = True,
) -> list[Result]:
    """Train and measure each entry on each problem with each seed, and report in `out`.

    A result is written to `out`/runs as soon as it is there, and what is there already, with the
    same setting, is not run again: a run that was stopped goes on. (What an entry of the same name
    was made of is not compared: give again=True, or another folder, after a change.) At the end
    losses.json, losses.md and losses.png are written.

    Args:
        entries: recipes of different names; None is `ENTRIES`.
        problems: names of `tasks.few_step_problems.PROBLEMS`, or functions that make a problem;
            None is all of the library's.
        seeds: how many trainings with different seeds.
        first_seed: the seeds are first_seed, first_seed + 1, ...
        setting: of the trainings; None is the full one.
        out: folder for the results; it is made where it is missing.
        workers: processes side by side, one thread each; None is one per core. With 1 all is run
            in this process, and entries and problems may be any functions.
        again: run what is there already, too.
        progress: show a bar.

    Returns:
        The results, in the order of the entries, then of problems and seeds.

    Raises:
        TypeError, ValueError: an argument of the wrong kind; two entries or problems of one name.
        RuntimeError: trainings that ended with an error; the others are measured and reported. A
            loss that is not finite is no error but a result.
    """
    chosen = list(ENTRIES.values()) if entries is None else list(entries)
    for entry in chosen:
        if not isinstance(entry, Entry):
            raise TypeError(f"entries must be a sequence of Entry; got {check.describe(entry)}")
    makers = _makers(list(PROBLEMS) if problems is None else problems)
    setting, folder = setting or Setting(), Path(out)
    first = check.count("first_seed", first_seed, least=0)
    numbers = range(first, first + check.count("seeds", seeds))
    _unequal("entries", [entry.name for entry in chosen])
    if workers is None:
        workers = os.cpu_count() or 1
    check.count("workers", workers)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(entry, name, seed) for seed in numbers for name in makers for entry in chosen]
    found: dict[tuple[str, str, int], Result] = {}
    missing = []
    for entry, name, seed in wanted:
        earlier = None if again else results.load(folder, entry.name, name, seed, setting)
        if earlier is None:
            missing.append((entry, name, seed))
        else:
            found[entry.name, name, seed] = earlier
    jobs = [
        partial(run_one, entry, makers[name], name, seed, setting, folder)
        for entry, name, seed in missing
    ]
    errors = []
    bar = tqdm(total=len(wanted), initial=len(found), unit="training", disable=not progress)
    with bar, one_thread(), Workers(min(workers, max(1, len(jobs)))) as pool:
        for i, result in pool.run(jobs):
            entry, name, seed = missing[i]
            if isinstance(result, Result):
                found[entry.name, name, seed] = result
            else:
                errors.append(f"{entry.name} on {name}, seed {seed}:\n{result}")
            bar.set_postfix_str(f"{entry.name} on {name}", refresh=False)
            bar.update()
        facts = {name: _facts(make, setting) for name, make in makers.items()}
    ordered = [
        found[key]
        for entry in chosen
        for name in makers
        for seed in numbers
        if (key := (entry.name, name, seed)) in found
    ]
    _report(folder, ordered, facts, setting)
    if errors:
        raise RuntimeError(f"{len(errors)} of {len(wanted)} trainings failed:\n" + errors[0])
    return ordered


def run_one(
    entry: Entry, make: Make, name: str, seed: int, setting: Setting, folder: Path
) -> Result | str:
    """Train, measure and write one result; an error of the recipe is returned as its text."""
    try:
        problem = _problem(make)
        done = train(entry, problem, seed, setting)
        quality = measures.measure(entry, done.model, problem, setting)
    except Exception:  # of a recipe, which may be anyone's: the others go on
        return traceback.format_exc()
    result = Result(
        entry.name,
        entry.family,
        name,
        seed,
        setting,
        quality,
        done.steps,
        done.calls,
        done.seconds,
        done.loss,
        done.failure,
    )
    result.save(folder)
    return result


@lru_cache(maxsize=16)
def _problem(make: Make) -> ExactProblem:
    """Made once per process, so that its exact map is solved once."""
    return make()


def _facts(make: Make, setting: Setting) -> Facts:
    problem = _problem(make)
    return Facts(problem.size, problem.modes, measures.floor(problem, setting))


def _makers(problems: Sequence[str | Make]) -> dict[str, Make]:
    """By name."""
    chosen = [
        PROBLEMS[check.choice("problems", given, tuple(PROBLEMS))]
        if isinstance(given, str)
        else check.function("problems", given)
        for given in problems
    ]
    names = [_problem(make).name for make in chosen]
    _unequal("problems", names)
    return dict(zip(names, chosen, strict=True))


def _unequal(what: str, names: Sequence[str]) -> None:
    if not names:
        raise ValueError(f"{what} must not be empty")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(f"{what} must have different names; got {', '.join(twice)} twice")


def _report(
    folder: Path, ordered: Sequence[Result], facts: dict[str, Facts], setting: Setting
) -> None:
    # Here, so that the worker processes need not load matplotlib.
    from cmsolvers.demo.loss_benchmark import picture, table

    results.write(folder / "losses.json", ordered, facts, setting)
    (folder / "losses.md").write_text(table.table(ordered, facts) + "\n")
    picture.draw(folder / "losses.png", ordered, facts)
