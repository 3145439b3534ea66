"""SDEs as solvers in time read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.forms import Weight
from cmsolvers.processes.sde import Process, ScoreSDE, SDELike

Library: TypeAlias = ScoreSDE | Process


def check_sde(sde: object) -> None:
    """TypeError unless it has a drift and a diffusion."""
    for name in ("drift", "diffusion"):
        if not callable(getattr(sde, name, None)):
            raise TypeError(
                f"sde must have drift(x, t) and diffusion(t); {name} is missing in "
                f"{check.describe(sde)}"
            )


def check_additive(sde: object) -> None:
    """ValueError if the diffusion depends on the state."""
    if getattr(sde, "state_dependent", False):
        raise ValueError(
            "sde must have a diffusion that does not depend on the state; got one with "
            "state_dependent = True"
        )


def check_direction(sde: object, times: Sequence[float]) -> None:
    """ValueError for a reverse SDE forward in time: its law grows without bound there."""
    if type(sde) is ScoreSDE and sde.stochastic and times[1] > times[0]:
        raise ValueError(
            f"ts must be strictly descending; got {times[1]:g} after {times[0]:g} (a reverse SDE "
            "goes back in time)"
        )


def known(sde: SDELike) -> Library | None:
    """The SDE where its coefficients are numbers on the host, None where they must be asked for.

    A process with a drift of its own means that to be called.
    """
    if type(sde) is ScoreSDE:
        return sde
    return sde if isinstance(sde, Process) and type(sde).drift is Process.drift else None


def terms(sde: Library, t: float) -> tuple[float, float, float]:
    """(a, b, g): the drift is a x + b score, the diffusion g."""
    if isinstance(sde, ScoreSDE):
        return sde.terms(t)
    return sde.drift_factor(t), 0.0, sde.diffusion(t)


def is_noisy(sde: SDELike) -> bool:
    """Whether it may have a diffusion."""
    return not (type(sde) is ScoreSDE and not sde.stochastic)


def checked_diffusion(g: object, x: Tensor) -> Weight:
    """A float, a float64 tensor [B], or one of the shape of x (if it carries derivatives, too)."""
    if not isinstance(g, Tensor) or (
        g.ndim == 0 and g.device.type == "cpu" and not check.differentiated(g)
    ):
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
        if not check.differentiated(g):
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
