"""A row of the benchmark: a loss, the model it trains, and how that model samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor, nn

from cmsolvers import checks as check

Model: TypeAlias = Callable[..., Tensor]
Kind: TypeAlias = Literal["denoiser", "consistency", "flow map"]
Options: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Course:
    """Where a training stands.

    Attributes:
        step: steps done.
        total: how many there will be, from what the steps so far have cost; at least step + 1.
        share: of the budget that is spent, in [0, 1).
        round: which of the entry's rounds this is.
    """

    step: int
    total: int
    share: float
    round: int


@dataclass(frozen=True)
class Entry:
    """A recipe: everything in which it differs from the others.

    The coordinates of a model are those that it names in its attribute `coordinates`, Karras ones
    by default. To be run in worker processes an entry must be made of functions that can be
    imported (no lambdas).

    Attributes:
        name: the row's.
        loss: `loss(model, x0, *, key, step, **options)`, with `teacher=` and `target=` where they
            are wanted; it returns a scalar, or an object with one as its attribute `loss`.
        make_model: `make_model(network, sigma_data) -> model` around `network(x, c_noise)`, or
            `network(x, c_noise, c_noise_end)` where kind is "flow map".
        kind: what the model is: "denoiser" D(x, level), sampled by Euler's method; "consistency"
            f(x, level), by steps with new noise; "flow map" f(x, start, end), by composed steps.
        options: of the loss; or a function of the `Course`, for what changes on the way.
        teacher: hand the loss the exact denoiser, in the coordinates of the model.
        rounds: the budget is divided evenly into so many; after each the averaged model so far is
            the new teacher.
        pairs: hand the loss as `noise` unit normals whose ends under the exact map are x0.
        target_decay: hand the loss a target, the model around an average of the network with this
            decay; None for no target.
        start: the level where sampling starts; None is 80 in Karras coordinates and else the
            largest level.
        end: the level where it ends, for a consistency function its sigma_min.
        sampler: `sampler(model, x, levels, seed) -> x` in place of that of the kind.
        lr: the largest learning rate.
        family: rows of one family stand together in table and picture.
        source: the paper.

    Raises:
        TypeError, ValueError: an attribute of the wrong kind or out of range.
    """

    name: str
    loss: Callable[..., Any]
    make_model: Callable[[nn.Module, float], Model]
    kind: Kind
    options: Options | Callable[[Course], Options] = field(default_factory=dict)
    teacher: bool = False
    rounds: int = 1
    pairs: bool = False
    target_decay: float | None = None
    start: float | None = None
    end: float = 0.0
    sampler: Callable[[Model, Tensor, list[float], int], Tensor] | None = None
    lr: float = 1e-3
    family: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        check.choice("kind", self.kind, get_args(Kind))
        for name in ("loss", "make_model"):
            check.function(name, getattr(self, name))
        check.optional_function("sampler", self.sampler)
        check.flags(teacher=self.teacher, pairs=self.pairs)
        check.count("rounds", self.rounds)
        check.positive("lr", self.lr)
        check.non_negative("end", self.end)
        if self.start is not None:
            check.below("end", self.end, "start", check.positive("start", self.start))
        if self.target_decay is not None:
            check.within("target_decay", self.target_decay, 0.0, 1.0)

    def options_at(self, course: Course) -> dict[str, Any]:
        """The options of the loss at this place of a training."""
        given = self.options(course) if callable(self.options) else self.options
        return check.options("options", given)
