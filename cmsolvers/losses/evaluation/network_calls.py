"""The networks of a loss and how they are called: with which random numbers, checked how.

A `FlowMap` or a `Preconditioned` denoiser, also inside of `DistributedDataParallel` or
`torch.compile`, gives its raw network output; any other callable counts as one whose output is f
(or D) itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Self, TypeAlias, cast

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers import Preconditioned
from cmsolvers.denoisers.flow_maps import FlowMap
from cmsolvers.denoisers.signature import CALLED
from cmsolvers.denoisers.velocity_heads import VelocityHeads
from cmsolvers.losses.evaluation.bad_rows import LeftOut
from cmsolvers.losses.evaluation.plain_checkpoints import plain_checkpoints
from cmsolvers.losses.evaluation.randomness import SameRandomness, same_statistics
from cmsolvers.losses.evaluation.states import State, version_of
from cmsolvers.ops.pair_rows import alike
from cmsolvers.processes.coordinates import Coordinates, coordinates_of
from cmsolvers.processes.wrappers import layers

Model: TypeAlias = Callable[..., Tensor]

RAW = "raw"

MAPS = "a flow map, such as AverageVelocity(net) or TrigFlowMap(net)"


def unwrapped(model: object) -> object:
    """The flow map or denoiser below what wraps a module for many devices or a compiler."""
    for layer in layers(model):
        if isinstance(layer, (FlowMap, Preconditioned)):
            return layer
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


class NetworkCalls:
    """One of the networks of a loss, called at states.

    Args:
        name: of the argument that it came as.
        model: what the user gave.
        extra: keyword arguments of its calls.
        same: the random numbers that its passes share.
        gradient: whether its outputs have one; the others repeat the random numbers of the student
            and leave running statistics as they were.

    Attributes:
        inner: the flow map or denoiser inside of wrappers; the model itself where there is none.
        own: coordinates of the model.
        preconditioned: `inner`, where it is a denoiser that nothing wraps; else None.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        extra: Mapping[str, object],
        same: SameRandomness,
        gradient: bool,
    ) -> None:
        self.name, self.model, self.extra = name, check.function(name, model), extra
        self._same, self._gradient = same, gradient
        self.preconditioned = model if isinstance(model, Preconditioned) else None
        self.inner = model if self.preconditioned is not None else unwrapped(model)
        self.own: Coordinates = coordinates_of(model)
        self._first = True
        self._traced = torch.compiler.is_compiling()
        self._alike: tuple[object, bool] | None = None
        self.left_out: LeftOut | None = None

    def given(self, extra: Mapping[str, object]) -> Self:
        """The same network with some keyword arguments replaced or added."""
        other = copy(self)
        other.extra = {**self.extra, **extra}
        return other

    def again(self) -> Self:
        """The same network for a further pass with gradient, on the random numbers of the first."""
        other = copy(self)
        other._first = False
        return other

    def without_gradient(self) -> Self:
        """The same network as one whose outputs are constants."""
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update(self.__dict__)
        other._gradient = False
        return other

    def first(self, count: int, batch: int) -> Self:
        """The same network for the first samples: its tensor arguments [batch, ...] are cut."""
        cut = {
            name: value[:count]
            for name, value in self.extra.items()
            if isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch
        }
        return self.given(cut)

    def refused(self, wanted: str) -> ValueError:
        """The error where the model must be something else."""
        return ValueError(f"{self.name} must be {wanted}; got {type(self.inner).__name__}")

    def flow_map(self) -> FlowMap:
        """The model as a flow map.

        Raises:
            ValueError: another kind of model.
        """
        if not isinstance(self.inner, FlowMap):
            raise self.refused(MAPS)
        return self.inner

    @property
    def form(self) -> FlowMap | Preconditioned:
        """The network's f = a x + b F.

        Raises:
            ValueError: a callable of which no such form is known.
        """
        if not isinstance(self.inner, (FlowMap, Preconditioned)):
            raise self.refused(
                "a flow map or a preconditioned network, such as AverageVelocity(net) or "
                "ConsistencyFunction(net)"
            )
        return self.inner

    @property
    def two_times(self) -> bool:
        """Whether it is a map to any end, not to the data alone."""
        return isinstance(self.inner, FlowMap) and self.inner.second is not None

    @property
    def input_dtype(self) -> torch.dtype | None:
        """Of the network's input; None is that of x."""
        return self.inner.dtype if isinstance(self.inner, (FlowMap, Preconditioned)) else None

    def passing(self) -> AbstractContextManager[object]:
        """The block of one of its passes."""
        if self._gradient and self._first:
            return self._same.record()
        return self._same.repeated(self.model, self._gradient)

    def followed(self, made: Tensor) -> Tensor:
        """An output of the network, whose gradient is 0 for samples that are left out."""
        return made if self.left_out is None else self.left_out.follow(made)

    def raw(self, at: State, end: Tensor | None = None) -> Tensor:
        """F of a flow map at a state."""
        inner = self.flow_map()
        if inner is not self.model:
            made = self._run(self.model, at.x, at.level, end, output=RAW)
        elif (scaled := self._scaled(at)) is not None:
            made = self._network(inner, at, scaled, at.level, end)
        else:
            made = self._run(inner.raw, at.x, at.level, end)
        return self._checked(made, at.x)

    def raw_of_state(self, at: State, end: Tensor) -> Tensor:
        """F of a flow map with gradient by the state alone: parameters count as constants.

        Of a network that is no module nothing is known: it is called as it is. Activation
        checkpoints are plain calls, as what is computed again would have the parameters' gradients.
        """
        inner = self.flow_map()
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

    def called(self, at: State) -> Tensor:
        """What the model itself returns at a state and its level."""
        dtype = torch.promote_types(at.x.dtype, torch.float32)
        return self._checked(self._run(self.model, at.x, at.level.to(dtype)), at.x)

    def scales_as(self, other: Preconditioned) -> bool:
        """Whether it is a preconditioned network that gets the input of another at every state."""
        if self.preconditioned is other:
            return True
        if self.preconditioned is None or torch.compiler.is_compiling():
            return False
        return self._reads_as(other)

    def _run(self, called: Callable[..., object], *inputs: object, **more: object) -> object:
        """One of its passes."""
        if self._gradient and self._first and not self._traced:
            return called(*inputs, **self.extra, **more)
        with self.passing():
            return called(*inputs, **self.extra, **more)

    def _network(
        self, inner: FlowMap | Preconditioned, at: State, scaled: Tensor, *told: Tensor | None
    ) -> object:
        """A pass of the network inside, which may write to the input that a state holds."""
        if self._traced:  # what it writes cannot be seen: a copy, which compilers leave out
            return self._run(inner.network, scaled.clone(), *told)
        before = version_of(scaled)
        made = self._run(inner.network, scaled, *told)
        if (before is None or scaled._version != before) and scaled is at.scaled:
            at.forget_scaled()
        return made

    def _checked(self, made: object, x: Tensor) -> Tensor:
        """An output of the network for a state x, checked and followed."""
        fine = cast(Tensor, made) if alike(made, x) else check.model_output(self.name, made, x)
        return fine if self.left_out is None else self.left_out.follow(fine)

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
