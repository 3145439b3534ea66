"""Embedded Runge-Kutta pairs as tables that check their own order conditions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeAlias

Tree: TypeAlias = tuple["Tree", ...]
"""A rooted tree: the sorted trees that hang at its root."""

_TOLERANCE = 1e-12


def _order(tree: Tree) -> int:
    return 1 + sum(map(_order, tree))


def _density(tree: Tree) -> int:
    return _order(tree) * math.prod(map(_density, tree))


def _grown(tree: Tree) -> Iterator[Tree]:
    """The trees with one more vertex, a leaf."""
    yield tuple(sorted((*tree, ())))
    for k, branch in enumerate(tree):
        for grown in _grown(branch):
            yield tuple(sorted((*tree[:k], grown, *tree[k + 1 :])))


@lru_cache(maxsize=16)
def rooted_trees(order: int) -> tuple[Tree, ...]:
    """All rooted trees with `order` vertices: 1, 1, 2, 4, 9 for orders 1 to 5."""
    if order == 1:
        return ((),)
    return tuple(sorted({grown for tree in rooted_trees(order - 1) for grown in _grown(tree)}))


@dataclass(frozen=True)
class Tableau:
    """An embedded pair: y_k = x + h sum_j a[k-1][j] f_j, x' = x + h sum_j b[j] f_j.

    The nodes c and whether the last stage serves as the first of the next step are derived.

    Args:
        name: of the method.
        order: of the result.
        embedded_order: of the comparison x + h sum_j b_low[j] f_j.
        a: one row for each stage after the first, row k with k entries.
        b: weights of the result.
        b_low: weights of the comparison.
        source: paper and table.

    Raises:
        ArithmeticError: a set of weights misses a condition of its order, or is of higher order
            than it says.
        ValueError: lengths that do not fit.

    Source: Hairer, Norsett & Wanner, "Solving Ordinary Differential Equations I" (1993), section
    II.2, theorem 2.13: sum_j b_j Phi_j(t) = 1 / gamma(t) for every rooted tree t up to the order.
    """

    name: str
    order: int
    embedded_order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    b_low: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        stages = len(self.a) + 1
        if [len(row) for row in self.a] != list(range(1, stages)):
            raise ValueError(f"a of {self.name} must have rows of 1, 2, ... entries")
        low = ("b_low", self.b_low, self.embedded_order)
        for label, b, order in (("b", self.b, self.order), low):
            if len(b) != stages:
                raise ValueError(f"{label} of {self.name} must have {stages} entries; got {len(b)}")
            for tree in (t for n in range(1, order + 1) for t in rooted_trees(n)):
                if abs(self.residual(b, tree)) > _TOLERANCE:
                    raise ArithmeticError(
                        f"{label} of {self.name} misses a condition of order {_order(tree)} by "
                        f"{self.residual(b, tree):.3g}"
                    )
            if all(abs(self.residual(b, t)) <= _TOLERANCE for t in rooted_trees(order + 1)):
                raise ArithmeticError(f"{label} of {self.name} is of higher order than {order}")

    @cached_property
    def c(self) -> tuple[float, ...]:
        """The nodes: sums of the rows of a; a sum that is 1 but for rounding is 1."""
        sums = (math.fsum(row) for row in self.a)
        return (0.0, *(1.0 if abs(c - 1) < _TOLERANCE else c for c in sums))

    @cached_property
    def reuses_last(self) -> bool:
        """Whether the last stage is evaluated at the result: the first of the next step."""
        return self.b == (*self.a[-1], 0.0)

    @cached_property
    def error(self) -> tuple[float, ...]:
        """The weights of the error, b - b_low."""
        return tuple(high - low for high, low in zip(self.b, self.b_low, strict=True))

    def residual(self, b: tuple[float, ...], tree: Tree) -> float:
        """By how much the weights b miss the condition of a tree."""
        weights = zip(b, self._elementary(tree), strict=True)
        return math.fsum(w * phi for w, phi in weights) - 1 / _density(tree)

    def _elementary(self, tree: Tree) -> list[float]:
        """Phi_i(tree) for every stage i."""
        phi = [1.0] * (len(self.a) + 1)
        for branch in tree:
            inner = self._elementary(branch)
            for i, row in enumerate(((), *self.a)):
                phi[i] *= math.fsum(w * v for w, v in zip(row, inner, strict=False))
        return phi


HEUN21 = Tableau(
    name="heun21",
    order=2,
    embedded_order=1,
    a=((1.0,),),
    b=(1 / 2, 1 / 2),
    b_low=(1.0, 0.0),
    source="Heun (1900); Hairer, Norsett & Wanner (1993), table II.1.1, with Euler's method",
)

BOSH32 = Tableau(
    name="bosh32",
    order=3,
    embedded_order=2,
    a=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    b_low=(7 / 24, 1 / 4, 1 / 3, 1 / 8),
    source="Bogacki & Shampine, A 3(2) pair of Runge-Kutta formulas (1989)",
)

DOPRI54 = Tableau(
    name="dopri54",
    order=5,
    embedded_order=4,
    a=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    b_low=(5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    source="Dormand & Prince, A family of embedded Runge-Kutta formulae (1980), RK5(4)7M",
)

_TSIT_B = (
    0.09646076681806523, 0.01, 0.4798896504144996,
    1.379008574103742, -3.290069515436081, 2.324710524099774,
)  # fmt: skip
_TSIT_ERROR = (
    0.00178001105222577714, 0.0008164344596567469, -0.007880878010261995,
    0.1447110071732629, -0.5823571654525552, 0.45808210592918697, -1 / 66,
)  # fmt: skip

TSIT54 = Tableau(
    name="tsit54",
    order=5,
    embedded_order=4,
    a=(
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401,
         -0.028269050394068383),
        _TSIT_B,
    ),
    b=(*_TSIT_B, 0.0),
    b_low=tuple(b + e for b, e in zip((*_TSIT_B, 0.0), _TSIT_ERROR, strict=True)),
    source="Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column "
    "simplifying assumption (2011), table 1",
)  # fmt: skip

TABLEAUX = {t.name: t for t in (HEUN21, BOSH32, DOPRI54, TSIT54)}
