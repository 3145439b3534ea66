"""Networks as losses see them: f, D, the velocity and the raw output, as combinations.

A `FlowMap` or a `Preconditioned` denoiser, also inside of `DistributedDataParallel` or
`torch.compile`, gives combinations over its raw network output; any other callable counts as one
whose output is f (or D) itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import TypeAlias, cast

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers import Preconditioned
from cmsolvers.denoisers.flow_maps import FlowMap
from cmsolvers.denoisers.signature import CALLED
from cmsolvers.denoisers.velocity_heads import VelocityHeads
from cmsolvers.losses.evaluation.bad_rows import LeftOut
from cmsolvers.losses.evaluation.combination import Combination, Weight, of
from cmsolvers.losses.evaluation.plain_checkpoints import plain_checkpoints
from cmsolvers.losses.evaluation.randomness import SameRandomness, same_statistics
from cmsolvers.losses.evaluation.states import State, version_of, written
from cmsolvers.processes.coordinates import Coordinates, coordinates_of

Model: TypeAlias = Callable[..., Tensor]

RAW = "raw"


def unwrapped(model: object) -> object:
    """The flow map or denoiser below what wraps a module for many devices or a compiler."""
    found = model
    for _ in range(4):
        if isinstance(found, (FlowMap, Preconditioned)):
            return found
        found = getattr(found, "module", getattr(found, "_orig_mod", None))
    return model


def _scaling_of(inner: object) -> Hashable:
    """Equal for models whose networks read the same input at a state."""
    if isinstance(inner, Preconditioned):
        found = inner.signature
        return id(inner) if found is None or found == CALLED else found
    known = type(inner).__module__.startswith("cmsolvers.")
    if isinstance(inner, FlowMap) and known:
        return type(inner), getattr(inner, "sigma_data", None), inner.dtype
    return id(inner)


class ModelView:
    """One of the networks of a loss, called at states.

    Args:
        name: of the argument that it came as.
        model: what the user gave.
        extra: keyword arguments of its calls.
        same: the random numbers that its passes share.
        gradient: whether its outputs have one; the others repeat the random numbers of the student
            and leave running statistics as they were.
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
        self.name, self.model, self.extra = name, check.function(name, model), extra
        self._same, self._gradient = same, gradient
        self.inner = unwrapped(model)
        self.own: Coordinates = coordinates_of(model)
        self.path: Coordinates = self.own if path is None else path
        self._elsewhere = path is not None and self.own != path
        self._first = True
        self._alike: tuple[object, bool] | None = None
        self.left_out: LeftOut | None = None

    def given(self, extra: Mapping[str, object]) -> ModelView:
        """The same network with some keyword arguments replaced or added."""
        other = copy(self)
        other.extra = {**self.extra, **extra}
        return other

    def followed(self, made: Tensor) -> Tensor:
        """An output of the network, whose gradient is 0 for samples that are left out."""
        return made if self.left_out is None else self.left_out.follow(made)

    def again(self) -> ModelView:
        """The same network for a further pass with gradient, on the random numbers of the first."""
        other = copy(self)
        other._first = False
        return other

    @property
    def form(self) -> FlowMap | Preconditioned:
        """The network's f = a x + b F.

        Raises:
            ValueError: a callable of which no such form is known.
        """
        if not isinstance(self.inner, (FlowMap, Preconditioned)):
            raise ValueError(
                f"{self.name} must be a flow map or a preconditioned network, such as "
                f"AverageVelocity(net) or ConsistencyFunction(net); got {type(self.inner).__name__}"
            )
        return self.inner

    def passing(self) -> AbstractContextManager[object]:
        """The block of one of its passes."""
        if self._gradient and self._first:
            return self._same.record()
        return self._same.repeated(self.model, self._gradient)

    def without_gradient(self) -> ModelView:
        """The same network as one whose outputs are constants."""
        other = ModelView.__new__(ModelView)
        other.__dict__.update(self.__dict__)
        other._gradient = False
        return other

    def at_home(self) -> ModelView:
        """The same network in its own coordinates."""
        other = copy(self)
        other.path, other._elsewhere = self.own, False
        return other

    def first(self, count: int, batch: int) -> ModelView:
        """The same network for the first samples: its tensor arguments [batch, ...] are cut."""
        cut = {
            name: value[:count]
            for name, value in self.extra.items()
            if isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch
        }
        return self.given(cut)

    @property
    def two_times(self) -> bool:
        """Whether it is a map to any end, not to the data alone."""
        return isinstance(self.inner, FlowMap) and self.inner.second is not None

    def c_in(self, level: Tensor) -> Weight | None:
        """The factor of the network's input, where the network is called by itself."""
        if isinstance(self.inner, FlowMap):
            factor: Weight = self.inner.c_in(level)
            return factor
        if isinstance(self.inner, Preconditioned) and self.inner is self.model:
            scale: Weight = self.inner.coefficients(level).c_in
            return scale
        return None

    @property
    def input_dtype(self) -> torch.dtype | None:
        """Of the network's input; None is that of x."""
        return self.inner.dtype if isinstance(self.inner, (FlowMap, Preconditioned)) else None

    def raw(self, at: State, end: Tensor | None = None) -> Tensor:
        """F of a flow map at a state."""
        with self.passing():
            return self._raw(at, end)

    def raw_of_state(self, at: State, end: Tensor) -> Tensor:
        """F of a flow map with gradient by the state alone: parameters count as constants.

        Of a network that is no module nothing is known: it is called as it is. Activation
        checkpoints are plain calls, as what is computed again would have the parameters' gradients.
        """
        inner = self.inner
        if not isinstance(inner, FlowMap):
            raise ValueError(
                f"{self.name} must be a flow map, such as TrajectoryFunction(net); "
                f"got {type(inner).__name__}"
            )
        held = {name: p.detach() for name, p in inner.named_parameters()}
        told = {"output": RAW, **self.extra}
        plain = nullcontext() if torch.compiler.is_compiling() else plain_checkpoints()
        with self._same.replay(), same_statistics(self.model), plain:
            made: Tensor = torch.func.functional_call(inner, held, (at.x, at.level, end), told)
        return made

    def heads(self, at: State, end: Tensor) -> tuple[Tensor, Tensor]:
        """(u, v) of a network with two heads, both [B, ...].

        Raises:
            ValueError: another kind of model.
        """
        inner = self.inner
        if not isinstance(inner, VelocityHeads):
            raise ValueError(
                f"{self.name} must have two heads, VelocityHeads(net); got {type(inner).__name__}"
            )
        with self.passing():
            if inner is self.model:
                u, v = inner.heads(at.x, at.level, end, **self.extra)
            else:
                both: object = self.model(at.x, at.level, end, output="heads", **self.extra)
                u, v = cast("tuple[Tensor, Tensor]", both)
            return self.followed(u), self.followed(v)

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

    def _mapped(self, at: State, end: Tensor | float) -> Combination:
        inner = self.inner
        if isinstance(inner, FlowMap):
            stop = end if isinstance(end, Tensor) else torch.full_like(at.level, end)
            if inner.second is None and not (isinstance(end, float) and end == 0.0):
                raise ValueError(f"{self.name} must take two times; its network has one")
            a, b = inner.skip_out(at.level, stop)
            return Combination([(at.x, a), (self.raw(at, stop), b)])
        if not (isinstance(end, float) and end == 0.0):
            raise ValueError(
                f"{self.name} must be a flow map of two times, such as AverageVelocity(net); "
                f"got {type(inner).__name__}"
            )
        if isinstance(inner, Preconditioned) and inner is self.model:
            return self._preconditioned(inner, at)
        with self.passing():
            return of(self._called(at))

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

    def _diagonal(self, at: State) -> Combination:
        """The velocity of a flow map in its own coordinates."""
        inner = self.inner
        if isinstance(inner, FlowMap):
            if inner.second is None:
                raise ValueError(f"{self.name} must take two times to have a velocity; it has one")
            a, b = inner.end_rates(at.level, at.level)
            return Combination([(at.x, a), (self.raw(at, at.level), b)])
        raise TypeError(f"{self.name} must be a flow map; got {type(inner).__name__}")

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
        return State((of(at.x) * scale).tensor().to(at.x.dtype), level)

    def _preconditioned(self, inner: Preconditioned, at: State) -> Combination:
        scaled, carrier = self._scaled(at), at.carrier
        if scaled is not None and at.form is not None:
            c_skip, c_out = at.form
        else:
            carrier = at.x
            c_skip, c_out, c_in, _ = inner.coefficients(at.level)
            if scaled is None:
                scaled = (of(at.x) * c_in).tensor()
            scaled = scaled.to(inner.dtype or at.x.dtype)
        told = at.take_told(inner)
        if told is None:
            told = inner.told(at.level, carrier)
        before = version_of(scaled)
        with self.passing():
            made = inner.network(scaled, told, **self.extra)
        if written(scaled, before) and scaled is at.scaled:
            at.forget_scaled()
            carrier = at.carrier
        made = self.followed(check.model_output(self.name, made, carrier))
        return Combination([(carrier, c_skip), (made, c_out)])

    def _raw(self, at: State, end: Tensor | None) -> Tensor:
        inner = self.inner
        if not isinstance(inner, FlowMap):
            raise ValueError(
                f"{self.name} must be a flow map, such as AverageVelocity(net) or "
                f"TrigFlowMap(net); got {type(inner).__name__}"
            )
        if inner is not self.model:
            made = self.model(at.x, at.level, end, output=RAW, **self.extra)
        elif (scaled := self._scaled(at)) is not None:
            before = version_of(scaled)
            made = inner.network(scaled, at.level, end, **self.extra)
            if written(scaled, before):
                at.forget_scaled()
        else:
            made = inner.raw(at.x, at.level, end, **self.extra)
        return self.followed(check.model_output(self.name, made, at.x))

    def scales_as(self, other: Preconditioned) -> bool:
        """Whether it is a preconditioned network that gets the input of another at every state."""
        inner = self.inner
        if not isinstance(inner, Preconditioned) or inner is not self.model or self._elsewhere:
            return False
        if inner is other or torch.compiler.is_compiling():
            return inner is other
        return self._reads_as(other)

    def _reads_as(self, other: object) -> bool:
        """Whether its network reads the same input as that of another model; found out once."""
        if self._alike is None or self._alike[0] is not other:
            self._alike = other, _scaling_of(self.inner) == _scaling_of(other)
        return self._alike[1]

    def _scaled(self, at: State) -> Tensor | None:
        """The input of the network, where it was made with the state for the same scalings."""
        if at.scaled is None or at.scaled_for is self.inner:
            return at.scaled
        if torch.compiler.is_compiling():  # it cannot trace what a signature is made of
            return None
        return at.scaled if self._reads_as(at.scaled_for) else None

    def _called(self, at: State) -> Tensor:
        dtype = torch.promote_types(at.x.dtype, torch.float32)
        made = self.model(at.x, at.level.to(dtype), **self.extra)
        return self.followed(check.model_output(self.name, made, at.x))
