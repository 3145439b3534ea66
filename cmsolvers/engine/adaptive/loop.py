"""The one loop of the adaptive solvers: each sample steps, is accepted and ends by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from cmsolvers.denoisers.composed import all_samples
from cmsolvers.denoisers.pairing import take
from cmsolvers.engine.adaptive import lanes
from cmsolvers.engine.adaptive.control import Control
from cmsolvers.engine.adaptive.lanes import Lanes
from cmsolvers.engine.adaptive.method import Method, Outcome, Step
from cmsolvers.engine.adaptive.settings import Grid
from cmsolvers.engine.live import Held
from cmsolvers.engine.observers import AdaptiveInfo, SolverError, bar
from cmsolvers.engine.outputs import StaticOutputError
from cmsolvers.engine.trace import state_dtype

NOT_FINITE, UNDERFLOW, BAD_OUTPUT = 1, 2, 3
_MEANS = {
    NOT_FINITE: "its error is not a number, however small the step: the model gives NaN or "
    "infinity",
    BAD_OUTPUT: "an output of the model is not finite",
    UNDERFLOW: "its step size fell below what moves it; rtol or atol may be below the rounding of "
    "its dtype, or the model is not smooth",
}
_LEAST_STEP = 16 * 2.0**-52


class Run:
    """One run from the user's x, whose dtype and layout results have.

    Attributes:
        now: the samples under way; their step sizes `h` must be set before `go`.
        times: the stops as the method has them.
    """

    def __init__(
        self, method: Method, control: Control, x: Tensor, grid: Grid, *, copies: bool
    ) -> None:
        self.method, self._control, self._like, self._grid = method, control, x, grid
        self._settings = settings = method.settings
        self._compact = settings.mode == "compact"
        told = all_samples(method.model.function, x) if self._compact else {}
        self._extra: dict[str, Any] = {**told, **(settings.extra_args or {})}
        method.model.begin(self._extra, copies=copies)
        # Half precision is widened: errors and small steps need the digits.
        x = x.to(state_dtype(x))
        # Compact mode waits for the errors anyway, and small arithmetic is quicker on the host.
        device = torch.device("cpu") if self._compact else x.device
        self.times = times = [method.place(level) for level in grid.stops]
        self.now = lanes.start(x, times[0], device)
        self.now.previous = x if method.remembers else None
        self._stops = torch.tensor(times[1:], dtype=torch.float64, device=device)
        self._sign = 1.0 if times[-1] > times[0] else -1.0
        self._least = _LEAST_STEP * max(map(abs, times))
        self._gone: list[Lanes] = []
        self._attempts = 0
        shape = (len(self._stops), *x.shape)
        self._states = x.new_empty(shape) if grid.recorder.wanted else None

    def evaluate_first(self) -> None:
        """The model's output where the samples are, if any is new there."""
        now, model = self.now, self.method.model
        if self._compact and bool(now.retry.all()):
            return
        model.forget()
        now.first = model(now.x, self.method.level(now.t))
        self.count(self._active() & ~now.retry)

    def count(self, used: Tensor, calls: int = 1) -> None:
        """The samples of a mask made use of some evaluations."""
        self.now.nfe = self.now.nfe + used * calls

    def go(self) -> tuple[Tensor, AdaptiveInfo]:
        """Run to the end of the grid; the result is in the order of the batch.

        Raises:
            SolverError: a sample failed or did not get there in max_steps.
        """
        settings, method, grid = self._settings, self.method, self._grid
        every = 1 if self._compact else settings.check_every
        with bar(settings.progress, method.name, None) as shown:
            for i in range(settings.max_steps):
                if self.now.x.shape[0] == 0:
                    break
                self._attempt(i)
                if every is not None and (i + 1) % every == 0:
                    if settings.progress:
                        level = method.level(self.now.t).mean().item()
                        shown.advance("level", level, method.model.calls)
                    if self._ended():
                        break
        capturing = self._like.is_cuda and torch.cuda.is_current_stream_capturing()
        if not capturing and not self._ended():
            why = f"max_steps = {settings.max_steps} tries were not enough"
            self._fail(self._active().nonzero()[0], why)
        last = self._denoised() if grid.denoise else self._result(self._whole("x"))
        if self._states is not None:
            for state in (self._like, *self._states.to(last.dtype), *([last] * grid.denoise)):
                grid.recorder.add(state)
        states, levels = grid.recorder.result()
        return last, replace(self._info(), trajectory=states, levels=levels)

    def _denoised(self) -> Tensor:
        """The model's output at the last stop."""
        model, x, level = self.method.model, self._whole("x"), self._grid.stops[-1]
        if x.shape[0] == 0:
            return self._result(x)
        model.extra = self._extra
        levels = torch.full((x.shape[0],), level, dtype=torch.float64, device=x.device)
        output = model(x, levels).tensor
        for part in (*self._gone, self.now):
            part.nfe = part.nfe + 1
        if model.bad is not None and bool(model.bad.any()):
            raise self._failure(int(model.bad.nonzero()[0]), level, _MEANS[BAD_OUTPUT])
        return self._result(output)

    def _result(self, x: Tensor) -> Tensor:
        """A state as users get it: a tensor of its own, like theirs."""
        return torch.empty_like(self._like, requires_grad=False).copy_(x)

    def _whole(self, name: str) -> Tensor:
        """An attribute of the lanes, in the order of the whole batch."""
        return lanes.join([*self._gone, self.now], name)

    def _info(self) -> AdaptiveInfo:
        """The counts so far."""
        names = ("nfe", "accepted", "rejected", "leg")
        nfe, accepted, rejected, leg = (self._whole(k).to(self._like.device) for k in names)
        finished, calls = leg == len(self._stops), self.method.model.calls
        return AdaptiveInfo(nfe, accepted, rejected, finished, calls, self._attempts)

    def _active(self) -> Tensor:
        return (self.now.leg < len(self._stops)) & (self.now.failure == 0)

    def _attempt(self, i: int) -> None:
        now, method = self.now, self.method
        if now.first is None or not (method.reuses_last or i == 0):
            self.evaluate_first()
        active = self._active()
        step, landing = self._step(active)
        if self._settings.callback is not None:
            self._settings.callback({"i": i, "samples": now.ids, **method.shown(step)})
        outcome = method.attempt(step)
        self._attempts += 1
        self.count(active, method.evaluations)
        error = outcome.error.to(now.t.device)
        decision = self._control.decide(error, now.memory, now.retry)
        accept = decision.accept & active
        factor = torch.where(error < math.inf, decision.factor, self._control.min_factor)
        proposed = step.h.abs() * factor
        # A step cut to land on a stop says nothing against the size that was proposed before.
        h = torch.where(accept & landing, torch.maximum(proposed, now.h), proposed)
        refused = active & ~accept
        why = torch.where(error.isnan(), NOT_FINITE, UNDERFLOW)
        failure = torch.where(refused & (h < self._least), why, 0)
        if method.model.bad is not None:
            failure = torch.where(active & method.model.bad.to(failure.device), BAD_OUTPUT, failure)
        self._keep(accept, outcome)
        now.t = torch.where(accept, step.t_next, now.t)
        now.h = torch.where(active, h, now.h)
        now.failure = torch.maximum(now.failure, failure)
        now.memory, now.retry = decision.memory, refused
        now.accepted, now.rejected = now.accepted + accept, now.rejected + refused
        self._record(accept & landing)
        now.leg = now.leg + (accept & landing)
        method.model.forget(now.first)

    def _step(self, active: Tensor) -> tuple[Step, Tensor]:
        """The step to try, and whether it lands on a stop."""
        now = self.now
        target = self._stops[now.leg.clamp_max(len(self._stops) - 1)]
        remaining = (target - now.t) * self._sign
        # A sliver of a step after this one would be all rounding.
        landing = now.h + self._least >= remaining
        # A step too small to change t would never be followed by a larger one.
        t_next = now.t + now.h.clamp_min(self._least) * self._sign
        t_next = torch.where(landing, target, t_next)
        t_next = torch.where(active, t_next, now.t)
        return Step(self.method.model, now, t_next), landing

    def _keep(self, accept: Tensor, outcome: Outcome) -> None:
        """Make the outcome the state of the samples that accept it."""
        now = self.now
        if self._compact and not bool(accept.any()):
            return
        x, _, first, previous = outcome
        if not (self._compact and bool(accept.all())):
            x = lanes.choose(accept, x, now.x)
            if previous is not None and now.previous is not None:
                previous = lanes.choose(accept, previous, now.previous)
            if first is not None and now.first is not None:
                first = Held(lanes.choose(accept, first.tensor, now.first.tensor))
        now.x = x
        now.previous = now.previous if previous is None else previous
        now.first = now.first if first is None else first

    def _record(self, landed: Tensor) -> None:
        """Keep the states of samples that are on a stop now, if any are wanted."""
        states, now = self._states, self.now
        if states is None or (self._compact and not bool(landed.any())):
            return
        where = now.leg.clamp_max(len(self._stops) - 1).to(states.device)
        ids = now.ids.to(states.device)
        states.index_put_((where, ids), lanes.choose(landed, now.x, states[where, ids]))

    def _ended(self) -> bool:
        """Whether no sample is under way; raises if one failed. The only wait for the device."""
        now = self.now
        failed = now.failure.nonzero()
        if failed.numel():
            self._fail(failed[0], _MEANS[int(now.failure[failed[0]])])
        active = self._active()
        if self._compact and not bool(active.all()):
            self._gone.append(now.select((~active).nonzero()[:, 0]))
            self._gone[-1].first = self._gone[-1].previous = None
            self.now = now.select(active.nonzero()[:, 0])
            self.method.model.extra = take(self._extra, self._like.shape[0], self.now.ids)
            self.method.model.forget(self.now.first)
            return self.now.x.shape[0] == 0
        return not bool(active.any())

    def _fail(self, row: Tensor, why: str) -> NoReturn:
        level = self.method.level(self.now.t)[row].item()
        raise self._failure(int(self.now.ids[row]), level, why)

    def _failure(self, sample: int, level: float, why: str) -> SolverError:
        method = self.method
        return SolverError(
            f"{method.name} gave up on sample {sample} at {method.coordinate} {level:g}: {why}",
            self._result(self._whole("x")),
            self.method.level(self._whole("t")),
            self._info(),
        )


def run(
    method: Method, control: Control, x: Tensor, grid: Grid, first: float | Callable[[Run], Tensor]
) -> tuple[Tensor, AdaptiveInfo]:
    """Run to the end of a grid, with a first step size or what finds those of all samples."""

    def once(*, copies: bool) -> tuple[Tensor, AdaptiveInfo]:
        one = Run(method, control, x, grid, copies=copies)
        if x.shape[0]:
            one.evaluate_first()
            one.now.h = one.now.h + (first(one) if callable(first) else first)
        return one.go()

    seen = method.settings.callback is not None or method.settings.noise_sampler is not None
    try:
        return once(copies=seen)
    except StaticOutputError:
        return once(copies=True)  # the same run again: noise is a function of its seed
