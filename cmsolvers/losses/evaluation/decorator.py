"""The decorator that makes a public loss of a formula."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.losses.evaluation import terms
from cmsolvers.losses.evaluation.bad_rows import BAD_ROWS, LeftOut, without_bad_rows
from cmsolvers.losses.evaluation.drawn_levels import Levels, Times, levels_of
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.labels import LabelDropout
from cmsolvers.losses.evaluation.loss_reduction import reduced
from cmsolvers.losses.evaluation.model_views import Model
from cmsolvers.losses.evaluation.output import LossOutput

Formula: TypeAlias = "Callable[..., Tensor | terms.Weighted]"
"""`formula(at: Evaluation, **options) -> [B]`, the loss of each sample, differentiable; or such
values and their weights, which are then multiplied while they are added up."""

Need: TypeAlias = Literal["required", "optional", "none"]

CLOCKS = ("total", "warmup")
"""Options that say in which step a schedule of the formula ends."""


@dataclass(frozen=True)
class Recipe:
    """What a loss is, for tables and tests.

    Attributes:
        name: of the function.
        identity: "score", "eulerian", "lagrangian" or "semigroup".
        source: paper and equation.
        coordinates: that its default levels and weights are meant for.
        model: the kind of model: "denoiser", "consistency" (one time) or "flow map" (two).
        teacher: whether it needs a teacher.
        scheduled: whether it has an option `total` or `warmup`.
        any_mode: whether its teacher may be in training mode.
    """

    name: str
    identity: str
    source: str
    coordinates: str
    model: str
    teacher: Need
    scheduled: bool
    any_mode: bool = False


class Loss(Protocol):
    """A public loss."""

    __name__: str
    recipe: Recipe

    def __call__(
        self,
        model: Model,
        x0: Tensor,
        *,
        key: noise.SeedLike,
        step: int | Tensor,
        teacher: Model | None = None,
        target: Model | None = None,
        extra_args: Mapping[str, object] | None = None,
        reduction: str = "mean",
        **options: Any,
    ) -> LossOutput:
        """Evaluate; each loss documents its options."""


def loss(
    *,
    identity: str,
    source: str,
    times: Times,
    coordinates: str,
    model: str,
    teacher: Need = "none",
    pair: bool = False,
    any_mode: bool = False,
) -> Callable[[Formula], Loss]:
    """Make a loss of a formula: check, draw noise and levels, reduce, document.

    Args:
        identity: "score", "eulerian", "lagrangian" or "semigroup".
        source: paper and equation.
        times: the default distribution of levels, a `Distribution`; where it gives pairs (t, s)
            every other one must.
        coordinates: what weights and levels of the paper are in: "karras", "flow" or "trigflow".
        model: "denoiser", "consistency" or "flow map": what the paper trains.
        teacher: whether a teacher is needed, allowed or refused.
        pair: whether t must be above s, not equal.
        any_mode: whether the teacher may be in training mode: one whose dropout is meant to be the
            student's.

    Returns:
        A decorator of `formula(at, **options)`; `Evaluation` is what it may ask. Options are its
        keyword-only arguments; one named `total` or `warmup` makes `at.progress` = step / it, at
        most 1. It returns one number per sample, [B].
    """

    def decorate(formula: Formula) -> Loss:
        own = {
            name: parameter
            for name, parameter in inspect.signature(formula).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        name = formula.__name__
        drawn_pairs = isinstance(times.sample(1, 0), tuple)
        clock = next((option for option in CLOCKS if option in own), None)
        recipe = Recipe(
            name, identity, source, coordinates, model, teacher, clock is not None, any_mode
        )

        def public(
            model: Model,
            x0: Tensor,
            *,
            key: noise.SeedLike,
            step: int | Tensor,
            teacher: Model | None = None,
            target: Model | None = None,
            extra_args: Mapping[str, object] | None = None,
            teacher_args: Mapping[str, object] | None = None,
            reduction: str = "mean",
            times: Times = times,
            levels: Levels | None = None,
            label_dropout: LabelDropout | None = None,
            bad_rows: str = "raise",
            **options: Any,
        ) -> LossOutput:
            if options and (unknown := options.keys() - own.keys()):
                raise TypeError(
                    f"{name} has no argument {sorted(unknown)[0]!r}; its own options are "
                    f"{', '.join(own) or 'none'}"
                )
            if reduction != "mean":
                terms.reduction_name(reduction)
            if bad_rows != "raise":
                check.choice("bad_rows", bad_rows, BAD_ROWS)
            check.state("x0", x0)
            if recipe.teacher == "required" and teacher is None:
                raise ValueError(f"teacher must be given to {name}; got None")
            if recipe.teacher == "none" and teacher is not None:
                raise ValueError(f"teacher must be left out: {name} takes none")
            if teacher is not None and not any_mode:
                in_evaluation("teacher", teacher)
            unfit = None
            if bad_rows == "zero":
                x0, unfit = without_bad_rows(x0)
            drawn, draw = place(key, step, x0)
            at = Evaluation(
                model,
                x0,
                drawn,
                draw,
                teacher=teacher,
                target=target,
                extra=None if extra_args is None else check.options("extra_args", extra_args),
                teacher_extra=(
                    None if teacher_args is None else check.options("teacher_args", teacher_args)
                ),
            )
            if target is not None:
                same_path(at)
            if bad_rows == "zero":
                at.left_out = at.student.left_out = LeftOut(unfit)
            if label_dropout is not None:
                at.dropped = label_dropout.dropped(at.extra, at.label_uniform())
                at.diagnostics["labels_dropped"] = at.dropped.sum()
            if clock is not None:
                at.progress = progress(clock, options.get(clock, own[clock].default), step)
            at.t, at.s = levels_of(at, times, levels, pair, drawn_pairs)
            found = formula(at, **options)
            whole, per_sample = reduced(
                name, found, x0, at.left_out, reduction, bad_rows, at.diagnostics
            )
            return LossOutput(whole, per_sample, (at.t, at.s), detached(at.diagnostics))

        made: Any = public
        made.__name__ = made.__qualname__ = name
        made.__module__ = formula.__module__
        made.__signature__ = signature_of(public, own)
        made.__doc__ = docstring_of(formula, recipe)
        made.recipe = recipe
        found: Loss = made
        return found

    return decorate


def place(key: noise.SeedLike, step: int | Tensor, x0: Tensor) -> tuple[noise.Key, int]:
    """The key and the number of the draw; a step on a device becomes a part of the key."""
    if isinstance(step, Tensor):
        return noise.key(key, len(x0), draw=step, device=x0.device), 0
    draw = check.index(step)
    if draw is None or not 0 <= draw < 1 << 32:
        raise ValueError(
            f"step must be an int in [0, 2^32), or such a tensor; got {check.describe(step)}"
        )
    if type(key) is int and 0 <= key < 1 << 63 and not torch.compiler.is_compiling():
        return _numbered(key), draw
    return noise.key(key, len(x0), device=x0.device), draw


@lru_cache(16)
def _numbered(seed: int) -> noise.Key:
    """The key of a number, which steps share: a `Key` is never changed."""
    return noise.key(seed, 1)


def progress(clock: str, total: int | None, step: int | Tensor) -> Any:
    """step / total, at most 1; 1 without a total: where the schedule ends."""
    if total is None:
        return 1.0
    count = check.count(clock, total)
    if isinstance(step, Tensor):
        return (step.double() / count).clamp(max=1.0)
    return min(1.0, step / count)


def in_evaluation(name: str, model: object) -> None:
    """ValueError for a module in training mode, whose dropout and statistics would be at work."""
    if not (isinstance(model, torch.nn.Module) and model.training):
        return
    for part in model.modules():
        drops = isinstance(part, torch.nn.modules.dropout._DropoutNd) and part.p > 0
        if part.training and (drops or isinstance(part, torch.nn.modules.batchnorm._NormBase)):
            raise ValueError(
                f"{name} must be in evaluation mode: it has dropout or batch statistics at work; "
                f"call {name}.eval()"
            )


def same_path(at: Evaluation) -> None:
    """ValueError where a target has other coordinates than the model."""
    if at.target.path != at.path:
        raise ValueError(
            f"target must be in the coordinates of the model, {at.path}; got {at.target.path}"
        )


def detached(found: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors without gradient."""
    return {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in found.items()
    }


def signature_of(public: Callable[..., Any], own: Mapping[str, Any]) -> inspect.Signature:
    """The signature with the formula's options in place of **options."""
    signature = inspect.signature(public)
    common = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    return signature.replace(parameters=[*common, *own.values()])


ARGUMENTS = """\
    model: what is trained: {model}.
    x0: clean data [B, ...].
    key: seed or `noise.Key` of noise, levels and dropped labels; sample i of step k gets the same
        ones in any batch.
    step: the training step, an int in [0, 2^32), or an int64 tensor [1] on the device of x0.
    teacher: {teacher}
    target: what stands on the other side without gradient, usually around an average of the
        model's network; None is the model itself.
    extra_args: keyword arguments of every network, such as labels.
    teacher_args: those of the teacher, where they differ.
    reduction: "mean", "sum" or "none" (a tensor [B]).
    times: the distribution of levels, a `Distribution`, in any coordinates.
    levels: the levels themselves in the model's coordinates, t or (t, s), numbers or tensors [B];
        then `times` is not asked.
    label_dropout: a `LabelDropout`, for classifier-free guidance.
    bad_rows: what to do where a sample's loss is not finite: "raise" (on a CPU; elsewhere as
        "keep"), "keep", or "zero": their loss is 0, without gradient, and they are counted in
        `diagnostics["bad_rows"]`; a mean is still over the whole batch."""

TEACHERS = {
    "required": "denoiser or flow map that gives the velocity, in evaluation mode, in any "
    "coordinates.",
    "optional": "denoiser or flow map that gives the velocity, in evaluation mode; None: the "
    "pair\n        (x0, z) gives it.",
    "none": "none is taken.",
}

MODELS = {
    "denoiser": "a denoiser D(x, level)",
    "consistency": "a consistency function f(x, level), such as `ConsistencyFunction(net)`",
    "consistency, trigflow": "a consistency function in TrigFlow coordinates, `TrigFlowMap(net)`",
    "flow map": "a flow map f(x, t, s), such as `AverageVelocity(net)`",
}


def docstring_of(formula: Formula, recipe: Recipe) -> str:
    """The formula's docstring, with the arguments of all losses put first."""
    text = inspect.cleandoc(formula.__doc__ or "")
    kind = MODELS.get(f"{recipe.model}, {recipe.coordinates}", MODELS[recipe.model])
    shared = ARGUMENTS.format(model=kind, teacher=TEACHERS[recipe.teacher])
    source = f"\n\nSource: {recipe.source}."
    head, found, own = text.partition("\nArgs:\n")
    arguments = f"\nArgs:\n{shared}\n" + (own if found else "")
    returns = (
        "\n\nReturns:\n    A `LossOutput`: loss, per_sample, levels, diagnostics."
        "\n\nRaises:\n    TypeError: an argument of the wrong kind."
        "\n    ValueError: wrong shapes, levels outside of the path or in the wrong order."
        "\n    FloatingPointError: a sample whose loss is not finite, named, on a CPU."
    )
    return textwrap.dedent(f"{head.rstrip()}\n{arguments.rstrip()}{returns}{source}")
