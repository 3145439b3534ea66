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
from cmsolvers.processes import VP
from cmsolvers.solvers import euler_maruyama
from cmsolvers.training.models import CONSISTENCY_KINDS, Model

COLUMNS = 11
SHOWN = (0.02, 0.15, 0.3, 0.5, 0.8, 1.2, 1.8, 3.0, 6.0, 20.0)


def steps_text(n: int) -> str:
    """A number of steps in words."""
    return f"{n} step" if n == 1 else f"{n} steps"


def _vp_view(x_hat: Tensor, sigma: float, data: Digits) -> tuple[NDArray[np.float32], float, float]:
    """An image at a noise level, in VP coordinates, with grey limits that fit signal and noise."""
    alpha = 1.0 / (1.0 + sigma * sigma) ** 0.5
    low, high = float(data.train.min()), float(data.train.max())
    room = 1.8 * sigma * alpha
    return (x_hat * alpha)[0, 0].numpy(), low * alpha - room, high * alpha + room


def _noised(x: Tensor, sigma: float, seed: int, sample: int) -> Tensor:
    """x at a noise level, with the noise that sample number `sample` of the seed has."""
    noisy = ops.add_noise(x, sigma, seed=seed, stream=noise.LATENT, offset=sample)
    assert isinstance(noisy, Tensor)
    return noisy


def strips(path: Path, score: Model, distilled: Model, data: Digits, seed: int) -> Path:
    """One digit noised; then brought back by SDE, ODE and consistency function."""
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
        ("a real digit\nis noised", style.INK, [(0.0, clean), *forward]),
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
    fig = style.figure(11.5, 4.5)
    with style.styled():
        axes = fig.subplots(len(rows), COLUMNS)
        for i, (label, color, states) in enumerate(rows):
            for ax, (sigma, x) in zip(axes[i], states, strict=True):
                style.digit(ax, *_vp_view(x, sigma, data))
            axes[i, 0].set_ylabel(
                label, rotation=0, ha="right", va="center", color=color, labelpad=8, fontsize=9
            )
        for row, levels in ((0, (0.0, *SHOWN)), (1, (*SHOWN[::-1], 0.0))):
            for ax, level in zip(axes[row], levels, strict=True):
                ax.set_title(f"σ = {level:g}", fontsize=8, fontweight="normal", loc="center", pad=3)
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
    """Write the first `count` digits, side by side, as one PNG."""
    return image_grid(path, x[:count], float(data.train.min()), float(data.train.max()))


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
        mixture_pictures.draw_paths(axes[:3], toy)
        mixture_pictures.draw_consistency(axes[3], toy)
        for ax, title in zip(
            axes,
            ("Forward SDE", "Reverse SDE", "Probability-flow ODE", "Consistency function"),
            strict=True,
        ):
            ax.set_title(title)
        comparison(lower.subplots(len(rows), 1), rows, data, columns)
    return style.save(fig, path, dpi=100, pil_kwargs={"optimize": True})


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
