"""What executes a program: buffers, calls of the networks, launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise, ops
from cmsolvers.denoisers.pairing import alike, halves, twice
from cmsolvers.engine.answers import Leaf
from cmsolvers.engine.density import log_density
from cmsolvers.engine.observers import BadOutputs
from cmsolvers.engine.options import Fixed, NoiseSampler
from cmsolvers.engine.outputs import reusable, transformed, watched
from cmsolvers.engine.program import Call, Draw, Launch, Program, Score, Show
from cmsolvers.ops import step as fast
from cmsolvers.ops.rules import WEIGHTS

_MOST_ROWS = 16


class Machine:
    """One run of a program.

    The states, and what networks are shown, lie in buffers that the run owns and uses again. With
    derivatives, transforms or a callback (whose caller may keep what it is shown) every launch
    makes its own tensors. The user's x is never written to.

    Args:
        program: the instructions.
        x: the initial state.
        leaves: the callables of the instructions.
        options: of the run.
        key: of the built-in noise, if any is drawn.
        noise_sampler: unit normals in place of the built-in noise, if any are asked for.
        bad: where outputs that are not finite are recorded.
        copies: whether outputs that are read after a later call are copied.
        given: what the program wants beside x.

    Attributes:
        densities: log density of the new state, by the number of the step.
    """

    def __init__(
        self,
        program: Program,
        x: Tensor,
        leaves: Sequence[Leaf],
        options: Fixed,
        *,
        key: noise.Key | None,
        noise_sampler: NoiseSampler | None,
        bad: BadOutputs | None,
        copies: bool,
        given: Sequence[Tensor] = (),
    ) -> None:
        self._program, self.x, self._leaves = program, x, leaves
        self._dtype, self._shape = x.dtype, x.shape
        self.nfe, self.copied = 0, copies
        self._key, self._noise_sampler = key, noise_sampler
        self._callback, self._bad = options.callback, bad
        self._tensors: list[Any] = [None] * len(program.slots)
        self._tensors[: 1 + len(given)] = x, *given
        self._form, self.densities = options.log_prob, dict[int, Tensor]()
        self._reuse = reusable(grad=options.grad, callback=options.callback)
        # Where each slot's tensor is written; None makes a new one every time.
        self._buffers = [
            torch.empty_like(x, dtype=dtype, requires_grad=False) if dtype and self._reuse else None
            for dtype in program.slots
        ]
        self._rows = [self._table(k) for k in range(len(program.tables))]
        self._unread: Tensor | None = None  # for a first output that nobody wants
        self._seed, self._offset = fast.keyed(key, 0)
        self._outputs = watched(copies=copies) if program.holds else None

    def step(self, i: int) -> Tensor | None:
        """Run step i; the state after it, where the program makes it."""
        i -= self._program.first
        for op in self._program.steps[i]:
            if isinstance(op, Launch):
                self._launch(op)
            elif isinstance(op, Call):
                self._call(op)
            elif isinstance(op, Draw):
                self._draw(op)
            elif isinstance(op, Show):
                self._show(op)
            elif isinstance(op, Score):
                mean, y = self._tensors[op.mean], self._tensors[op.y]
                self.densities[op.step] = log_density(mean, y, op.spread, self._form)
            for slot in op.frees:
                if self._outputs is not None:
                    self._outputs.release(self._tensors[slot])
                self._tensors[slot] = None
        at = self._program.states[i]
        return None if at is None else self._tensors[at]

    def check(self) -> None:
        """ValueError if an output was not finite; waits for the device if asked to look."""
        if self._bad is not None:
            self._bad.check(self._program.places)

    def facts(self, first: int, last: int) -> dict[str, Any]:
        """What an `Info` says besides: what later steps read, densities of the steps."""
        found: dict[str, Any] = {}
        if self._program.history:
            found["history"] = tuple(self._tensors[k].clone() for k in self._program.history)
        if self._form:
            none = torch.zeros(len(self.x), dtype=torch.float64, device=self.x.device)
            rows = [self.densities.get(i, none) for i in range(first, last)]
            found["log_prob"] = torch.stack(rows)
        return found

    # --- instructions -----------------------------------------------------------------------------

    def _call(self, op: Call) -> None:
        leaf, t = self._leaves[op.leaf], self._tensors
        self.nfe = op.evaluation + 1
        shown, level = t[op.shown], self._rows[op.leaf][op.row]
        if len(op.outs) == 2:
            assert leaf.both is not None
            found = leaf.call(twice(shown), twice(level), **leaf.both)
            like = self.x.new_empty(1).expand(2 * len(self.x), *self.x.shape[1:])
            outs: tuple[Tensor, ...] = halves(check.model_output(leaf.name, found, like))
        else:
            if leaf.composed:
                found = leaf.call.at(shown, level, op.level, leaf.extra)
            elif op.end is None:
                found = leaf.call(shown, level, **leaf.extra)
            else:
                found = leaf.call(shown, level, self._rows[op.leaf][op.end], **leaf.extra)
            if (
                type(found) is not Tensor
                or found.dtype is not self._dtype
                or self.x.is_cuda
                or not found.is_cpu
                or (found.shape != self._shape)
            ):
                check.model_output(leaf.name, found, self.x)
            outs = (found,)
        if self._bad is not None:
            for out in outs:
                self._bad.add(op.evaluation, out)
        if self._outputs is not None:
            outs = self._outputs.take(outs, shown, held=op.held)
        for slot, out in zip(op.outs, outs, strict=True):
            t[slot] = out

    def _draw(self, op: Draw) -> None:
        assert self._noise_sampler is not None
        z = self._noise_sampler(*op.span)
        self._tensors[op.out] = check.model_output("noise_sampler", z, self.x)

    def _show(self, op: Show) -> None:
        assert self._callback is not None
        t = self._tensors
        shown = None if op.answer is None else t[op.answer]
        self._callback({**op.entry, "x": t[op.x], op.name: shown})

    def _launch(self, op: Launch) -> None:
        t = self._tensors
        x, inputs = t[op.x], tuple([t[k] for k in op.inputs])
        out, other, buffers = op.out, op.other, self._buffers
        to = False if out is None else buffers[out]
        other_to = op.dtype if other is None or buffers[other] is None else buffers[other]
        if fast.FAST is not None:
            made = fast.FAST(
                x,
                inputs,
                op.row,
                op.w_z,
                self._seed,
                noise.STEPS,
                op.draw,
                self._offset,
                to,
                WEIGHTS,
                op.second,
                other_to,
                op.basis,
                op.clamp,
            )
            if made is not None:
                if other is None:
                    t[out] = made
                elif out is None:
                    t[other] = made
                else:
                    t[out], t[other] = made
                return
        self._launch_slowly(op, x, inputs)

    def _launch_slowly(self, op: Launch, x: Tensor, inputs: tuple[Tensor, ...]) -> None:
        """The way that checks, converts and differentiates."""
        t = self._tensors
        if any(m.dtype is not inputs[0].dtype for m in inputs):
            inputs = tuple(alike(inputs, x.dtype))
            for slot, m in zip(op.inputs, inputs, strict=True):
                if self._outputs is not None and m is not t[slot]:
                    self._outputs.release(t[slot])  # its copy is read from now on
                t[slot] = m
        other_to = None if op.other is None else self._buffers[op.other]
        noisy = isinstance(op.w_z, Tensor) or op.w_z != 0.0
        if op.out is None and not (inputs or noisy) and isinstance(op.second, float):
            t[op.other] = ops.scale_input(x, op.second, dtype=op.dtype, out=other_to)
            return
        to = None if op.out is None else self._buffers[op.out]
        options: dict[str, Any] = {"out": to}
        if noisy:
            options.update(w_z=op.w_z, seed=self._key, stream=noise.STEPS, draw=op.draw)
        if op.basis is not None:
            options["x0"] = op.basis
        if op.clamp is not None:
            options["clamp"] = op.clamp
        if op.other is None:
            t[op.out] = ops.weighted_step(x, inputs, op.row, **options)
            return
        second = "x0" if op.second is True else op.second
        options.update(second=second, second_dtype=op.dtype, second_out=other_to)
        if op.out is None and self._reuse:
            if self._unread is None:
                self._unread = torch.empty_like(x, requires_grad=False)
            options["out"] = self._unread
        made = ops.weighted_step(x, inputs, op.row, **options)
        t[op.other] = made[1]
        if op.out is not None:
            t[op.out] = made[0]

    # --- memory -----------------------------------------------------------------------------------

    def _table(self, leaf: int) -> tuple[Tensor, ...]:
        """Times of a leaf's calls as tensors [B], made once for a program.

        They are made anew after a network has written to them.
        """
        x, values = self.x, self._program.tables[leaf]
        dtype = self._leaves[leaf].dtype
        stream = torch.cuda.current_stream(x.device) if x.is_cuda else None
        key = (leaf, len(x), dtype, x.device, stream)
        rows = self._program.rows
        known, version = rows.get(key, ((), 0))
        if known and known[0]._version == version:
            return known
        with torch.inference_mode(False), torch.no_grad():
            column = torch.tensor(values, dtype=torch.float64, device="cpu").to(dtype)[:, None]
            table = column.expand(len(values), len(x)).contiguous()
            if x.is_cuda:  # from pinned memory the copy makes nobody wait
                table = table.pin_memory().to(x.device, non_blocking=True)
            found = table.to(x.device).unbind(0)
        if found and type(found[0]) is Tensor and not transformed():
            if len(rows) >= _MOST_ROWS:
                rows.clear()
            rows[key] = found, found[0]._version
        return found
