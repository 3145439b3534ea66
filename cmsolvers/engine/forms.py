"""Linear forms {symbol: weight}: the one data type of the engine.

A step of a sampler is linear in the state, in what the network returned and in the noise. A formula
is written with forms as its paper prints it, and the row of weights falls out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor

from cmsolvers.checks import describe

Weight: TypeAlias = float | Tensor
"""A number, or a float64 tensor with one entry per sample; in `live`, also one per element."""


class Symbol:
    """One tensor that a form may weigh: a state, an output of the network, a unit normal.

    Symbols are compared by identity.

    Args:
        name: for error texts.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


class Form:
    """A sum of weighted symbols, with `+ - * /`.

    Args:
        terms: weights by symbol. A weight that is the number 0.0 is left out: nothing reads its
            symbol, so that 0 * inf cannot make NaN.
    """

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[Symbol, Weight]) -> None:
        self.terms = {s: w for s, w in terms.items() if isinstance(w, Tensor) or w != 0.0}

    def __add__(self, other: Form) -> Form:
        if not isinstance(other, Form):
            raise TypeError(f"to a form only forms may be added; got {_given(other)}")
        terms = dict(self.terms)
        for symbol, weight in other.terms.items():
            terms[symbol] = _sum(terms[symbol], weight) if symbol in terms else weight
        return Form(terms)

    __radd__ = __add__

    def __sub__(self, other: Form) -> Form:
        if not isinstance(other, Form):
            raise TypeError(f"from a form only forms may be subtracted; got {_given(other)}")
        return self + -1.0 * other

    def __rsub__(self, other: object) -> Form:
        raise TypeError(f"a form may be subtracted from forms only; got {_given(other)}")

    def __mul__(self, factor: Weight) -> Form:
        if not isinstance(factor, (int, float, Tensor)):
            raise TypeError(
                f"a form may only be multiplied by numbers: a step is linear; got {_given(factor)}"
            )
        return Form({symbol: factor * weight for symbol, weight in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: Weight) -> Form:
        if not isinstance(divisor, (int, float, Tensor)):
            raise TypeError(
                f"a form may only be divided by numbers: a step is linear; got {_given(divisor)}"
            )
        return Form({symbol: weight / divisor for symbol, weight in self.terms.items()})

    def __rtruediv__(self, other: object) -> Form:
        raise TypeError(f"nothing may be divided by a form: a step is linear; got {_given(other)}")

    def __neg__(self) -> Form:
        return -1.0 * self

    def replace(self, meaning: Callable[[Symbol], Form | None]) -> Form:
        """The form with symbols rewritten by other forms; None leaves a symbol as it is."""
        total: dict[Symbol, Weight] = {}
        for symbol, weight in self.terms.items():
            form = meaning(symbol)
            for s, w in ((symbol, 1.0),) if form is None else form.terms.items():
                part = weight if form is None else weight * w
                total[s] = _sum(total[s], part) if s in total else part
        return Form(total)

    def __repr__(self) -> str:
        parts = (
            f"{w if isinstance(w, Tensor) else format(w, '.6g')} {s}" for s, w in self.terms.items()
        )
        return " + ".join(parts) or "0"


def _given(value: object) -> str:
    return f"the form {value}" if isinstance(value, Form) else describe(value)


def _sum(a: Weight, b: Weight) -> Weight:
    """The sum; entries per sample and per element add up sample by sample."""
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim != b.ndim:
        wide = max(a.ndim, b.ndim)
        a, b = (w.reshape(w.shape + (1,) * (wide - w.ndim)) for w in (a, b))
    return a + b


def form_of(symbol: Symbol) -> Form:
    """The symbol itself."""
    return Form({symbol: 1.0})


ZERO = Form({})


def weighed(weights: Sequence[float], forms: Sequence[Form]) -> Form:
    """The sum of weights times forms, as many as there are weights; 0 leaves a form out."""
    total = ZERO
    for weight, form in zip(weights, forms, strict=False):
        if weight:
            total = total + weight * form
    return total
