"""What a method of the adaptive solvers may ask in a step, and what it gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.denoisers.composed import Composed
from cmsolvers.denoisers.preconditioning import Preconditioned
from cmsolvers.engine.adaptive.control import scaled_error
from cmsolvers.engine.adaptive.lanes import Lanes
from cmsolvers.engine.adaptive.settings import Settings
from cmsolvers.engine.forms import Form, form_of
from cmsolvers.engine.live import Held, Live, held
from cmsolvers.engine.observers import not_finite
from cmsolvers.engine.outputs import watched
from cmsolvers.engine.run import key_of
from cmsolvers.ops.noise_sum import noise_sum


class Model:
    """A user's denoiser, drift or score, as a run calls it: `function(x, level, **extra)`.

    Args:
        name: for error texts.
        function: what is called.
        dtype: of its arguments: that of the user's x.
        look: whether samples whose output is not finite are noted.

    Attributes:
        extra: further keyword arguments, those of the samples under way.
        calls: so far.
        bad: bool [b], samples with an output that was not finite since `forget`; None if there is
            nothing to say.
    """

    def __init__(
        self, name: str, function: Callable[..., Tensor], dtype: torch.dtype, *, look: bool = False
    ) -> None:
        self.name, self.function, self.dtype, self._look = name, function, dtype, look
        # Denoisers of the library make more of a level than half precision holds.
        ours = isinstance(function, (Preconditioned, Composed))
        self._level = torch.promote_types(dtype, torch.float32) if ours else dtype
        self.bad: Tensor | None = None
        self.begin({}, copies=True)

    def begin(self, extra: Mapping[str, Any], *, copies: bool) -> None:
        """A run begins; `copies` is that of `Outputs`."""
        self.extra, self.calls, self.bad, self._copies = extra, 0, None, copies
        self._outputs = watched(copies=copies)

    def __call__(self, y: Tensor, level: Tensor) -> Held:
        """Its output at y, level [b] on any device; no later call overwrites it until `forget`.

        Raises:
            StaticOutputError: the output lies where an earlier one does, and copies are needed.
        """
        y = y.to(self.dtype)
        out = self.function(y, level.to(device=y.device, dtype=self._level), **self.extra)
        out = check.model_output(self.name, out, y)
        self.calls += 1
        if self._look:
            bad = not_finite(out)
            self.bad = bad if self.bad is None else self.bad | bad
        if self._outputs is not None:
            (out,) = self._outputs.take((out,), y, held=True)
        return Held(out, self.name)

    def forget(self, keep: Held | None = None) -> None:
        """Nothing reads the outputs so far any more, but for one."""
        self.bad = None
        if self._outputs is not None:
            self._outputs.clear()
            if keep is not None and not self._copies:
                self._outputs.take((keep.tensor,), keep.tensor, held=True)


class Step:
    """A step to try, for all samples under way.

    Attributes:
        lanes: where the samples are; their `first` is known.
        t_next: float64 [b] on the control device, where the step leads; t of a sample that has
            ended.
        t, h: float64 [b], where it starts and t_next - t.
        x: the states, as a form.
        first, newest: the model's outputs there and at the latest question.
    """

    def __init__(self, model: Model, lanes: Lanes, t_next: Tensor) -> None:
        assert lanes.first is not None
        self.lanes, self.t_next = lanes, t_next
        self.t, self.h = lanes.t, t_next - lanes.t
        self.x = held(lanes.x, "x")
        self.first = self.newest = lanes.first
        self._model, self._live = model, Live(lanes.x)
        self._made: tuple[Form, Tensor] = (self.x, lanes.x)

    @property
    def previous(self) -> Tensor:
        """What the last accepted step left as such, the first state before."""
        assert self.lanes.previous is not None
        return self.lanes.previous

    def output(self, y: Form, level: Tensor) -> Form:
        """What the model answers at y; at x it is known already."""
        if y is self.x:
            return form_of(self.first)
        self.newest = self._model(self.value(y), level)
        return form_of(self.newest)

    def value(self, form: Form) -> Tensor:
        """The value of a form; one launch, none if it is the last one that was asked for."""
        if form is not self._made[0]:
            self._made = (form, self._live.tensor(form))
        return self._made[1]


class Outcome(NamedTuple):
    """What a step gave: the new states and their error [b], where 1 is the tolerance.

    `first` is the model's output at the new states, where it is known; `previous` a state that the
    next step is measured against, if any.
    """

    x: Tensor
    error: Tensor
    first: Held | None = None
    previous: Tensor | None = None


class Method(ABC):
    """One step of a model with an error estimate.

    Attributes:
        name: of the solver.
        evaluations: calls of the model in a step, beside the one at x.
        coordinate: what a level is called in errors: "sigma" or "t".
        reuses_last: whether a step gives the model's output at the new state.
        remembers: whether a step gives a state that the next one is measured against.
    """

    name: str
    evaluations: int
    coordinate = "sigma"
    reuses_last = False
    remembers = False

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model, self.settings = model, settings

    @abstractmethod
    def attempt(self, step: Step) -> Outcome:
        """Try a step."""

    def level(self, t: Tensor) -> Tensor:
        """What the model gets for t: sigma, or t itself."""
        return t

    def place(self, level: float) -> float:
        """The t of a level."""
        return level

    def norm(self, wrong: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The size of an error under the tolerances, float64 [b]; a and b are states."""
        rtol, atol = self.settings.rtol, self.settings.atol
        return scaled_error(wrong, a, b, rtol=rtol, atol=atol, larger=self.remembers)

    def shown(self, step: Step) -> dict[str, Any]:
        """A callback's view of a step of a denoiser."""
        sigma, to = self.level(step.t), self.level(step.t_next)
        where = {"x": step.lanes.x, "sigma": sigma, "sigma_hat": sigma, "sigma_next": to}
        return {**where, "denoised": step.first.tensor}


class SampleNoise:
    """The noise of a whole batch, for any of its samples.

    Args:
        settings: seed and noise sampler.
        like: the user's x, [B, ...].
        wanted: whether noise will be asked for; if not, no seed is drawn.
    """

    def __init__(self, settings: Settings, like: Tensor, *, wanted: bool = True) -> None:
        self._like, self._sampler = like, settings.noise_sampler
        self._table: Tensor | None = None
        key = key_of(settings.seed, like, needed=wanted and self.built_in)
        if key is not None:
            self._table = key.rows(like.shape[0], like.device)

    @property
    def built_in(self) -> bool:
        """Whether no noise sampler was given."""
        return self._sampler is None

    def key(self, ids: Tensor) -> noise.Key:
        """The key of some places of the batch."""
        assert self._table is not None
        return noise.Key(table=self._table[ids.to(self._table.device)])

    def fresh(self, lanes: Lanes) -> Tensor:
        """Unit normals: draw k of the stream of sampler steps for a sample's step k."""
        draws = lanes.accepted.double()
        table = torch.stack((draws, torch.ones_like(draws)), dim=1)[:, None].to(lanes.x.device)
        out = torch.empty_like(lanes.x, requires_grad=False)
        return noise_sum(out, [], [], table=table, key=self.key(lanes.ids), stream=noise.STEPS)

    def sampled(self, lanes: Lanes, start: Tensor, end: Tensor, last: float) -> Tensor:
        """What the noise sampler gives; samples that have left the batch are at `last`."""
        whole = start.new_full((len(self._like),), last)
        a, b = (whole.index_put((lanes.ids,), t).to(lanes.x.device) for t in (start, end))
        assert self._sampler is not None
        z = check.model_output("noise_sampler", self._sampler(a, b), self._like)
        return z[lanes.ids.to(z.device)].to(lanes.x.dtype)
