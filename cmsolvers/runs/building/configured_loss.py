"""A loss from plain settings, as the trainer calls it: `loss(model, batch) -> LossOutput`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from cmsolvers import noise
from cmsolvers.denoisers import FlowMap, Preconditioned, guided
from cmsolvers.losses import LabelDropout, LossOutput
from cmsolvers.losses.evaluation.network_calls import unwrapped
from cmsolvers.losses.evaluation.recipe import Loss
from cmsolvers.runs.building.loss_options import ADAPTIVE, LABELS, LEARNED
from cmsolvers.training.learned_weights import LearnedWeight
from cmsolvers.training.model_wrappers import Function
from cmsolvers.training.spec import Model, Spec


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
        teacher_function: its function, guided or as it is.
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
        teacher_guidance: float = 1.0,
        target: Function | None = None,
        label_dropout: LabelDropout | None = None,
        bad_rows: str = "raise",
    ) -> None:
        self.recipe, self.spec, self.times, self.options = recipe, spec, times, dict(options)
        self.teacher, self.target = teacher, target
        self.label_dropout, self.bad_rows = label_dropout, bad_rows
        self.teacher_function: nn.Module | None = None
        if teacher is not None:
            self.teacher_function = guided_teacher(teacher, teacher_guidance)
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
            given["teacher"] = self.teacher_function
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


def guided_teacher(teacher: Model, scale: float) -> nn.Module:
    """A teacher's function with guidance of a fixed scale; 1 is none.

    Raises:
        ValueError: a teacher that has no label which says nothing.
    """
    if scale == 1.0:
        return teacher.function
    if teacher.spec.null is None:
        raise ValueError(
            f"teacher_guidance needs a teacher with labels, one of which says nothing; this one "
            f"has classes = {teacher.spec.classes}, null_label = {teacher.spec.null_label}"
        )
    return guided(teacher.function, scale, unconditional={LABELS: None}, batched=False)


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
