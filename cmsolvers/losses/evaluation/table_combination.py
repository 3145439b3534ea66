"""A combination whose weights are rows of one table, as kernels write it for a whole residual."""

from __future__ import annotations

import math

from torch import Tensor

from cmsolvers.losses.evaluation.combination import Combination, Weight, moves


class TableCombination(Combination):
    """sum_k sign table[first + k] tensors[k]; the rows stay together where nothing is done to them.

    Where two of them meet again in the order of the table, as in f - f^-, the table itself goes
    into the fused pass: neither slices nor a stack are launched. Everything else that a
    `Combination` can do makes the rows.

    Args:
        tensors: [B, ...] each.
        table: float64 [K, B].
        first: the row of the first tensor.
        sign: 1 or -1.
    """

    __slots__ = ("_first", "_sign", "_table", "_tensors")

    def __init__(
        self, tensors: tuple[Tensor, ...], table: Tensor, first: int = 0, sign: float = 1.0
    ) -> None:
        self._tensors, self._table, self._first, self._sign = tensors, table, first, sign

    @property
    def terms(self) -> tuple[tuple[Tensor, Weight], ...]:
        """(tensor, weight) pairs."""
        return tuple(zip(self._tensors, self._rows(), strict=True))

    def _rows(self) -> Tensor:
        rows = self._table[self._first : self._first + len(self._tensors)]
        return rows if self._sign > 0 else -rows

    def __sub__(self, other: Combination | Tensor) -> Combination:
        if (
            isinstance(other, TableCombination)
            and other._table is self._table
            and other._first == self._first + len(self._tensors)
            and other._sign == -self._sign
            and not _shared(self._tensors, other._tensors)
        ):
            return TableCombination(
                self._tensors + other._tensors, self._table, self._first, self._sign
            )
        return Combination.__sub__(self, other)

    def detach(self) -> Combination:
        """The same without gradient; a tensor without one stays itself."""
        for tensor in self._tensors:
            if moves(tensor):
                tensors = tuple(t.detach() if moves(t) else t for t in self._tensors)
                return TableCombination(tensors, self._table, self._first, self._sign)
        return self

    @property
    def size(self) -> int:
        """Elements per sample."""
        return math.prod(self._tensors[0].shape[1:])

    def _passed(self) -> tuple[tuple[Tensor, ...], Tensor]:
        whole = self._sign > 0 and len(self._tensors) == len(self._table)
        return self._tensors, self._table if whole else self._rows()


def _shared(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    """Whether a tensor is among both."""
    for tensor in some:
        for other in others:
            if tensor is other:
                return True
    return False
