"""Samplers out of formulas that are no solvers of the library, and formulas changed on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from cmsolvers.engine import catalogue
from cmsolvers.engine.forms import Form, Symbol, form_of
from cmsolvers.engine.solver import Sampler, solver
from cmsolvers.engine.symbols import Noise
from cmsolvers.engine.trace import Formula, Span, Step, Trace, trace


def sampler_of(formula: Formula, **settings: Any) -> Sampler:
    """What a new solver is: a formula, decorated; without a line in the catalogue."""
    known = dict(catalogue.SOLVERS)
    try:
        return solver(order="", nfe="", source="", **settings)(formula)
    finally:
        catalogue.SOLVERS.clear()
        catalogue.SOLVERS.update(known)


def formula_of(sampler: Any, **options: object) -> Formula:
    """The formula of a solver, with its options."""

    def formula(step: Step) -> Form:
        return sampler.__wrapped__(step, **options)  # type: ignore[no-any-return]

    return formula


def spans(levels: Sequence[float]) -> tuple[Span, ...]:
    """One step from each level to the next."""
    return tuple((s, s, to, 0) for s, to in pairwise(map(float, levels)))


def traced(formula: Formula, levels: Sequence[float], **settings: Any) -> Trace:
    """The formula's steps, checked."""
    return trace(formula, spans(levels), **settings)


def changed(formula: Formula, change: Callable[[Step, Form], Form]) -> Formula:
    """The formula with its last row changed."""
    return lambda step: change(step, formula(step))


def moved(row: Form, share: float, source: Symbol, target: Symbol) -> Form:
    """Some of one weight goes to another symbol: the sum stays."""
    part = share * row.terms[source]
    return row - part * form_of(source) + part * form_of(target)


def scaled(row: Form, factor: float, kind: type[Symbol] = Noise) -> Form:
    """The row with all weights of one kind of symbol scaled."""
    return Form({s: factor * w if isinstance(s, kind) else w for s, w in row.terms.items()})
