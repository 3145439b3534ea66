"""The common style of all pictures: colours, fonts, figures and how they are saved."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure, FigureBase
from numpy.typing import ArrayLike

INK = "#1f2430"
MUTED = "#6b7280"
FAINT = "#d9dde5"
SDE = "#bf4d17"
ODE = "#2458a6"
COLORS = {
    "em": SDE,
    "ddpm": "#8f6400",
    "euler": "#2673b3",
    "heun": ODE,
    "cd": "#17785c",
    "ct": "#8a4fb5",
    "ect": "#b8326f",
    "real": INK,
}
MARKERS = {"em": "o", "ddpm": "s", "euler": "^", "heun": "D", "cd": "v", "ct": "P", "ect": "X"}
DASHES: dict[str, Any] = {
    "em": ":",
    "ddpm": (0, (3, 1, 1, 1)),
    "euler": "-",
    "heun": "-",
    **dict.fromkeys(("cd", "ct", "ect"), (0, (5, 2))),
}
"""Marks and strokes say what colours say, to readers who cannot tell the colours apart."""

PAPER = LinearSegmentedColormap.from_list("paper", ["#ffffff", INK])
DENSITY = LinearSegmentedColormap.from_list(
    "density", ["#ffffff", "#eef1f7", "#cfd8e8", "#9fb0cd", "#6d83ab"]
)
BANDS = LinearSegmentedColormap.from_list("bands", ["#a9d8c9", "#1d8a6b", "#072a20"])
"""From light to dark: an order that needs no sense of colour."""

_RC: dict[Any, object] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "savefig.facecolor": "white",
}


def figure(width: float, height: float) -> Figure:
    """An empty figure in the common style; its size is in inches."""
    with styled():
        return plt.figure(figsize=(width, height), layout="constrained")


def styled() -> AbstractContextManager[None]:
    """The context in which axes must be made and drawn to have the common style."""
    return plt.rc_context(_RC)


def save(fig: Figure, path: Path, **options: Any) -> Path:
    """Write a PNG whose bytes depend on the picture alone, and close the figure.

    Args:
        fig: the figure.
        path: the file, which is returned.
        options: for `Figure.savefig`.
    """
    with styled():
        fig.savefig(path, metadata={"Software": None}, **options)
    plt.close(fig)
    return path


def grey_scale(
    fig: FigureBase, axes: Sequence[Axes], low: float, high: float, text: str, **options: Any
) -> None:
    """Draw the grey scale that some images share: what number is how dark."""
    shades = ScalarMappable(Normalize(low, high), PAPER)
    bar = fig.colorbar(shades, ax=list(axes), **options)
    bar.set_label(text, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def digit(ax: Axes, image: ArrayLike, low: float, high: float) -> None:
    """Draw one small image, dark on white, with a thin frame and no ticks."""
    ax.imshow(image, cmap=PAPER, vmin=low, vmax=high, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color(FAINT)
        spine.set_linewidth(0.5)
