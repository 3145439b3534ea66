"""The report: one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files as package_files
from pathlib import Path
from string import Template

from cmsolvers.demo import picture_style as style
from cmsolvers.demo.compared_samplers import BY_KEY
from cmsolvers.demo.demo_results import Results, SamplerRow, Training
from cmsolvers.demo.digit_pictures import caption

SCORE = "the score model's"
COURSES = {
    "cd": (SCORE, "in every step", "neighbours of one grid"),
    "ct": ("random", "none", "wide, then ever narrower"),
    "ect": (SCORE, "none", "down to 0, then ever narrower"),
}
"""How consistency functions are trained: where weights begin, the teacher, the pairs of levels."""


def image(path: Path, text: str) -> str:
    """HTML of a figure that holds the picture itself, under its caption."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(text)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """HTML of a table: the head is text, the cells are HTML."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _dot(key: str) -> str:
    return f'<span class="dot" style="background:{style.COLORS[key]}"></span>'


def _sampler_table(results: Results, seconds: Mapping[str, float]) -> str:
    rows = []
    for row in results["samplers"]:
        key, shares = row["method"], row["class_shares"]
        rows.append(
            [
                _dot(key) + escape(BY_KEY[key].label),
                str(row["steps"]),
                str(row["nfe"]),
                f"{seconds[_at(row)]:.2f}",
                f"{row['frechet']:.1f}",
                f"{100 * row['confidence_relative']:.1f} %",
                f"{row['nearest_train']:.2f}",
                f"{100 * min(shares):.1f} to {100 * max(shares):.1f} %",
            ]
        )
    real = results["real"]
    rows.append(
        [
            _dot("real") + "real digits",
            "",
            "",
            "",
            f"{real['frechet_floor']:.1f}",
            "100 %",
            f"{real['nearest_train']:.2f}",
            "",
        ]
    )
    head = ("sampler", "steps", "NFE", "seconds", "Fréchet", "confidence", "nearest", "classes")
    return table(head, rows)


def _at(row: SamplerRow) -> str:
    return f"{row['method']} {row['steps']}"


def _seed_table(results: Results) -> str:
    rows = []
    for name, row in results["seeds"].items():
        key, steps = name.split()
        values = ", ".join(f"{v:.1f}" for v in row["frechet"])
        text = f"{row['mean']:.1f} ± {row['std']:.1f}"
        rows.append([_dot(key) + escape(caption(key, int(steps))), text, values])
    return table(("sampler", "Fréchet, mean ± deviation", "each seed"), rows)


def _course_table(
    results: Results, seconds: Mapping[str, float], training: Mapping[str, Training]
) -> str:
    """How each consistency function was trained, what that took, and what came of it."""
    rows_of = {(row["method"], row["steps"]): row["frechet"] for row in results["samplers"]}
    begun = training["score"]["seconds"]
    rows = []
    for kind, (start, teacher, pairs) in COURSES.items():
        own = training[kind]["seconds"]
        spread = results["seeds"][f"{kind} 1"]
        few = [rows_of[kind, steps] for steps in BY_KEY[kind].steps]
        rows.append(
            [
                _dot(kind) + escape(BY_KEY[kind].label),
                start,
                teacher,
                pairs,
                f"{results['settings'][f'{kind}_steps']:,}",
                f"{own:.0f}" + (f" + {begun:.0f}" if start == SCORE else ""),
                f"{spread['mean']:.1f} ± {spread['std']:.1f}",
                " / ".join(f"{value:.1f}" for value in few),
                f"{seconds[f'{kind} 1']:.2f}",
            ]
        )
    heun = results["seeds"]["heun 18"]
    rows.append(
        [
            _dot("heun") + "the score model itself, Heun",
            "random",
            "none",
            "",
            f"{results['settings']['score_steps']:,}",
            f"{begun:.0f}",
            f"{heun['mean']:.1f} ± {heun['std']:.1f}",
            "",
            f"{seconds['heun 18']:.2f}",
        ]
    )
    steps = " / ".join(str(n) for n in BY_KEY["cd"].steps)
    head = (
        "model",
        "weights begin",
        "teacher",
        "pairs",
        "steps",
        "seconds",
        "Fréchet, one step (Heun: 18)",
        f"{steps} steps",
        "sampling, s",
    )
    return table(head, rows)


def _target_table(results: Results) -> str:
    signs = {">=": "at least", "<=": "at most"}
    rows = [
        [
            escape(row["what"]),
            f"{row['value']:.4g}",
            f"{signs[row['relation']]} {row['bound']:.4g}",
            '<span class="kept">kept</span>'
            if row["kept"]
            else '<span class="missed">missed</span>',
        ]
        for row in results["targets"]
    ]
    return table(("promise", "measured", "bound", ""), rows)


def _levels(levels: Sequence[Sequence[float]]) -> str:
    texts = [", ".join(f"{level:g}" for level in row) for row in levels if len(row) in (2, 4)]
    return escape("σ = " + "; σ = ".join(texts))


def write(
    path: Path,
    results: Results,
    seconds: Mapping[str, float],
    training: Mapping[str, Training],
    pictures: Mapping[str, Path],
    grids: Mapping[str, Path],
) -> Path:
    """Write the report with pictures and tables inside, as one file.

    Args:
        path: the HTML file.
        results: as in metrics.json.
        seconds: "method steps" -> time of one sampling run.
        training: losses and time of each training, by the kind of model.
        pictures: name -> PNG of the text's pictures.
        grids: "real" or "method-steps" -> PNG of samples.
    """
    real, about = results["real"], results["about"]
    captions = {
        "real": "real held-out digits",
        **{name: caption(*_split(name)) for name in grids if name != "real"},
    }
    text = Template(package_files("cmsolvers.demo").joinpath("report_page.html").read_text("utf-8"))
    html = text.substitute(
        overview=image(
            pictures["overview"],
            "Above: the theory in one dimension. Below: digits from each sampler, "
            "every column from the same noise.",
        ),
        mixture=image(
            pictures["mixture"],
            "Dark: where the data are likely at each time. Orange: random paths. Blue: "
            "ODE trajectories. Bottom right: colour shows where a point ends; arrows are the "
            "consistency function, from every point of a trajectory to its end.",
        ),
        strips=image(
            pictures["strips"],
            "The first row is noised from left to right, the others are denoised from "
            "left to right, all from the last image of the first row.",
        ),
        samplers=image(pictures["samplers"], "Rows: samplers. Columns: the same initial noise."),
        quality=image(
            pictures["quality"],
            "Down and left is better. Each point is one number of steps.",
        ),
        losses=image(
            pictures["losses"],
            "Training losses, each a running mean; the four losses have no common scale. Where the "
            "pairs of consistency training and tuning become narrower, the loss changes too: it is "
            "then another task.",
        ),
        table=_sampler_table(results, seconds),
        seeds=_seed_table(results),
        targets=_target_table(results),
        courses=_course_table(results, seconds, training),
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
