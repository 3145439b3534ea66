"""Runs in time whose calls and launches are made as the formula asks for them.

That serves a user's SDE, whose coefficients come from calls, and steps that are not linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.engine.fields import checked_diffusion, known
from cmsolvers.engine.forms import Form, Weight, form_of
from cmsolvers.engine.live import Held, Live, Normal
from cmsolvers.engine.observers import BadOutputs
from cmsolvers.engine.options import Fixed
from cmsolvers.engine.outputs import reusable, watched
from cmsolvers.engine.time_steps import TimeStep
from cmsolvers.engine.trace import Formula, state_dtype
from cmsolvers.processes.sde import SDELike


class LiveStep(TimeStep):
    """A step of a live run; formulas that are not linear may ask it for tensors."""

    def __init__(self, run: LiveRun, x: Tensor, index: int) -> None:
        super().__init__(run.sde, Held(x, "x"), run.times, index, run.draws)
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

    def shown(self, form: Form) -> Tensor:
        """The value of a form in the dtype of the user's x: what functions of the user get."""
        return self.tensor(form).to(self._run.told)

    def time(self, t: float) -> Tensor:
        """A time as a tensor [B]."""
        return self._run.time(t)

    def drift(self, y: Form, t: float) -> Form:
        if known(self.sde) is None:
            return self._run.evaluate(self, "drift", self.sde.drift, y, t)
        return super().drift(y, t)

    def score(self, y: Form, t: float) -> Form:
        return self._run.evaluate(self, "score", self.sde.score, y, t)

    def diffusion(self, y: Form, t: float) -> Weight:
        if known(self.sde) is not None:
            return super().diffusion(y, t)
        state, time = self.shown(y), self.time(t)
        given = self.sde.diffusion(time) if self.additive else self.sde.diffusion(state, time)
        g = checked_diffusion(given, state)
        return self._run.live.keep(g) if isinstance(g, Tensor) else g

    def z(self, k: int = 0, span: tuple[float, float] | None = None) -> Form:
        return form_of(self._run.normal(k, self._draw(k), span or (self.t, self.to)))

    def normal(self, form: Form, dtype: torch.dtype) -> Tensor:
        """The values of a unit normal."""
        (symbol,) = form.terms
        assert isinstance(symbol, Normal)
        return symbol.values(self._run.x, self._run.live.key, dtype)


class LiveRun:
    """A run whose steps are launched one by one."""

    def __init__(
        self,
        formula: Formula,
        values: dict[str, Any],
        sde: SDELike,
        x: Tensor,
        times: Sequence[float],
        draws: int,
        key: noise.Key | None,
        options: Fixed,
        copies: bool,
    ) -> None:
        self.told, x = x.dtype, x.to(state_dtype(x))
        self._formula, self._values, self._now = formula, values, x
        self.sde, self.x, self.times, self.draws = sde, x, times, draws
        self.noise_sampler = options.noise_sampler
        self._extra, self._callback = options.extra_args or {}, options.callback
        self._outputs = watched(copies=copies)
        self.live = Live(x, key, reuse=reusable(grad=options.grad, callback=self._callback))
        self._bad = BadOutputs(x, "sde must give", "t") if options.check_nan else None
        self._places: list[tuple[int, float]] = []
        self._normals: dict[int, Normal] = {}
        self._shown = -1

    @property
    def nfe(self) -> int:
        """Evaluations so far."""
        return len(self._places)

    def step(self, i: int) -> Tensor:
        """Run step i; the state after it."""
        self.live.begin(self._now)
        self._normals = {}
        if self._outputs is not None:
            self._outputs.clear()
        self._now = self.live.launch(self._formula(LiveStep(self, self._now, i), **self._values))
        return self._now

    def facts(self, first: int, last: int) -> dict[str, Any]:
        """What an `Info` says besides."""
        return {}

    def time(self, t: float) -> Tensor:
        """A time as a tensor [B]."""
        return torch.full((len(self.x),), t, dtype=self.told, device=self.x.device)

    def evaluate(
        self, step: LiveStep, name: str, function: Callable[..., Tensor], y: Form, t: float
    ) -> Form:
        """What the user's drift or score returns."""
        state = self.live.tensor(y)
        out = function(state.to(self.told), self.time(t), **self._extra)
        out = check.model_output(name, out, state)
        if self._bad is not None:
            self._bad.add(len(self._places), out)
        self._places.append((step.index, t))
        if self._callback is not None and self._shown != step.index:
            self._shown = step.index
            entry = {"i": step.index, "x": state, "t": step.t, "t_next": step.to, "output": out}
            self._callback(entry)
        symbol = Held(self.live.keep(out), name)
        if self._outputs is not None:
            (symbol.tensor,) = self._outputs.take((out,), state, held=True)
        return form_of(symbol)

    def normal(self, k: int, draw: int, span: tuple[float, float]) -> Normal:
        """The k-th unit normal of a step, and which draw it is."""
        if k not in self._normals:
            sampler = self.noise_sampler
            given = None
            if sampler is not None:

                def given() -> Tensor:
                    return check.model_output("noise_sampler", sampler(*span), self.x)

            self._normals[k] = Normal(draw, given)
        return self._normals[k]

    def check(self) -> None:
        """ValueError if an output was not finite; waits for the device if asked to look."""
        if self._bad is not None:
            self._bad.check(self._places)
