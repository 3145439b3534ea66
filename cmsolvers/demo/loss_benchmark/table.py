"""The table of the benchmark, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cmsolvers.demo.loss_benchmark.measures import Measured
from cmsolvers.demo.loss_benchmark.results import Facts, Result
from cmsolvers.demo.loss_benchmark.setting import STEPS

MARKS = "<!-- benchmark -->\n", "\n<!-- /benchmark -->"
"""What the table stands between in a page."""


def table(results: Sequence[Result], problems: Mapping[str, Facts]) -> str:
    """One row per recipe: RMS and distance in 1 / 2 / 4 steps, modes in one; means over the seeds.

    The first row is what other exact samples have; the last line says what was run.
    """
    steps = " / ".join(map(str, STEPS))
    head = ["recipe", "calls per step"]
    exact = ["*exact samples*", ""]
    for name, facts in problems.items():
        head += [f"{name}: RMS, {steps} steps", f"SW, {steps}"]
        exact += ["0", _number(facts.floor)]
        if facts.modes > 1:
            head.append("modes")
            exact.append(f"{facts.modes}")
    lines = [[*head, "seconds"], ["---"] * (len(head) + 1), [*exact, ""]]
    for recipe in dict.fromkeys(result.recipe for result in results):
        rows = [result for result in results if result.recipe == recipe]
        calls = sum(r.calls for r in rows) / sum(r.steps for r in rows)
        line = [f"`{recipe}`", f"{calls:.3g}"]
        for name, facts in problems.items():
            own = [r for r in rows if r.problem == name]
            line += [_three(own, lambda m: m.rms), _three(own, lambda m: m.distance)]
            if facts.modes > 1:
                line.append(_mean([r.quality[STEPS[0]].modes for r in own], "{:.3g}"))
        failed = sum(r.failure is not None for r in rows)
        seconds = f"{sum(r.seconds for r in rows) / len(rows):.3g}"
        lines.append([*line, seconds + (f"; {failed} of {len(rows)} diverged" if failed else "")])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    seeds = len({result.seed for result in results})
    budget = " or ".join(sorted({f"{r.setting.calls:,}" for r in results}))
    sizes = " or ".join(sorted({str(r.setting.batch_size) for r in results}))
    about = (
        f"Made by `cmsolvers benchmark losses`: {budget} calls, batches of {sizes}, seeds: {seeds}."
    )
    return f"{text}\n\n{about}"


def write_between_marks(page: Path, text: str) -> None:
    """Put the table in the place of the one that a page has between `MARKS`.

    Raises:
        OSError: the page cannot be read or written.
        ValueError: it has no such marks.
    """
    old = page.read_text()
    start, end = old.find(MARKS[0]), old.find(MARKS[1])
    if start < 0 or end < start:
        raise ValueError(f"{page} must hold the lines {MARKS[0].strip()} and {MARKS[1].strip()}")
    page.write_text(old[: start + len(MARKS[0])] + text + old[end:])


def _three(results: Sequence[Result], value: Callable[[Measured], float]) -> str:
    """Means over the seeds, by steps."""
    return " / ".join(_mean([value(r.quality[steps]) for r in results]) for steps in STEPS)


def _mean(values: Sequence[float], form: str | None = None) -> str:
    if not values:
        return "-"
    mean = sum(values) / len(values)
    return _number(mean) if form is None else form.format(mean)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "inf"
    return f"{value:.2g}" if value >= 0.001 else f"{value:.0e}"
