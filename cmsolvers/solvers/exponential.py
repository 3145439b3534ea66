"""Weights of the exponential integrator: a polynomial of the model's output, integrated exactly.

With lambda = -ln sigma, every sigma-space equation of the library is linear but for the model, and
one step of it is e^{-z} x + z int_0^1 e^{-z (1 - u)} m(u) du, u from the level of the state to the
next. z = h for the data prediction m = D on the ODE, (1 + eta) h on the SDE, and -h for the slope
m = (x - D) / sigma. Multistep methods put m's polynomial through past evaluations there.

Source: Hochbruck & Ostermann, "Exponential Integrators" (2010), sections 2.2 and 2.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmsolvers.engine.trace import Step

_TERMS = 20


def moments(z: float, count: int) -> list[float]:
    """Z int_0^1 e^{-z (1 - u)} u^k du for k = 0 ... count - 1; the first is 1 - e^{-z}.

    The recursion M_k = 1 - k M_{k-1} / z loses k digits where z has lost one, so the power series
    takes over below 1: it needs no more terms there.
    """
    if abs(z) >= 1.0:
        found = [-math.expm1(-z)]
        for k in range(1, count):
            found.append(1.0 - k * found[-1] / z)
        return found
    found = []
    for k in range(count):
        terms = [z / (k + 1)]
        for j in range(1, _TERMS):
            terms.append(-terms[-1] * z / (k + j + 1))
        found.append(math.fsum(terms))
    return found


def lagrange(nodes: Sequence[float]) -> list[list[float]]:
    """Coefficients, constant first, of the polynomials that are 1 at one node and 0 at the rest."""
    found = []
    for j, node in enumerate(nodes):
        polynomial = [1.0]
        for m, other in enumerate(nodes):
            if m != j:
                shifted, scaled = [0.0, *polynomial], [-other * c for c in polynomial] + [0.0]
                polynomial = [
                    (a + b) / (node - other) for a, b in zip(shifted, scaled, strict=True)
                ]
        found.append(polynomial)
    return found


def weights(z: float, nodes: Sequence[float]) -> list[float]:
    """Weight of the model's output at each node, u = 0 where the state is and 1 at the next level.

    They sum to 1 - e^{-z} and integrate polynomials of degree below len(nodes) exactly.
    """
    integrals = moments(z, len(nodes))
    return [
        math.fsum(c * m for c, m in zip(polynomial, integrals, strict=True))
        for polynomial in lagrange(nodes)
    ]


def log_ratio(a: float, b: float) -> float:
    """Ln(a / b), to the last digits where a and b are close, too; one of them may be infinite."""
    if math.isinf(b):
        return -math.inf
    return math.log1p((a - b) / b) if b < 2.0 * a < 4.0 * b else math.log(a / b)


def steps_back(levels: Sequence[float], to: float, count: int) -> tuple[float, list[float]]:
    """(h, nodes): h = ln(s / s'), and the last `count` levels as u, 0 the latest, then negative.

    A level that is infinite, where no data is left, is too far away to say anything, and left out,
    as are all of them on the way to it.
    """
    s = levels[-1]
    h = log_ratio(s, to)
    past = (level for level in reversed(levels[-count:-1]) if math.isfinite(level + h))
    return h, [0.0, *(-log_ratio(level, s) / h for level in past)]


def ratios_back(step: Step, to: float, count: int) -> tuple[float, list[float]]:
    """`steps_back` for the ratios sigma / alpha of a step's levels: h is their logarithm's loss."""
    ratio = step.path.ratio
    return steps_back([ratio(s) for s in step.levels[-count:]], ratio(to), count)
