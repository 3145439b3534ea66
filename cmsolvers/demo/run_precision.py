"""Work against precision of every sampler: measured, written and drawn."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from cmsolvers import checks as check
from cmsolvers.demo import work_precision, work_precision_plot


def run_precision(out: Path, count: int, seed: int, *, progress: bool = True) -> Path:
    """Write precision.json and precision.png to a folder; the picture's path is returned.

    Args:
        out: the folder; it is made where it is missing.
        count: samples, at least 2.
        seed: of the samples.
        progress: show a bar.

    Raises:
        TypeError, ValueError: count is no int, or below 2.
    """
    problem = work_precision.Problem(check.count("count", count, least=2), seed)
    with tqdm(total=len(work_precision.shown_solvers()), disable=not progress) as bar:

        def shown(name: str) -> None:
            bar.set_description(name)
            bar.update()

        points = work_precision.measure(problem, shown)
    out.mkdir(parents=True, exist_ok=True)
    work_precision.save(out / "precision.json", points, problem)
    return work_precision_plot.draw(out / "precision.png", points, problem)
