"""Continuous consistency, average velocities and self-distillation at exact maps."""

from __future__ import annotations

from cmsolvers.losses import (
    DyadicPairs,
    LogitNormalPairs,
    LogNormal,
    Normalised,
    UniformTimes,
    recipes,
    unchanged,
)
from support import loss_faults as faults
from support.loss_faults import Options, given
from support.stationary_laws import (
    OF_PAIRS,
    TANGENTS,
    TAUGHT,
    TAUGHT_WELL,
    Case,
    Exactly,
    Falling,
    OnAverage,
    option,
)

PLAIN: Options = {"tangent": unchanged, "warmup": None}
MIDDLE: Options = {"times": LogNormal(-0.5, 1.0)}
APART = LogitNormalPairs(equal=0.0)
HALVES: Options = {"floor": 0.0, "clip": None, "share": 0.5, "times": DyadicPairs(share=0.5)}


JUMPS: list[tuple[str, Options]] = [
    ("average velocity", {"times": UniformTimes(0.0)}),
    ("trigflow pair", {"times": UniformTimes(0.0)}),
    ("trajectory", {"levels": (2.0, 0.5)}),
]

RATES: list[Case] = [
    # --- continuous consistency -------------------------------------------------------------------
    OnAverage(
        recipes.continuous_ct,
        "consistency",
        MIDDLE,
        (*OF_PAIRS, *TANGENTS, faults.wrong_map),
        batches=20,
    ),
    OnAverage(recipes.continuous_ct, "trigflow", MIDDLE, OF_PAIRS, batches=20),
    OnAverage(
        recipes.sct, "trigflow", PLAIN, (*OF_PAIRS, *TANGENTS, given(warmup=1000)), batches=20
    ),
    OnAverage(recipes.sct, "trigflow pair", PLAIN, OF_PAIRS, batches=20),
    Exactly(recipes.continuous_cd, "consistency", TAUGHT | MIDDLE, (*TAUGHT_WELL, *TANGENTS)),
    Exactly(recipes.continuous_cd, "trigflow", TAUGHT | MIDDLE, TAUGHT_WELL),
    Exactly(
        recipes.scd,
        "trigflow",
        TAUGHT | {"warmup": None},
        (*TAUGHT_WELL, *TANGENTS, given(warmup=1000)),
    ),
    Exactly(
        recipes.rcm,
        "trigflow",
        TAUGHT | {"warmup": None},
        (*TAUGHT_WELL, *TANGENTS, given(warmup=1000)),
    ),
    *(
        Exactly(
            recipes.ayf_emd,
            kind,
            TAUGHT | {"warmup": None, "limit": 1.0},
            (*TAUGHT_WELL, *TANGENTS, given(limit=0.99)),
        )
        for kind in ("average velocity", "length", "trigflow pair")
    ),
    Exactly(recipes.ayf_lmd, "average velocity", TAUGHT, (*TAUGHT_WELL, faults.half_derivative)),
    Exactly(recipes.ayf_lmd, "trigflow pair", TAUGHT, TAUGHT_WELL),
    Exactly(recipes.ayf_lmd, "trajectory", TAUGHT | {"tangent": Normalised()}, TAUGHT_WELL),
    # --- average velocities -----------------------------------------------------------------------
    *(
        OnAverage(
            recipes.meanflow, kind, {"p": 0.0, "times": APART}, (*OF_PAIRS, *TANGENTS), size=1024
        )
        for kind in ("average velocity", "length", "trigflow pair")
    ),
    *(
        OnAverage(recipes.imf, kind, {"p": 0.0, "times": APART}, (*OF_PAIRS, *TANGENTS), size=1024)
        for kind in ("average velocity", "length")
    ),
    OnAverage(recipes.meanflow, "average velocity", {"p": 0.0}, OF_PAIRS),
    OnAverage(
        recipes.alpha_flow,
        "average velocity",
        {"p": 0.0, "alpha": 0.0, "times": APART},
        TANGENTS,
        size=1024,
    ),
    *(
        Falling(
            recipe,
            "average velocity",
            {"p": 0.0, "times": APART},
            OF_PAIRS,
            rate=1.0,
            steps=(1.0, 0.5, 0.25, 0.125),
            at=option(name),
            batches=12,
            size=4096,
        )
        for recipe, name in ((recipes.alpha_flow, "alpha"), (recipes.soflow, "ratio"))
    ),
    *(
        OnAverage(recipes.soflow, kind, {"p": 0.0, "ratio": 0.01}, OF_PAIRS)
        for kind in ("average velocity", "trigflow pair")
    ),
    OnAverage(recipes.shortcut, "length", HALVES, (*OF_PAIRS, faults.wrong_map)),
    # --- self-distillation ------------------------------------------------------------------------
    OnAverage(recipes.lsd, "average velocity", {}, OF_PAIRS),
    OnAverage(recipes.lsd, "trigflow pair", {"stop_gradient": "none"}, OF_PAIRS),
    *(
        Exactly(recipes.lsd, kind, options, (faults.half_derivative, faults.wrong_jumps))
        for kind, options in JUMPS
    ),
    OnAverage(recipes.psd, "length", {}, OF_PAIRS),
    OnAverage(
        recipes.psd, "trigflow pair", {"between": "midpoint", "stop_gradient": "none"}, OF_PAIRS
    ),
    *(Exactly(recipes.psd, kind, options, (faults.wrong_jumps,)) for kind, options in JUMPS),
    OnAverage(
        recipes.tvm,
        "average velocity",
        {},
        (*OF_PAIRS, faults.half_derivative, faults.wrong_jumps),
        size=1024,
    ),
    OnAverage(
        recipes.tvm,
        "trigflow pair",
        {"through": False},
        (*OF_PAIRS, faults.half_derivative),
        size=1024,
    ),
]
