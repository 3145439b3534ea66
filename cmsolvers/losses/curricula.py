"""How many levels N a training step uses, and how fast its target follows: N(k) and mu(k).

N counts levels, so a step chooses among N - 1 adjacent pairs.
"""

from __future__ import annotations

import math

from cmsolvers import checks as check


def _step(k: int, total: int) -> tuple[int, int]:
    total = check.count("total", total)
    k = check.count("k", k, least=0)
    if k > total:
        raise ValueError(f"k must not exceed total; got {k} of {total}")
    return k, total


def _sizes(s0: int, s1: int) -> tuple[int, int]:
    s0, s1 = check.count("s0", s0), check.count("s1", s1)
    if s1 < s0:
        raise ValueError(f"s1 must not be below s0; got s0 = {s0}, s1 = {s1}")
    return s0, s1


def cm_discretization(k: int, total: int, s0: int = 2, s1: int = 150) -> int:
    """N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1, K = total; at least 2.

    Args:
        k: training step, 0..total.
        total: training steps in all.
        s0: N at the start.
        s1: N - 1 at the end.

    Raises:
        TypeError: an argument that is no int.
        ValueError: k outside 0..total, s1 below s0.

    Source: Song et al., "Consistency Models" (2023), section 6 and appendix C.
    """
    k, total = _step(k, total)
    s0, s1 = _sizes(s0, s1)
    # The square root in integers: in floats a perfect square could land on either side of its
    # ceiling.
    numerator = k * ((s1 + 1) ** 2 - s0**2) + total * s0**2
    root = math.isqrt(numerator // total)
    if root * root * total < numerator:
        root += 1
    return max(2, root)


def cm_ema_rate(n: int, s0: int = 2, mu0: float = 0.95) -> float:
    """mu = exp(s0 ln mu0 / (N - 1)) for the target of consistency training with N = `n` levels.

    With s0 = 2, mu0 = 0.95 the first value (N = 2) is 0.9025, as published code has it.

    Raises:
        TypeError: n or s0 is no int.
        ValueError: n below 2, s0 below 1, mu0 outside (0, 1).

    Source: Song et al., "Consistency Models" (2023), section 6 and appendix C.
    """
    n, s0 = check.count("n", n, least=2), check.count("s0", s0)
    mu0 = check.positive("mu0", mu0)
    check.below("mu0", mu0, "1", 1.0)
    return math.exp(s0 * math.log(mu0) / (n - 1))


def doubling_discretization(k: int, total: int, s0: int = 10, s1: int = 1280) -> int:
    """N(k) = min(s0 2^floor(k/K'), s1) + 1, K' = floor(total / (log2 floor(s1/s0) + 1)).

    The number of pairs doubles at even intervals. Arguments and errors as in `cm_discretization`.

    Source: Song & Dhariwal, "Improved Techniques for Training Consistency Models" (2023), section
        3.4.
    """
    k, total = _step(k, total)
    s0, s1 = _sizes(s0, s1)
    interval = max(1, math.floor(total / (math.log2(s1 // s0) + 1)))
    return int(min(s0 << min(k // interval, s1.bit_length()), s1)) + 1
