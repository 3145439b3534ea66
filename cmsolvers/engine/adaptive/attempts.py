"""The one loop of the adaptive solvers: each sample steps, is accepted and ends by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cmsolvers.denoisers.pairing import take
from cmsolvers.engine.adaptive import lanes
from cmsolvers.engine.adaptive.control import Control
from cmsolvers.engine.adaptive.errors import AdaptiveInfo, SolverError
from cmsolvers.engine.adaptive.lanes import Lanes
from cmsolvers.engine.adaptive.method import Method, Outcome, Settings, Trial
from cmsolvers.engine.launch import bar

NOT_FINITE, UNDERFLOW = 1, 2
_MEANS = {
    NOT_FINITE: "its error is not a number: the model gave NaN or infinity",
    UNDERFLOW: "its step size fell below what moves it; rtol or atol may be below the rounding of "
    "its dtype, or the model is not smooth",
}
_LEAST_STEP = 16 * 2.0**-52


@dataclass
class Run:
    """One run.

    Args:
        method: the steps.
        control: the step sizes.
        x: [B, ...], the start, in the dtype of the computation.
        like: the user's x, whose dtype and layout results have.
        times: the start and one or more stops, monotone; a step lands on every stop.
        settings: how.
        keep_states: whether the states at the stops are kept.
    """

    method: Method
    control: Control
    x: Tensor
    like: Tensor
    times: Sequence[float]
    settings: Settings
    keep_states: bool = False
    now: Lanes = field(init=False)

    def __post_init__(self) -> None:
        self._compact = self.settings.mode == "compact"
        # Compact mode waits for the errors anyway, and small arithmetic is quicker on the host.
        device = torch.device("cpu") if self._compact else self.x.device
        self.now = lanes.start(self.x, self.times[0], len(self.times) - 1, device)
        if self.method.remembers:
            self.now.previous = self.x
        self._stops = torch.tensor(self.times[1:], dtype=torch.float64, device=device)
        self._sign = 1.0 if self.times[-1] > self.times[0] else -1.0
        self._least = _LEAST_STEP * max(map(abs, self.times))
        self._extra: dict[str, Any] = self.settings.extra
        self._gone: list[Lanes] = []
        self._calls = self._attempts = 0
        self.states: Tensor | None = None
        if self.keep_states:
            self.states = self.x.new_empty((len(self.times) - 1, *self.x.shape))

    def evaluate_first(self) -> None:
        """The model's output where the samples are, if any is new there."""
        now = self.now
        if self._compact and not bool(now.fresh.any()):
            return
        now.first = self.method.first(now.x, now.t, self._extra)
        self.count_call(now.fresh & self._active())
        now.fresh = torch.zeros_like(now.fresh)

    def count_call(self, used: Tensor, calls: int = 1) -> None:
        """The model was called, for the samples of a mask."""
        self.now.nfe = self.now.nfe + used * calls
        self._calls += calls

    def go(self) -> Tensor:
        """Run to the end; the result is on the last stop, in the order of the batch.

        Raises:
            SolverError: a sample failed or did not get there in max_steps.
        """
        every = 1 if self._compact else self.settings.check_every
        with bar(self.settings.progress, self.method.name, None) as shown:  # type: ignore[arg-type]
            for i in range(self.settings.max_steps):
                if self.now.x.shape[0] == 0:
                    break
                self._attempt(i)
                if every is not None and (i + 1) % every == 0:
                    if self.settings.progress:
                        level = self.method.level(self.now.t)
                        shown.advance("level", level.mean().item(), self._calls)
                    if self._ended():
                        break
        capturing = self.x.is_cuda and torch.cuda.is_current_stream_capturing()
        if not capturing and not self._ended():
            self._fail(self._active().nonzero()[0], "it needs more than max_steps steps")
        return self.result(self.whole("x"))

    def result(self, x: Tensor) -> Tensor:
        """A state as users get it: a tensor of its own, like theirs."""
        return torch.empty_like(self.like, requires_grad=False).copy_(x)

    def whole(self, name: str) -> Tensor:
        """An attribute of the lanes for the whole batch."""
        return lanes.join([*self._gone, self.now])(name)

    def info(
        self,
        calls_after: int = 0,
        trajectory: Tensor | None = None,
        levels: tuple[float, ...] | None = None,
    ) -> AdaptiveInfo:
        """The counts so far, and those of calls for all samples after the run."""
        names = ("nfe", "accepted", "rejected")
        counts = {name: self.whole(name).to(self.x.device) for name in names}
        finished = (self.whole("leg") == len(self._stops)).to(self.x.device)
        counts["nfe"] = counts["nfe"] + calls_after
        return AdaptiveInfo(
            **counts,
            finished=finished,
            calls=self._calls + calls_after,
            attempts=self._attempts,
            trajectory=trajectory,
            levels=levels,
        )

    def _active(self) -> Tensor:
        return (self.now.leg < len(self._stops)) & (self.now.failure == 0)

    def _attempt(self, i: int) -> None:
        now, active = self.now, self._active()
        if not self.method.reuses_last or i == 0:
            self.evaluate_first()
        trial, landing = self._trial(active)
        if self.settings.callback is not None:
            self.settings.callback({"i": i, "samples": trial.ids, **self.method.shown(trial)})
        outcome = self.method.attempt(trial)
        self._attempts += 1
        self.count_call(active, self.method.evaluations)
        error = outcome.error.to(now.t.device)
        decision = self.control.decide(error, now.memory, now.retry)
        accept = decision.accept & active
        step = trial.h.abs()
        factor = torch.where(error < math.inf, decision.factor, self.settings.min_factor)
        proposed = step * factor
        # A step cut to land on a stop says nothing against the size that was proposed before.
        h = torch.where(accept & landing, torch.maximum(proposed, now.h), proposed)
        refused = active & ~accept
        failure = torch.where(refused & (h < self._least), UNDERFLOW, 0)
        if self.settings.check_nan:
            failure = torch.where(active & error.isnan(), NOT_FINITE, failure)
        self._keep(accept, outcome)
        now.t = torch.where(accept, trial.t_next, now.t)
        now.h = torch.where(active, h, now.h)
        now.failure = torch.maximum(now.failure, failure)
        now.memory, now.retry, now.fresh = decision.memory, refused, now.fresh | accept
        now.accepted, now.rejected = now.accepted + accept, now.rejected + refused
        if self.states is not None:
            self._record(accept & landing)
        now.leg = now.leg + (accept & landing)

    def _trial(self, active: Tensor) -> tuple[Trial, Tensor]:
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
        first = now.first
        assert first is not None
        trial = Trial(
            x=now.x,
            first=first,
            previous=now.previous,
            t=now.t,
            h=t_next - now.t,
            t_next=t_next,
            ids=now.ids,
            accepted=now.accepted,
            extra=self._extra,
        )
        return trial, landing

    def _keep(self, accept: Tensor, outcome: Outcome) -> None:
        """Make the outcome the state of the samples that accept it."""
        now = self.now
        if self._compact and not bool(accept.any()):
            return
        every = self._compact and bool(accept.all())
        for name in lanes.STATES:
            new, old = getattr(outcome, name), getattr(now, name)
            if new is not None:
                setattr(now, name, new if every else lanes.choose(accept, new, old))

    def _record(self, landed: Tensor) -> None:
        """Keep the states of samples that are on a stop now."""
        if self._compact and not bool(landed.any()):
            return
        states, now = self.states, self.now
        assert states is not None
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
            self._extra = take(self.settings.extra, self.x.shape[0], self.now.ids)
            return self.now.x.shape[0] == 0
        return not bool(active.any())

    def _fail(self, row: Tensor, why: str) -> None:
        level = self.method.level(self.now.t)[row].item()
        sample = int(self.now.ids[row])
        raise SolverError(
            f"{self.method.name} gave up on sample {sample} at {level:g}: {why}",
            self.result(self.whole("x")),
            self.method.level(self.whole("t")),
            self.info(),
        )
