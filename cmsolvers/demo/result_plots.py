"""Plots of the demo: quality against cost, and the losses of the trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cmsolvers.demo import picture_style as style
from cmsolvers.demo.compared_samplers import METHODS
from cmsolvers.demo.demo_results import Results
from cmsolvers.demo.loss_by_level import peaks, smooth, window_of
from cmsolvers.losses import DoublingPairs


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
                    marker=style.MARKERS[method.key],
                    linestyle=style.DASHES[method.key],
                    markersize=6,
                    linewidth=1.6,
                    color=style.COLORS[method.key],
                    label=method.label,
                )
            for row in rows:
                axes[0].annotate(
                    str(row["steps"]),
                    (row["nfe"], row["frechet"]),
                    xytext=(5, 4),
                    textcoords="offset points",
                    color=style.COLORS[method.key],
                    fontsize=7,
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
        axes[0].set_title("Quality against network calls (numbers: steps)")
        axes[1].set_title("Quality against time")
        axes[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return style.save(fig, path)


def narrowings(settings: Mapping[str, int]) -> dict[str, list[int]]:
    """Steps at which the pairs of consistency training and tuning become narrower."""
    ct, ect = settings["ct_steps"], settings["ect_steps"]
    counts = [DoublingPairs(ct, 2, 64).levels(k) for k in range(ct)]
    stage = -(-ect // 4)
    return {
        "ct": [k for k in range(1, ct) if counts[k] != counts[k - 1]],
        "ect": list(range(stage, ect, stage)),
    }


def losses(
    path: Path, histories: Mapping[str, Sequence[float]], stages: Mapping[str, Sequence[int]]
) -> Path:
    """Training losses of the four models, each as a running mean.

    Args:
        path: the PNG.
        histories: kind of model -> the loss of every step.
        stages: kind of model -> steps at which its pairs of levels become narrower.
    """
    panels = {
        "score": ("Score model", "weighted squared error"),
        "cd": ("Consistency distillation", "distance of f from its target"),
        "ct": ("Consistency training", "distance / (t − r)"),
        "ect": ("Easy consistency tuning", "distance / (t − r)"),
    }
    fig = style.figure(11.5, 2.7)
    with style.styled():
        axes = fig.subplots(1, len(panels))
        for ax, (kind, (title, unit)) in zip(axes, panels.items(), strict=True):
            raw = histories[kind]
            window = max(1, len(raw) // 60)
            mean = smooth(raw, window)
            steps = np.arange(len(mean)) + window
            ax.plot(steps, mean, color=style.COLORS.get(kind, style.ODE), linewidth=1.5)
            for step in stages.get(kind, ()):
                ax.axvline(step, color=style.MUTED, linewidth=0.8, linestyle=":")
            ax.set_title(title)
            ax.set_xlabel("training step")
            ax.set_ylabel(f"loss: {unit}", fontsize=8)
            ax.grid(True, color=style.FAINT, linewidth=0.5)
    return style.save(fig, path)


def hump(
    path: Path,
    history: Sequence[float],
    bands: Sequence[Sequence[float]],
    names: Sequence[str],
    rates: Sequence[float],
) -> Path:
    """The distillation loss with the learning rate, and in bands of noise levels.

    Args:
        path: the PNG.
        history: the loss of every step.
        bands: the same in each band, per step.
        names: of the bands, from the smallest levels to the largest.
        rates: the learning rate of every step.
    """
    fig = style.figure(11.5, 3.6)
    window = window_of(len(history))
    with style.styled():
        left, right = fig.subplots(1, 2, width_ratios=(1, 1.35))
        mean = smooth(history, window)
        steps = np.arange(len(mean)) + window / 2
        left.plot(steps, mean, color=style.COLORS["cd"], linewidth=1.8, label="loss")
        left.set_title("All levels, and the learning rate")
        other = left.twinx()
        other.plot(rates, color=style.MUTED, linewidth=1.2, linestyle="--")
        other.set_ylabel("learning rate (dashed)")
        other.set_ylim(0, None)
        other.spines["right"].set_visible(True)
        other.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        shades = [style.BANDS(0.15 + 0.85 * k / max(1, len(names) - 1)) for k in range(len(names))]
        for k, (name, values) in enumerate(zip(names, zip(*bands, strict=True), strict=True)):
            mean = smooth(values, window)
            if not np.isfinite(mean).any():
                continue
            right.plot(steps, mean, color=shades[k], linewidth=1.8)
            last = mean[np.isfinite(mean)][-1]
            right.annotate(
                name,
                (steps[-1], last),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=style.INK,
                fontsize=8,
            )
            top = peaks(bands)[k]
            if top is not None:
                place = min(len(mean) - 1, max(0, round(top - window / 2)))
                right.plot(steps[place], mean[place], marker="v", color=shades[k], markersize=8)
        right.set_title("The same in bands of noise levels (▼ its highest point)")
        right.margins(x=0.14)
        right.set_yscale("log")
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_minor_formatter("{x:g}")
        for ax in (left, right):
            ax.set_xlabel("training step")
            ax.set_ylabel("loss (running mean)")
            ax.grid(True, color=style.FAINT, linewidth=0.5)
    return style.save(fig, path)
