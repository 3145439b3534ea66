"""Two passes of a network that count as one: the same dropout mask, and statistics of the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class SameRandomness:
    """Remembers torch's generators now, so that a later pass draws the same numbers again.

    Restoring only the CPU generator is the classic mistake: dropout of a CUDA tensor draws from
    the generator of its device. Both are kept, and after `replay` both stand where they stood
    before it.

    Args:
        device: where the passes run.

    Example:
        >>> same = SameRandomness(x.device)
        >>> student = f(x, sigma)
        >>> with same.replay():
        ...     target = f(y, sigma_next)
    """

    def __init__(self, device: torch.device | str) -> None:
        device = torch.device(device)
        self._cpu = torch.get_rng_state()
        self._type = device.type
        self._device: tuple[int, torch.Tensor] | None = None
        if device.type not in ("cpu", "meta"):
            module = torch.get_device_module(device)
            # None is the current device, which torch's types deny.
            given = cast("int | None", device.index)
            index = module.current_device() if given is None else given
            self._device = index, module.get_rng_state(index)

    @contextmanager
    def replay(self) -> Iterator[None]:
        """A block in which the generators start where they stood when this object was made."""
        if self._device is None:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(self._cpu)
                yield
            return
        index, state = self._device
        with torch.random.fork_rng(devices=[index], device_type=self._type):
            torch.set_rng_state(self._cpu)
            torch.get_device_module(self._type).set_rng_state(state, index)
            yield


@contextmanager
def same_statistics(model: object) -> Iterator[None]:
    """A block whose passes leave the running statistics of normalisation layers as they were.

    In training mode every pass of a network with `BatchNorm` moves its running statistics. Those of
    the target's pass, at another level, would be mixed with the student's.

    Args:
        model: a module; of another callable nothing is known.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    for layer in model.modules() if isinstance(model, nn.Module) else ():
        if isinstance(layer, _NormBase) and layer.training and layer.track_running_stats:
            statistics = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
            kept += [(now, now.clone()) for now in statistics if now is not None]
    try:
        yield
    finally:
        for now, before in kept:
            now.data.copy_(before)  # past the version that the student's backward pass checks
