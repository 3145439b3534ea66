"""Faults to plant in a loss: with any of them the exact map is no longer stationary.

A fault is `fault(patch, model, options) -> options`: it changes the library through pytest's
`monkeypatch`, the exact model, or the options that the loss is called with. (That a dropout mask of
its own in a pass is noticed is tested for every loss in `test_every_loss.py`.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.formulas import identities
from support.stationary import exact_denoiser

Options = dict[str, Any]
Fault = Callable[[Any, Any, Options], Options]
AFTER: int = 10_000
"""Draws that no test takes otherwise."""


def _through(patch: Any, change: Callable[[Evaluation, Any, tuple[State, ...]], Any]) -> None:
    """Let `change(evaluation, again, states)` see what `states` returns."""
    honest = Evaluation.states

    def states(self: Evaluation, *levels: Tensor, velocity: bool = False) -> Any:
        def again() -> tuple[State, ...]:
            return honest(self, *levels, velocity=velocity)

        return change(self, again, again())

    patch.setattr(Evaluation, "states", states)


# --- the noise, the pair, its velocity -----------------------------------------------------------


def fresh_noise(patch: Any, model: Any, options: Options) -> Options:
    """The second state, and the velocity, are made of other noise than the first state."""

    def change(at: Evaluation, again: Any, found: tuple[State, ...]) -> tuple[State, ...]:
        at.draw += AFTER
        first, *others = again()
        at.draw -= AFTER
        found[0]._velocity = first._velocity
        return (found[0], *others)

    _through(patch, change)
    return options


def reversed_velocity(patch: Any, model: Any, options: Options) -> Options:
    """The sign: the pair moves towards the data."""

    def change(at: Evaluation, again: Any, found: tuple[State, ...]) -> tuple[State, ...]:
        found[0]._velocity = -found[0].velocity
        return found

    _through(patch, change)
    return options


def other_sample(patch: Any, model: Any, options: Options) -> Options:
    """The clean sample that is compared with is the neighbour's."""

    def change(at: Evaluation, again: Any, found: tuple[State, ...]) -> tuple[State, ...]:
        at.x0 = at.x0.roll(1, 0)
        return found

    _through(patch, change)
    return options


# --- the derivative ------------------------------------------------------------------------------


def half_derivative(patch: Any, model: Any, options: Options) -> Options:
    """A wrong tangent: the network's derivative counts half."""
    honest = identities.checked_derivative

    def checked(*args: Any, **more: Any) -> Any:
        found, ratio = honest(*args, **more)
        return replace(found, derivative=0.5 * found.derivative), ratio

    patch.setattr(identities, "checked_derivative", checked)
    return options


def still_time(patch: Any, model: Any, options: Options) -> Options:
    """A wrong tangent: x moves and its time stands still."""
    honest = identities.checked_derivative

    def checked(raw: Any, points: Any, tangents: Any, **more: Any) -> Any:
        return honest(raw, points, (tangents[0], 0.0, 0.0), **more)

    patch.setattr(identities, "checked_derivative", checked)
    return options


# --- the teacher ---------------------------------------------------------------------------------


def reversed_teacher(patch: Any, model: Any, options: Options) -> Options:
    """The sign: its ODE runs the other way."""
    return {**options, "teacher": lambda x, sigma: 2.0 * x - exact_denoiser(x, sigma)}


def misled_teacher(patch: Any, model: Any, options: Options) -> Options:
    """It is told a level that is a fifth too large."""
    return {**options, "teacher": lambda x, sigma: exact_denoiser(x, 1.2 * sigma)}


def wrong_first_stage(patch: Any, model: Any, options: Options) -> Options:
    """The teacher is a consistency function, of other data."""
    raw = options["teacher"].net.raw
    patch.setattr(options["teacher"].net, "raw", lambda x, t, s: 1.5 * raw(x, t, s))
    return options


# --- the model, the options ----------------------------------------------------------------------


def wrong_map(patch: Any, model: Any, options: Options) -> Options:
    """Half as much again."""
    raw = model.net.raw
    patch.setattr(model.net, "raw", lambda x, t, s: 1.5 * raw(x, t, s))
    return options


def wrong_jumps(patch: Any, model: Any, options: Options) -> Options:
    """Right on the diagonal; off by the length of the jump elsewhere."""
    raw = model.net.raw

    def moved(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        off: Tensor = raw(x, t, s) + 0.3 * (t - s)[:, None] / (1.0 + t[:, None])
        return off

    patch.setattr(model.net, "raw", moved)
    return options


def given(**changed: Any) -> Fault:
    """Other options."""

    def fault(patch: Any, model: Any, options: Options) -> Options:
        return {**options, **changed}

    fault.__name__ = "given " + " ".join(changed)
    return fault
