"""Zero-shot editing of coloured digits: one picture, no training for any of the tasks.

    python examples/editing.py --out editing-output

trains a score model and distils a consistency function of it (minutes on a CPU; the checkpoints in
the output folder are used again by the next run), edits held-out digits with both, and writes
editing.png. Needs the extra "demo" (scikit-learn, matplotlib).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.axes import Axes
from torch import Tensor

from cmsolvers import (
    consistency_sample,
    exponential_sigmas,
    heun_pf_ode,
    karras_sigmas,
    noise,
    ops,
)
from cmsolvers.demo import digits
from cmsolvers.demo import picture_style as style
from cmsolvers.tasks.chosen_sampler import Sampler
from cmsolvers.tasks.editing import Colorize, Inpaint, Operator, SuperResolve, denoise, edit, stroke
from cmsolvers.tasks.interpolation import interpolate
from cmsolvers.training.data import Scale
from cmsolvers.training.models import Model, Spec, load_model
from cmsolvers.training.recipes import (
    default_settings,
    distillation_trainer,
    score_trainer,
)

INKS = ("#d9662b", "#2458a6", "#1d8a6b", "#8a4fb5", "#c2334d", "#6b7280")
RESULTS = 5
SHOWN = (1, 2, 0, 3)
"""Which held-out digits are edited."""
LEVELS = exponential_sigmas(12, 0.2, 20.0, append_zero=False).tolist()
"""Where the consistency function is called in an edit."""


@dataclass(frozen=True)
class Images:
    """Digits in coloured ink on white, as models see them.

    Attributes:
        train: [N, 3, 8, 8].
        held: [M, 3, 8, 8], never trained on.
        scale: back to pixels in 0..1.
    """

    train: Tensor
    held: Tensor
    scale: Scale

    @staticmethod
    def make(seed: int) -> Images:
        """The digits of scikit-learn, each in one of six inks."""
        data = digits.load()
        inks = torch.tensor(
            [[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in INKS], dtype=torch.float32
        )
        parts = []
        for k, grey in enumerate((data.train, data.held)):
            u = noise.uniform((len(grey), 1), seed, stream=noise.OTHER, draw=k)
            ink = inks[(u[:, 0] * len(inks)).long()][:, :, None, None]
            strength = data.scale.to_pixels(grey) / data.scale.high
            parts.append(1.0 - strength * (1.0 - ink))
        scale = Scale.of(parts[0])
        return Images(scale.to_model(parts[0]), scale.to_model(parts[1]), scale)


@dataclass(frozen=True)
class Models:
    """The two models, and how each is sampled from a given level on."""

    f: Model
    score: Model

    def choices(self, top: float) -> list[tuple[Callable[..., Tensor], list[float], Sampler]]:
        """(model, levels from `top`, sampler) of both."""
        few = [top, *(s for s in LEVELS if s < top)]
        many = [top, *karras_sigmas(40, 0.01, 20.0).tolist()]
        many = [s for i, s in enumerate(many) if i == 0 or s < top]
        # Noise on the way: the rest of an edit then follows what is known more closely.
        noisy = partial(heun_pf_ode, s_churn=10.0)
        return [
            (self.f.function, few, consistency_sample),
            (self.score.function, many, noisy),
        ]


def train(images: Images, out: Path, seed: int, steps: tuple[int, int], width: int) -> Models:
    """Both models, trained unless their checkpoints are in `out` already."""
    shape, about = tuple(images.train.shape[1:]), {"scale": asdict(images.scale)}
    files = {kind: out / kind for kind in ("score", "cd")}
    for kind, count in zip(files, steps, strict=True):
        if files[kind].exists():
            continue
        spec = Spec(kind, shape, options={"width": width})
        course = default_settings(kind, count, 128, seed)
        if kind == "score":
            trainer = score_trainer(spec, images.train, course, about)
        else:
            teacher = load_model(files["score"])
            trainer = distillation_trainer(spec, images.train, course, teacher, about=about)
        trainer.run(description=kind).save(files[kind])
    return Models(load_model(files["cd"]), load_model(files["score"]))


@dataclass(frozen=True)
class Row:
    """One row of the picture: an image, what is given of it, the results of both models."""

    name: str
    original: Tensor
    given: Tensor
    results: list[Tensor]


def edits(models: Models, images: Images, seed: int) -> list[Row]:
    """Every task, each on another held-out digit."""
    paper = float(images.train.max())
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[4:] = True
    x = images.held[list(SHOWN)]
    grey = Colorize()
    small = SuperResolve(2)
    drawing = torch.full_like(x[:1], paper)
    pen = x[3].amin((1, 2))[:, None, None]
    drawing[0, :, 0:2, 1:7] = pen
    drawing[0, :, 2:8, 4:6] = pen

    def known(name: str, y: Tensor, operator: Operator, shown: Tensor) -> Row:
        wide = y.expand(RESULTS, -1, -1, -1)
        results = [
            edit(model, wide, levels, operator=operator, sampler=sampler, seed=seed)
            for model, levels, sampler in models.choices(LEVELS[0])
        ]
        return Row(name, y, shown, results)

    def followed(name: str, y: Tensor, top: float) -> Row:
        wide = y.expand(RESULTS, -1, -1, -1)
        results = [
            stroke(model, wide, levels, sampler=sampler, seed=seed)
            for model, levels, sampler in models.choices(top)
        ]
        return Row(name, torch.full_like(y, paper), y, results)

    return [
        known("inpainting", x[0:1], Inpaint(mask), x[0:1].masked_fill(mask, 0.3 * paper)),
        known("colourisation", x[1:2], grey, grey.lift(grey.measure(x[1:2]))),
        known("super-resolution", x[2:3], small, small.lift(small.measure(x[2:3]))),
        followed("stroke\n(no original)", drawing, 1.0),
    ]


def denoised(models: Models, images: Images, seed: int, levels: Tensor) -> tuple[Tensor, Tensor]:
    """(noisy, denoised) by the consistency function, one column per level."""
    clean = images.held[SHOWN[0]].expand(len(levels), -1, -1, -1).contiguous()
    noisy = ops.add_noise(clean, levels, seed=seed, stream=noise.OTHER)
    assert isinstance(noisy, Tensor)
    return noisy, denoise(models.f.function, noisy, levels)


def between(models: Models, seed: int, columns: int) -> list[Tensor]:
    """Interpolations of both models between the same two latents."""
    z = LEVELS[0] * noise.normal((2, 3, 8, 8), seed, stream=noise.LATENT)
    return [
        interpolate(model, z[:1], z[1:], levels, columns, sampler=sampler, seed=seed)[:, 0]
        for model, levels, sampler in (
            (models.f.function, LEVELS[:1], consistency_sample),
            (models.score.function, karras_sigmas(40, 0.01, 20.0), heun_pf_ode),
        )
    ]


def draw(path: Path, models: Models, images: Images, seed: int) -> Path:
    """Write the picture: tasks above, denoising and interpolation below."""
    fig = style.figure(11.5, 7.2)
    columns = 2 + 2 * RESULTS
    with style.styled():
        upper, lower = fig.subfigures(2, 1, squeeze=False, height_ratios=(4.25, 4))[:, 0]
        tasks = edits(models, images, seed)
        gaps = [1, 1, 0.25, *[1] * RESULTS, 0.25, *[1] * RESULTS]
        axes = upper.subplots(len(tasks), columns + 2, width_ratios=gaps)
        for gap in (2, 3 + RESULTS):
            for ax in axes[:, gap]:
                ax.set_axis_off()
        levels = torch.logspace(-1, 0.5, columns)
        for line, row in zip(axes, tasks, strict=True):
            places = [0, 1, *range(3, 3 + RESULTS), *range(4 + RESULTS, 4 + 2 * RESULTS)]
            shown = torch.cat([row.original, row.given, *row.results])
            show([line[k] for k in places], shown, images.scale)
            label(line[0], row.name)
        titles = {0: "original", 1: "given"}
        titles |= {3 + RESULTS // 2: "consistency function, up to 12 calls"}
        titles |= {4 + RESULTS + RESULTS // 2: "score model, Heun with churn, up to 79 calls"}
        for k, title in titles.items():
            axes[0, k].set_title(title, loc="center", pad=8)
        strips = [*denoised(models, images, seed, levels), *between(models, seed, columns)]
        names = ("noisy", "denoised: f(x, σ)", "interpolated: f", "interpolated: ODE")
        for line, name, x in zip(lower.subplots(4, columns), names, strips, strict=True):
            show(line, x, images.scale)
            label(line[0], name)
            if name == "noisy":
                for ax, level in zip(line, levels.tolist(), strict=True):
                    ax.set_title(f"σ = {level:.2g}", loc="center", pad=3, fontsize="small")
    return style.save(fig, path, dpi=100, pil_kwargs={"optimize": True})


def show(axes: Sequence[Axes], x: Tensor, scale: Scale) -> None:
    """Draw images [n, 3, H, W], one on each axis."""
    for ax, image in zip(axes, scale.to_pixels(x).permute(0, 2, 3, 1), strict=True):
        style.digit(ax, image.numpy(), scale.low, scale.high)


def label(ax: Axes, text: str) -> None:
    """Write to the left of a row what it shows."""
    ax.set_ylabel(text, rotation=0, ha="right", va="center", labelpad=8)


def main(arguments: list[str] | None = None) -> Path:
    """The command line; returns the picture's path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("editing-output"), help="folder")
    parser.add_argument("--seed", type=int, default=0, help="decides everything random")
    parser.add_argument(
        "--steps",
        type=int,
        nargs=2,
        default=(3000, 1000),
        metavar=("SCORE", "CD"),
        help="training steps of the score model and of the distillation",
    )
    parser.add_argument("--width", type=int, default=384, help="of the networks")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    images = Images.make(options.seed)
    models = train(images, options.out, options.seed, tuple(options.steps), options.width)
    with torch.no_grad():
        return draw(options.out / "editing.png", models, images, options.seed)


if __name__ == "__main__":
    print(main())
