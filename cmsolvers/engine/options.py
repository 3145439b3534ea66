"""Keyword arguments of solvers: their checks and texts, each in one place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cmsolvers import checks as check


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


def counted(least: int, most: int) -> Callable[[str, Any], int]:
    """A check for an int in [least, most]."""
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
        "step from sigma in [s_tmin, s_tmax] noise lifts the state to "
        "sigma_hat = sigma (1 + gamma), gamma = min(s_churn / n, sqrt 2 - 1).",
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


SEED = """an int in [0, 2^64), an int64 tensor [B] (one seed per sample), a torch.Generator, a
`noise.Key`, or None: one is drawn from torch's generator if noise is needed."""

SHARED = (
    Option("seed", None, lambda _, value: value, SEED),
    Option(
        "noise_sampler",
        None,
        check.optional_function,
        "`noise_sampler({start}, {end}) -> Tensor`, unit normal in the shape of x, in place of the "
        "built-in noise{noise_spans}.",
    ),
    Option("extra_args", None, check.options, "dict of further keyword arguments for the {model}."),
    Option(
        "callback",
        None,
        check.optional_function,
        "called once per step, after its first evaluation, with {entry} What it raises ends the "
        "run.",
    ),
    Option("progress", False, check.flag, "show a bar with the {level} and the NFE."),
    Option("return_info", False, check.flag, "return (x, `Info`)."),
    Option(
        "check_nan",
        False,
        check.flag,
        "raise ValueError at the end of the run if an output of the {model} was not finite, naming "
        "step, {level} and sample. The steps themselves wait for nothing.",
    ),
    Option(
        "trajectory",
        None,
        lambda _, value: value,
        "True for the state at every {level} of the run, or the {level}s whose states are wanted. "
        "They are copied to `info.trajectory`, [K, B, ...], with `info.levels` beside them, and "
        "(x, info) is returned.",
    ),
    Option(
        "grad",
        False,
        check.flag,
        "let autograd record the run, for derivatives by x, by `extra_args` or by the parameters "
        "of the {model}. By default the run records nothing and needs less memory.",
    ),
)
"""Options of every solver with fixed steps."""
