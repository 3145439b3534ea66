"""Losses without a derivative at exact maps: score, reflow, and consistency in pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from cmsolvers.losses import (
    ECTPairs,
    TruncatedPairs,
    recipes,
    square_sum,
)
from cmsolvers.losses.recipes.progressive import halfway_level
from support import loss_faults as faults
from support.exact_students import (
    CORRELATION,
    HIGH,
    STEP,
    in_steps,
    on_coupled_pairs,
    reversed_noise,
    straight_map,
    student_of_steps,
    uncoupled_noise,
)
from support.loss_faults import Options, given
from support.stationary import exact_denoiser, exact_map
from support.stationary_laws import (
    OF_PAIRS,
    TAUGHT,
    TAUGHT_WELL,
    Case,
    Exactly,
    Falling,
    OnAverage,
    option,
)

SIGMA = torch.linspace(0.15, 3.0, 512, dtype=torch.float64)
TIME = torch.linspace(0.3, 0.9, 512, dtype=torch.float64)
MANY = SIGMA.repeat(8)


def shorter(step: float) -> Options:
    """Pairs of levels in Karras coordinates."""
    return {"levels": (SIGMA, SIGMA * (1 - step))}


def shorter_of_many(step: float) -> Options:
    """The same in larger batches."""
    return {"levels": (MANY, MANY * (1 - step))}


def shorter_in_flow(step: float) -> Options:
    """The same in flow coordinates."""
    return {"levels": (TIME, TIME - step / 2)}


def of_labels(x: Tensor, sigma: Tensor, label: float = 1.0) -> Tensor:
    """A guided teacher whose two answers make the exact denoiser: with w = 2, D + 2 (D - D_null).

    Data of the label have their mean off by d, those of none by 3 d / 2.
    """
    off = 0.4 * label
    return exact_denoiser(x - off, sigma) + off


GUIDED: Options = {
    "teacher": of_labels,
    "extra_args": {},
    "null_args": {"label": 1.5},
    "guidance": (2.0, 2.0),
}
LONG = (0.4, 0.2, 0.1, 0.05)
FIRST_STAGE = TruncatedPairs(sigma_max=3.0, scale=3.0, freedom=5.0, gap=ECTPairs(q=400.0, k=0.0))

PAIRS: list[Case] = [
    # --- score and flow ---------------------------------------------------------------------------
    OnAverage(recipes.dsm, "denoiser", {}, (faults.other_sample, faults.wrong_map), batches=48),
    OnAverage(recipes.dsm, "flow", {}, (faults.other_sample,), batches=48),
    OnAverage(recipes.flow_matching, "flow", {}, OF_PAIRS),
    OnAverage(recipes.flow_matching, "average velocity", {}, OF_PAIRS),
    OnAverage(recipes.flow_matching, "trigflow pair", {}, OF_PAIRS),
    OnAverage(
        recipes.reflow,
        lambda: straight_map(CORRELATION),
        {},
        (
            given(noise_of=uncoupled_noise),
            given(noise_of=reversed_noise),
            faults.wrong_map,
        ),
        call=on_coupled_pairs,
        size=1024,
    ),
    Falling(
        recipes.reflow,
        lambda: straight_map(1.0),
        {"teacher": exact_map("flow"), "levels": TIME},
        (faults.misled_teacher, faults.wrong_map, faults.reversed_velocity),
        rate=2.0,
        steps=(1 / 12, 1 / 24, 1 / 48),
        at=lambda step: {"steps": round(1 / step)},
        size=len(TIME),
    ),
    # --- progressive distillation -----------------------------------------------------------------
    Exactly(
        recipes.progressive_distillation,
        lambda: student_of_steps(2),
        TAUGHT,
        (*TAUGHT_WELL, given(halfway=halfway_level), given(turn=0.5 * STEP), faults.wrong_map),
        call=in_steps,
        size=len(HIGH),
    ),
    Falling(
        recipes.progressive_distillation,
        "flow",
        TAUGHT,
        (*TAUGHT_WELL, faults.wrong_map),
        call=in_steps,
        size=len(HIGH),
        at=option("turn"),
        rate=1.0,
    ),
    # --- consistency in pairs ---------------------------------------------------------------------
    Falling(recipes.cd, "consistency", TAUGHT, TAUGHT_WELL, rate=3.0, at=shorter),
    Falling(
        recipes.cd, "consistency", TAUGHT | {"solver": "euler"}, TAUGHT_WELL, rate=2.0, at=shorter
    ),
    Falling(
        recipes.lcm,
        "consistency",
        GUIDED | {"distance": square_sum},
        (given(null_args={"label": 1.0}), given(guidance=(3.0, 3.0)), faults.wrong_map),
        rate=2.0,
        at=shorter,
    ),
    Falling(
        recipes.mcd,
        "average velocity",
        TAUGHT | {"segments": 1},
        TAUGHT_WELL,
        rate=2.0,
        at=shorter_in_flow,
    ),
    Falling(
        recipes.mcd,
        "average velocity",
        TAUGHT | {"segments": 1, "solver": "heun"},
        TAUGHT_WELL,
        rate=3.0,
        at=shorter_in_flow,
    ),
    Falling(
        recipes.ct,
        "consistency",
        {},
        (faults.fresh_noise, faults.wrong_map),
        rate=2.0,
        steps=LONG,
        at=shorter_of_many,
        batches=8,
        size=4096,
    ),
    Falling(
        recipes.ict,
        "consistency",
        {"distance": square_sum},
        (faults.fresh_noise, faults.wrong_map),
        rate=1.0,
        steps=LONG,
        at=shorter_of_many,
        batches=8,
        size=4096,
    ),
    Falling(
        recipes.ect,
        "consistency",
        {"distance": square_sum},
        (faults.fresh_noise, faults.wrong_map),
        rate=1.0,
        steps=LONG,
        at=shorter_of_many,
        batches=8,
        size=4096,
    ),
    Falling(
        recipes.ect,
        "consistency",
        TAUGHT | {"distance": square_sum, "solver": "heun"},
        TAUGHT_WELL,
        rate=2.0,
        at=shorter,
    ),
    OnAverage(
        recipes.tcm,
        "consistency",
        {
            "teacher": exact_map("consistency", seed=1),
            "times": FIRST_STAGE,
            "distance": square_sum,
        },
        (faults.wrong_first_stage, faults.fresh_noise),
        batches=24,
        size=512,
    ),
    # --- trajectories -----------------------------------------------------------------------------
    Falling(
        recipes.ctm,
        "trajectory",
        TAUGHT | {"balance": 0.0, "levels": (5.0, 0.3)},
        (*TAUGHT_WELL, faults.wrong_jumps),
        rate=2.0,
        steps=(1 / 4, 1 / 8, 1 / 16),
        at=lambda step: {"steps": round(1 / step)},
        batches=6,
        size=128,
    ),
    Falling(
        recipes.ctm,
        "average velocity",
        TAUGHT | {"balance": 0.0, "levels": (0.9, 0.3)},
        (*TAUGHT_WELL, faults.wrong_jumps),
        rate=2.0,
        steps=(1 / 4, 1 / 8, 1 / 16),
        at=lambda step: {"steps": round(1 / step)},
        batches=6,
        size=128,
    ),
    Falling(
        recipes.ctm,
        "trajectory",
        TAUGHT | {"balance": 0.0, "levels": (5.0, 0.3), "solver": "euler"},
        TAUGHT_WELL,
        rate=1.0,
        steps=(1 / 8, 1 / 16, 1 / 32),
        at=lambda step: {"steps": round(1 / step)},
        batches=6,
        size=128,
    ),
    OnAverage(
        recipes.ctm,
        "trajectory",
        {"levels": (SIGMA, 0.9 * SIGMA), "balance": 0.0},
        (faults.fresh_noise,),
        size=512,
    ),
    OnAverage(
        recipes.ctm,
        "trajectory",
        {"levels": (SIGMA, 0.9 * SIGMA)},
        (faults.other_sample, faults.wrong_map),
        size=512,
    ),
]
