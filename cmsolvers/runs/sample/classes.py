"""The class of each sample, a function of its id: a list in turn, or drawn evenly."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise

UNIFORM, NONE = "uniform", "none"
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


@dataclass(frozen=True)
class ClassRule:
    """Which class a sample gets.

    Attributes:
        text: as it was given, "0-9", "3,5", "uniform" or "none".
        listed: the classes that samples get in turn, sample i the entry i modulo their number.
        drawn: how many classes are drawn from, each as likely; 0 where they are listed.
    """

    text: str
    listed: tuple[int, ...] = ()
    drawn: int = 0

    @staticmethod
    def read(text: str | None, classes: int | None, null: int | None) -> ClassRule | None:
        """The rule that a text describes; None for a model without classes.

        Args:
            text: "0-9", "3,5", "0-3,7", "uniform", "none" for the label that says nothing; None is
                all classes in turn.
            classes: of the model.
            null: its label that says nothing.

        Raises:
            ValueError: another text, a class that there is not, classes for a model without.
        """
        if classes is None:
            if text is not None:
                raise ValueError(f"classes must be left out: the model has none; got {text!r}")
            return None
        if text is None:
            return ClassRule(f"0-{classes - 1}", tuple(range(classes)))
        if text == UNIFORM:
            return ClassRule(text, drawn=classes)
        if text == NONE:
            if null is None:
                raise ValueError("classes must not be 'none': the model has no empty label")
            return ClassRule(text, (null,))
        listed: list[int] = []
        for part in text.split(","):
            found = _RANGE.fullmatch(part.strip())
            if found is None:
                raise ValueError(
                    f"classes must be such as '0-9', '3,5', 'uniform' or 'none'; got {text!r}"
                )
            first, last = int(found[1]), int(found[2] or found[1])
            if last >= classes or first > last:
                raise ValueError(
                    f"classes must lie in 0 ... {classes - 1}, the smaller one first; got {part!r}"
                )
            listed.extend(range(first, last + 1))
        return ClassRule(text, tuple(listed))

    def labels(self, first: int, count: int, seed: int) -> Tensor:
        """The classes of samples first, first + 1, ..., int64 [count]."""
        check.count("count", count, least=0)
        if self.drawn:
            key = noise.Key(seed, offset=first)
            u = noise.uniform((count, 1), key, stream=noise.OTHER, dtype=torch.float64)[:, 0]
            return (u * self.drawn).long().clamp_max(self.drawn - 1)
        ids = torch.arange(first, first + count)
        return torch.tensor(self.listed)[ids % len(self.listed)]
