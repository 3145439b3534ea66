"""Forms that are launched at once: for weights that are known only while a run goes on.

Error-controlled steps have weights per sample, and the diffusion of a user's SDE comes from a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cmsolvers import noise, ops
from cmsolvers.checks import differentiated
from cmsolvers.denoisers.pairing import alike
from cmsolvers.engine.forms import Form, Symbol, Weight, form_of
from cmsolvers.ops.step import MAX_INPUTS


class Held(Symbol):
    """A tensor as a symbol."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor, name: str = "tensor") -> None:
        super().__init__(name)
        self.tensor = tensor


class Normal(Symbol):
    """A unit normal: that draw of the stream of steps, or what `given` gives, called once."""

    __slots__ = ("_given", "draw")

    def __init__(self, draw: int, given: Callable[[], Tensor] | None = None) -> None:
        super().__init__(f"z{draw}")
        self.draw, self._given = draw, None if given is None else cache(given)

    @property
    def built_in(self) -> bool:
        """Whether a launch can make it."""
        return self._given is None

    def values(self, like: Tensor, key: noise.Key | None, dtype: torch.dtype) -> Tensor:
        """The tensor: built-in values in this dtype, a user's as they came."""
        if self._given is None:
            where: dict[str, Any] = {"dtype": dtype, "device": like.device}
            return noise.normal(like.shape, key, stream=noise.STEPS, draw=self.draw, **where)
        return self._given()


def held(tensor: Tensor, name: str = "tensor") -> Form:
    """A tensor as a form."""
    return form_of(Held(tensor, name))


class Live:
    """Launches forms over `Held` tensors and `Normal`s.

    A weight is a number, a float64 tensor [B] on any device, or a tensor that broadcasts against
    the state and multiplies elementwise (as does one that derivatives are taken of).

    Args:
        like: the state at the start of the run, whose shape, layout, device and dtype results have.
        key: of the built-in noise.
        reuse: whether results may lie in buffers that are used again from step to step.
    """

    def __init__(self, like: Tensor, key: noise.Key | None = None, *, reuse: bool = False) -> None:
        self._like, self.key, self._reuse = like, key, reuse
        self._buffers: list[Tensor] = []
        self._alive: list[Tensor] = []

    def begin(self, x: Tensor) -> None:
        """A step begins at x: of all tensors so far nothing but x is read any more."""
        self._alive = [x]

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor, whose buffer is not used again before the end of the step."""
        if self._reuse:
            self._alive.append(tensor)
        return tensor

    def tensor(self, form: Form) -> Tensor:
        """The value of a form: a tensor that is there already, or one launch."""
        if len(form.terms) == 1:
            ((symbol, weight),) = form.terms.items()
            if isinstance(symbol, Held) and isinstance(weight, float) and weight == 1.0:
                return symbol.tensor
        return self.launch(form)

    def launch(self, form: Form) -> Tensor:
        """The value of a form, in a tensor of its own."""
        like = self._like
        w_z: Weight = 0.0
        normal: Normal | None = None
        tensors: list[Tensor] = []
        row: list[Weight] = []
        for symbol, weight in form.terms.items():
            if isinstance(symbol, Normal):
                if symbol.built_in and normal is None and not elementwise(weight):
                    normal, w_z = symbol, weight
                    continue
                tensor = symbol.values(like, self.key, like.dtype)
            else:
                assert isinstance(symbol, Held)
                tensor = symbol.tensor
            if isinstance(weight, Tensor) and elementwise(weight):
                column = [-1] + [1] * (like.ndim - 1)
                factor = weight.reshape(column) if weight.ndim == 1 else weight
                tensor, weight = (factor * tensor).to(like.dtype), 1.0
            tensors.append(tensor)
            row.append(weight)
        # The tensor in front must have the dtype of the states.
        k = next((k for k, tensor in enumerate(tensors) if tensor.dtype is like.dtype), None)
        x, w_x = (like, 0.0) if k is None else (tensors.pop(k), row.pop(k))
        *row, w_z = on_device([w_x, *row, w_z], like.device)
        while len(tensors) > MAX_INPUTS:
            x = self._step(x, tensors[:MAX_INPUTS], row[: MAX_INPUTS + 1], 0.0, None)
            tensors, row = tensors[MAX_INPUTS:], [1.0, *row[MAX_INPUTS + 1 :]]
        return self._step(x, tensors, row, w_z, normal)

    def _step(
        self,
        x: Tensor,
        inputs: Sequence[Tensor],
        row: Sequence[Weight],
        w_z: Weight,
        normal: Normal | None,
    ) -> Tensor:
        more: dict[str, Any] = {"out": self._buffer() if self._reuse else None}
        if normal is not None:
            more |= {"w_z": w_z, "seed": self.key, "stream": noise.STEPS, "draw": normal.draw}
        return self.keep(ops.weighted_step(x, tuple(alike(inputs, x.dtype)), tuple(row), **more))

    def _buffer(self) -> Tensor:
        """A buffer that nothing alive lies in, be it as a view."""
        used = [tensor.data_ptr() for tensor in self._alive]
        for buffer in self._buffers:
            start = buffer.data_ptr()
            end = start + buffer.numel() * buffer.element_size()
            if not any(start <= address < end for address in used):
                return buffer
        self._buffers.append(torch.empty_like(self._like, requires_grad=False))
        return self._buffers[-1]


def on_device(row: Sequence[Weight], device: torch.device) -> list[Weight]:
    """Weights on the device of the states; all that are elsewhere go there in one copy."""
    away = {k: w for k, w in enumerate(row) if isinstance(w, Tensor) and w.device != device}
    if not away:
        return list(row)
    moved = torch.stack(list(away.values()), dim=1).to(device).unbind(1)
    here: dict[int, Weight] = dict(zip(away, moved, strict=True))
    return [here.get(k, w) for k, w in enumerate(row)]


def elementwise(weight: Weight) -> bool:
    """Whether this is no weight of a launch: an entry per element, or one with a derivative."""
    return isinstance(weight, Tensor) and (weight.ndim > 1 or differentiated(weight))
