"""Signature and docstring of a public loss: what all share, and what is its own."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from cmsolvers.losses.evaluation.recipe import Recipe

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
        `diagnostics["bad_rows"]`; a mean is still over the whole batch. Under torch.compile a NaN
        of a teacher or target reaches no weight either, but one that begins inside the target of
        `ctm`, or goes through a weight made of the loss itself, does."""

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


def signature_of(public: Callable[..., Any], own: Mapping[str, Any]) -> inspect.Signature:
    """The signature with the formula's options in place of **options."""
    signature = inspect.signature(public)
    common = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    return signature.replace(parameters=[*common, *own.values()])


def docstring_of(formula: Callable[..., object], recipe: Recipe) -> str:
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
