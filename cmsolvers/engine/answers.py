"""What a denoiser answers, as a form over what its networks return.

A network under preconditioning, guidance or both is called by the engine itself, and the rest of
the denoiser becomes weights of the step. Any other denoiser is called as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from cmsolvers.denoisers.clipping import Clipped
from cmsolvers.denoisers.composed import folds, opens
from cmsolvers.denoisers.flow_map_base import FlowMap, end_of, folds_map, time_dtype
from cmsolvers.denoisers.guidance import Guided
from cmsolvers.denoisers.pairing import asked, joined_arguments
from cmsolvers.denoisers.preconditioning import Preconditioned
from cmsolvers.engine.forms import Form


class Asker(Protocol):
    """What `answer` may ask for at a state y."""

    def call(
        self,
        leaf: int,
        c_in: float,
        c_noise: float,
        dtype: torch.dtype | None,
        pair: bool = False,
        end: float | None = None,
    ) -> tuple[Form, ...]:
        """What the network of a leaf returns for c_in y.

        With `pair` for both sides of guidance; `end` is its second time, where it takes two.
        """

    def clamp(self, inner: Form, bounds: tuple[float, float]) -> Form:
        """A form limited to bounds."""


@dataclass(slots=True)
class Leaf:
    """One callable that the engine calls.

    Attributes:
        call: the network or denoiser.
        name: what it is called in error texts.
        extra: its keyword arguments.
        dtype: of its second argument.
        composed: whether it is a denoiser of the library that is told the level as a number.
        both: keyword arguments of both sides of guidance in one call on twice the batch.
    """

    call: Any
    name: str
    extra: Mapping[str, Any]
    dtype: torch.dtype
    composed: bool = False
    both: dict[str, Any] | None = None


def leaves(
    denoiser: object, name: str, extra: Mapping[str, Any], x: Tensor, maps: bool = False
) -> list[Leaf]:
    """The callables behind a denoiser, in the order in which `answer` numbers them.

    With `maps` they are those of a flow map, as `mapped` asks it.
    """
    if folds(denoiser):
        return [Leaf(_network(denoiser), "net", extra, denoiser.noise_dtype(x))]
    if folds_map(denoiser):
        return [Leaf(denoiser.net, "net", extra, time_dtype(denoiser.dtype or x.dtype))]
    if maps and end_of(denoiser) is None:
        return [Leaf(denoiser, name, extra, time_dtype(x.dtype))]
    if _is_sum(denoiser):
        denoiser.check_batch(x)
        pairs = zip(denoiser.sides, denoiser.arguments(extra), strict=True)
        found = [leaves(side, name, own, x)[0] for side, own in pairs]
        if denoiser.one_call:
            first, second = denoiser.arguments(extra)
            found[0].both = joined_arguments(first, second, x.shape[0])
        return found
    if _is_clipped(denoiser):
        return leaves(denoiser.inner, name, extra, x)
    return [Leaf(denoiser, name, extra, x.dtype, opens(denoiser))]


def answer(denoiser: object, ask: Asker, y: Form, level: float, leaf: int = 0) -> Form:
    """D at y, a form over what the networks return; `leaf` is the number of its first one."""
    if folds_map(denoiser):
        return _carried(denoiser, ask, y, level, 0.0, leaf)
    if _is_sum(denoiser):
        weights = denoiser.weights(level)
        wanted = asked(weights)
        if len(wanted) == 2 and denoiser.one_call:
            c_skip, c_out, c_in, c_noise, dtype = _coefficients(denoiser.sides[0], level)
            outputs = ask.call(leaf, c_in, c_noise, dtype, pair=True)
            answers = [c_skip * y + c_out * f for f in outputs]
        else:
            answers = [answer(denoiser.sides[k], ask, y, level, leaf + k) for k in wanted]
        total = Form({})
        for k, d in zip(wanted, answers, strict=True):
            total = total + weights[k] * d
        return total
    if _is_clipped(denoiser):
        return ask.clamp(answer(denoiser.inner, ask, y, level, leaf), denoiser.bounds)
    c_skip, c_out, c_in, c_noise, dtype = _coefficients(denoiser, level)
    (f,) = ask.call(leaf, c_in, c_noise, dtype)
    return c_skip * y + c_out * f


def mapped(model: object, ask: Asker, y: Form, level: float, to: float) -> Form:
    """The state at `to` of a flow map, a form over what the network returns.

    A function of one time answers with where it ends.
    """
    if folds_map(model):
        return _carried(model, ask, y, level, to, 0)
    if end_of(model) is not None:
        return answer(model, ask, y, level)
    (f,) = ask.call(0, 1.0, level, None, end=to)
    return f


def _carried(model: FlowMap, ask: Asker, y: Form, level: float, to: float, leaf: int) -> Form:
    a, b = model.skip_out(level, to)
    c_noise, *end = model.times(level, to)
    c_in = model.c_in(level)
    (f,) = ask.call(leaf, c_in, c_noise, model.dtype, end=end[0] if end else None)
    total: Form = a * y + b * f
    return total


def _network(denoiser: Preconditioned) -> Any:
    """What is called: the network itself, unless a subclass does something around it."""
    plain = type(denoiser).network is Preconditioned.network and "network" not in vars(denoiser)
    return denoiser.net if plain else denoiser.network


def _is_sum(denoiser: object) -> TypeGuard[Guided]:
    """Whether this is guidance of networks or callables: a weighted sum of two outputs."""
    return (
        opens(denoiser)
        and isinstance(denoiser, Guided)
        and type(denoiser).at is Guided.at
        and "at" not in vars(denoiser)
        and not denoiser.rescale
        and not any(map(opens, denoiser.sides))
    )


def _is_clipped(denoiser: object) -> TypeGuard[Clipped]:
    """Whether this is a denoiser limited to bounds, and nothing else."""
    return (
        opens(denoiser)
        and isinstance(denoiser, Clipped)
        and type(denoiser).rewrite is Clipped.rewrite
        and "rewrite" not in vars(denoiser)
    )


def _coefficients(
    denoiser: object, level: float
) -> tuple[float, float, float, float, torch.dtype | None]:
    """(c_skip, c_out, c_in, c_noise, dtype of the network's input); a callable answers D itself."""
    if folds(denoiser):
        return (*denoiser.coefficients(level), denoiser.dtype)
    return 0.0, 1.0, 1.0, level, None
