"""The picture of the benchmark: a line per recipe, a panel per problem and measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from cmsolvers.demo import picture_style as style
from cmsolvers.demo.loss_benchmark.measures import Measured
from cmsolvers.demo.loss_benchmark.results import Facts, Result
from cmsolvers.demo.loss_benchmark.setting import STEPS

_COLORS = (style.SDE, "#6aa6dc", style.ODE)
_MARKS = "oDs"
_SUBS = ((2.0, (1.0, 2.0, 5.0)), (4.0, (1.0, 3.0)), (math.inf, (1.0,)))
"""(decades at most, digits of the ticks in each of them)."""


def draw(path: Path, results: Sequence[Result], problems: Mapping[str, Facts]) -> Path:
    """Distance to the exact map above, sliced Wasserstein below; a line spans the seeds."""
    recipes = list(dict.fromkeys(result.recipe for result in results))
    height = 1.1 + 0.19 * len(recipes)
    fig = style.figure(2.0 + 3.6 * len(problems), 0.6 + 2 * height)
    with style.styled():
        axes = fig.subplots(2, len(problems), squeeze=False, sharey=True)
        for column, (name, facts) in enumerate(problems.items()):
            above, below = axes[0][column], axes[1][column]
            own = [result for result in results if result.problem == name]
            _dots(above, own, recipes, lambda m: m.rms)
            _dots(below, own, recipes, lambda m: m.distance)
            below.axvline(facts.floor, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
            for ax in (above, below):
                _ticks(ax)
            above.set_title(f"{name} in {facts.size}-D: RMS to the exact map")
            below.set_title(f"{name}: sliced Wasserstein distance")
            below.set_xlabel("dashed: exact samples", color=style.MUTED, fontsize=8)
        axes[0][0].set_ylim(len(recipes) - 0.5, -0.5)
        handles, labels = axes[0][0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper right", ncols=len(STEPS), fontsize=8.5)
    return style.save(fig, path)


def _dots(
    ax: Axes,
    results: Sequence[Result],
    recipes: Sequence[str],
    value: Callable[[Measured], float],
) -> None:
    for k, steps in enumerate(STEPS):
        shift = 0.2 * (k - 1)
        for place, recipe in enumerate(recipes):
            values = (value(r.quality[steps]) for r in results if r.recipe == recipe)
            found = [v for v in values if 0 < v < math.inf]
            if found:
                ax.plot(
                    [min(found), max(found)],
                    [place + shift] * 2,
                    color=_COLORS[k],
                    linewidth=1,
                    alpha=0.6,
                )
                ax.plot(
                    sum(found) / len(found),
                    place + shift,
                    marker=_MARKS[k],
                    markersize=4,
                    color=_COLORS[k],
                    linestyle="none",
                    label=(f"{steps} step" + "s" * (steps > 1)) if place == 0 else None,
                )
    ax.set_xscale("log")
    ax.set_yticks(range(len(recipes)), recipes)
    ax.tick_params(axis="y", length=0, labelsize=8, labelcolor=style.INK)
    ax.grid(True, axis="x", which="major", color=style.FAINT, linewidth=0.5)
    ax.grid(True, axis="y", color=style.FAINT, linewidth=0.3)


def _ticks(ax: Axes) -> None:
    """As many as have room for their labels: the wider the range, the fewer in each decade."""
    low, high = ax.get_xlim()
    decades = math.log10(high / low)
    subs = next(found for most, found in _SUBS if decades <= most)
    ax.xaxis.set_major_locator(LogLocator(subs=subs))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
