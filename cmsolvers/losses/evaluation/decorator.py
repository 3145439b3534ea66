"""The decorator that makes a public loss of a formula."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.losses.evaluation import terms
from cmsolvers.losses.evaluation.bad_rows import BAD_ROWS, LeftOut, without_bad_rows
from cmsolvers.losses.evaluation.documentation import docstring_of, signature_of
from cmsolvers.losses.evaluation.drawn_levels import Levels, Times, levels_of
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.labels import LabelDropout
from cmsolvers.losses.evaluation.loss_arguments import (
    in_evaluation,
    kept_by_autograd,
    place,
    progress,
    same_path,
)
from cmsolvers.losses.evaluation.loss_reduction import reduced
from cmsolvers.losses.evaluation.network_calls import Model
from cmsolvers.losses.evaluation.output import LossOutput
from cmsolvers.losses.evaluation.recipe import Loss, Need, Recipe
from cmsolvers.losses.evaluation.teacher_look import look_at_teacher
from cmsolvers.losses.times.distribution import Distribution
from cmsolvers.ops.pair_rows import alike

Formula: TypeAlias = "Callable[..., Tensor | terms.Weighted]"
"""`formula(at: Evaluation, **options) -> [B]`, the loss of each sample, differentiable; or such
values and their weights, which are then multiplied while they are added up."""

CLOCKS = ("total", "warmup")
"""Options that say in which step a schedule of the formula ends."""


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
            if not alike(x0, x0):
                check.state("x0", x0)
            if recipe.teacher == "required" and teacher is None:
                raise ValueError(f"teacher must be given to {name}; got None")
            if recipe.teacher == "none" and teacher is not None:
                raise ValueError(f"teacher must be left out: {name} takes none")
            if teacher is not None and not any_mode:
                in_evaluation("teacher", teacher)
            if not torch.compiler.is_compiling():
                x0 = kept_by_autograd(x0)
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
            if not isinstance(times, Distribution):
                at.same.begin()  # a user's own may have drawn of torch's generator
            found = formula(at, **options)
            if teacher is not None:
                look_at_teacher(at)
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


def detached(found: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors without gradient."""
    return {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in found.items()
    }
