"""One call measured against others: same inputs, one run, interleaved, the copy bound beside."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """A line of the summary.

    Attributes:
        name: of the line.
        seconds: per call.
        bound: seconds of a copy of the same bytes; None where bytes say nothing.
        rivals: seconds per call of each.
        at_least: asked of a rival's seconds over ours: how many times faster we should be.
        at_most: asked of our seconds over those of another: what our extra work may cost.
        limit: asked of our seconds.
    """

    name: str
    seconds: float
    bound: float | None
    rivals: Mapping[str, float]
    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    limit: float | None = None

    def ratio(self, rival: str) -> float:
        """Seconds of a rival over ours."""
        return self.rivals[rival] / self.seconds

    def shortfalls(self) -> list[str]:
        """What is asked and not reached; rivals that this machine lacks are left out."""
        slow = [
            f"{self.name}: {self.ratio(rival):.1f} x {rival}, at least {wanted:g} asked"
            for rival, wanted in self.at_least.items()
            if rival in self.rivals and self.ratio(rival) < wanted
        ]
        dear = [
            f"{self.name}: {1 / self.ratio(rival):.2f} times {rival}, at most {wanted:g} asked"
            for rival, wanted in self.at_most.items()
            if rival in self.rivals and 1 / self.ratio(rival) > wanted
        ]
        late = []
        if self.limit is not None and self.seconds > self.limit:
            late = [f"{self.name}: {text(self.seconds)}, at most {text(self.limit)} asked"]
        return slow + dear + late


ROWS: list[Row] = []


def compare(
    benchmark: Any,
    name: str,
    ours: Call,
    rivals: Mapping[str, Call],
    *,
    moved: int,
    device: str = "cpu",
    calls: int = 1,
    rounds: int = 15,
    at_least: Mapping[str, float] | None = None,
    at_most: Mapping[str, float] | None = None,
    limit: float | None = None,
    lenient: bool = False,
) -> Row:
    """Measure `ours` with pytest-benchmark; before each of its rounds every rival runs once.

    Args:
        benchmark: the fixture.
        name: of the summary line.
        ours: the call.
        rivals: what does the same some other way, or less of it (see `at_most`).
        moved: bytes that one call must read and write at least.
        device: "cpu" or "cuda".
        calls: calls a round, for calls too short for the clock.
        rounds: measured rounds; medians are reported, minima are in `extra_info` (on a machine that
            others load they say more).
        at_least: ratio asked of each rival's time to ours; checked with --check-ratios.
        at_most: ratio asked of our time to that of each of these; likewise.
        limit: seconds asked of our call; likewise.
        lenient: leave out a rival that raises, and say so in `extra_info`, instead of failing: on a
            machine that is lent for minutes the other numbers must not be lost.
    """
    rivals, failed = dict(rivals), {}
    copies: list[float] = []
    source = torch.ones(max(moved // 8, 1), device=device)
    target = torch.empty_like(source)

    def repeat(call: Call) -> None:
        for _ in range(calls):
            call()
        if device == "cuda":
            torch.cuda.synchronize()

    def timed(call: Call) -> float:
        start = time.perf_counter()
        repeat(call)
        return (time.perf_counter() - start) / calls

    for rival, call in list(rivals.items()):
        try:
            repeat(call)
        except Exception as error:
            if not lenient:
                raise
            failed[rival] = summary(error)
            del rivals[rival]
    repeat(ours)
    seconds: dict[str, list[float]] = {rival: [] for rival in rivals}

    def others() -> None:
        for rival, call in rivals.items():
            seconds[rival].append(timed(call))
        copies.append(timed(lambda: target.copy_(source)))
        repeat(ours)  # the measured round finds the caches as a caller in a loop does

    benchmark.pedantic(repeat, args=(ours,), setup=others, rounds=rounds, iterations=1)
    if benchmark.disabled:
        return Row(name, 1.0, 1.0, {})
    median = benchmark.stats.stats.median / calls
    medians = {rival: statistics.median(values) for rival, values in seconds.items()}
    row = Row(
        name, median, statistics.median(copies), medians, at_least or {}, at_most or {}, limit
    )
    benchmark.extra_info.update(
        case=name,
        calls=calls,
        bytes=moved,
        copy_seconds=row.bound,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        torch=torch.__version__,
        rivals={
            rival: {"seconds": value, "ratio": value / median, "min": min(seconds[rival])}
            for rival, value in medians.items()
        },
        **aims(row),
    )
    if failed:
        benchmark.extra_info["failed"] = failed
    ROWS.append(row)
    return row


def aims(row: Row) -> dict[str, Any]:
    """What is asked of a row, for the report: {} where nothing is."""
    asked: dict[str, Any] = {}
    if row.at_least or row.at_most or row.limit is not None:
        wanted = {"at_least": row.at_least, "at_most": row.at_most, "seconds": row.limit}
        asked["aims"] = {kind: value for kind, value in wanted.items() if value}
        asked["missed"] = row.shortfalls()
    return asked


def summary(error: BaseException) -> str:
    """One line about an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def text(seconds: float) -> str:
    """Seconds for people: 3.2 us."""
    unit, factor = ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    return f"{seconds * factor:.3g} {unit}"


def table() -> str:
    """All rows so far, in Markdown."""
    lines = ["| case | time | times the copy bound | against |", "|---|---|---|---|"]
    for row in ROWS:
        parts = []
        for r in row.rivals:
            if r in row.at_most:
                parts.append(f"{1 / row.ratio(r):.2f} times {r} (at most {row.at_most[r]:g})")
            elif r in row.at_least:
                parts.append(f"{row.ratio(r):.1f} x {r} (asked {row.at_least[r]:g})")
            else:
                parts.append(f"{row.ratio(r):.1f} x {r}")
        taken = text(row.seconds) + (f" (at most {text(row.limit)})" if row.limit else "")
        bound = "" if row.bound is None else f"{row.seconds / row.bound:.2f}"
        lines.append(f"| {row.name} | {taken} | {bound} | {', '.join(parts)} |")
    return "\n".join(lines)
