"""A figure of how a training went: loss, loss by noise level, learning rate, skipped steps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, LIGHT, BAD = "#1f2430", "#6b7280", "#9db8dc", "#c8372d"
LINE = "#2458a6"
POINTS = 1500
"""More steps than that are drawn as the range of so many stretches."""
SMOOTHING = 0.02
"""Share of the steps over which the dark line is a mean."""
STYLE: dict[Any, object] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}

Columns = Mapping[str, np.ndarray]


def loss_figure(log: Columns, levels: Columns, title: str = "") -> bytes:
    """The figure as the content of a PNG file.

    Args:
        log: columns step, loss, lr and skipped of a `CSVLog`.
        levels: columns of a `LevelBins`; none: no panel of levels.
        title: above it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    has_levels = len(levels.get("step", ())) > 0
    with matplotlib.rc_context(STYLE):
        heights = [3.0, 2.4, 1.2] if has_levels else [3.0, 1.2]
        figure = Figure((9.0, 1.2 + sum(heights)), dpi=110, layout="constrained")
        axes = figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)
        rows = list(axes[:, 0])
        _draw_loss(rows[0], log)
        if has_levels:
            _draw_levels(figure, rows[1], levels)
        _draw_rate(rows[-1], log)
        steps = log["step"]
        if len(steps):
            rows[-1].set_xlim(0.0, max(float(steps[-1]), 1.0))
        rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        if title:
            figure.suptitle(title, fontsize=11)
        file = BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a font without some letter of the title
            figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw_loss(axes: Axes, log: Columns) -> None:
    axes.set_title("Loss")
    good = np.isfinite(log["loss"])
    steps, loss = log["step"][good], log["loss"][good]
    smooth = smoothed(loss)
    if len(loss) <= POINTS:
        axes.plot(steps, loss, color=LIGHT, linewidth=0.8, label="of each row of the log")
    else:
        first, low, high = stretches(loss)
        axes.fill_between(
            steps[first], low, high, color=LIGHT, linewidth=0, alpha=0.7, step="post",
            label="of each row of the log, smallest to largest",
        )  # fmt: skip
    thin = slice(None, None, max(1, len(loss) // POINTS))
    axes.plot(
        steps[thin], smooth[thin], color=LINE, linewidth=1.6,
        label=f"mean over {SMOOTHING:.0%} of them",
    )  # fmt: skip
    if len(loss) and loss.min() > 0:
        axes.set_yscale("log")
        _frame(axes, smooth, loss)
        _plain_ticks(axes)
    skipped = np.nan_to_num(log["skipped"]) > 0
    if skipped.any():
        count = int(np.nan_to_num(log["skipped"]).sum())
        axes.plot(
            log["step"][skipped], np.full(int(skipped.sum()), 0.97), linestyle="", marker="v",
            markersize=5, color=BAD, transform=axes.get_xaxis_transform(), clip_on=False,
            label=f"skipped: {count} {'step' if count == 1 else 'steps'}",
        )  # fmt: skip
    if len(loss):
        axes.legend(loc="upper right", fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")
    axes.grid(color="#e6e9ef", linewidth=0.6)
    axes.set_axisbelow(True)


def _frame(axes: Axes, smooth: np.ndarray, loss: np.ndarray) -> None:
    """A frame that a few wild losses do not set."""
    low, high = np.quantile(loss, [0.002, 0.998])
    axes.set_ylim(min(low, smooth.min()) / 1.15, max(high, smooth.max()) * 1.15)


def _draw_levels(figure: Any, axes: Axes, levels: Columns) -> None:
    from matplotlib.colors import LogNorm, Normalize

    axes.set_title("Loss by noise level")
    positive = levels["low"] > 0
    steps, first = levels["step"][positive], levels["first"][positive]
    low, high, loss = (levels[name][positive] for name in ("low", "high", "loss"))
    if not len(loss):
        axes.text(0.5, 0.5, "all levels are 0", ha="center", transform=axes.transAxes)
        return
    bounds = np.unique(np.concatenate([first, steps]))
    edges = np.unique(np.concatenate([low, high]))
    table = np.full((len(edges) - 1, len(bounds) - 1), np.nan)
    begin, end = np.searchsorted(bounds, first), np.searchsorted(bounds, steps)
    for row, left, right, value in zip(np.searchsorted(edges, low), begin, end, loss, strict=True):
        table[row, left:right] = value
    known = table[np.isfinite(table)]
    least, most = np.quantile(known, [0.01, 0.99]) if len(known) else (0.0, 1.0)
    logarithmic = bool(0 < least < most)
    norm = LogNorm(least, most) if logarithmic else Normalize(least, most)
    mesh = axes.pcolormesh(
        bounds, edges, np.ma.masked_invalid(table), norm=norm, cmap="viridis", rasterized=True
    )
    axes.set_yscale("log")
    _plain_ticks(axes)
    axes.set_ylabel("level")
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=14, extend="both")
    bar.outline.set_visible(False)
    if logarithmic:
        _plain_ticks(bar.ax)
    bar.set_label("loss")


def _draw_rate(axes: Axes, log: Columns) -> None:
    axes.set_title("Learning rate")
    thin = slice(None, None, max(1, len(log["step"]) // POINTS))
    axes.plot(log["step"][thin], log["lr"][thin], color=LINE, linewidth=1.2)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("step")
    axes.grid(color="#e6e9ef", linewidth=0.6)


def _plain_ticks(axes: Axes) -> None:
    """Write 0.1 rather than 10^-1, and more than powers of ten where few of them are in sight."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axes.get_ylim()
    decades = np.log10(high / low)
    subs = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0]
    if decades > 0.8:
        subs = [1.0, 2.0, 5.0] if decades < 1.5 else [1.0, 3.0] if decades < 3.0 else [1.0]
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean over a window around each value, of which the part that is there counts."""
    half = max(1, round(len(values) * SMOOTHING / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    begin, end = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return np.asarray((sums[end] - sums[begin]) / (end - begin))


def stretches(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each of POINTS stretches begins, and its smallest and largest value."""
    first = np.linspace(0, len(values), POINTS, endpoint=False).astype(np.int64)
    return first, np.minimum.reduceat(values, first), np.maximum.reduceat(values, first)
