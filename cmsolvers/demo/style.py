"""One look for all pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LinearSegmentedColormap

INK = "#1f2430"
MUTED = "#6b7280"
FAINT = "#d9dde5"
SDE = "#d9662b"
ODE = "#2458a6"
COLORS = {
    "em": SDE,
    "ddpm": "#dfa133",
    "euler": "#6aa6dc",
    "heun": ODE,
    "cd": "#1d8a6b",
    "ct": "#8a4fb5",
    "real": INK,
}
PAPER = LinearSegmentedColormap.from_list("paper", ["#ffffff", INK])
DENSITY = LinearSegmentedColormap.from_list(
    "density", ["#ffffff", "#eef1f7", "#cfd8e8", "#9fb0cd", "#6d83ab"]
)

_RC: Any = {
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


def figure(width: float, height: float, **options: Any) -> Any:
    """A figure in the common style, in inches."""
    with plt.rc_context(_RC):
        return plt.figure(figsize=(width, height), layout="constrained", **options)


def styled() -> Any:
    """Context in which axes are made and drawn."""
    return plt.rc_context(_RC)


def save(fig: Any, path: Path, **options: Any) -> Path:
    """Write a PNG whose bytes depend on the picture alone, and close the figure."""
    with styled():
        fig.savefig(path, metadata={"Software": None}, **options)
    plt.close(fig)
    return path


def digit(ax: Any, image: Any, low: float, high: float) -> None:
    """One small image, dark on white, without axes."""
    ax.imshow(image, cmap=PAPER, vmin=low, vmax=high, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color(FAINT)
        spine.set_linewidth(0.5)
