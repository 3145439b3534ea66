"""The picture of work against precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from cmsolvers.demo import picture_style as style
from cmsolvers.demo.work_precision import Point, Problem

_MARKS = "osD^v<>P*Xhp"


def _color(k: int) -> str:
    return (
        "#2458a6",
        "#d9662b",
        "#1d8a6b",
        "#8a4fb5",
        "#dfa133",
        "#6aa6dc",
        "#b5304a",
        "#5c6b1e",
        "#7a5c3e",
        "#444b5a",
    )[k % 10]


def draw(path: Path, points: Sequence[Point], problem: Problem) -> Path:
    """Left: ODE solvers against the exact solution. Right: all against the exact distribution."""
    fig = style.figure(12.5, 5.6)
    calm = list(dict.fromkeys(p.name for p in points if not p.noisy))
    noisy = list(dict.fromkeys(p.name for p in points if p.noisy))
    with style.styled():
        left, right = fig.subplots(1, 2)
        _lines(left, points, calm, lambda p: p.error)
        _lines(right, points, noisy, lambda p: p.distance)
        right.axhline(problem.floor, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
        right.annotate(
            f"{problem.count:,} perfect draws, on average",
            (0.02, problem.floor),
            xycoords=("axes fraction", "data"),
            xytext=(0, -10),
            textcoords="offset points",
            color=style.MUTED,
            fontsize=8,
        )
        left.set_title("ODE: distance to the exact solution (root mean square)")
        right.set_title("With noise: Wasserstein-1 distance to the exact distribution")
        for ax in (left, right):
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_xlabel("network calls (NFE)")
            ax.set_xticks([4, 8, 16, 32, 64, 128, 256], minor=False)
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter("")
            ax.grid(True, which="major", color=style.FAINT, linewidth=0.5)
        left.legend(fontsize=7.5, loc="lower left", ncols=2)
        right.legend(fontsize=7.5, loc="upper right", ncols=2)
    return style.save(fig, path)


def _lines(
    ax: Axes, points: Sequence[Point], names: Sequence[str], value: Callable[[Point], float]
) -> None:
    for k, name in enumerate(names):
        row = sorted((p.nfe, value(p)) for p in points if p.name == name)
        ax.plot(
            [nfe for nfe, _ in row],
            [error for _, error in row],
            marker=_MARKS[k % len(_MARKS)],
            markersize=3.5,
            linewidth=1.3,
            color=_color(k),
            linestyle="-" if k < 10 else (0, (4, 2)),
            label=name,
        )
