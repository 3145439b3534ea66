"""Labels of the benchmark's axes have room beside each other, however wide the range is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cmsolvers.demo.loss_benchmark import picture

RANGES = [(0.02, 1.2), (0.0025, 4.0), (0.01, 8.0), (1e-5, 40.0), (0.3, 0.9)]


def overlaps(low: float, high: float) -> tuple[int, int]:
    """Pairs of neighbouring labels that touch on an axis as wide as a panel, and labels shown."""
    figure = Figure(figsize=(3.0, 1.0), dpi=100)
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_axes((0.02, 0.5, 0.96, 0.4))
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    picture._ticks(ax)
    canvas.draw()
    labels = [label for label in ax.get_xticklabels() if label.get_text()]
    renderer = canvas.get_renderer()
    boxes = [label.get_window_extent(renderer) for label in labels]
    whole = ax.get_window_extent(renderer)
    boxes = sorted((b for b in boxes if whole.x0 <= b.x0 + b.width / 2 <= whole.x1), key=_left)
    touching = sum(b.x0 < a.x1 for a, b in pairwise(boxes))
    return touching, len(boxes)


def _left(box: Any) -> float:
    return float(box.x0)


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_labels_do_not_touch(low: float, high: float) -> None:
    touching, shown = overlaps(low, high)
    assert touching == 0 and shown >= 2


def test_three_labels_in_each_of_three_decades_do(monkeypatch: Any) -> None:
    """The control."""
    monkeypatch.setattr(picture, "_SUBS", ((99.0, (1.0, 2.0, 5.0)),))
    assert overlaps(0.0025, 4.0)[0] > 0
