"""Rows of one table of weights, which stay together where nothing is done to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class TableRow:
    """A row of a table of weights, or its negative, as a weight: a view that is not made yet.

    Kernels that write the weights of a whole residual give a table [K, B]. Each term holds a row of
    it, and where the terms meet again in their order, as in f - f^-, the table itself is used:
    neither slices nor a stack are launched.

    Args:
        table: float64 [K, B], or [K, 2, B] with pairs as indices.
        index: of the row.
        sign: 1 or -1.
    """

    __slots__ = ("index", "sign", "table")

    def __init__(self, table: Tensor, index: Any, sign: float = 1.0) -> None:
        self.table, self.index, self.sign = table, index, sign

    def tensor(self) -> Tensor:
        """The weight, float64 [B]."""
        row = self.table[self.index]
        return row if self.sign > 0 else -row

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, float) and other in (1.0, -1.0):
            return TableRow(self.table, self.index, self.sign * other)
        return self.tensor() * _settled(other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self.tensor() / _settled(other)

    def __rtruediv__(self, other: Any) -> Any:
        return _settled(other) / self.tensor()

    def __add__(self, other: Any) -> Any:
        return self.tensor() + _settled(other)

    __radd__ = __add__


def _settled(value: Any) -> Any:
    return value.tensor() if isinstance(value, TableRow) else value


def row_of(table: Tensor, index: Any, sign: float = 1.0) -> TableRow | Tensor:
    """A `TableRow`; what torch.compile traces gets the weight itself, as it knows no others."""
    row = TableRow(table, index, sign)
    return row.tensor() if torch.compiler.is_compiling() else row


def together(weights: Sequence[object]) -> Tensor | None:
    """The table whose rows, all and in their order, these are; None for others."""
    first = weights[0]
    if not isinstance(first, TableRow) or len(weights) != len(first.table):
        return None
    for k, weight in enumerate(weights):
        if not (
            isinstance(weight, TableRow)
            and weight.table is first.table
            and weight.index == k
            and weight.sign > 0
        ):
            return None
    return first.table
