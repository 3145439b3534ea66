"""Pictures of digits: noised and denoised, and sampled by every method from the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cmsolvers import noise, ops
from cmsolvers.demo import mixture_pictures
from cmsolvers.demo import picture_style as style
from cmsolvers.demo.compared_samplers import BY_KEY, METHODS, draw, vp_times
from cmsolvers.demo.demo_settings import Files
from cmsolvers.demo.digits import Digits
from cmsolvers.demo.heun_errors import HeunErrors
from cmsolvers.processes import VP
from cmsolvers.solvers import euler_maruyama
from cmsolvers.training.models import CONSISTENCY_KINDS, Model

COLUMNS = 11
GREY = 2.0
"""The grey scale of noised digits, in standard deviations."""
SHOWN = (0.02, 0.15, 0.3, 0.5, 0.8, 1.2, 1.8, 3.0, 6.0, 20.0)


def steps_text(n: int) -> str:
    """A number of steps in words."""
    return f"{n} step" if n == 1 else f"{n} steps"


def _view(x: Tensor, sigma: float, sigma_data: float) -> NDArray[np.float32]:
    """An image at a noise level, divided by its standard deviation there, as networks see it."""
    scaled: NDArray[np.float32] = (x / (sigma**2 + sigma_data**2) ** 0.5)[0, 0].numpy()
    return scaled


def _noised(x: Tensor, sigma: float, seed: int, sample: int) -> Tensor:
    """x at a noise level, with the noise that sample number `sample` of the seed has."""
    noisy = ops.add_noise(x, sigma, seed=seed, stream=noise.LATENT, offset=sample)
    assert isinstance(noisy, Tensor)
    return noisy


def strips(path: Path, score: Model, distilled: Model, data: Digits, seed: int) -> Path:
    """One digit noised; then brought back by SDE, ODE and consistency function.

    All images have one grey scale: each is divided by the standard deviation of its noise level.
    """
    clean = data.held[4:5]
    # The noise of the twelfth column of the comparison, so the ODE ends at the digit shown there.
    noisy = [_noised(clean, s, seed, 11) for s in SHOWN]
    start = noisy[-1]
    process, times = VP(), vp_times(score.spec, 160)
    sde_states: list[tuple[float, Tensor]] = []

    def keep(state: dict[str, Any]) -> None:
        alpha = float(process.alpha(state["t"]))
        sde_states.append((float(process.sigma_hat(state["t"])), state["x"] / alpha))

    with torch.no_grad():
        end = euler_maruyama(
            process.reverse(process.score_of(score.function)),
            start * float(process.alpha(times[0])),
            times,
            seed=seed,
            callback=keep,
        )
    sde_states.append((0.02, end / float(process.alpha(times[-1]))))
    ode_states: list[tuple[float, Tensor]] = []
    z = start / score.spec.sigma_max
    ode_end, _ = draw(
        "heun",
        score,
        z,
        80,
        seed,
        callback=lambda s: ode_states.append((float(s["sigma"]), s["x"].clone())),
    )
    ode_states.append((0.0, ode_end))

    def nearest(states: Sequence[tuple[float, Tensor]]) -> list[tuple[float, Tensor]]:
        return [min(states, key=lambda s: abs(np.log((s[0] + 1e-3) / v))) for v in SHOWN[::-1]]

    forward = [(s, x) for s, x in zip(SHOWN, noisy, strict=True)]
    ode = nearest(ode_states)
    with torch.no_grad():
        jumps = [(0.0, distilled.function(x, max(s, 0.002))) for s, x in ode]
    rows: tuple[tuple[str, str, list[tuple[float, Tensor]]], ...] = (
        ("a real digit x₀\nis noised:\nx₀ + σ z", style.INK, [(0.0, clean), *forward]),
        (
            "reverse SDE:\nnew noise on\nthe way",
            style.SDE,
            [*nearest(sde_states), sde_states[-1]],
        ),
        ("ODE: the same\nstart, no new\nnoise", style.ODE, [*ode, (0.0, ode_end)]),
        (
            "consistency\nfunction of the\nODE's states",
            style.COLORS["cd"],
            [*jumps, (0.0, ode_end)],
        ),
    )
    fig = style.figure(11.5, 4.9)
    with style.styled():
        axes = fig.subplots(len(rows), COLUMNS)
        for i, (label, color, states) in enumerate(rows):
            for ax, (sigma, x) in zip(axes[i], states, strict=True):
                style.digit(ax, _view(x, sigma, score.spec.sigma_data), -GREY, GREY)
            axes[i, 0].set_ylabel(
                label, rotation=0, ha="right", va="center", color=color, labelpad=8, fontsize=9
            )
        downward = (*SHOWN[::-1], 0.0)
        for row, levels in enumerate(((0.0, *SHOWN), downward, downward, downward)):
            for ax, level in zip(axes[row], levels, strict=True):
                text = f"f(x, {level:g})" if row == 3 and level else f"σ = {level:g}"
                ax.set_title(text, fontsize=8, fontweight="normal", loc="center", pad=3)
        text = f"pixel / √(σ² + {score.spec.sigma_data:g}²)"
        style.grey_scale(fig, axes.ravel(), -GREY, GREY, text, fraction=0.02, pad=0.01)
    return style.save(fig, path)


def image_grid(path: Path, x: Tensor, low: float, high: float, columns: int = 20) -> Path:
    """Images [n, C, H, W] side by side in one PNG: grey ones dark on white, others in colour."""
    n, channels, height, width = x.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    tiles = torch.full((rows * columns, channels, height + 1, width + 1), low)
    tiles[:n, :, :height, :width] = x
    image = tiles.reshape(rows, columns, *tiles.shape[1:]).permute(0, 3, 1, 4, 2)
    image = image.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    shade = ((image - low) / (high - low)).clamp(0, 1).numpy()
    zoom = max(1, 45 // (height + 1))
    shade = shade.repeat(zoom, 0).repeat(zoom, 1)
    if channels in (3, 4):
        colors = np.uint8(255 * shade[:, :, :3] + 0.5)
    else:
        colors = style.PAPER(shade[:, :, 0], bytes=True)[:, :, :3]
    Image.fromarray(np.ascontiguousarray(colors)).save(path, optimize=True)
    return path


def grid(path: Path, x: Tensor, data: Digits, count: int = 100) -> Path:
    """Write the first `count` digits, ten in a row, as one PNG."""
    return image_grid(path, x[:count], float(data.train.min()), float(data.train.max()), 10)


def comparison(
    axes: Sequence[Axes], shown: Sequence[tuple[str, str, Tensor]], data: Digits, columns: int
) -> None:
    """Draw a row of digits for each (label, colour, samples), with the same noise in a column."""
    low, high = float(data.train.min()), float(data.train.max())
    for ax, (label, color, x) in zip(axes, shown, strict=True):
        padded = torch.full((columns, 8, 11), low)
        padded[:, :, :8] = x[:columns, 0]
        strip = padded.permute(1, 0, 2).reshape(8, 11 * columns)[:, :-3]
        style.digit(ax, strip.numpy(), low, high)
        ax.set_frame_on(False)
        ax.set_ylabel(
            label, rotation=0, ha="right", va="center", color=color, labelpad=8, fontsize=9
        )


def rows_of(
    samples: Mapping[tuple[str, int], Tensor], nfe: Mapping[tuple[str, int], int], every: bool
) -> list[tuple[str, str, Tensor]]:
    """Rows of the comparison; with `every` also the consistency models' 2 and 4 steps."""
    rows = []
    for method in METHODS:
        few = method.key in CONSISTENCY_KINDS
        for steps in method.steps if every and few else (method.shown,):
            at = method.key, steps
            label = f"{method.label}\n{nfe[at]} network call{'s' * (nfe[at] > 1)}"
            rows.append((label, style.COLORS[method.key], samples[at]))
    return rows


def all_samplers(
    path: Path, rows: Sequence[tuple[str, str, Tensor]], data: Digits, columns: int = 16
) -> Path:
    """Write a row of digits per sampler, all from the same initial noise."""
    fig = style.figure(11.5, 0.52 * len(rows))
    with style.styled():
        comparison(fig.subplots(len(rows), 1), rows, data, columns)
    return style.save(fig, path, bbox_inches="tight", pad_inches=0.05)


def overview(
    path: Path, rows: Sequence[tuple[str, str, Tensor]], data: Digits, seed: int, columns: int = 16
) -> Path:
    """The picture of the README: the theory above, its digits below."""
    toy = mixture_pictures.Toy.make(seed)
    fig = style.figure(11.5, 2.5 + 0.58 * len(rows))
    fig.set_layout_engine("constrained", wspace=0.04)
    ratios = (2.6, 0.58 * len(rows))
    upper, lower = fig.subfigures(2, 1, squeeze=False, height_ratios=ratios)[:, 0]
    with style.styled():
        axes = upper.subplots(1, 4)
        titles = ("Forward SDE", "Reverse SDE", "Probability-flow ODE", "Consistency function")
        for ax, draw_panel, title in zip(
            axes, mixture_pictures.PANELS.values(), titles, strict=True
        ):
            draw_panel(ax, toy)
            ax.set_title(title)
            if ax is not axes[0]:  # all four have the first one's axis
                ax.set_ylabel("")
                ax.set_yticks([])
        comparison(lower.subplots(len(rows), 1), rows, data, columns)
    return style.save(fig, path, dpi=100, pil_kwargs={"optimize": True})


def few_steps(path: Path, samples: Mapping[tuple[str, int], Tensor], errors: HeunErrors) -> Path:
    """Heun's method in few steps: its error on the way, and the digits at the end."""
    counts = [int(n) for n in errors["runs"]]
    marks = dict(zip(counts, ("D", "s", "o", "^", "v"), strict=False))
    fig = style.figure(11.5, 3.7)
    left, right = fig.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.35))[0]
    with style.styled():
        ax = left.subplots()
        for n in counts:
            run = np.asarray(errors["runs"][str(n)][1:])
            ax.plot(run[:, 0], run[:, 1], marker=marks[n], color=style.ODE, label=steps_text(n))
            ax.annotate(
                steps_text(n),
                run[-1],
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.invert_xaxis()
        ax.margins(x=0.2)
        ax.grid(True, color=style.FAINT, linewidth=0.5)
        ax.set_xlabel("noise level σ, from noise to data")
        ax.set_ylabel("error of a pixel (rms)")
        ax.set_title(f"Heun against a run of {errors['fine_steps']} steps")
        high = max(float(samples["heun", n].abs().max()) for n in counts)
        axes = right.subplots(len(counts), 8, squeeze=False)
        for i, n in enumerate(reversed(counts)):
            for k, cell in enumerate(axes[i]):
                if k < len(samples["heun", n]):
                    style.digit(cell, samples["heun", n][k, 0].numpy(), -high, high)
                else:
                    cell.set_axis_off()
            axes[i, 0].set_ylabel(steps_text(n), rotation=0, ha="right", va="center", labelpad=8)
        style.grey_scale(
            fig=right,
            axes=axes.ravel(),
            low=-high,
            high=high,
            text="pixel",
            fraction=0.03,
            pad=0.02,
        )
        right.suptitle("Same noise, one grey scale", fontsize=10, fontweight="bold")
    return style.save(fig, path)


def sample_grids(
    files: Files, samples: Mapping[tuple[str, int], Tensor], data: Digits
) -> dict[str, Path]:
    """Write a grid of samples for each method and number of steps; name -> PNG."""
    made = {"real": grid(files.picture("samples-real"), data.held, data)}
    for (key, steps), x in samples.items():
        made[f"{key}-{steps}"] = grid(files.picture(f"samples-{key}-{steps}"), x, data)
    return made


def caption(key: str, steps: int) -> str:
    """Method and number of steps in words, under a grid of samples."""
    return f"{BY_KEY[key].label}, {steps_text(steps)}"
