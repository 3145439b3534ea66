"""What the forms of a step are made of: states, noise and answers of the model."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmsolvers.engine.forms import Form, Symbol


class State(Symbol):
    """The state at the start of a step, or at the end of the last one."""

    __slots__ = ()


class Noise(Symbol):
    """A unit normal of one step.

    Args:
        name: for error texts.
        span: the levels or times that a user's noise sampler is asked for.
        draw: which draw of the stream of sampler steps the built-in noise is.
    """

    __slots__ = ("draw", "span")

    def __init__(self, name: str, span: tuple[float, float], draw: int) -> None:
        super().__init__(name)
        self.span, self.draw = span, draw


class Ask(Symbol):
    """What the model answers at a state.

    Args:
        name: for error texts.
        y: the state.
        level: where it is.
        to: where a flow map is to carry it; None where the question is what the clean data is.
    """

    __slots__ = ("level", "to", "y")

    def __init__(self, name: str, y: Form, level: float, to: float | None = None) -> None:
        super().__init__(name)
        self.y, self.level, self.to = y, level, to


class Past(Symbol):
    """D or the slope at the start of an earlier step.

    Args:
        name: for error texts.
        meaning: the same over the symbols of that step.
        slope: which of the two.
    """

    __slots__ = ("meaning", "slope")

    def __init__(self, name: str, meaning: Form, slope: bool) -> None:
        super().__init__(name)
        self.meaning, self.slope = meaning, slope


@dataclass
class TracedStep:
    """One step as its formula wrote it.

    Attributes:
        sigma: level before the noise that lifts the state; a time in t-space.
        start: level where the step begins.
        to: level of the result.
        x: the state at `start`.
        churn: the unit normal that lifts the state, its weight and that of the state, if any.
        asks: the questions to the model, in order.
        result: the state at `to`.
        kept: D and slope of this step that later ones read, by whether they are slopes.
    """

    sigma: float
    start: float
    to: float
    x: State
    churn: tuple[Noise, float, float] | None = None
    asks: list[Ask] = field(default_factory=list)
    result: Form = field(default_factory=lambda: Form({}))
    kept: dict[bool, Past] = field(default_factory=dict)
