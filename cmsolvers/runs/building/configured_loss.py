"""A loss from plain settings, as the trainer calls it: `loss(model, batch) -> LossOutput`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.denoisers import FlowMap, Preconditioned
from cmsolvers.losses import LabelDropout, LossOutput
from cmsolvers.losses.evaluation.bad_rows import BAD_ROWS
from cmsolvers.losses.evaluation.decorator import Loss
from cmsolvers.losses.evaluation.model_views import unwrapped
from cmsolvers.runs.building.catalogue import PRESETS, RECIPES
from cmsolvers.runs.building.loss_options import (
    ADAPTIVE,
    LABELS,
    LEARNED,
    WARMUP_SHARE,
    Setting,
    option_of,
    require_inputs,
    times_of,
)
from cmsolvers.training.learned_weights import LearnedWeight
from cmsolvers.training.named_options import check_options, known_name
from cmsolvers.training.spec import Model, Spec
from cmsolvers.training.wrappers import Function

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


class Batch(Protocol):
    """What a loss reads of a batch."""

    @property
    def x0(self) -> Tensor:
        """Samples [B, ...]."""

    @property
    def key(self) -> noise.Key:
        """Key of noise, levels and dropped labels."""

    @property
    def step(self) -> int:
        """The training step."""

    @property
    def labels(self) -> Tensor | None:
        """int64 [B], or None."""


class ConfiguredLoss:
    """A recipe with all that it needs besides the model and the batch.

    Attributes:
        recipe: the loss of the library.
        times: its distribution of levels.
        options: its own options.
        spec: of the model that is trained.
        teacher: or None.
        target: what stands on the other side; None is the model itself.
    """

    def __init__(
        self,
        recipe: Loss,
        spec: Spec,
        times: Any,
        options: Mapping[str, Any],
        *,
        teacher: Model | None = None,
        target: Function | None = None,
        label_dropout: LabelDropout | None = None,
        bad_rows: str = "raise",
    ) -> None:
        self.recipe, self.spec, self.times, self.options = recipe, spec, times, dict(options)
        self.teacher, self.target = teacher, target
        self.label_dropout, self.bad_rows = label_dropout, bad_rows
        self._wrapped: tuple[object, Function] | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        """The loss of a batch.

        Args:
            model: the network, or the model around it, also inside of what wraps a module for many
                devices or a compiler.
            batch: with labels where the spec has classes.

        Raises:
            ValueError: no labels where there must be some; what the recipe raises.
        """
        given: dict[str, Any] = {"times": self.times, "bad_rows": self.bad_rows}
        if self.spec.classes is not None:
            if batch.labels is None:
                raise ValueError(
                    f"data must have labels for a model with classes = {self.spec.classes}; "
                    "got none"
                )
            given["extra_args"] = {LABELS: batch.labels}
            given["label_dropout"] = self.label_dropout
        if self.teacher is not None:
            given["teacher"] = self.teacher.function
            if self.teacher.spec.classes is None and self.spec.classes is not None:
                given["teacher_args"] = {}
        return self.recipe(
            self.function_of(model),
            batch.x0,
            key=batch.key,
            step=batch.step,
            target=self.target,
            **given,
            **self._options(model),
        )

    def function_of(self, model: nn.Module) -> Any:
        """The model around a network; a model as it is."""
        if isinstance(unwrapped(model), (FlowMap, Preconditioned)):
            return model
        if self._wrapped is None or self._wrapped[0] is not model:
            self._wrapped = model, self.spec.wrap(model)
        return self._wrapped[1]

    def _options(self, model: nn.Module) -> dict[str, Any]:
        """The recipe's options, with parts of the network where they are trained along."""
        found = dict(self.options)
        if found.get("weight") == LEARNED:
            found["weight"] = learned_weight(model)
        if found.get("balance") == ADAPTIVE:
            found["balance"] = last_weight(model)
        return found


def loss_of(
    name: str,
    spec: Spec,
    total: int,
    options: Mapping[str, object] | None = None,
    *,
    times: object = None,
    teacher: Model | None = None,
    target: Function | None = None,
    label_dropout: float = 0.0,
    bad_rows: str = "raise",
    preset: str | None = None,
) -> ConfiguredLoss:
    """A recipe from plain settings.

    Args:
        name: of a recipe of `cmsolvers.losses`.
        spec: of the model that is trained.
        total: training steps: schedules of the recipe and of its levels end there. A warm-up is
            that of the recipe, at most a fifth of the run, unless it is given.
        options: of the recipe, by its own signature: numbers, names, or tables with a name, such as
            {"distance": {"name": "pseudo_huber", "c": 0.03}}; "none" is None. The weight of
            "sct", "scd", "lsd" and "psd" may be "learned", the balance of "ctm" "adaptive".
        times: the distribution of levels, a name or a table; None is the recipe's own. Either way
            with the levels and steps of the run, where it has options for these.
        teacher: where the recipe takes one.
        target: an average of the model; see `target_of`.
        label_dropout: probability with which labels are replaced by the one that says nothing.
        bad_rows: "raise", "keep" or "zero", what to do where a sample's loss is not finite.
        preset: published settings under `options`, of "alpha_flow", "meanflow" and "soflow".

    Raises:
        ImportError, TypeError, ValueError: an unknown name or option, a value of the wrong kind, a
            teacher too many or missing.
    """
    recipe = RECIPES[known_name("loss", name, RECIPES)]
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
    _check_learned(found, name, spec)
    return ConfiguredLoss(
        recipe,
        spec,
        times_of(times, setting, given),
        found,
        teacher=teacher,
        target=target,
        label_dropout=_dropout(label_dropout, spec),
        bad_rows=check.choice("bad_rows", bad_rows, BAD_ROWS),
    )


def own_options(recipe: Loss) -> dict[str, inspect.Parameter]:
    """The options of a recipe besides what all losses take."""
    parameters = inspect.signature(recipe).parameters
    return {key: value for key, value in parameters.items() if key not in COMMON}


def needs_of(
    name: str, options: Mapping[str, object] | None, classes: int | None
) -> dict[str, Any]:
    """Attributes of a `Spec` that a loss with these options needs: learned_weight and inputs."""
    given = dict(options or {})
    own = own_options(RECIPES[known_name("loss", name, RECIPES)])
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
    if spec.null is None:
        raise ValueError(
            f"label_dropout needs a label that says nothing; the model has classes = "
            f"{spec.classes}, null_label = {spec.null_label}"
        )
    return LabelDropout(LABELS, share, spec.null)


def learned_weight(model: nn.Module) -> LearnedWeight:
    """The network's own weight of the loss.

    Raises:
        ValueError: it has none.
    """
    for part in model.modules():
        if isinstance(part, LearnedWeight):
            return part
    raise ValueError("the network must have a learned weight (learned_weight of its spec)")


LAST = ("last", "model.conv_out", "model.proj_out_2")
"""Where the networks of this library keep their last layer."""


def last_weight(model: nn.Module) -> nn.Parameter:
    """The weight of the last layer of a network, or of the network of a model.

    Raises:
        ValueError: a network that does not say which one it is, by an attribute `last`.
    """
    inner: Any = unwrapped(model)
    inner = inner.net if isinstance(inner, (FlowMap, Preconditioned)) else model
    inner = getattr(inner, "module", inner)
    modules = dict(inner.named_modules())
    for name in LAST:
        weight = getattr(modules.get(name), "weight", None)
        if isinstance(weight, nn.Parameter):
            return weight
    raise ValueError(
        f"balance = 'adaptive' needs a network with its last layer as `last`; "
        f"{type(inner).__name__} has none"
    )
