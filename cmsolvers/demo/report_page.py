"""The report: one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files as package_files
from pathlib import Path
from string import Template

from cmsolvers.demo import report_tables as tables
from cmsolvers.demo.compared_samplers import METHODS
from cmsolvers.demo.demo_results import Results, Training
from cmsolvers.demo.digit_pictures import caption
from cmsolvers.demo.equations import EQUATIONS
from cmsolvers.demo.loss_by_level import names, peaks, smooth, window_of

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
BESIDE = {
    "forward": "Paths of ten samples, jagged as each gets noise of its own. Dark: where data are "
    "likely at that time.",
    "reverse": "Read from left to right, time falls: ten paths from noise to the three heaps.",
    "ode": "Smooth paths from evenly spaced starts. The shading, the probability at each time, is "
    "that of the pictures above.",
    "consistency": "Shading shows where the path through a point ends. Thin arrows: the "
    "consistency function takes points of one path to one end.",
}
"""What stands under the pictures that have an equation beside them."""


def image(path: Path, text: str) -> str:
    """HTML of a figure that holds the picture itself, under its caption."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(text)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def equation(name: str) -> str:
    """HTML of an equation of `EQUATIONS`: its name, itself, its meaning and its code."""
    it = EQUATIONS[name]
    return (
        f'<div class="equation"><h3>{escape(it.title)}</h3>{it.math}<p>{it.meaning}</p>'
        f"<pre><code>{escape(it.code)}</code></pre></div>"
    )


def _beside(name: str, path: Path) -> str:
    return f'<div class="beside">{image(path, BESIDE[name])}{equation(name)}</div>'


def _levels(levels: Sequence[Sequence[float]]) -> str:
    texts = [", ".join(f"{level:g}" for level in row) for row in levels if len(row) in (2, 4)]
    return escape("σ = " + "; σ = ".join(texts))


def _heun_words(results: Results) -> dict[str, str]:
    """The numbers in the text on Heun's method in few steps."""
    errors = results["heun"]
    worst = max(errors["steps"], key=lambda step: step["at_end"])
    first, counts = errors["steps"][0], list(errors["runs"])
    ends = [errors["runs"][n][-1][1] for n in counts]
    frechet = {
        row["steps"]: row["frechet"] for row in results["samplers"] if row["method"] == "heun"
    }
    return {
        "heun_few": counts[0],
        "heun_most": counts[-1],
        "heun_few_frechet": f"{frechet[int(counts[0])]:.1f}",
        "heun_most_frechet": f"{frechet[int(counts[-1])]:.1f}",
        "heun_least_ratio": f"{min(step['ratio'] for step in errors['steps']):.1f}",
        "heun_fine": str(errors["fine_steps"]),
        "heun_samples": str(errors["samples"]),
        "heun_first": f"{first['at_end']:.3f}",
        "heun_first_levels": f"σ = {first['start']:.3g} to {first['end']:.3g}",
        "heun_worst": f"{worst['at_end']:.3f}",
        "heun_worst_levels": f"σ = {worst['start']:.3g} to {worst['end']:.3g}",
        "heun_worst_over": f"{worst['overshoot']:.1f}",
        "heun_ends": ", ".join(f"{e:.3f} with {n}" for n, e in zip(counts, ends, strict=True)),
        "heun_spread": f"{errors['spread'][counts[0]]:.2f}",
        "heun_true_spread": f"{errors['spread']['fine']:.2f}",
    }


def _hump_words(cd: Training, low: float, high: float) -> dict[str, str]:
    """The numbers in the text on the distillation loss."""
    window = window_of(len(cd["losses"]))
    mean = smooth(cd["losses"], window)
    bottom = int(mean[: max(1, len(mean) // 3)].argmin())
    top = bottom + int(mean[bottom:].argmax())
    tops = zip(names(low, high), peaks(cd["bands"]), strict=True)
    return {
        "hump_low": f"{mean[bottom]:.3f}",
        "hump_low_step": str(bottom + window // 2),
        "hump_high": f"{mean[top]:.3f}",
        "hump_high_step": str(top + window // 2),
        "hump_end": f"{mean[-1]:.3f}",
        "hump_bands": "; ".join(f"{name}: step {step}" for name, step in tops if step)
        or "in so short a run there are none",
    }


def write(
    path: Path,
    results: Results,
    seconds: Mapping[str, float],
    training: Mapping[str, Training],
    pictures: Mapping[str, Path],
    grids: Mapping[str, Path],
    *,
    span: tuple[float, float],
) -> Path:
    """Write the report with pictures and tables inside, as one file.

    Args:
        path: the HTML file.
        results: as in metrics.json.
        seconds: "method steps" -> time of one sampling run.
        training: losses and time of each training, by the kind of model.
        pictures: name -> PNG of the text's pictures.
        grids: "real" or "method-steps" -> PNG of samples.
        span: smallest and largest level of the models.
    """
    real, about = results["real"], results["about"]
    captions = {
        "real": "real held-out digits",
        **{name: caption(*_split(name)) for name in grids if name != "real"},
    }
    text = Template(package_files("cmsolvers.demo").joinpath("report_page.html").read_text("utf-8"))
    html = text.substitute(
        ways=WORDS[len(METHODS)].capitalize(),
        rows=WORDS[len(METHODS)],
        overview=image(
            pictures["overview"],
            "Above: the theory in one dimension. Below: a row of digits for each of the "
            f"{WORDS[len(METHODS)]} samplers; every column begins with the same noise.",
        ),
        strips=image(
            pictures["strips"],
            "First row, from left to right: a digit is noised. Other rows, from left to right: "
            "back from the last image of the first row. One grey scale for all: an image of level "
            "σ is divided by the standard deviation that it has there.",
        ),
        samplers=image(pictures["samplers"], "Rows: samplers. Columns: the same initial noise."),
        quality=image(
            pictures["quality"],
            "Down and left is better. Each point is one number of steps, which stands beside it on "
            "the left. Dashed lines: consistency functions; solid: ODE; dotted: with noise.",
        ),
        few_steps=image(
            pictures["few-steps"],
            "Left: how far the run of few steps is from the run of many, at each of its levels. "
            "Right: the digits at the end; rows have the same noise.",
        ),
        losses=image(
            pictures["losses"],
            "Training losses, each a running mean; the four have no common scale. Dotted lines: "
            "the pairs of levels become narrower, and the loss is that of another task from "
            "there on.",
        ),
        hump=image(
            pictures["hump"],
            "The distillation loss, as running means. Right: light to dark is from small noise "
            "levels to large ones.",
        ),
        **{f"beside_{name}": _beside(name, pictures[name]) for name in BESIDE},
        **{f"equation_{name}": equation(name) for name in EQUATIONS if name not in BESIDE},
        **_heun_words(results),
        **_hump_words(training["cd"], *span),
        heun_table=tables.heun_table(results["heun"]),
        table=tables.sampler_table(results, seconds),
        seeds=tables.seed_table(results),
        targets=tables.target_table(results),
        courses=tables.course_table(results, seconds, training),
        grids="".join(image(grids[name], captions[name]) for name in grids),
        train_count=f"{about['train']:,}",
        held_count=str(about["held_out"]),
        accuracy=f"{100 * real['accuracy']:.1f} %",
        floor=f"{real['frechet_floor']:.1f}",
        held_nearest=f"{real['nearest_train']:.2f}",
        seed_count=str(results["settings"]["seeds"]),
        cd_levels=_levels(results["levels"]["cd"]),
        ct_levels=_levels(results["levels"]["ct"]),
        ect_levels=_levels(results["levels"]["ect"]),
        parameters=f"{about['parameters']:,}",
        seed=str(results["settings"]["seed"]),
        version=about["version"],
        torch=about["torch"],
    )
    path.write_text(html, "utf-8")
    return path


def _split(name: str) -> tuple[str, int]:
    key, steps = name.rsplit("-", 1)
    return key, int(steps)
