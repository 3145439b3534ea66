"""A look at a model's exact derivative: does a finite difference agree?"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cmsolvers.engine.mistakes.glances import Glance, can_be_read
from cmsolvers.engine.mistakes.once import Once
from cmsolvers.losses.derivatives.lost_tangents import ROUNDED, LostTangents
from cmsolvers.losses.derivatives.total_derivative import (
    Bounds,
    Derivative,
    Method,
    Tangent,
    total_derivative,
)
from cmsolvers.losses.evaluation.randomness import (
    SameRandomness,
    couples_samples,
    same_statistics,
)
from cmsolvers.processes.wrappers import owner_of

CALLS = (1, 100)
"""Which calls per model are looked at: a last layer that starts at zero has no derivative yet."""
STEPS = (5e-3, 5e-4)
"""Finite-difference steps; each sample is judged by the one with the smaller error."""
_KNOWN = 0.05  # relative errors of finite differences that are good enough to judge by
_FAR = 0.1  # relative distance of the exact derivative from them


@dataclass
class _Seen:
    """What is remembered of a model."""

    calls: int = 0
    ratio: Tensor | None = None


class SelfCheck:
    """Compares exact derivatives with finite differences, in a model's first and 100th call.

    The ratio is <jvp, fd> / <fd, fd> over the samples whose finite difference is sure to 5 %. Where
    the two are more than 10 % apart it warns once, and says where tangents were lost, if that is
    why. Which calls are looked at depends on nothing but their number, so that all processes of a
    distributed run look together, and the other calls cost nothing. A device is not waited for:
    what it has not found out yet is said in a later call. With batch norms in training mode samples
    see each other: the look then moves all by the same step, out of bounds where need be.
    """

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[Any, _Seen] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self.once = Once()

    def reset(self) -> None:
        """Forget every model."""
        self._seen.clear()
        self.once.reset()

    def derivative(
        self,
        function: Callable[..., Tensor],
        primals: Sequence[Tensor],
        tangents: Sequence[Tangent],
        *,
        model: object,
        method: Method = "jvp",
        step: float = 5e-3,
        bounds: Sequence[Bounds] | None = None,
        through: bool = False,
    ) -> tuple[Derivative, Tensor | None]:
        """`total_derivative`, looked at.

        Args:
            function: `function(*primals) -> Tensor [B, ...]`, which calls the model.
            primals: floating tensors [B, ...].
            tangents: one per primal; None is 0.
            model: what the calls are counted by: a module, or another callable that lives as long.
                Running statistics of a module stay as the exact pass leaves them.
            method: "jvp", or "finite_difference", which is not looked at.
            step: of the finite difference.
            bounds: (low, high) per primal, which the look keeps to as well.
            through: let gradients follow.

        Returns:
            The derivative, and the ratio of the last look, a float64 tensor [] on the device of x:
            about 1, NaN where no finite difference was sure, None where nothing was looked at.

        Raises:
            NotImplementedError, TypeError, ValueError: as in `total_derivative`.
        """
        look = method == "jvp" and can_be_read(primals[0]) and len(primals[0]) > 0
        same = SameRandomness(primals[0].device) if look else None
        found = total_derivative(
            function, primals, tangents, method=method, step=step, bounds=bounds, through=through
        )
        if same is None:
            return found, None
        self.once.settle()
        seen = self._of(model)
        if seen is None:
            return found, None
        if seen.calls in CALLS:
            if couples_samples(model):
                bounds = None
            with torch.no_grad(), same_statistics(model):
                numbers, notes = _look(function, primals, tangents, found.derivative, bounds, same)
            seen.ratio = numbers[0] / numbers[1]
            glance, name = Glance(numbers), type(owner_of(model)).__name__
            self.once.later(lambda: self._judge(glance, name, notes))
        return found, seen.ratio

    def _of(self, model: object) -> _Seen | None:
        """What is remembered of a model, one call later; None if it cannot be told again."""
        owner = owner_of(model)
        try:
            with self._lock:
                seen = self._seen.setdefault(owner, _Seen())
        except TypeError:  # cannot be hashed or referred to weakly
            return None
        seen.calls += 1
        return seen

    def _judge(self, glance: Glance, name: str, notes: Sequence[str]) -> bool:
        """Warn of what was found; whether it was known."""
        numbers = glance.read()
        if numbers is None:
            return False
        product, square, distance, sure = numbers
        if square > 0 and math.sqrt(distance / square) > _FAR:
            cause = "; ".join(notes) or "an autograd.Function with a wrong jvp method, perhaps"
            self.once.warn(
                "derivative",
                f"the exact derivative of {name} must be that of a finite difference; the ratio "
                f"is {product / square:.3g} and they are "
                f"{100 * math.sqrt(distance / square):.0f} % of its norm apart: {cause}. "
                'derivative="finite_difference" is safe',
            )
        elif (sure == 0 and notes) or any(note.startswith(ROUNDED) for note in notes):
            self.once.warn(
                "levels",
                f"{name} must be a smooth function of levels in float32 at least, for its "
                f"derivative to be one: {'; '.join(notes)}",
            )
        return True


def _look(
    function: Callable[..., Tensor],
    primals: Sequence[Tensor],
    tangents: Sequence[Tangent],
    exact: Tensor,
    bounds: Sequence[Bounds] | None,
    same: SameRandomness,
) -> tuple[Tensor, list[str]]:
    """Sums over sure samples of <jvp, fd>, <fd, fd>, |jvp - fd|^2 and 1, [4]; and the notes."""
    lost = LostTangents(len(primals[0]))

    def noted(*point: Tensor) -> Tensor:
        with lost:
            return function(*point)

    with same.replay():
        total_derivative(noted, primals, tangents)
    exact = _rows(exact)
    sums = exact.new_zeros((4, len(exact)))
    least = exact.new_full((len(exact),), _KNOWN)
    for step in STEPS:
        with same.replay():
            by = _in_float32(
                lambda step=step: total_derivative(  # type: ignore[misc]
                    function,
                    primals,
                    tangents,
                    method="finite_difference",
                    step=step,
                    bounds=bounds,
                ),
                primals[0].device.type,
                same,
            )
        other, error = _rows(by.derivative), by.error
        assert error is not None
        products = (exact * other, other.square(), (exact - other).square())
        found = torch.stack((*(p.sum(1) for p in products), torch.ones_like(error)))
        better = (error < least) & found.isfinite().all(0)
        sums, least = torch.where(better, found, sums), torch.where(better, error, least)
    return sums.sum(1), list(lost.notes)


def _in_float32(run: Callable[[], Derivative], device: str, same: SameRandomness) -> Derivative:
    """A run without autocast, whose rounding hides what finite differences see, if it can be."""
    if not torch.is_autocast_enabled(device):
        return run()
    try:
        with torch.autocast(device, enabled=False):
            return run()
    except RuntimeError:  # of a function that casts what it calls the network with
        with same.replay():
            return run()


def _rows(value: Tensor) -> Tensor:
    """One row of float64 per sample, [B, d]."""
    return value.detach().double().reshape(len(value), math.prod(value.shape[1:]))


SELF_CHECK = SelfCheck()
"""The look that all losses share."""


def checked_derivative(
    function: Callable[..., Tensor],
    primals: Sequence[Tensor],
    tangents: Sequence[Tangent],
    *,
    model: nn.Module | Callable[..., object],
    method: Method = "jvp",
    step: float = 5e-3,
    bounds: Sequence[Bounds] | None = None,
    through: bool = False,
) -> tuple[Derivative, Tensor | None]:
    """`SelfCheck.derivative` of the look that all losses share; arguments are documented there."""
    return SELF_CHECK.derivative(
        function,
        primals,
        tangents,
        model=model,
        method=method,
        step=step,
        bounds=bounds,
        through=through,
    )
