"""The instructions that a run is lowered to, and their slots.

An instruction reads and writes tensors by name: by `Symbol` while it is made, by the number of a
slot once `assign` has placed the symbols. Slots are used again as soon as nothing reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from cmsolvers.engine.forms import Symbol, Weight
from cmsolvers.engine.symbols import Noise, State

Place: TypeAlias = Any
"""A `Symbol`, and after `assign` the number of a slot; None where there is no tensor."""


@dataclass(frozen=True)
class Wants:
    """What a program is to make, the steps aside.

    Attributes:
        fused: whether launches make the noise themselves; else it comes as tensors.
        told: dtype of what a callable is shown that has none of its own; None is that of the
            states.
        shown: whether a callback sees every step.
        states: whether the state after every step is wanted.
        history: whether what later steps read of these is wanted.
        density: "made" for the log density of every new state given the one before, "given" where
            the new state is handed in and not made, "" for none.
    """

    fused: bool
    told: torch.dtype | None = None
    shown: bool = False
    states: bool = False
    history: bool = False
    density: Literal["", "made", "given"] = ""


class Out(Symbol):
    """What a network or a user's function returned."""

    __slots__ = ()


class Given(Out):
    """A tensor that the caller of a run hands in beside x."""

    __slots__ = ()


class Scaled(State):
    """A network's input c_in y, in its own dtype."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        super().__init__(name)
        self.dtype = dtype


@dataclass(eq=False)
class Instruction:
    """One instruction; `reads` and `writes` name the fields that hold its places.

    Attributes:
        frees: slots of users' tensors that nothing reads after it.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()
    frees: tuple[int, ...] = field(default=(), init=False)

    def symbols(self, names: Sequence[str]) -> Iterator[Symbol]:
        """The symbols in some fields."""
        for name in names:
            place = getattr(self, name)
            for symbol in place if isinstance(place, tuple) else (place,):
                if symbol is not None:
                    yield symbol

    def place(self, slots: Mapping[Symbol, int]) -> None:
        """Put slots in place of symbols."""
        for name in (*self.reads, *self.writes):
            place = getattr(self, name)
            if isinstance(place, tuple):
                setattr(self, name, tuple(slots[symbol] for symbol in place))
            elif place is not None:
                setattr(self, name, slots[place])


@dataclass(eq=False)
class Call(Instruction):
    """Call the network of a leaf.

    Attributes:
        leaf: which one.
        shown: its input.
        outs: its output, or those of both sides of guidance.
        row: place of its second argument in the leaf's table.
        level: the same as a number.
        evaluation: number of the evaluation.
        held: whether an output is read after a later call.
        end: place of its third argument in that table, where it has one.
    """

    reads, writes = ("shown",), ("outs",)
    leaf: int
    shown: Place
    outs: tuple[Place, ...]
    row: int
    level: float
    evaluation: int
    held: bool = False
    end: int | None = None


@dataclass(eq=False)
class Launch(Instruction):
    """One weighted step.

    Attributes:
        x: the tensor that the first weight belongs to.
        inputs: the others.
        row: weights of x and the inputs.
        out: where the result goes; None where only the second output is wanted.
        w_z: weight of built-in noise.
        draw: which draw it is.
        second: None, a factor on the result, True for the first input under `basis`, or
            ("pair", p, q) for p x + q z.
        other: where the second output goes.
        basis: (c_skip, c_out) that make D of the first input.
        clamp: bounds of D.
        dtype: of the second output.
    """

    reads, writes = ("x", "inputs"), ("out", "other")
    x: Place
    inputs: tuple[Place, ...]
    row: tuple[Weight, ...]
    out: Place
    w_z: Weight = 0.0
    draw: int = 0
    second: Weight | bool | tuple[str, Weight, Weight] | None = None
    other: Place = None
    basis: tuple[Weight, Weight] | None = None
    clamp: tuple[float, float] | None = None
    dtype: torch.dtype | None = None


@dataclass(eq=False)
class Draw(Instruction):
    """Get a unit normal for a span of levels from the user's noise sampler, or from the path."""

    writes = ("out",)
    span: tuple[float, float]
    out: Place


@dataclass(eq=False)
class Show(Instruction):
    """Call the user's callback.

    Attributes:
        x: the state at the start of the step.
        answer: the model's answer there; None where the model is not called.
        name: what the answer is called in the callback's dict.
        entry: the numbers of that dict.
    """

    reads = ("x", "answer")
    x: Place
    answer: Place
    name: str
    entry: dict[str, float]


@dataclass(eq=False)
class Score(Instruction):
    """Compute the log density of a new state given the one before, a Gaussian.

    Attributes:
        mean: of the Gaussian.
        y: the new state.
        spread: its standard deviation.
        step: number of the step.
    """

    reads = ("mean", "y")
    mean: Place
    y: Place
    spread: float
    step: int


@dataclass(eq=False)
class Program:
    """A run, ready to be executed.

    Attributes:
        steps: the instructions of each step.
        states: slot of the state after each step, None where nobody wanted it.
        slots: for each slot the dtype of the buffer that the engine owns there, None for slots of
            tensors that users' functions return.
        tables: for each leaf the times of its calls: the second arguments, and third ones.
        places: (step, level) of each evaluation.
        history: slots of what later runs read of these steps.
        first: number of the first step.
        holds: whether an output is read after a later call.
        static: whether a network is known to return the same memory at every call.
        rows: the tables as tensors, by leaf, batch, dtype, device and stream, with the version of
            each that tells whether somebody has written to it.
    """

    steps: list[list[Instruction]]
    states: list[int | None]
    slots: list[torch.dtype | None]
    tables: list[list[float]]
    places: list[tuple[int, float]]
    history: list[int] = field(default_factory=list)
    first: int = 0
    holds: bool = False
    static: bool = False
    rows: dict[object, tuple[tuple[Tensor, ...], int]] = field(default_factory=dict)

    @property
    def launches(self) -> int:
        """Kernels of a run."""
        return sum(isinstance(op, Launch) for step in self.steps for op in step)


def assign(
    steps: list[list[Instruction]],
    first: State,
    ends: Sequence[State],
    tables: list[list[float]],
    places: list[tuple[int, float]],
    dtype: torch.dtype,
    given: Sequence[Symbol] = (),
    kept: Sequence[Symbol] = (),
) -> Program:
    """Give every symbol a slot.

    Args:
        steps: instructions over symbols.
        first: the user's x, which is only read.
        ends: the state after each step.
        tables: see `Program`.
        places: see `Program`.
        dtype: of the states.
        given: what the caller hands in beside x; in the slots after that of x.
        kept: what must still be there at the end.
    """
    code = [op for step in steps for op in step]
    until = _last_uses(steps, ends, kept)
    slots: list[torch.dtype | None] = [None] * (1 + len(given))
    at: dict[Symbol, int] = {symbol: k for k, symbol in enumerate((first, *given))}
    spare: dict[torch.dtype | None, list[int]] = {}
    alive: list[Symbol] = []
    for k, op in enumerate(code):
        for symbol in op.symbols(op.writes):
            kind = _kind(symbol, dtype)
            pool = spare.setdefault(kind, [])
            if not pool:
                pool.append(len(slots))
                slots.append(kind)
            at[symbol] = pool.pop()
            alive.append(symbol)
        dead = [s for s in alive if until[s] <= k]
        alive = [s for s in alive if until[s] > k]
        for symbol in dead:
            spare[_kind(symbol, dtype)].append(at[symbol])
        op.frees = tuple(at[s] for s in dead if _kind(s, dtype) is None)
        if isinstance(op, Call):
            end = max(until[out] for out in op.outs)
            op.held = any(isinstance(after, Call) for after in code[k + 1 : end + 1])
        op.place(at)
    holds = any(isinstance(op, Call) and op.held for op in code)
    history = [at[symbol] for symbol in kept]
    return Program(
        steps, [at.get(end) for end in ends], slots, tables, places, history, holds=holds
    )


def _kind(symbol: Symbol, dtype: torch.dtype) -> torch.dtype | None:
    """Dtype of the engine's buffer for a symbol, None where a user's function makes the tensor."""
    if isinstance(symbol, (Out, Noise)):
        return None
    return symbol.dtype if isinstance(symbol, Scaled) else dtype


def _last_uses(
    steps: Sequence[Sequence[Instruction]], ends: Sequence[State], kept: Sequence[Symbol]
) -> dict[Symbol, int]:
    """The last instruction that reads each symbol, or memory that it may share."""
    until: dict[Symbol, int] = {}
    k = -1
    for step, end in zip(steps, ends, strict=True):
        for op in step:
            k += 1
            until |= dict.fromkeys((*op.symbols(op.writes), *op.symbols(op.reads)), k)
        until[end] = k  # what comes after a step reads its state
    until |= dict.fromkeys((ends[-1], *kept), k + 1)
    for op in reversed([op for step in steps for op in step]):
        if isinstance(op, Call):  # a model may return its input, or a view of it
            until[op.shown] = max(until[op.shown], *(until[out] for out in op.outs))
    return until
