"""The tables of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from cmsolvers.demo import picture_style as style
from cmsolvers.demo.compared_samplers import BY_KEY
from cmsolvers.demo.demo_results import Results, SamplerRow, Training
from cmsolvers.demo.digit_pictures import caption
from cmsolvers.demo.heun_errors import HeunErrors

SCORE = "the score model's"
COURSES = {
    "cd": (SCORE, "in every step", "neighbours of one grid"),
    "ct": ("random", "none", "wide, then ever narrower"),
    "ect": (SCORE, "none", "down to 0, then ever narrower"),
}
"""How consistency functions are trained: where weights begin, the teacher, the pairs of levels."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """HTML of a table: the head is text, the cells are HTML."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _dot(key: str) -> str:
    return f'<span class="dot" style="background:{style.COLORS[key]}"></span>'


def sampler_table(results: Results, seconds: Mapping[str, float]) -> str:
    """What each sampler costs, and what the judge says of it; real digits last."""
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


def seed_table(results: Results) -> str:
    """Frechet distances over seeds."""
    rows = []
    for name, row in results["seeds"].items():
        key, steps = name.split()
        values = ", ".join(f"{v:.1f}" for v in row["frechet"])
        text = f"{row['mean']:.1f} ± {row['std']:.1f}"
        rows.append([_dot(key) + escape(caption(key, int(steps))), text, values])
    return table(("sampler", "Fréchet, mean ± deviation", "each seed"), rows)


def course_table(
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


def target_table(results: Results) -> str:
    """The promises, and whether they were kept."""
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


def heun_table(errors: HeunErrors) -> str:
    """The steps of the shortest run of Heun's method, one by one."""
    rows = [
        [
            f"{step['start']:.3g} to {step['end']:.3g}",
            f"{step['ratio']:.1f}",
            f"{step['overshoot']:.1f}",
            f"{step['heun']:.3f}",
            f"{step['euler']:.3f}",
            f"{step['at_end']:.3f}",
            f"{step['so_far']:.3f}",
        ]
        for step in errors["steps"]
    ]
    head = (
        "step in σ",
        "ratio r",
        "r / 2",
        "error of this step",
        "of Euler's",
        "left at the end",
        "whole run so far",
    )
    return table(head, rows)
