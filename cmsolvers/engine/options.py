"""Keyword arguments of solvers: their checks and texts, each in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.checks import Levels

NoiseSampler: TypeAlias = Callable[[Any, Any], Tensor]
"""`noise_sampler(start, end)`: numbers, or float64 [B] where each sample has its own steps."""


@dataclass(frozen=True, slots=True)
class Option:
    """A keyword argument of a solver.

    Attributes:
        name: of the argument.
        default: its value where it is not given.
        checked: `checked(name, value)` gives the value that the solver works with, or raises.
        text: for the docstring.
    """

    name: str
    default: Any
    checked: Callable[[str, Any], Any]
    text: str


def counted(least: int, most: int | None = None) -> Callable[[str, Any], int]:
    """A check for an int of at least `least` and at most `most`."""
    return partial(check.count, least=least, most=most)


def chosen(*known: str) -> Callable[[str, Any], str]:
    """A check for one of some strings."""
    return partial(check.choice, known=known)


S_NOISE = Option("s_noise", 1.0, check.non_negative, "factor on all noise; not negative.")
CHURN = (
    Option(
        "s_churn",
        0.0,
        check.non_negative,
        "how much noise is added before the steps, over all of them; 0 solves the ODE. Before a "
        "step from a level in [s_tmin, s_tmax] noise lifts the state to where sigma / alpha is "
        "1 + gamma times as large, gamma = min(s_churn / n, sqrt 2 - 1): sigma_hat = "
        "sigma (1 + gamma) in Karras coordinates.",
    ),
    Option("s_tmin", 0.0, check.non_negative, "smallest level with churn."),
    Option(
        "s_tmax", math.inf, partial(check.non_negative, infinite=True), "largest level with churn."
    ),
)


def eta(default: float, text: str, *, share: bool = False) -> Option:
    """How much noise a step adds; `share` bounds it to [0, 1]."""
    share_of_noise = partial(check.within, low=0.0, high=1.0)
    return Option("eta", default, share_of_noise if share else check.non_negative, text)


def option(default: object, checked: Callable[[str, Any], Any], text: str) -> Any:
    """A field of a dataclass of options: default, check and text as in `Option`."""
    return field(default=default, metadata={"checked": checked, "text": text})


def options_of(kind: type) -> list[Option]:
    """The options that a dataclass holds; those of a subclass come before those of its base."""
    bases = [getattr(base, "__dataclass_fields__", {}) for base in reversed(kind.__mro__)]

    def depth(f: Field[Any]) -> int:
        return next(i for i, known in enumerate(bases) if f.name in known)

    own_first = sorted(fields(kind), key=depth, reverse=True)
    return [Option(f.name, f.default, **f.metadata) for f in own_first]


def _any(_: str, value: object) -> object:
    return value


@dataclass(frozen=True)
class Shared:
    """The options of every solver with fixed steps, as values; adaptive ones extend them."""

    seed: noise.SeedLike = option(  # noqa: RUF009
        None,
        _any,
        "an int in [0, 2^64), an int64 tensor [B] or a sequence of ints (one seed per sample), a "
        "torch.Generator or one per sample, a `noise.Key`, or None: one is drawn from torch's "
        "generator if noise is needed. The same seed is the same noise for the next batch too: "
        "where batches are parts of one job give `noise.Key(0, offset=done)`, `done` counting the "
        "samples before, and in steps of anything else `noise.Seeds(0).at(step)`.",
    )
    noise_sampler: NoiseSampler | None = option(  # noqa: RUF009
        None,
        check.optional_function,
        "`noise_sampler({start}, {end}) -> Tensor`, unit normal in the shape of x, in place of the "
        "built-in noise{noise_spans}.",
    )
    extra_args: Mapping[str, Any] | None = option(
        None, check.options, "dict of further keyword arguments for the {model}."
    )
    callback: Callable[[dict[str, Any]], object] | None = option(  # noqa: RUF009
        None,
        check.optional_function,
        "called once per step, after its first evaluation, with {entry} What it raises ends the "
        "run.",
    )
    progress: bool = option(False, check.flag, "show a bar with the {level} and the NFE.")
    return_info: bool = option(False, check.flag, "return (x, `Info`).")
    check_nan: bool = option(
        False,
        check.flag,
        "raise ValueError at the end of the run if an output of the {model} was not finite, naming "
        "step, {level} and sample. No step waits for the device.",
    )
    trajectory: Levels | bool | None = option(  # noqa: RUF009
        None,
        _any,
        "True for the state at every {level} of the run, or the {level}s whose states are wanted. "
        "They are copied to `info.trajectory`, [K, B, ...], with `info.levels` beside them, and "
        "(x, info) is returned.",
    )
    grad: bool = option(
        False,
        check.flag,
        "let autograd record the run, for derivatives by x, by `extra_args` or by the parameters "
        "of the {model}, but not by {level}s. By default the run records nothing, needs less "
        "memory, and warns where x asks for a gradient.",
    )


DENSITY_FORMS = ("sum", "mean", "unnormalised")


def density_form(name: str, value: object) -> str:
    """The form that is named, "sum" for True, an empty string for False."""
    if isinstance(value, str):
        return check.choice(name, value, DENSITY_FORMS)
    return DENSITY_FORMS[0] if check.flag(name, value) else ""


def _stop(name: str, value: object) -> int | None:
    return None if value is None else check.count(name, value)


def _tensors(name: str, value: object) -> tuple[Tensor, ...] | None:
    if value is None:
        return None
    if isinstance(value, Tensor) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence of tensors; got {check.describe(value)}")
    return tuple(check.state(f"{name}[{i}]", entry) for i, entry in enumerate(value))


@dataclass(frozen=True)
class Fixed(Shared):
    """The options of solvers whose steps are known before the run."""

    start: int = option(
        0,
        counted(0),
        "number of the first step, not negative: x is the state at its {level}. With the same seed "
        "the steps from `start` to `stop` have the noise that they have in the whole run, so that "
        "two halves give the whole, to the bit for one-step methods and states of float32 or more.",
    )
    stop: int | None = option(
        None, _stop, "number of the step before which the run ends, above `start`; None is the end."
    )
    log_prob: str = option(
        False,
        density_form,
        "True for log p of each new state given the one before, as `info.log_prob`, float64 "
        "[steps, B], in nats; (x, info) is returned, and states of a trajectory keep the precision "
        'of the run. "sum" is True, all constants included; "mean" is that over the number of '
        'elements; "unnormalised" is -mean (x - mean)^2. Steps without noise have 0; a solver '
        "whose steps are not Gaussian raises ValueError. See `step_log_prob`.",
    )


@dataclass(frozen=True)
class OnLevels(Fixed):
    """The options of samplers on noise levels with fixed steps."""

    history: tuple[Tensor, ...] | None = option(
        None,
        _tensors,
        "what a multistep method keeps of the steps before `start`: `info.history` of the run that "
        "stopped there.",
    )


def _extended(known: Sequence[Option], kind: type) -> list[Option]:
    """Options, and after them those that a dataclass has besides."""
    names = {one.name for one in known}
    return [*known, *(one for one in options_of(kind) if one.name not in names)]


SHARED = options_of(Shared)
FIXED = _extended(SHARED, Fixed)
ON_LEVELS = _extended(FIXED, OnLevels)
