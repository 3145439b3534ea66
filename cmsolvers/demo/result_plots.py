"""Plots of the demo: quality against cost, and the losses of the trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cmsolvers.demo import picture_style as style
from cmsolvers.demo.compared_samplers import METHODS
from cmsolvers.demo.demo_results import Results


def quality(path: Path, results: Results, seconds: Mapping[str, float]) -> Path:
    """Frechet distance against NFE and against seconds for 1,000 samples."""
    fig = style.figure(11.5, 4.2)
    floor = results["real"]["frechet_floor"]
    with style.styled():
        axes = fig.subplots(1, 2, sharey=True)
        for method in METHODS:
            rows = [row for row in results["samplers"] if row["method"] == method.key]
            scale = 1000 / results["settings"]["samples"]
            times = [scale * seconds[f"{row['method']} {row['steps']}"] for row in rows]
            for ax, cost in zip(axes, ([row["nfe"] for row in rows], times), strict=True):
                ax.plot(
                    cost,
                    [row["frechet"] for row in rows],
                    marker="o",
                    markersize=5,
                    linewidth=1.6,
                    color=style.COLORS[method.key],
                    label=method.label,
                )
        for ax in axes:
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.axhline(floor, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)))
            ax.grid(True, which="major", color=style.FAINT, linewidth=0.5)
            ax.yaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("")
        axes[0].annotate(
            "floor: real digits against real digits",
            (0.99, floor),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            color=style.MUTED,
            fontsize=8,
            ha="right",
        )
        axes[0].set_xlabel("network calls (NFE)")
        axes[1].set_xlabel("seconds for 1,000 samples, one core")
        axes[0].set_ylabel("Fréchet distance (lower is better)")
        axes[0].set_title("Quality against network calls")
        axes[1].set_title("Quality against time")
        axes[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return style.save(fig, path)


def losses(path: Path, histories: Mapping[str, Sequence[float]]) -> Path:
    """Training losses of the four models, each as a running mean."""
    titles = {
        "score": "Score model",
        "cd": "Consistency distillation",
        "ct": "Consistency training",
        "ect": "Easy consistency tuning",
    }
    fig = style.figure(11.5, 2.6)
    with style.styled():
        axes = fig.subplots(1, len(titles))
        for ax, (kind, title) in zip(axes, titles.items(), strict=True):
            raw = np.asarray(histories[kind])
            window = max(1, len(raw) // 60)
            smooth = np.convolve(raw, np.ones(window) / window, mode="valid")
            steps = np.arange(len(smooth)) + window
            ax.plot(
                steps,
                smooth,
                color=style.COLORS.get(kind, style.ODE),
                linewidth=1.5,
            )
            ax.set_title(title)
            ax.set_xlabel("training step")
            ax.grid(True, color=style.FAINT, linewidth=0.5)
        axes[0].set_ylabel("loss (running mean)")
    return style.save(fig, path)
