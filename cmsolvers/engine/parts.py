"""Parts of a run: which steps, what earlier ones hand over, whether steps have a density."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from cmsolvers.engine.options import Fixed, OnLevels
from cmsolvers.engine.symbols import Noise, TracedStep
from cmsolvers.engine.trace import Trace, state_dtype

Part: TypeAlias = tuple[int, int]
"""The first step, and that before which a run ends."""


def part_of(options: Fixed, steps: int) -> Part:
    """The steps that the options ask for.

    Raises:
        ValueError: there are none.
    """
    start, stop = options.start, steps if options.stop is None else options.stop
    if stop > steps:
        raise ValueError(f"stop must be at most {steps}, the number of steps; got {stop}")
    if start >= stop:
        last = "stop" if options.stop is not None else "the number of steps"
        raise ValueError(f"start must be below {last}, {stop}; got {start}")
    return start, stop


def wants_info(options: Fixed) -> bool:
    """Whether an `Info` is wanted beside the samples, whatever the trajectory."""
    return options.return_info or bool(options.log_prob)


def history_for(
    traced: Trace, start: int, x: Tensor, options: Fixed, name: str
) -> tuple[Tensor, ...]:
    """What the steps from `start` on read of those before, in the precision of the states.

    Raises:
        ValueError: `history` is missing, holds another number of tensors, or such as do not fit x.
    """
    given = options.history if isinstance(options, OnLevels) else None
    if start == 0 and given is None:
        return ()
    wanted = len(traced.kept_for(start))
    if len(given or ()) != wanted:
        raise ValueError(
            f"history must hold the {wanted} tensors that step {start} of {name} reads of earlier "
            "steps, info.history of the run that stopped there (return_info=True); got "
            f"{'None' if given is None else len(given)}"
        )
    for i, tensor in enumerate(given or ()):
        if tensor.shape != x.shape or tensor.device != x.device:
            raise ValueError(
                f"history[{i}] must have the shape and device of x, {list(x.shape)} on {x.device}; "
                f"got {list(tensor.shape)} on {tensor.device}"
            )
    return tuple(tensor.to(state_dtype(x)) for tensor in given or ())


def check_gaussian(traced: Trace, part: Part, name: str) -> None:
    """ValueError unless the run has noise, and each new state is Gaussian given the one before.

    It is where a step adds its one normal after all evaluations.
    """
    steps = traced.steps[slice(*part)]
    for step in steps:
        normals = normals_of(step)
        inside = {s for ask in step.asks for s in ask.y.terms if isinstance(s, Noise)}
        if inside or step.churn is not None or len(normals) > 1:
            raise ValueError(
                f"log_prob must be left out for {name} here: its steps add noise before an "
                "evaluation of the model, so that the new state is not Gaussian given the old one"
            )
    if not any(map(normals_of, traced.steps)):
        raise ValueError(
            f"log_prob must be left out for {name} here: with these options no step has noise"
        )


def normals_of(step: TracedStep) -> list[Noise]:
    """The unit normals that the end of a step reads."""
    return [symbol for symbol in step.result.terms if isinstance(symbol, Noise)]
