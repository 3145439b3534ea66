"""Steps in time: what a formula may ask of one, and all of a run before it begins.

For the library's own SDEs all coefficients are numbers on the host: the formula is run once for all
steps, as on noise levels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor

from cmsolvers.engine.fields import Library, terms
from cmsolvers.engine.forms import Form, Symbol, Weight, form_of
from cmsolvers.engine.latest import Latest
from cmsolvers.engine.symbols import Ask, Noise, State, TracedStep
from cmsolvers.engine.trace import MOST_STEPS, Formula, Trace, no_attribute
from cmsolvers.processes.sde import ScoreSDE

_TRACES: Latest[Trace] = Latest(64)
_TOLERANCE = 1e-14


class TimeStep(ABC):
    """One step, and what a formula may ask of it.

    Attributes:
        x: the state at the start.
        t: the time there.
        to: the time at the end.
        dt: to - t, negative in reverse time.
        index: number of the step, from 0.
        last: whether it is the last one.
        after: the time that the next step goes to; None in the last one.
        additive: whether the diffusion depends on time alone.
        user_noise: whether a noise_sampler replaces the built-in noise.
    """

    additive, user_noise = True, False

    def __init__(self, sde: Any, x: Symbol, times: Sequence[float], index: int, draws: int) -> None:
        self.sde, self._draws = sde, draws
        self.x, self.index, self.last = form_of(x), index, index == len(times) - 2
        self.t, self.to = times[index], times[index + 1]
        self.after = None if self.last else times[index + 2]
        self.dt = self.to - self.t

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(no_attribute("a step in time", self, name))

    def drift(self, y: Form, t: float) -> Form:
        """The drift at y."""
        a, b, _ = terms(self.sde, t)
        return a * y + b * self.score(y, t) if b else a * y

    def diffusion(self, y: Form, t: float) -> Weight:
        """The diffusion at y: a number, an entry per sample or one per element."""
        return terms(self.sde, t)[2]

    @abstractmethod
    def score(self, y: Form, t: float) -> Form:
        """The score of a reverse SDE or a probability-flow ODE at y."""

    @abstractmethod
    def z(self, k: int = 0, span: tuple[float, float] | None = None) -> Form:
        """The k-th unit normal of the step; a noise_sampler gets the span."""

    def _draw(self, k: int) -> int:
        """The number of the k-th draw of the step, among those of the run."""
        if not 0 <= k < self._draws:
            raise ArithmeticError(
                f"z({k}) needs draws of at least {k + 1}; the solver declares {self._draws}"
            )
        return self.index * self._draws + k

    def W(self) -> Form:
        """The increment of the Brownian motion over the step, sqrt|dt| z."""
        return math.sqrt(abs(self.dt)) * self.z()


class TracedTimeStep(TimeStep):
    """A step of an SDE of the library, before the run."""

    def __init__(self, sde: Library, times: Sequence[float], index: int, draws: int) -> None:
        state = State(f"x{index}")
        super().__init__(sde, state, times, index, draws)
        self.traced = TracedStep(self.t, self.t, self.to, state)
        self._normals: dict[int, Noise] = {}

    def score(self, y: Form, t: float) -> Form:
        return self._ask("score", y, t)

    def _ask(self, name: str, y: Form, t: float) -> Form:
        ask = Ask(f"{name}{self.index}.{len(self.traced.asks)}", y, t)
        self.traced.asks.append(ask)
        return form_of(ask)

    def z(self, k: int = 0, span: tuple[float, float] | None = None) -> Form:
        if k not in self._normals:
            where = span or (self.t, self.to)
            self._normals[k] = Noise(f"z{self.index}.{k}", where, self._draw(k))
        return form_of(self._normals[k])


def trace_in_time(
    formula: Formula, sde: Library, times: tuple[float, ...], values: dict[str, Any], draws: int
) -> Trace:
    """All steps of an SDE of the library; kept, since nothing else enters."""
    process = sde.process if isinstance(sde, ScoreSDE) else sde
    stochastic = isinstance(sde, ScoreSDE) and sde.stochastic

    def make() -> Trace:
        steps = []
        for i in range(len(times) - 1):
            step = TracedTimeStep(sde, times, i, draws)
            step.traced.result = formula(step, **values)
            steps.append(step.traced)
        return Trace(tuple(steps), coordinate="t")

    own = type(process).__module__.startswith("cmsolvers.")  # others may compare as they like
    if not own or len(times) > MOST_STEPS:
        return make()
    key = (formula, process, type(sde), stochastic, times, tuple(values.items()))
    return _TRACES.get(key, make)


_G = 1.75


class _Probe(TracedTimeStep):
    """A step of dx = c dt + g dw with constants: every consistent method is exact on it."""

    def drift(self, y: Form, t: float) -> Form:
        return self._ask("drift", y, t)

    def diffusion(self, y: Form, t: float) -> Weight:
        return _G


def check_formula(formula: Formula, draws: int, **values: object) -> None:
    """Check a formula on dx = c dt + g dw, forward and backward in time.

    Each state that the drift is asked at must be where its time says, and the step must end with
    the variance g^2 |dt|.

    Raises:
        ArithmeticError: it does not.
    """
    name = getattr(formula, "__name__", "the formula")
    for times in ((0.25, 0.75), (0.75, 0.25)):
        step = _Probe(_NOTHING, times, 0, draws)
        try:
            result = formula(step, **values)
            if not isinstance(result, Form):
                raise TypeError(f"a formula must return a form; it returned {result!r}")
        except (ArithmeticError, AttributeError, IndexError, TypeError) as error:
            error.args = (f"{name}: {error}",)
            raise
        asks = step.traced.asks
        for row, t in (*((ask.y, ask.level) for ask in asks), (result, step.to)):
            for kind, wanted in ((State, 1.0), (Ask, t - step.t)):
                found = _total(row, kind)
                if not abs(found - wanted) <= _TOLERANCE:
                    raise ArithmeticError(
                        f"{name}: weights of {_CALLED[kind]} must sum to {wanted:g} at t = {t:g}; "
                        f"{row} gives {found!r}"
                    )
        found = math.fsum(_number(w) ** 2 for s, w in result.terms.items() if isinstance(s, Noise))
        wanted = _G * _G * abs(step.dt)
        if not abs(found - wanted) <= _TOLERANCE:
            raise ArithmeticError(
                f"{name}: with the diffusion {_G:g} the noise of a step of {step.dt:g} must have "
                f"the variance {wanted:g}; {result} gives {found!r}"
            )


_NOTHING: Any = None
_CALLED: dict[type[Symbol], str] = {State: "the state", Ask: "the drift"}


def _total(row: Form, kind: type[Symbol]) -> float:
    return math.fsum(_number(w) for s, w in row.terms.items() if isinstance(s, kind))


def _number(weight: Weight) -> float:
    assert not isinstance(weight, Tensor)
    return weight
