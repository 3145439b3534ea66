"""Losses from plain settings: names, numbers and tables, as a file of settings has them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from cmsolvers import checks as check
from cmsolvers.losses import LabelDropout
from cmsolvers.losses.evaluation.bad_rows import BAD_ROWS
from cmsolvers.losses.evaluation.recipe import Loss, Recipe
from cmsolvers.runs.building.configured_loss import ConfiguredLoss
from cmsolvers.runs.building.loss_names import PRESETS, RECIPES
from cmsolvers.runs.building.loss_options import (
    LABELS,
    LEARNED,
    WARMUP_SHARE,
    Setting,
    null_of,
    option_of,
    require_inputs,
    times_of,
)
from cmsolvers.training.model_wrappers import Function
from cmsolvers.training.named_options import IMPORT, check_options, imported, known_name
from cmsolvers.training.spec import Model, Spec

COMMON = (
    "model",
    "x0",
    "key",
    "step",
    "teacher",
    "target",
    "extra_args",
    "teacher_args",
    "reduction",
    "times",
    "levels",
    "label_dropout",
    "bad_rows",
)
"""Parameters that all losses share; the rest are options of a recipe."""


def loss_of(
    name: str,
    spec: Spec,
    total: int,
    options: Mapping[str, object] | None = None,
    *,
    times: object = None,
    teacher: Model | None = None,
    teacher_guidance: float = 1.0,
    target: Function | None = None,
    label_dropout: float = 0.0,
    bad_rows: str = "raise",
    preset: str | None = None,
) -> ConfiguredLoss:
    """A recipe from plain settings.

    Args:
        name: of a recipe of `cmsolvers.losses`, or "import:package.module:name" of a loss that
            `cmsolvers.losses.loss` has made.
        spec: of the model that is trained.
        total: training steps: schedules of the recipe and of its levels end there. A warm-up is
            that of the recipe, at most a fifth of the run, unless it is given.
        options: of the recipe, by its own signature: numbers, names, or tables with a name, such as
            {"distance": {"name": "pseudo_huber", "c": 0.03}}; "none" is None. The weight of
            "sct", "scd", "lsd" and "psd" may be "learned", the balance of "ctm" "adaptive".
        times: the distribution of levels, a name or a table; None is the recipe's own. Either way
            with the levels and steps of the run, where it has options for these.
        teacher: where the recipe takes one.
        teacher_guidance: scale of classifier-free guidance in the teacher; 1 is none.
        target: an average of the model; see `target_of`.
        label_dropout: probability with which labels are replaced by the one that says nothing.
        bad_rows: "raise", "keep" or "zero", what to do where a sample's loss is not finite.
        preset: published settings under `options`, of "alpha_flow", "meanflow" and "soflow".

    Raises:
        ImportError, TypeError, ValueError: an unknown name or option, a value of the wrong kind, a
            teacher too many or missing.
    """
    recipe = recipe_of(name)
    setting = Setting(spec, check.count("total", total), None if teacher is None else teacher.spec)
    own = own_options(recipe)
    given = dict(options or {})
    check_options(f"loss {name}", given, own)
    found: dict[str, Any] = {}
    if preset is not None:
        found = dict(_preset(name, preset))
        drawn = found.pop("times", None)
        times = drawn if times is None else times
    if times is None:
        times = inspect.signature(recipe).parameters["times"].default
    for option, value in given.items():
        found[option] = option_of(option, own[option], value, setting)
    _fill(recipe, own, found, setting)
    _check_teacher(recipe, teacher, spec)
    scale = check.finite("teacher_guidance", teacher_guidance)
    if scale != 1.0 and (teacher is None or found.get("null_args") is not None):
        raise ValueError(
            f"teacher_guidance must be 1 without a teacher, and where the loss guides it itself; "
            f"got {scale:g}"
        )
    _check_learned(found, name, spec)
    return ConfiguredLoss(
        recipe,
        spec,
        times_of(times, setting, given),
        found,
        teacher=teacher,
        teacher_guidance=scale,
        target=target,
        label_dropout=_dropout(label_dropout, spec),
        bad_rows=check.choice("bad_rows", bad_rows, BAD_ROWS),
    )


def recipe_of(name: object) -> Loss:
    """A loss by name.

    Raises:
        ImportError, TypeError, ValueError: no such loss.
    """
    if not (isinstance(name, str) and name.startswith(IMPORT)):
        return RECIPES[known_name("loss", name, RECIPES)]
    found: Loss = imported("loss", name)
    if not isinstance(getattr(found, "recipe", None), Recipe):
        raise TypeError(f"loss {name} must be made by `cmsolvers.losses.loss`; it is not")
    return found


def own_options(recipe: Loss) -> dict[str, inspect.Parameter]:
    """The options of a recipe besides what all losses take."""
    parameters = inspect.signature(recipe).parameters
    return {key: value for key, value in parameters.items() if key not in COMMON}


def needs_of(
    name: str, options: Mapping[str, object] | None, classes: int | None
) -> dict[str, Any]:
    """Attributes of a `Spec` that a loss with these options needs: learned_weight and inputs."""
    given = dict(options or {})
    own = own_options(recipe_of(name))
    found: dict[str, Any] = {}
    if given.get("weight") == LEARNED and "weight" in own:
        found["learned_weight"] = 1 if "..." in str(own["weight"].annotation) else 2
    guidance = given.get("guidance")
    if name == "lcm" and classes is not None and guidance != "none":
        found["inputs"] = (str(given.get("guidance_name", own["guidance_name"].default)),)
    if name == "imf" and isinstance(guidance, Mapping):
        found["inputs"] = tuple(guidance.get("inputs", ("omega", "t_min", "t_max")))
    return found


def _preset(name: str, preset: str) -> Mapping[str, Any]:
    known_name("preset of", name, PRESETS)
    return PRESETS[name][known_name(f"preset of {name}", preset, PRESETS[name])]


def _fill(
    recipe: Loss, own: Mapping[str, inspect.Parameter], found: dict[str, Any], setting: Setting
) -> None:
    """Options that follow from the run, where they were not given."""
    spec = setting.spec
    if "total" in own:
        found.setdefault("total", setting.total)
    if "warmup" in own:
        usual = own["warmup"].default
        found.setdefault("warmup", min(usual, max(1, setting.total // WARMUP_SHARE)))
    if "sigma_data" in own:
        found.setdefault("sigma_data", spec.sigma_data)
    if recipe.recipe.name != "lcm":
        return
    if spec.classes is None:
        found.setdefault("guidance", None)
    if found.get("guidance", own["guidance"].default) is not None:
        null_of("guidance", spec)
        found.setdefault("null_args", {LABELS: None})
        require_inputs(spec, (str(found.get("guidance_name", own["guidance_name"].default)),))


def _check_teacher(recipe: Loss, teacher: Model | None, spec: Spec) -> None:
    about = recipe.recipe
    needed = about.teacher == "required" or about.name == "reflow"
    if needed and teacher is None:
        raise ValueError(f"teacher must be given for the loss {about.name}; got none")
    if about.teacher == "none" and teacher is not None:
        raise ValueError(f"teacher must be left out: the loss {about.name} takes none")
    if teacher is not None and teacher.spec.shape != spec.shape:
        raise ValueError(
            f"teacher must be of the model's shape, {list(spec.shape)}; "
            f"got {list(teacher.spec.shape)}"
        )


def _check_learned(options: Mapping[str, Any], name: str, spec: Spec) -> None:
    wanted = needs_of(name, options, spec.classes).get("learned_weight", 0)
    if wanted and spec.learned_weight != wanted:
        raise ValueError(
            f"learned_weight of the spec must be {wanted} for the learned weight of {name}; "
            f"got {spec.learned_weight}"
        )


def _dropout(probability: float, spec: Spec) -> LabelDropout | None:
    share = check.within("label_dropout", probability, 0.0, 1.0)
    if share == 0.0:
        return None
    return LabelDropout(LABELS, share, null_of("label_dropout", spec))
