"""Solvers of any SDE or ODE in time: what their formulas may ask, and how they run.

For the library's own SDEs all coefficients are numbers on the host: the formula is run once for all
steps, as on noise levels. For a user's SDE, and where a step is not linear, each step is launched
as its formula asks for it.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.engine import catalogue
from cmsolvers.engine.fields import Library, check_sde, checked_diffusion, is_noisy, known, terms
from cmsolvers.engine.forms import Form, Symbol, Weight, form_of
from cmsolvers.engine.live import Held, Live, Normal, held
from cmsolvers.engine.machine import NoiseSampler, transformed
from cmsolvers.engine.observers import BadOutputs, Info, Recorder, bar
from cmsolvers.engine.options import SHARED, Option
from cmsolvers.engine.outputs import Outputs, StaticOutputError
from cmsolvers.engine.run import key_of, run
from cmsolvers.engine.solver import Result, Text, public
from cmsolvers.engine.trace import Ask, Formula, Noise, State, Trace, TracedStep
from cmsolvers.processes.sde import ScoreSDE, SDELike

if TYPE_CHECKING:
    from cmsolvers.checks import Levels

_MOST_TRACES, _MOST_STEPS = 64, 1024
_TRACES: OrderedDict[object, Trace] = OrderedDict()


class TimeStep(Protocol):
    """One step, and what a formula may ask of it.

    Attributes:
        x: the state at the start.
        t: the time there.
        to: the time at the end.
        dt: to - t, negative in reverse time.
        index: number of the step, from 0.
        last: whether it is the last one.
        additive: whether the diffusion depends on time alone.
        user_noise: whether a noise_sampler replaces the built-in noise.
    """

    x: Form
    t: float
    to: float
    dt: float
    index: int
    last: bool
    additive: bool
    user_noise: bool

    def drift(self, y: Form, t: float) -> Form:
        """The drift at y."""

    def diffusion(self, y: Form, t: float) -> Weight:
        """The diffusion at y: a number, an entry per sample or one per element."""

    def z(self, k: int = 0, span: tuple[float, float] | None = None) -> Form:
        """The k-th unit normal of the step; a noise_sampler is asked for the span."""

    def W(self) -> Form:
        """The increment of the Brownian motion over the step, sqrt|dt| z."""


class _Traced:
    """A step of an SDE of the library, before the run."""

    additive, user_noise = True, False

    def __init__(self, sde: Library, times: Sequence[float], index: int, draws: int) -> None:
        self.t, self.to = times[index], times[index + 1]
        self.dt, self.index = self.to - self.t, index
        self.last = index == len(times) - 2
        self._sde, self._draws = sde, draws
        state = State(f"x{index}")
        self.x = form_of(state)
        self.traced = TracedStep(self.t, self.t, self.to, state)
        self._normals: dict[int, Noise] = {}

    def drift(self, y: Form, t: float) -> Form:
        a, b, _ = terms(self._sde, t)
        if not isinstance(self._sde, ScoreSDE):
            return a * y
        ask = Ask(f"score{self.index}.{len(self.traced.asks)}", y, t)
        self.traced.asks.append(ask)
        return a * y + b * form_of(ask)

    def diffusion(self, y: Form, t: float) -> Weight:
        return terms(self._sde, t)[2]

    def z(self, k: int = 0, span: tuple[float, float] | None = None) -> Form:
        if k not in self._normals:
            where = span or (self.t, self.to)
            self._normals[k] = Noise(f"z{self.index}.{k}", where, self.index * self._draws + k)
        return form_of(self._normals[k])

    def W(self) -> Form:
        return math.sqrt(abs(self.dt)) * self.z()


class _Probe(_Traced):
    """A step of dx = c dt + dw with constant c: every consistent method is exact on it."""

    def __init__(self, times: Sequence[float], draws: int) -> None:
        super().__init__(_NOTHING, times, 0, draws)

    def drift(self, y: Form, t: float) -> Form:
        ask = Ask(f"c{len(self.traced.asks)}", y, t)
        self.traced.asks.append(ask)
        return form_of(ask)

    def diffusion(self, y: Form, t: float) -> Weight:
        return 1.0


_NOTHING: Any = None
_TOLERANCE = 1e-14


def check_formula(formula: Formula, draws: int, **values: object) -> None:
    """Check a formula on dx = c dt + dw, forward and backward in time.

    Each state that the drift is asked at must be where its time says, and the step must end with
    the variance |dt|.

    Raises:
        ArithmeticError: it does not.
    """
    name = getattr(formula, "__name__", "the formula")
    for times in ((0.25, 0.75), (0.75, 0.25)):
        step = _Probe(times, draws)
        result = formula(step, **values)
        asks = step.traced.asks
        for row, t in (*((ask.y, ask.level) for ask in asks), (result, step.to)):
            for kind, wanted in ((State, 1.0), (Ask, t - step.t)):
                found = _total(row, kind)
                if not abs(found - wanted) <= _TOLERANCE:
                    raise ArithmeticError(
                        f"{name}: weights of {_CALLED[kind]} must sum to {wanted:g} at t = {t:g}; "
                        f"{row} gives {found!r}"
                    )
        variance = math.fsum(
            _number(w) ** 2 for s, w in result.terms.items() if isinstance(s, Noise)
        )
        if not abs(variance - abs(step.dt)) <= _TOLERANCE:
            raise ArithmeticError(
                f"{name}: the noise of a step must have the variance {abs(step.dt):g}; "
                f"{result} gives {variance!r}"
            )


_CALLED: dict[type[Symbol], str] = {State: "the state", Ask: "the drift"}


def _total(row: Form, kind: type[Symbol]) -> float:
    return math.fsum(_number(w) for s, w in row.terms.items() if isinstance(s, kind))


def _number(weight: Weight) -> float:
    assert not isinstance(weight, Tensor)
    return weight


class LiveStep:
    """A step whose calls and launches are made as its formula asks for them."""

    def __init__(self, run: _LiveRun, x: Tensor, index: int) -> None:
        self.t, self.to = run.times[index], run.times[index + 1]
        self.dt, self.index = self.to - self.t, index
        self.last = index == len(run.times) - 2
        self.x = held(x, "x")
        self.sde: Any = run.sde
        self.additive = not getattr(run.sde, "state_dependent", False)
        self.user_noise = run.noise_sampler is not None
        self._run = run

    @property
    def key(self) -> noise.Key | None:
        """Of the built-in noise."""
        return self._run.live.key

    def tensor(self, form: Form) -> Tensor:
        """The value of a form."""
        return self._run.live.tensor(form)

    def time(self, t: float) -> Tensor:
        """A time as a tensor [B]."""
        return self._run.time(t)

    def drift(self, y: Form, t: float) -> Form:
        library = known(self.sde)
        if library is None:
            return self._run.evaluate(self, "drift", self.sde.drift, y, t)
        a, b, _ = terms(library, t)
        return a * y + b * self.score(y, t) if b else a * y

    def score(self, y: Form, t: float) -> Form:
        """The score of a reverse SDE or a probability-flow ODE."""
        return self._run.evaluate(self, "score", self.sde.score, y, t)

    def diffusion(self, y: Form, t: float) -> Weight:
        library = known(self.sde)
        if library is not None:
            return terms(library, t)[2]
        state, time = self.tensor(y), self.time(t)
        given = self.sde.diffusion(time) if self.additive else self.sde.diffusion(state, time)
        g = checked_diffusion(given, state)
        return self._run.live.keep(g) if isinstance(g, Tensor) else g

    def z(self, k: int = 0, span: tuple[float, float] | None = None) -> Form:
        return form_of(self._run.normal(self.index, k, span or (self.t, self.to)))

    def W(self) -> Form:
        return math.sqrt(abs(self.dt)) * self.z()

    def normal(self, form: Form, dtype: torch.dtype) -> Tensor:
        """The values of a unit normal."""
        (symbol,) = form.terms
        assert isinstance(symbol, Normal)
        return symbol.values(self._run.x, self._run.live.key, dtype)


class _LiveRun:
    """A run whose steps are launched one by one."""

    def __init__(
        self,
        sde: SDELike,
        x: Tensor,
        times: Sequence[float],
        draws: int,
        key: noise.Key | None,
        options: dict[str, Any],
        copies: bool,
    ) -> None:
        self.sde, self.x, self.times, self._draws = sde, x, times, draws
        self.noise_sampler: NoiseSampler | None = options["noise_sampler"]
        self._extra, self._callback = options["extra_args"] or {}, options["callback"]
        plain = not transformed()
        # Addresses cannot be asked for under a transform.
        self._outputs = Outputs(copies=copies) if plain else None
        self.live = Live(
            x,
            key,
            reuse=plain
            and not (options["grad"] or self._callback or forward_ad._current_level >= 0),
        )
        self._bad = BadOutputs(x) if options["check_nan"] else None
        self._places: list[tuple[int, float]] = []
        self._normals: dict[int, Normal] = {}
        self._shown = -1

    @property
    def nfe(self) -> int:
        """Evaluations so far."""
        return len(self._places)

    def go(
        self, formula: Formula, values: dict[str, Any], recorder: Recorder, name: str | None
    ) -> tuple[Tensor, Recorder]:
        """All steps; `name` is that of a progress bar."""
        x = self.x
        recorder.add(x)
        with bar(name is not None, name or "", len(self.times) - 1) as progress_bar:
            for i, to in enumerate(self.times[1:]):
                x = self._step(formula, values, x, i)
                recorder.add(x)
                progress_bar.advance("t", to, self.nfe)
        return x, recorder

    def _step(self, formula: Formula, values: dict[str, Any], x: Tensor, index: int) -> Tensor:
        """The state after a step."""
        self.live.begin(x)
        self._normals = {}
        if self._outputs is not None:
            self._outputs.clear()
        return self.live.launch(formula(LiveStep(self, x, index), **values))

    def time(self, t: float) -> Tensor:
        """A time as a tensor [B]."""
        return torch.full((len(self.x),), t, dtype=self.x.dtype, device=self.x.device)

    def evaluate(
        self, step: LiveStep, name: str, function: Callable[..., Tensor], y: Form, t: float
    ) -> Form:
        """What the user's drift or score returns."""
        state = self.live.tensor(y)
        out = check.model_output(name, function(state, self.time(t), **self._extra), state)
        if self._bad is not None:
            self._bad.add(len(self._places), out)
        self._places.append((step.index, t))
        if self._callback is not None and self._shown != step.index:
            self._shown = step.index
            entry = {"i": step.index, "x": state, "t": step.t, "t_next": step.to, "output": out}
            self._callback(entry)
        symbol = Held(self.live.keep(out), name)
        if self._outputs is not None:
            self._outputs.returned((out,), state)
            symbol.tensor = self._outputs.hold(out)
        return form_of(symbol)

    def normal(self, index: int, k: int, span: tuple[float, float]) -> Normal:
        """The k-th unit normal of a step."""
        if k not in self._normals:
            sampler = self.noise_sampler
            given = None
            if sampler is not None:

                def given() -> Tensor:
                    return check.model_output("noise_sampler", sampler(*span), self.x)

            self._normals[k] = Normal(index * self._draws + k, given)
        return self._normals[k]

    def check(self) -> None:
        """ValueError if an output was not finite; waits for the device if asked to look."""
        if self._bad is not None:
            self._bad.check("sde must give", "t", self._places)


class TimeSolver(Protocol):
    """A solver of SDEs and ODEs in time."""

    __name__: str

    @overload
    def __call__(
        self, sde: SDELike, x: Tensor, ts: Levels, *, return_info: Literal[True], **options: Any
    ) -> tuple[Tensor, Info]: ...

    @overload
    def __call__(
        self,
        sde: SDELike,
        x: Tensor,
        ts: Levels,
        *,
        trajectory: Literal[True] | Levels,
        **options: Any,
    ) -> tuple[Tensor, Info]: ...

    @overload
    def __call__(self, sde: SDELike, x: Tensor, ts: Levels, **options: Any) -> Tensor: ...

    def __call__(self, sde: SDELike, x: Tensor, ts: Levels, **options: Any) -> Result:
        """Integrate: the arguments are documented in each solver."""


def time_solver(
    *,
    order: str,
    nfe: str,
    source: str,
    options: Sequence[Option] = (),
    draws: Callable[..., int] = lambda **_: 1,
    checked: Callable[..., object] | None = None,
    noisy: Callable[..., bool] | None = None,
    live: bool = False,
) -> Callable[[Formula], TimeSolver]:
    """Make a solver of SDEs in time of a formula: check, run, document, enter in the catalogue.

    Args:
        order: of convergence, as text.
        nfe: evaluations for n steps, as text.
        source: paper and equation.
        options: keyword arguments of the formula.
        draws: unit normals per step, from the options.
        checked: `checked(sde, times, **options)` raises where they do not fit each other.
        noisy: whether noise is drawn even if the SDE has none, from the options.
        live: whether the formula reads tensors, so that its steps cannot be made beforehand.

    Returns:
        A decorator of `formula(step, **options) -> Form`; `TimeStep` is what it may ask.
        The first call runs `check_formula`.
    """
    own = [option.name for option in options]

    def decorate(formula: Formula) -> TimeSolver:
        name = formula.__name__

        @cache
        def check_weights() -> None:  # in the first call: helpers may stand below the formula
            defaults = {option.name: option.default for option in options}
            check_formula(formula, draws(**defaults), **defaults)

        def call(sde: Any, x: Tensor, grid: Any, values: dict[str, Any]) -> Result:
            check.state("x", x)
            check_sde(sde)
            times = check.times("ts", grid)
            mine = {key: values.pop(key) for key in own}
            if checked is not None:
                checked(sde, times, **mine)
            if not live:
                check_weights()
            library, count = known(sde), draws(**mine)
            tensors = live or (values["noise_sampler"] is not None and count > 1)
            if library is not None and not (tensors or any(map(callable, mine.values()))):
                traced = _trace(formula, library, times, mine, count)
                score = getattr(library, "score", None)
                return run(traced, score, x, name=name, model="score", **values)
            drawn = is_noisy(sde) or (noisy is not None and noisy(**mine))
            return _run_live(formula, sde, x, times, mine, count, drawn, values)

        function: TimeSolver = public(
            formula, call, (*options, *SHARED), Text("sde", "ts", "fresh")
        )
        catalogue.enter(function, order=order, nfe=nfe, noise="fresh", source=source, space="time")
        return function

    return decorate


def _trace(
    formula: Formula, sde: Library, times: tuple[float, ...], values: dict[str, Any], draws: int
) -> Trace:
    """All steps of an SDE of the library; kept, since nothing else enters."""
    process = sde.process if isinstance(sde, ScoreSDE) else sde
    stochastic = isinstance(sde, ScoreSDE) and sde.stochastic
    key = (formula, process, type(sde), stochastic, times, tuple(values.items()))
    try:
        found = _TRACES.get(key)
        keep = len(times) <= _MOST_STEPS
    except TypeError:  # a process that is not hashable
        found, keep = None, False
    if found is not None:
        _TRACES.move_to_end(key)
        return found
    steps = []
    for i in range(len(times) - 1):
        step = _Traced(sde, times, i, draws)
        step.traced.result = formula(step, **values)
        steps.append(step.traced)
    traced = Trace(tuple(steps), coordinate="t")
    if keep:
        _TRACES[key] = traced
        if len(_TRACES) > _MOST_TRACES:
            _TRACES.popitem(last=False)
    return traced


def _run_live(
    formula: Formula,
    sde: SDELike,
    x: Tensor,
    times: tuple[float, ...],
    mine: dict[str, Any],
    draws: int,
    noisy: bool,
    values: dict[str, Any],
) -> Result:
    record = partial(Recorder, "trajectory", values["trajectory"], times)
    record()  # checks the argument before anything else is done
    if not values["grad"] and x.requires_grad and torch.is_grad_enabled():
        warnings.warn(
            f"x requires a gradient, but {formula.__name__} runs without autograd; grad=True "
            "records the run",
            stacklevel=4,
        )
    with nullcontext() if values["grad"] else torch.no_grad():
        own = values["noise_sampler"] is not None
        key = key_of(values["seed"], x, needed=noisy and (not own or draws > 1))
        going = partial(_LiveRun, sde, x, times, draws, key, values)
        name = formula.__name__ if values["progress"] else None
        try:
            ended = going(copies=own or values["callback"] is not None)
            y, recorder = ended.go(formula, mine, record(), name)
        except StaticOutputError:
            ended = going(copies=True)
            y, recorder = ended.go(formula, mine, record(), name)
        ended.check()
        if not (values["return_info"] or recorder.wanted):
            return y
        return y, Info(ended.nfe, len(times) - 1, *recorder.result())
