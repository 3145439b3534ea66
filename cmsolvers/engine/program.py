"""The instructions that a run is lowered to, and their slots.

An instruction reads and writes tensors by name: by `Symbol` while it is made, by slot number once
`assign` has placed the symbols. Slots are reused as soon as nothing reads what is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from cmsolvers.engine.forms import Symbol, Weight
from cmsolvers.engine.trace import Noise, State

Place: TypeAlias = Any
"""A `Symbol`, and after `assign` the number of a slot (None where there is no tensor)."""


class Out(Symbol):
    """What a network or a user's function returned."""

    __slots__ = ()


class Scaled(Symbol):
    """A network's input c_in y in its own dtype."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        super().__init__(name)
        self.dtype = dtype


@dataclass(slots=True, eq=False)
class Call:
    """Call the network of a leaf.

    Attributes:
        leaf: which one.
        shown: its input.
        outs: its output, or those of both sides.
        row: place of its second argument in the leaf's table.
        level: the same as a number.
        evaluation: number of the evaluation.
        pair: whether both sides are one call on twice the batch.
        held: whether an output is still read after a later call.
        frees: slots of outputs that nothing reads after this instruction.
    """

    leaf: int
    shown: Place
    outs: tuple[Place, ...]
    row: int
    level: float
    evaluation: int
    pair: bool = False
    held: bool = False
    frees: tuple[int, ...] = ()

    def reads(self) -> Iterator[Symbol]:
        """Symbols that must be there."""
        yield self.shown

    def writes(self) -> Iterator[Symbol]:
        """Symbols that are there afterwards."""
        yield from self.outs


@dataclass(slots=True, eq=False)
class Launch:
    """One weighted step.

    Attributes:
        x: the tensor that the first weight belongs to.
        inputs: the others.
        row: weights of x and the inputs.
        out: where the result goes; None where only the second output is wanted.
        w_z: weight of built-in noise.
        draw: which draw it is.
        second: None, a factor on the result, True for the first input under `basis`, or
            ("pair", p, q).
        other: where the second output goes.
        basis: (c_skip, c_out) that make D of the first input.
        clamp: bounds of D.
        dtype: of the second output.
        frees: slots of outputs that nothing reads after this instruction.
    """

    x: Place
    inputs: tuple[Place, ...]
    row: tuple[Weight, ...]
    out: Place
    w_z: Weight = 0.0
    draw: int = 0
    second: Any = None
    other: Place = None
    basis: tuple[Weight, Weight] | None = None
    clamp: tuple[float, float] | None = None
    dtype: torch.dtype | None = None
    frees: tuple[int, ...] = ()

    def reads(self) -> Iterator[Symbol]:
        """Symbols that must be there."""
        yield self.x
        yield from self.inputs

    def writes(self) -> Iterator[Symbol]:
        """Symbols that are there afterwards."""
        yield from (s for s in (self.out, self.other) if s is not None)


@dataclass(slots=True, eq=False)
class Draw:
    """Ask the user's noise sampler, or the path, for a unit normal.

    Attributes:
        span: the levels or times it is for.
        out: where it goes.
        frees: slots of outputs that nothing reads after this instruction.
    """

    span: tuple[float, float]
    out: Place
    frees: tuple[int, ...] = ()

    def reads(self) -> Iterator[Symbol]:
        """No symbols."""
        yield from ()

    def writes(self) -> Iterator[Symbol]:
        """The normal."""
        yield self.out


@dataclass(slots=True, eq=False)
class Show:
    """Call the user's callback.

    Attributes:
        x: the state at the start of the step.
        answer: the model's answer there; None where it is not asked.
        name: what the answer is called in the callback's dict.
        entry: the numbers of that dict.
        frees: slots of outputs that nothing reads after this instruction.
    """

    x: Place
    answer: Place
    name: str
    entry: dict[str, float]
    frees: tuple[int, ...] = ()

    def reads(self) -> Iterator[Symbol]:
        """Symbols that must be there."""
        yield from (s for s in (self.x, self.answer) if s is not None)

    def writes(self) -> Iterator[Symbol]:
        """No symbols."""
        yield from ()


Instruction: TypeAlias = Call | Launch | Draw | Show


@dataclass(eq=False)
class Program:
    """A run, ready to be executed.

    Attributes:
        steps: the instructions of each step.
        states: slot of the state after each step.
        slots: for each slot the dtype of the buffer that the engine owns there, None for slots of
            tensors that users' functions return.
        tables: for each leaf the second arguments of its calls.
        calls: evaluations of the model.
        places: (step, level) of each evaluation.
        holds: whether an output is read after a later call.
        static: whether a network is known to return the same memory at every call.
    """

    steps: list[list[Instruction]]
    states: list[int]
    slots: list[torch.dtype | None]
    tables: list[list[float]]
    places: list[tuple[int, float]]
    holds: bool = False
    static: bool = False
    rows: dict[Any, Any] = field(default_factory=dict)

    @property
    def launches(self) -> int:
        """Kernels of a run."""
        return sum(isinstance(op, Launch) for step in self.steps for op in step)


def assign(
    steps: Sequence[list[Instruction]],
    first: State,
    ends: Sequence[State],
    tables: list[list[float]],
    places: list[tuple[int, float]],
    dtype: torch.dtype,
) -> Program:
    """Give every symbol a slot.

    Args:
        steps: instructions over symbols.
        first: the user's x, which is only read.
        ends: the state after each step.
        tables: see `Program`.
        places: see `Program`.
        dtype: of the states.
    """
    code = [op for step in steps for op in step]
    until = _last_uses(code, ends, steps)
    slots: list[torch.dtype | None] = [None]
    at: dict[Symbol, int] = {first: 0}
    spare: dict[torch.dtype | None, list[int]] = {}
    holds = False
    alive: list[Symbol] = []
    for k, op in enumerate(code):
        for symbol in op.writes():
            kind = _kind(symbol, dtype)
            pool = spare.setdefault(kind, [])
            if not pool:
                pool.append(len(slots))
                slots.append(kind)
            at[symbol] = pool.pop()
            alive.append(symbol)
        dead = [s for s in alive if until.get(s, k) <= k]
        alive = [s for s in alive if until.get(s, k) > k]
        for symbol in dead:
            spare[_kind(symbol, dtype)].append(at[symbol])
        op.frees = tuple(at[s] for s in dead if _kind(s, dtype) is None)
        if isinstance(op, Call):
            end = max(map(until.__getitem__, op.outs))
            op.held = any(isinstance(after, Call) for after in code[k + 1 : end + 1])
            holds = holds or op.held
        _place(op, at.__getitem__)
    states = [at[end] for end in ends]
    return Program(list(steps), states, slots, tables, places, holds)


def _kind(symbol: Symbol, dtype: torch.dtype) -> torch.dtype | None:
    """Dtype of the engine's buffer for a symbol, None where a user's function makes the tensor."""
    if isinstance(symbol, (Out, Noise)):
        return None
    return symbol.dtype if isinstance(symbol, Scaled) else dtype


def _last_uses(
    code: Sequence[Instruction], ends: Sequence[State], steps: Sequence[list[Instruction]]
) -> dict[Symbol, int]:
    """The last instruction that reads each symbol, or memory that it may share."""
    until: dict[Symbol, int] = {}
    for k, op in enumerate(code):
        for symbol in (*op.writes(), *op.reads()):
            until[symbol] = k
    done = -1
    for end, step in zip(ends, steps, strict=True):  # what comes after a step reads its state
        done += len(step)
        until[end] = max(until.get(end, 0), done)
    until[ends[-1]] = len(code)
    for op in reversed(code):
        if isinstance(op, Call):  # a model may return its input, or a view of it
            until[op.shown] = max(until[op.shown], *(until[out] for out in op.outs))
    return until


def _place(op: Instruction, slot: Callable[[Symbol], int]) -> None:
    def of(symbol: Place) -> Place:
        return None if symbol is None else slot(symbol)

    if isinstance(op, Call):
        op.shown, op.outs = of(op.shown), tuple(map(of, op.outs))
    elif isinstance(op, Launch):
        op.x, op.inputs = of(op.x), tuple(map(of, op.inputs))
        op.out, op.other = of(op.out), of(op.other)
    elif isinstance(op, Draw):
        op.out = of(op.out)
    else:
        op.x, op.answer = of(op.x), of(op.answer)
