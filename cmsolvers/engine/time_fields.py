"""An SDE as the steps of the t-space solvers read it: drift a x + b output, and diffusion g."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.launch import derivative
from cmsolvers.processes.sde import Process, ScoreSDE


class Field:
    """A user's SDE: the output is its drift (a = 0, b = 1), and the diffusion is its own too.

    Args:
        sde: what the user gave.
        extra: further keyword arguments of the drift or the score.

    Attributes:
        additive: whether the diffusion depends on time alone.
        noisy: whether there is any.
    """

    noisy = True

    def __init__(self, sde: Any, extra: dict[str, Any]) -> None:
        self.sde, self.extra = sde, extra
        self.additive = not getattr(sde, "state_dependent", False)

    def terms(self, t: float) -> tuple[float, float, float | None]:
        """(a, b, g) as host numbers; g is None where `diffusion` gives it."""
        return 0.0, 1.0, None

    def output(self, x: Tensor, time: Callable[[], Tensor]) -> Tensor | None:
        """What the user's drift or score says of x; None where the state alone is the drift."""
        return check.model_output("drift", self.sde.drift(x, time(), **self.extra), x)

    def diffusion(self, x: Tensor, time: Tensor) -> float | Tensor:
        """A float, a float64 tensor [B], or one of the shape of x."""
        g = self.sde.diffusion(time) if self.additive else self.sde.diffusion(x, time)
        return checked_diffusion(g, x)


class _ScoreField(Field):
    """A reverse SDE or an ODE of a process: only the score is read."""

    def __init__(self, sde: ScoreSDE, extra: dict[str, Any]) -> None:
        super().__init__(sde, extra)
        self.noisy = sde.stochastic

    def terms(self, t: float) -> tuple[float, float, float | None]:
        a, b, g = self.sde.terms(t)
        return a, b, g

    def output(self, x: Tensor, time: Callable[[], Tensor]) -> Tensor | None:
        return check.model_output("score", self.sde.score(x, time(), **self.extra), x)


class _ProcessField(Field):
    """A forward process, drift a x: nothing but the state is read."""

    def terms(self, t: float) -> tuple[float, float, float | None]:
        return self.sde.drift_factor(t), 0.0, self.sde.diffusion(t)

    def output(self, x: Tensor, time: Callable[[], Tensor]) -> Tensor | None:
        return None


def check_sde(sde: Any) -> None:
    """TypeError unless it has a drift and a diffusion."""
    for name in ("drift", "diffusion"):
        if not callable(getattr(sde, name, None)):
            raise TypeError(
                f"sde must have drift(x, t) and diffusion(t); {name} is missing in "
                f"{check.describe(sde)}"
            )


def field_of(sde: Any, extra: dict[str, Any]) -> Field:
    """How to read this SDE; TypeError where it is none."""
    check_sde(sde)
    if type(sde) is ScoreSDE:
        return _ScoreField(sde, extra)
    # A process with a drift of its own means that to be called.
    if isinstance(sde, Process) and type(sde).drift is Process.drift:
        return _ProcessField(sde, extra)
    return Field(sde, extra)


def checked_diffusion(g: Any, x: Tensor) -> float | Tensor:
    """A float, a float64 tensor [B], or one of the shape of x (if it carries derivatives, too)."""
    if not isinstance(g, Tensor) or (g.ndim == 0 and g.device.type == "cpu" and not derivative(g)):
        return check.finite("diffusion", g)
    if not g.dtype.is_floating_point:
        raise TypeError(f"diffusion must return a floating tensor; it returned {g.dtype}")
    if g.device != x.device:
        raise ValueError(
            f"diffusion must return a tensor on the device of x, {x.device}; it returned {g.device}"
        )
    batch, shape = x.shape[0], list(g.shape)
    column = [batch] + [1] * (x.ndim - 1)
    if shape in ([], [batch], column):
        if not derivative(g):
            return g.double().reshape(-1).expand(batch)
        return g.reshape(column if shape else []).expand(x.shape)
    padded = [1] * (x.ndim - g.ndim) + shape
    fits = g.ndim > 1 and all(a in (1, b) for a, b in zip(padded, x.shape, strict=False))
    if not fits or g.ndim > x.ndim:
        raise ValueError(
            f"diffusion must return a number, shape [B] = [{batch}] or one that broadcasts against "
            f"x, {list(x.shape)}; it returned {shape}"
        )
    return g.expand(x.shape)
