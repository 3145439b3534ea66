"""Derive the polynomials of csrc/contract/math.h (Remez exchange in 60-digit arithmetic).

Run `python tools/fit_polynomials.py`; it prints each polynomial in float32 with its largest
relative error before rounding. Needs mpmath (it comes with torch).
"""

from collections.abc import Callable

import mpmath as mp
import numpy as np

mp.mp.dps = 60
Function = Callable[[mp.mpf], mp.mpf]


def remez(
    target: Function, weight: Function, degree: int, low: float, high: float
) -> tuple[list, mp.mpf]:
    """Minimax polynomial p of `degree` for weight * (p - target) on [low, high].

    Returns its coefficients from x^0 up, and the largest error.
    """
    n = degree + 2
    lo, hi = mp.mpf(low), mp.mpf(high)
    nodes = [(lo + hi) / 2 - (hi - lo) / 2 * mp.cos(mp.pi * k / (n - 1)) for k in range(n)]
    grid = [lo + (hi - lo) * k / 4000 for k in range(4001)]
    for _ in range(12):
        a = mp.matrix(n, n)
        b = mp.matrix(n, 1)
        for i, x in enumerate(nodes):
            for j in range(degree + 1):
                a[i, j] = x**j
            a[i, degree + 1] = (-1) ** i / weight(x)
            b[i] = target(x)
        solution = mp.lu_solve(a, b)
        coefficients = [solution[j] for j in range(degree + 1)]
        error = [weight(x) * (mp.polyval(coefficients[::-1], x) - target(x)) for x in grid]
        nodes = _extrema(grid, error, n)
    return coefficients, max(abs(e) for e in error)


def _extrema(grid: list, error: list, n: int) -> list:
    """One point of largest error for each run of equal sign."""
    points: list[tuple] = []
    for x, e in zip(grid, error, strict=True):
        if points and (e > 0) == (points[-1][1] > 0):
            if abs(e) > abs(points[-1][1]):
                points[-1] = (x, e)
        else:
            points.append((x, e))
    while len(points) > n:
        points.pop(0 if abs(points[0][1]) < abs(points[-1][1]) else -1)
    if len(points) < n:
        raise RuntimeError(f"the exchange lost its alternation: {len(points)} of {n} points")
    return [x for x, _ in points]


def _show(name: str, coefficients: list, error: mp.mpf) -> None:
    values = ", ".join(f"{np.float32(float(c)):.9g}f" for c in coefficients)
    exponent = mp.nstr(mp.log(error, 2), 4)
    print(f"{name}: {{{values}}}  largest relative error {mp.nstr(error, 3)} = 2^{exponent}")


def main() -> None:
    """Print every polynomial of csrc/contract/math.h."""
    tiny = mp.mpf(10) ** -12

    def log_rest(f: mp.mpf) -> mp.mpf:  # (ln(1 + f) - f + f^2/2) / f^3
        if abs(f) < tiny:
            return mp.mpf(1) / 3 - f / 4
        return (mp.log(1 + f) - f + f * f / 2) / f**3

    def log_weight(f: mp.mpf) -> mp.mpf:
        return f * f if abs(f) < tiny else f**3 / mp.log(1 + f)

    for degree in (6, 7, 8):
        c, e = remez(
            log_rest,
            lambda f: abs(log_weight(f)) + mp.mpf(10) ** -9,
            degree,
            2**-0.5 - 1,
            2**0.5 - 1,
        )
        _show(f"ln, degree {degree} in f", c, e)

    two_pi = 2 * mp.pi
    hi = mp.mpf(float(np.float32(float(two_pi))))
    print(f"2 pi = {float(hi):.9g}f + {np.float32(float(two_pi - hi)):.9g}f")
    ln2_hi = mp.mpf(float(np.float32(float(mp.log(2)))))
    print(f"ln 2 = {float(ln2_hi):.9g}f + {np.float32(float(mp.log(2) - ln2_hi)):.9g}f")

    def sin_rest(y: mp.mpf) -> mp.mpf:  # (sin(2 pi f)/f - 2 pi)/f^2, y = f^2
        f = mp.sqrt(y)
        if f < tiny:
            return -(two_pi**3) / 6
        return (mp.sin(two_pi * f) / f - two_pi) / y

    def cos_rest(y: mp.mpf) -> mp.mpf:  # (cos(2 pi f) - 1)/f^2
        f = mp.sqrt(y)
        return -(two_pi**2) / 2 if f < tiny else (mp.cos(two_pi * f) - 1) / y

    top = mp.mpf(1) / 64
    for degree in (1, 2, 3):
        c, e = remez(sin_rest, lambda y: y / two_pi + mp.mpf(10) ** -12, degree, 0, top)
        _show(f"sin, degree {degree} in f^2", c, e)
        c, e = remez(cos_rest, lambda y: y * mp.sqrt(2) + mp.mpf(10) ** -12, degree, 0, top)
        _show(f"cos, degree {degree} in f^2", c, e)


if __name__ == "__main__":
    main()
