"""The levels of a loss: drawn from a distribution, or given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.denoisers.flow_map_base import kind_of
from cmsolvers.losses.evaluation import terms
from cmsolvers.ops.pair_rows import ALL_ZERO, EQUAL, LOOK, SOME_ZERO
from cmsolvers.processes.coordinates import KARRAS, Coordinates, coordinates

if TYPE_CHECKING:
    from cmsolvers.losses.evaluation.evaluation import Evaluation

Level: TypeAlias = "float | Tensor"
Levels: TypeAlias = "Level | tuple[Level, Level]"


class Times(Protocol):
    """A distribution of levels.

    Its attribute `coordinates` ("karras", "flow" or a `Process`; Karras ones where it has none)
    says what its levels are; they are carried over to those of the model. `reaches_zero = False`
    (True where it has none) says that no s is 0. It uses elements 0 to 7 of stream 4 of the noise
    contract. One that depends on the training step reads it by `step_of(seed, draw)`.
    """

    def sample(
        self,
        batch: int,
        seed: noise.SeedLike,
        *,
        draw: int = 0,
        device: torch.device | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Levels t, or (t, s) with s at most t, float64 [batch] each."""


def levels_of(
    at: Evaluation, times: Times, levels: Levels | None, pair: bool, drawn_pairs: bool = False
) -> tuple[Tensor, Tensor]:
    """(t, s) of a batch, float64 [B] in the model's coordinates; s = t for a single level.

    Args:
        at: the evaluation.
        times: a distribution.
        levels: the levels themselves; None asks the distribution.
        pair: whether t must be above s.
        drawn_pairs: whether the distribution must give both levels.

    Raises:
        TypeError: levels, or a distribution, of the wrong kind.
        ValueError: levels outside of the path, t below s, a distribution of one level where two are
            needed.
    """
    if levels is not None:
        if isinstance(levels, (tuple, list)) and len(levels) != 2:
            raise ValueError(f"levels must be t or (t, s); got {len(levels)} of them")
        t, s = levels if isinstance(levels, (tuple, list)) else (levels, levels)
        found = look(at, t, s)
        if found is not None and not (pair and found & EQUAL):
            assert isinstance(t, Tensor) and isinstance(s, Tensor)
            at.ends_clean = clean_ends(found)
            return t, s
        if not isinstance(s, Tensor):
            at.ends_clean = bool(s == 0)
        high = terms.levels("levels", t, at.x0)
        low = high if t is s else terms.levels("levels", s, at.x0, zero=True)
        return _checked(at, high, low, pair)
    if not callable(getattr(times, "sample", None)):
        raise TypeError(
            f"times must be a distribution of levels, such as UniformTimes(); got "
            f"{check.describe(times)}. The levels themselves go in as levels=(t, s)"
        )
    if not getattr(times, "reaches_zero", True):
        at.ends_clean = False
    drawn = times.sample(len(at.x0), at.key, draw=at.draw, device=at.x0.device)
    both = drawn if isinstance(drawn, tuple) else (drawn, drawn)
    if drawn_pairs and not isinstance(drawn, tuple):
        raise ValueError(
            f"times must give pairs of levels (t, s); {type(times).__name__} gives one level"
        )
    theirs = coordinates("coordinates of times", getattr(times, "coordinates", KARRAS))
    high = carried(both[0], theirs, at.path)
    return high, (high if both[1] is both[0] else carried(both[1], theirs, at.path))


def look(at: Evaluation, t: object, s: object) -> int | None:
    """What `LOOK` says of levels in the model's coordinates; None where it cannot."""
    if LOOK is None or torch.compiler.is_compiling():
        return None
    return LOOK(at.x0, t, s, at.path.max_level)


def clean_ends(found: int) -> bool | None:
    """Whether all s are 0 or none is, of what `look` found in a batch; None for some."""
    if found & ALL_ZERO:
        return bool(found & SOME_ZERO)  # not of an empty batch
    return None if found & SOME_ZERO else False


def carried(level: Tensor, theirs: Coordinates, ours: Coordinates) -> Tensor:
    """A level in other coordinates, at the same ratio of noise to data."""
    if theirs == ours:
        return level
    return ours.level(theirs.ratio(level))


def _checked(at: Evaluation, t: Tensor, s: Tensor, pair: bool) -> tuple[Tensor, Tensor]:
    if t.device.type != "cpu" or torch.compiler.is_compiling():
        return t, s
    if len(t):
        at.path.check_levels("levels", [float(t.max())], kind_of(at.student.inner, "model"))
        below = t <= s if pair else t < s
        if bool(below.any()):
            k = int(below.nonzero()[0])
            wanted = "above" if pair else "at least"
            raise ValueError(
                f"levels must be (t, s) with t {wanted} s, the student sits at the larger level; "
                f"got {float(t[k]):g} and {float(s[k]):g} at sample {k}"
            )
    return t, s
