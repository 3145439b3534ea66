"""A warning where a loss adds the same noise to one batch after another."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.engine.latest import Latest
from cmsolvers.engine.mistakes.glances import can_be_read
from cmsolvers.engine.mistakes.once import Once

_PROBES = 4  # places along each dimension
_MET: Latest[Hashable] = Latest(64)
ONCE = Once()


def draw_of(loss: str, x0: Tensor, seed: noise.SeedLike, draw: int | None, offset: int) -> int:
    """The draw of a loss, 0 for None; warns once per loss where None repeats the noise.

    That is where a seed and an offset that are numbers meet a second batch. Of a batch on the CPU a
    few values are remembered; of one on another device, which would have to be waited for, where it
    lies and how often it was written to. No tensor is kept.
    """
    if draw is not None:
        return draw
    if not can_be_read(x0):
        return 0
    number = seed.seed if isinstance(seed, noise.Key) else check.index(seed)
    first = seed.offset if isinstance(seed, noise.Key) else check.index(offset)
    counted = number is not None and getattr(seed, "table", None) is None
    if loss in ONCE.warned or not counted:
        return 0
    batch = _mark(x0)
    if _MET.get((loss, number, first), lambda: batch) != batch:
        ONCE.warn(
            loss,
            f"seed={number} gives {loss} the same noise for this batch as for an earlier one. Give "
            "each step its own: draw=step, or seed=noise.Seeds(0).at(step). (draw=0 says that the "
            "noise is meant to be the same.)",
        )
    return 0


def _mark(x: Tensor) -> Hashable:
    """Equal for the same batch, and nearly always different for another one."""
    if x.device.type != "cpu":
        return x.data_ptr(), 0 if x.is_inference() else x._version, x.shape
    some = tuple(slice(n // (2 * _PROBES), None, max(1, n // _PROBES)) for n in x.shape)
    return x.detach()[some].double().numpy().tobytes(), x.shape
