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
    """A line of the summary: seconds a call, and what is asked of the ratios."""

    name: str
    seconds: float
    bound: float
    rivals: Mapping[str, float]
    at_least: Mapping[str, float] = field(default_factory=dict)

    def ratio(self, rival: str) -> float:
        return self.rivals[rival] / self.seconds

    def shortfalls(self) -> list[str]:
        return [
            f"{self.name}: {self.ratio(rival):.1f} x {rival}, at least {wanted:g} asked"
            for rival, wanted in self.at_least.items()
            if self.ratio(rival) < wanted
        ]


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
) -> Row:
    """Measure `ours` with pytest-benchmark; before each of its rounds every rival runs once.

    Args:
        benchmark: the fixture.
        name: of the summary line.
        ours: the call.
        rivals: what does the same some other way.
        moved: bytes that one call must read and write at least.
        device: "cpu" or "cuda".
        calls: calls a round, for calls too short for the clock.
        rounds: measured rounds; medians are reported.
        at_least: ratio asked of each rival's time to ours; checked with --check-ratios.
    """
    seconds: dict[str, list[float]] = {rival: [] for rival in rivals}
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

    def others() -> None:
        for rival, call in rivals.items():
            seconds[rival].append(timed(call))
        copies.append(timed(lambda: target.copy_(source)))
        repeat(ours)  # the measured round finds the caches as a caller in a loop does

    for call in (*rivals.values(), ours):
        repeat(call)
    benchmark.pedantic(repeat, args=(ours,), setup=others, rounds=rounds, iterations=1)
    if benchmark.disabled:
        return Row(name, 1.0, 1.0, {})
    median = benchmark.stats.stats.median / calls
    medians = {rival: statistics.median(values) for rival, values in seconds.items()}
    row = Row(name, median, statistics.median(copies), medians, at_least or {})
    benchmark.extra_info.update(
        calls=calls,
        bytes=moved,
        copy_seconds=row.bound,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        torch=torch.__version__,
        rivals={
            rival: {"seconds": value, "ratio": value / median} for rival, value in medians.items()
        },
    )
    ROWS.append(row)
    return row


def table() -> str:
    """All rows so far, in Markdown."""
    lines = ["| case | time | times the copy bound | against |", "|---|---|---|---|"]
    for row in ROWS:
        against = ", ".join(
            f"{row.ratio(r):.1f} x {r}"
            + (f" (asked {row.at_least[r]:g})" if r in row.at_least else "")
            for r in row.rivals
        )
        unit, factor = ("ms", 1e3) if row.seconds > 1e-3 else ("us", 1e6)
        time_text = f"{row.seconds * factor:.3g} {unit}"
        lines.append(f"| {row.name} | {time_text} | {row.seconds / row.bound:.2f} | {against} |")
    return "\n".join(lines)
