"""What a network is told besides its state and its level: an end, labels, further numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmsolvers import checks as check

RESERVED = ("x", "c_noise", "c_noise_end", "labels")
"""Names that a further number must not have."""


@dataclass(frozen=True)
class Inputs:
    """What a network F(x, c_noise[, c_noise_end], labels=..., **numbers) reads and gives.

    Attributes:
        shape: of one sample.
        times: 1, or 2 where it is told the end of a map too.
        classes: how many classes labels have, 0 ... classes - 1; None: no labels.
        null_label: whether there is one more label, `classes`, which says nothing of the sample.
        numbers: names of keyword arguments with one number per sample, such as the guidance scale
            "w" of latent consistency models.
        heads: how many outputs of the shape of x: 1, or 2 for `VelocityHeads`.

    Raises:
        TypeError, ValueError: a value of the wrong kind or out of range.
    """

    shape: tuple[int, ...]
    times: int = 1
    classes: int | None = None
    null_label: bool = True
    numbers: tuple[str, ...] = ()
    heads: int = 1

    def __post_init__(self) -> None:
        for size in self.shape:
            check.count("shape", size)
        check.count("times", self.times, most=2)
        check.count("heads", self.heads, most=2)
        if self.classes is not None:
            check.count("classes", self.classes)
        check.flag("null_label", self.null_label)
        for name in self.numbers:
            if not str(name).isidentifier() or name in RESERVED:
                raise ValueError(
                    f"inputs must be names of arguments, other than {', '.join(RESERVED)}; "
                    f"got {name!r}"
                )

    @property
    def rows(self) -> int:
        """Rows of a table of labels."""
        return 0 if self.classes is None else self.classes + self.null_label

    @property
    def null(self) -> int | None:
        """The label that says nothing; None where there is none."""
        return self.classes if self.null_label else None

    def labels_of(self, x: Tensor, labels: Tensor | None) -> Tensor | None:
        """Labels int64 [B] for a state; the null label where none are given.

        Raises:
            TypeError: labels for a network without classes, none where there is no null label.
            ValueError: labels of another shape.
        """
        if self.classes is None:
            if labels is not None:
                raise TypeError(
                    "labels must be left out: the network has no classes (`classes` of its spec "
                    "is None)"
                )
            return None
        if labels is None:
            if self.null is None:
                raise TypeError(
                    f"labels must be given, int64 [{len(x)}] in 0 ... {self.classes - 1}: the "
                    "network has no label that says nothing; got None"
                )
            return torch.full((len(x),), self.null, dtype=torch.int64, device=x.device)
        if labels.shape != x.shape[:1]:
            raise ValueError(
                f"labels must be one per sample, shape [{len(x)}]; got {check.describe(labels)}"
            )
        return labels

    def numbers_of(self, end: Tensor | None, given: Mapping[str, object]) -> list[Tensor]:
        """The end (with two times) and the further numbers, [B] each, in order.

        Raises:
            TypeError: an end or a number too many or too few.
        """
        if (end is not None) is not (self.times == 2):
            told = "one time" if self.times == 1 else "two times"
            raise TypeError(f"the network takes {told}; got {1 if end is None else 2}")
        found = [] if end is None else [end]
        for name in self.numbers:
            value = given.get(name)
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{name} must be a tensor [B], as the network was built with the input "
                    f"{name!r}; got {check.describe(value)}"
                )
            found.append(value)
        if unknown := sorted(given.keys() - set(self.numbers)):
            raise TypeError(
                f"the network has no input {unknown[0]!r}; it has "
                f"{', '.join(['labels', *self.numbers])} (`inputs` of its spec)"
            )
        return found


class LevelEmbedding(nn.Module):
    """Sines and cosines of c_noise = ln(sigma) / 4, then two layers: [B] -> [B, width].

    Frequencies end at 8, low on purpose: consistency models compare neighbouring levels, and
    an embedding that separates them too sharply makes their difference noisy.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        frequencies = torch.exp(torch.linspace(math.log(0.5), math.log(8.0), 32))
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies)

    def forward(self, c_noise: Tensor) -> Tensor:
        """[B] -> [B, width]."""
        angle = c_noise.to(self.frequencies)[:, None] * self.frequencies
        result: Tensor = self.layers(torch.cat([angle.sin(), angle.cos()], dim=1))
        return result


class Conditioning(nn.Module):
    """One vector per sample of labels, end and further numbers: a sum, 0 before training.

    As it is 0 at first, a network that begins with the weights of one without these inputs begins
    as the same function.

    Args:
        width: of the vector.
        inputs: what the network reads.
        labels: whether labels are a part of it.
    """

    def __init__(self, width: int, inputs: Inputs, *, labels: bool = True) -> None:
        super().__init__()
        self.inputs, self.width = inputs, width
        count = inputs.times - 1 + len(inputs.numbers)
        self.numbers = nn.ModuleList(LevelEmbedding(width) for _ in range(count))
        self.mixed = nn.ModuleList(nn.Linear(width, width) for _ in range(count))
        for layer in self.mixed:
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.labels = nn.Embedding(inputs.rows, width) if labels and inputs.rows else None
        if self.labels is not None:
            nn.init.zeros_(self.labels.weight)

    def forward(
        self, x: Tensor, end: Tensor | None, labels: Tensor | None, given: Mapping[str, object]
    ) -> Tensor:
        """[B, width] for a state, an end, labels and further numbers.

        Raises:
            TypeError, ValueError: as `Inputs.labels_of` and `Inputs.numbers_of`.
        """
        total = x.new_zeros(len(x), self.width)
        for embed, mix, value in zip(
            self.numbers, self.mixed, self.inputs.numbers_of(end, given), strict=True
        ):
            total = total + mix(embed(value))
        if self.labels is not None:
            total = total + self.labels(self.inputs.labels_of(x, labels))
        return total


FREQUENCIES: Sequence[float] = (0.5, 1.0, 2.0, 4.0)
"""Of the planes that stand for a number."""

PLANES = 2 * len(FREQUENCIES)
"""How many channels stand for one number."""


def planes(x: Tensor, values: Sequence[Tensor]) -> Tensor:
    """x with constant channels after its own: sin(f v), cos(f v) of each number v at `FREQUENCIES`.

    A way for a network that has no place of its own for a number to read it, through its first
    layer.

    Args:
        x: [B, C, H, W].
        values: [B] each.

    Returns:
        [B, C + 8 len(values), H, W].
    """
    found = [x]
    for value in values:
        frequencies = torch.tensor(FREQUENCIES, dtype=x.dtype, device=x.device)
        angle = value.to(x.dtype)[:, None] * frequencies
        both = torch.cat([angle.sin(), angle.cos()], dim=1)
        found.append(both[:, :, None, None].expand(-1, -1, *x.shape[2:]))
    return torch.cat(found, dim=1)
