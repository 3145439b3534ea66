"""From the forms of a run to launches: the one compile function of the engine.

Every form over the answers of a model becomes one over what its networks return. A launch takes the
state and four more tensors. Three ways are tried in turn: earlier answers stay forms; earlier
answers are kept as second outputs; every answer becomes a tensor.

Where the first network of the next step reads c_in x in the precision of the states, a step leaves
that tensor as the state: x = (c_in x) / c_in goes into the weights, and x itself is written only
where somebody wants it. A step then moves no more memory than one whose model reads x.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from cmsolvers.engine.answers import answer, mapped
from cmsolvers.engine.forms import Form, Symbol, Weight, form_of
from cmsolvers.engine.program import (
    Call,
    Draw,
    Given,
    Instruction,
    Launch,
    Out,
    Program,
    Scaled,
    Score,
    Show,
    Wants,
    assign,
)
from cmsolvers.engine.symbols import Ask, Noise, Past, State, TracedStep
from cmsolvers.engine.trace import Trace
from cmsolvers.ops.step import MAX_INPUTS

_WAYS = ("forms", "kept", "tensors")
_LEAST = 1e-30  # of c_in, so that float32 holds it and its inverse


class _TooWideError(Exception):
    """A launch would need more tensors than it takes."""


class _Clamp(Symbol):
    """A form limited to bounds."""

    __slots__ = ("bounds", "inner")

    def __init__(self, inner: Form, bounds: tuple[float, float]) -> None:
        super().__init__("clamp")
        self.inner, self.bounds = inner, bounds


def lower(
    trace: Trace,
    denoiser: object,
    dtype: torch.dtype,
    wants: Wants,
    part: tuple[int, int] | None = None,
) -> Program:
    """Make a program of a run.

    Args:
        trace: of the solver.
        denoiser: whose answers are wanted; only its coefficients are read.
        dtype: of the states.
        wants: what the program is to make.
        part: the first step, and that before which the run ends; None is all steps.
    """
    whole = 0, len(trace.steps)

    def lowered(
        part: tuple[int, int], wants: Wants, ways: tuple[str, ...]
    ) -> tuple[Program, tuple[str, ...]]:
        for k, way in enumerate(ways):
            try:
                return _Lowering(trace, denoiser, dtype, wants, part, way).program(), ways[k:]
            except _TooWideError:
                continue
        raise AssertionError("the last way takes every form")

    if part is None or part == whole:
        return lowered(whole, wants, _WAYS)[0]
    # The way of the whole run, so that a part has its bits.
    every = replace(wants, density="made" if wants.density else "")
    return lowered(part, wants, lowered(whole, every, _WAYS)[1])[0]


@dataclass(eq=False)
class _Answer:
    """An answer of the model as `answers.answer` gave it.

    Attributes:
        y: stands for the state that was asked about.
        form: D over y and the outputs.
        calls: (leaf, c_in, times, dtype, outputs) of each call of a network.
        dtype: of the states.
        told: of what is shown to a callable without a dtype of its own.
        clamps: whether bounds are in it.
    """

    y: State = field(default_factory=lambda: State("y"))
    form: Form = field(default_factory=lambda: Form({}))
    calls: list[tuple[int, float, tuple[float, ...], torch.dtype, tuple[Out, ...]]] = field(
        default_factory=list
    )
    dtype: torch.dtype = torch.float32
    told: torch.dtype = torch.float32
    clamps: bool = False

    def call(
        self,
        leaf: int,
        c_in: float,
        c_noise: float,
        dtype: torch.dtype | None,
        pair: bool = False,
        end: float | None = None,
    ) -> tuple[Form, ...]:
        """As in `answers.Asker`."""
        outs = tuple(Out(f"F{leaf + k}") for k in range(2 if pair else 1))
        times = (c_noise,) if end is None else (c_noise, end)
        self.calls.append((leaf, c_in, times, dtype or self.told, outs))
        return tuple(map(form_of, outs))

    def clamp(self, inner: Form, bounds: tuple[float, float]) -> Form:
        """As in `answers.Asker`."""
        self.clamps = True
        return form_of(_Clamp(inner, bounds))

    def inputs(self) -> list[tuple[float, torch.dtype]]:
        """The inputs of the networks besides y itself, each once, in order."""
        wanted = ((c_in, dtype) for _, c_in, _, dtype, _ in self.calls)
        return list(dict.fromkeys(key for key in wanted if key != (1.0, self.dtype)))

    def plain(self) -> bool:
        """Whether a network is called on y itself."""
        return any((c_in, dtype) == (1.0, self.dtype) for _, c_in, _, dtype, _ in self.calls)

    def replaces_state(self) -> bool:
        """Whether the one input of the networks can stand for y."""
        wanted = self.inputs()
        if len(wanted) != 1 or self.plain():
            return False
        c_in, dtype = wanted[0]
        return dtype is self.dtype and _LEAST < abs(c_in) < 1.0 / _LEAST


@dataclass(eq=False)
class _Inline:
    """An answer or slope that a launch makes on the way, from the state and one output.

    Attributes:
        symbol: what stands for it in forms.
        source: the output.
        basis: its weights of the state and the output.
        clamp: bounds, if any.
    """

    symbol: State
    source: Symbol
    basis: tuple[Weight, Weight]
    clamp: tuple[float, float] | None


class _Lowering:
    def __init__(
        self,
        trace: Trace,
        denoiser: object,
        dtype: torch.dtype,
        wants: Wants,
        part: tuple[int, int],
        way: str,
    ) -> None:
        self._trace, self._denoiser = trace, denoiser
        self._dtype, self._told = dtype, wants.told or dtype
        self._fused, self._shown = wants.fused, wants.shown
        self._states = wants.states or wants.shown
        self._history, self._density, self._way = wants.history, wants.density, way
        self._part, self._steps = part, trace.steps[slice(*part)]
        self._means: dict[Symbol, Form] = {}
        self._scaled: dict[tuple[Symbol, float, torch.dtype], Scaled] = {}
        self._drawn: set[Symbol] = set()
        self._answers = {ask: self._answered(ask) for step in self._steps for ask in step.asks}
        self._code: list[Instruction] = []
        self._tables: list[list[float]] = []
        self._places: list[tuple[int, float]] = []
        self._x: Symbol  # where the state is
        self._kept: set[Symbol] = set()
        self._inline: set[Symbol] = set()
        self._shared: Form | None = None
        self._next: Symbol  # the new state whose density is wanted

    def _answered(self, ask: Ask) -> _Answer:
        found = _Answer(dtype=self._dtype, told=self._told)
        y = form_of(found.y)
        if ask.to is None:
            found.form = answer(self._denoiser, found, y, ask.level)
        else:
            found.form = mapped(self._denoiser, found, y, ask.level, ask.to)
        return found

    def program(self) -> Program:
        steps, ends, kept = [], [], []
        begin, (start, stop) = self._steps[0], self._part
        first = begin.x if begin.churn is None else State("x")
        self._x = first
        given: list[Symbol] = []
        for past in self._trace.kept_for(start):
            given.append(Given(past.name))
            self._means[past] = form_of(given[-1])
        if self._density == "given":
            self._next = Given("the new state")
            given.append(self._next)
        for i, step in enumerate(self._steps, start):
            self._code, self._shared = [], None
            last = i + 1 == stop or self._trace.steps[i + 1].churn is not None
            after = None if last else self._trace.steps[i + 1]
            ends.append(State(f"x{i + 1}") if after is None else after.x)
            if i == start > 0 and step.churn is None:
                self._resume(step)
            self._step(i, step, ends[-1], after)
            if i + 1 == stop and self._history:
                pasts = self._trace.kept_for(stop)
                kept = [self._tensor(self._expand(form_of(past)), past.name) for past in pasts]
            steps.append(self._code)
        tables, places, dtype = self._tables, self._places, self._dtype
        program = assign(steps, first, ends, tables, places, dtype, given, kept)
        program.first = start
        return program

    # --- one step ---------------------------------------------------------------------------------

    def _step(self, i: int, step: TracedStep, end: State, after: TracedStep | None) -> None:
        if step.churn is not None:
            normal, weight, kept = step.churn
            self._arrive(kept * form_of(self._x) + weight * form_of(normal), step.x, step)
        (self._x,) = self._expand(form_of(step.x)).terms
        inline = None
        for j, ask in enumerate(step.asks):
            self._ask(i, j, ask, step)
            if j == 0:
                inline = self._first_answer(ask, step)
            if self._shown and j == 0:
                self._show(i, step, ask)
        if self._shown and not step.asks:
            self._code.append(Show(step.x, None, *self._trace.entry(i)))
        result = step.result if self._shared is None else self._shared
        total = self._expand(result)
        normals = [symbol for symbol in total.terms if isinstance(symbol, Noise)]
        if self._density and normals:
            mean, spread = self._mean(total, normals[0], inline), total.terms[normals[0]]
            assert isinstance(spread, float)
            if self._density == "made":
                self._arrive(form_of(mean) + spread * form_of(normals[0]), end, after)
            made = end if self._density == "made" else self._next
            self._code.append(Score(mean, made, abs(spread), i))
        else:
            self._arrive(total, end, after, inline)
        self._x = end

    def _mean(self, total: Form, normal: Symbol, inline: _Inline | None) -> State:
        """Launch a new state without its noise."""
        mean = State("mean")
        rest = Form({symbol: w for symbol, w in total.terms.items() if symbol is not normal})
        self._emit(rest, mean, None, inline)
        return mean

    def _resume(self, step: TracedStep) -> None:
        """In a cut run the state is what it is in the whole run: the network's input, maybe."""
        wish = self._wish(step)
        if wish is not None:
            self._input(*wish)
            self._stand_in(step, wish)

    def _arrive(
        self, form: Form, state: State, step: TracedStep | None, inline: _Inline | None = None
    ) -> None:
        """Launch a state, and what the first network of the step that begins there reads."""
        wish = self._wish(step)
        if inline is not None and inline.symbol in self._kept:
            wish = None  # the second output is taken
        out: State | None = state
        if step is not None and wish is not None and not (self._states or self._density):
            out = None if self._answers[step.asks[0]].replaces_state() else state
        self._emit(form, out, wish, inline)
        if step is not None and wish is not None:
            self._stand_in(step, wish)

    def _stand_in(self, step: TracedStep, shown: tuple[Symbol, float, torch.dtype]) -> None:
        """From now on the network's input is the state, where it can be."""
        if self._answers[step.asks[0]].replaces_state():
            self._means[step.x] = Form({self._scaled[shown]: 1.0 / shown[1]})

    def _ask(self, i: int, j: int, ask: Ask, step: TracedStep) -> None:
        """Make the state that is asked about, call the networks on it, and say what D means."""
        found, y = self._answers[ask], self._expand(ask.y)
        base, state = y, step.x
        if _only(ask.y) is not step.x:
            state = State(f"y{i}.{j}")
            noisy = any(isinstance(s, Noise) for s in y.terms)
            wanted, needed = found.inputs(), noisy or found.clamps or self._way == "tensors"
            stands_in = found.replaces_state()
            own = found.plain() or len(wanted) != 1 or (needed and not stands_in)
            wish = (state, *wanted[0]) if wanted else None
            self._emit(y, state if own else None, wish)
            self._share_noise(y, step)
            if needed:
                base = form_of(state)
                if wish is not None and stands_in:
                    base = Form({self._scaled[wish]: 1.0 / wish[1]})
        for leaf, c_in, times, dtype, outs in found.calls:
            while len(self._tables) <= leaf:
                self._tables.append([])
            table = self._tables[leaf]
            rows = range(len(table), len(table) + len(times))
            table.extend(times)
            shown, end = self._input(state, c_in, dtype), rows[1] if len(rows) > 1 else None
            self._code.append(
                Call(leaf, shown, outs, rows[0], ask.level, len(self._places), end=end)
            )
        self._places.append((i, ask.level))
        d = _at(found.form, found.y, base)
        self._means[ask] = d
        if self._way == "tensors" or (found.clamps and (j or len(step.asks) > 1)):
            self._means[ask] = form_of(self._tensor(self._without_clamps(d), f"D{i}.{j}"))

    def _share_noise(self, y: Form, step: TracedStep) -> None:
        """Leave the noise of y, with the state, to a step that reads two normals.

        A launch makes one normal. Where the end of the step needs that of y and another one, the
        launch of y also makes the part of x and its own normal.
        """
        made = [s for s in y.terms if isinstance(s, Noise)]
        total = self._expand(step.result)
        both = [s for s in total.terms if isinstance(s, Noise)]
        launch = self._code[-1]
        if not self._fused or len(both) < 2 or made != both[:1] or not isinstance(launch, Launch):
            return
        if launch.x is not step.x or launch.second is not None:
            return
        base = State("x and its noise")
        launch.second = ("pair", total.terms.get(step.x, 0.0), total.terms[made[0]])
        launch.other, launch.dtype = base, self._dtype
        self._shared = Form(
            {base: 1.0} | {s: w for s, w in total.terms.items() if s not in (step.x, made[0])}
        )

    def _first_answer(self, ask: Ask, step: TracedStep) -> _Inline | None:
        """Keep the answer for later steps, or let the step's launch make it, where it must."""
        d = self._means[ask]
        clamp = _only(d)
        clamped = isinstance(clamp, _Clamp)
        # What has bounds is no form over the outputs, so later steps need the tensor.
        kept = bool(step.kept) and (clamped or self._way != "forms")
        if not (clamped or kept):
            return None
        slope = any(step.kept)
        bounds: tuple[float, float] | None = None
        if isinstance(clamp, _Clamp) and not (kept and slope):
            bounds, inner = clamp.bounds, self._without_clamps(clamp.inner)
        else:  # the slope of a clamped D needs that D first
            inner = form_of(self._tensor(d, "D")) if clamped else self._without_clamps(d)
        others = [s for s in inner.terms if s is not self._x]
        if len(others) != 1 or len(step.asks) > 1:
            inner = form_of(self._tensor(inner, "D"))
            others = list(inner.terms)
        source, x = others[0], self._expand(form_of(step.x))
        a, b = inner.terms.get(self._x, 0.0), inner.terms[source]
        inline = State("d" if slope else "D")
        if kept and not slope and bounds is None and _only(inner) is source:
            self._means[step.kept[False]] = form_of(source)  # it is a tensor already
            self._means[ask] = form_of(source)
            return None
        if slope:
            path, level = self._trace.path, step.start
            a = path.slope(x.terms[self._x], a, level)
            b = path.slope(0.0, b, level)
            self._means[ask] = path.clean(x, form_of(inline), level)
        else:
            self._means[ask] = form_of(inline)
        for past in step.kept.values() if kept else ():
            self._means[past] = form_of(inline)
        if len(step.asks) > 1:
            self._emit(a * form_of(self._x) + b * form_of(source), inline)
            return None
        self._inline.add(inline)
        if kept:
            self._kept.add(inline)
        return _Inline(inline, source, (a, b), bounds)

    def _show(self, i: int, step: TracedStep, ask: Ask) -> None:
        """Make D for the callback."""
        known, found = _only(self._means[ask]), self._answers[ask]
        if known is None or known in self._inline:
            known = self._tensor(_at(found.form, found.y, self._expand(form_of(step.x))), "D")
        self._code.append(Show(step.x, known, *self._trace.entry(i)))

    # --- forms ------------------------------------------------------------------------------------

    def _expand(self, form: Form) -> Form:
        """The form over tensors and noise alone."""

        def meaning(symbol: Symbol) -> Form | None:
            known = self._means.get(symbol)
            if known is not None:
                return known
            return self._expand(symbol.meaning) if isinstance(symbol, Past) else None

        return form.replace(meaning)

    def _without_clamps(self, form: Form) -> Form:
        """The form with every clamped part made a tensor, but for a form that is one clamp."""

        def meaning(symbol: Symbol) -> Form | None:
            return (
                form_of(self._tensor(form_of(symbol), "D")) if isinstance(symbol, _Clamp) else None
            )

        return form.replace(meaning)

    def _tensor(self, form: Form, name: str) -> Symbol:
        """A tensor with the value of a form; its clamps come first."""
        only = _only(form)
        if isinstance(only, _Clamp):
            inner = self._without_clamps(only.inner)
            others = [s for s in inner.terms if not isinstance(s, State)]
            states = [s for s in inner.terms if isinstance(s, State)]
            if len(others) != 1 or len(states) > 1:
                others, states = [self._tensor(inner, name)], []
                inner = form_of(others[0])
            x = states[0] if states else self._x
            result = State(name)
            basis = (inner.terms.get(x, 0.0), inner.terms[others[0]])
            inline = _Inline(State("clamped"), others[0], basis, only.bounds)
            self._emit(form_of(inline.symbol), result, inline=inline, x=x)
            return result
        if only is not None:
            return only
        result = State(name)
        self._emit(self._without_clamps(form), result)
        return result

    # --- launches ---------------------------------------------------------------------------------

    def _wish(self, step: TracedStep | None) -> tuple[Symbol, float, torch.dtype] | None:
        """The network's input that the first question of a step needs, at its own state."""
        if step is None or not step.asks or _only(step.asks[0].y) is not step.x:
            return None
        wanted = self._answers[step.asks[0]].inputs()
        return (step.x, *wanted[0]) if wanted else None

    def _input(self, y: Symbol, c_in: float, dtype: torch.dtype) -> Symbol:
        """The tensor c_in y; made now unless a launch left it as its second output."""
        if (c_in, dtype) == (1.0, self._dtype):
            return y
        key = (y, c_in, dtype)
        if key not in self._scaled:
            self._scaled[key] = Scaled("c_in y", dtype)
            self._code.append(
                Launch(y, (), (1.0,), None, second=c_in, other=self._scaled[key], dtype=dtype)
            )
        return self._scaled[key]

    def _emit(
        self,
        form: Form,
        out: State | None,
        wish: tuple[Symbol, float, torch.dtype] | None = None,
        inline: _Inline | None = None,
        x: Symbol | None = None,
    ) -> None:
        """Launch a form; `wish` is an input of the next call, which comes as second output."""
        terms = dict(form.terms)
        normals = [s for s in terms if isinstance(s, Noise)]
        if self._fused and len(normals) > 1:  # a launch makes one of them
            if self._way != "tensors":
                raise _TooWideError
            part, last = State("part"), normals[-1]
            rest = terms.pop(last)
            self._emit(Form(terms), part, inline=inline, x=x)
            self._emit(form_of(part) + rest * form_of(last), out, wish, x=part)
            return
        w_z, draw = self._noise(terms)
        if x is None:
            states = [
                s for s in terms if isinstance(s, State) and s is not (inline and inline.symbol)
            ]
            x = self._x if inline or self._x in terms or not states else states[0]
        inputs = [s for s in terms if s is not x]
        launch = Launch(x, (), (), out, w_z, draw)
        if inline is not None and (inline.symbol in terms or inline.clamp is None):
            inputs = [inline.symbol, *(s for s in inputs if s is not inline.symbol)]
            launch.basis, launch.clamp = inline.basis, inline.clamp
        row = [terms.get(s, 0.0) for s in (x, *inputs)]
        tensors = [inline.source if inline and s is inline.symbol else s for s in inputs]
        if len(tensors) > MAX_INPUTS:
            if self._way != "tensors" or inline is not None:
                raise _TooWideError
            part = State("part")
            kept = {s: terms.pop(s) for s in (x, *inputs[:MAX_INPUTS]) if s in terms}
            self._emit(Form(kept), part, x=x)
            self._emit(form_of(part) + Form(terms), out, wish, x=part)
            return
        launch.inputs, launch.row = tuple(tensors), tuple(row)
        if inline is not None and inline.symbol in self._kept:
            launch.second, launch.other, launch.dtype = True, inline.symbol, self._dtype
        elif wish is not None:
            _, c_in, dtype = wish
            launch.second, launch.dtype = c_in, dtype
            launch.other = self._scaled[wish] = Scaled("c_in y", dtype)
        self._code.append(launch)

    def _noise(self, terms: dict[Symbol, Weight]) -> tuple[Weight, int]:
        """Take the noise out of a row: weight and draw of built-in noise, or tensors in it."""
        normals = [s for s in terms if isinstance(s, Noise)]
        if not self._fused:
            for normal in normals:
                if normal not in self._drawn:
                    self._drawn.add(normal)
                    self._code.append(Draw(normal.span, normal))
            return 0.0, 0
        return (terms.pop(normals[0]), normals[0].draw) if normals else (0.0, 0)


def _at(form: Form, y: Symbol, base: Form) -> Form:
    """An answer at a state: inside of bounds, too."""

    def meaning(symbol: Symbol) -> Form | None:
        if isinstance(symbol, _Clamp):
            return form_of(_Clamp(_at(symbol.inner, y, base), symbol.bounds))
        return base if symbol is y else None

    return form.replace(meaning)


def _only(form: Form) -> Symbol | None:
    """The symbol that the form is, if it is one."""
    if len(form.terms) != 1:
        return None
    ((symbol, weight),) = form.terms.items()
    return symbol if isinstance(weight, float) and weight == 1.0 else None
