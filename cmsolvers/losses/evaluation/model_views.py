"""Networks as losses see them: f, D and the velocity, as combinations of states and raw outputs."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers import Preconditioned
from cmsolvers.denoisers.flow_maps import FlowMap
from cmsolvers.losses.evaluation.combination import Combination, Weight, of
from cmsolvers.losses.evaluation.network_calls import Model, NetworkCalls
from cmsolvers.losses.evaluation.randomness import SameRandomness
from cmsolvers.losses.evaluation.states import State
from cmsolvers.processes.coordinates import Coordinates


class ModelView(NetworkCalls):
    """One of the networks of a loss, as functions of states.

    Args:
        name, model, extra, same, gradient: see `NetworkCalls`.
        path: coordinates of the states that it is called at; None is its own. A model in others
            is called at the same point of its path.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        extra: Mapping[str, object],
        same: SameRandomness,
        gradient: bool,
        path: Coordinates | None = None,
    ) -> None:
        super().__init__(name, model, extra, same, gradient)
        self.path: Coordinates = self.own if path is None else path
        self._elsewhere = path is not None and self.own != path

    def at_home(self) -> ModelView:
        """The same network in its own coordinates."""
        other = copy(self)
        other.path, other._elsewhere = self.own, False
        return other

    def scales_as(self, other: Preconditioned) -> bool:
        """As `NetworkCalls.scales_as`; one in other coordinates does not."""
        return not self._elsewhere and super().scales_as(other)

    def c_in(self, level: Tensor) -> Weight | None:
        """The factor of the network's input, where the network is called by itself."""
        if isinstance(self.inner, FlowMap):
            factor: Weight = self.inner.c_in(level)
            return factor
        if self.preconditioned is not None:
            scale: Weight = self.preconditioned.coefficients(level).c_in
            return scale
        return None

    def __call__(self, at: State, end: Tensor | float = 0.0) -> Combination:
        """f_{level -> end}, [B, ...].

        Raises:
            TypeError: no `State`.
            ValueError: an end other than 0 of a model of one time.
        """
        if not isinstance(at, State):
            raise TypeError(
                f"{self.name} must be called at a State; got {check.describe(at)}. "
                f"State(found.tensor(), level) makes one of what a model returned"
            )
        if not self._elsewhere:
            return self._mapped(at, end)
        if not isinstance(end, Tensor):
            if end == 0.0:
                return self._mapped(self._carried(at), end)
            end = torch.full_like(at.level, end)
        theirs = self.own.level(self.path.ratio(end))
        scale = self.path.alpha(end) / self.own.alpha(theirs)
        return self._mapped(self._carried(at), theirs) * scale

    def clean(self, at: State) -> Combination:
        """D, the expected data, [B, ...]; of a flow map by the velocity of its diagonal."""
        at = self._carried(at) if self._elsewhere else at
        if isinstance(self.inner, FlowMap):
            found: Combination = self.own.clean(of(at.x), self._diagonal(at), at.level)
            return found
        return self._mapped(at, 0.0)

    def velocity(self, at: State) -> Combination:
        """dx/dlevel of the ODE, [B, ...]."""
        if isinstance(self.inner, FlowMap) and not self._elsewhere:
            return self._diagonal(at)
        found: Combination = self.path.slope(of(at.x), self.clean(at), at.level)
        return found

    def _mapped(self, at: State, end: Tensor | float) -> Combination:
        to_data = isinstance(end, float) and end == 0.0
        if to_data and self.preconditioned is not None:
            return self._preconditioned(self.preconditioned, at)
        inner = self.inner
        if isinstance(inner, FlowMap):
            stop = end if isinstance(end, Tensor) else torch.full_like(at.level, end)
            if inner.second is None and not to_data:
                raise ValueError(f"{self.name} must take two times; its network has one")
            a, b = inner.skip_out(at.level, stop)
            return Combination([(at.x, a), (self.raw(at, stop), b)])
        if not to_data:
            raise self.refused("a flow map of two times, such as AverageVelocity(net)")
        return of(self.called(at))

    def _diagonal(self, at: State) -> Combination:
        """The velocity of a flow map in its own coordinates."""
        inner = self.flow_map()
        if inner.second is None:
            raise ValueError(f"{self.name} must take two times to have a velocity; it has one")
        a, b = inner.end_rates(at.level, at.level)
        return Combination([(at.x, a), (self.raw(at, at.level), b)])

    def _carried(self, at: State) -> State:
        """The state at the same ratio of noise to data in the model's own coordinates."""
        ours, theirs = self.path, self.own
        ratio = ours.ratio(at.level)
        level: Tensor = theirs.level(ratio)
        # of the larger of signal and noise, so that neither end of a path divides by 0
        scale = torch.where(
            ratio > 1.0,
            theirs.sigma(level) / ours.sigma(at.level),
            theirs.alpha(level) / ours.alpha(at.level),
        )
        return at.at(of(at.x) * scale, level)

    def _preconditioned(self, inner: Preconditioned, at: State) -> Combination:
        scaled, carrier = self._scaled(at), at.carrier
        known = scaled is not None and at.known
        if scaled is None or not known:
            carrier = at.x
            c_skip, c_out, c_in, _ = inner.coefficients(at.level)
            if scaled is None:
                scaled = (of(at.x) * c_in).tensor()
            scaled = scaled.to(inner.dtype or at.x.dtype)
        told = at.take_told(inner)
        if told is None:
            told = inner.told(at.level, carrier)
        made = self._checked(self._network(inner, at, scaled, told), carrier)
        if known:
            return at.mapped(made)
        return Combination([(carrier, c_skip), (made, c_out)])
