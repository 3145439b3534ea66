"""At the exact flow map every loss is stationary; with any of its faults it is not."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from cmsolvers.losses.loss_table import losses
from support.loss_faults import Fault, Options
from support.orders import slope
from support.stationary import MOVES, STILL, expected_gradient
from support.stationary_cases import CASES
from support.stationary_laws import Case, Exactly, Falling, OnAverage

NEAR = 0.1
"""How far a measured rate may be from that of theory."""

falling = [case for case in CASES if isinstance(case, Falling)]
others = [case for case in CASES if not isinstance(case, Falling)]


def named(case: Any) -> str:
    return case.name if isinstance(case, Case) else case.__name__


def faulty(cases: list[Any]) -> Any:
    pairs = [(case, fault) for case in cases for fault in case.faults]
    return pytest.mark.parametrize(("case", "fault"), pairs, ids=named)


def gradient(case: Case, model: Any, options: Options) -> Any:
    call = case.loss if case.call is None else case.call
    return expected_gradient(call, model, batches=case.batches, size=case.size, **options)


def sizes(case: Falling, model: Any, options: Options) -> list[float]:
    """Of the gradient, by step."""
    return [gradient(case, model, options | case.at(step)).size for step in case.steps]


@cache
def right_sizes(case: Falling) -> list[float]:
    """Those without a fault."""
    return sizes(case, case.made(), case.options)


@pytest.mark.parametrize("recipe", losses(), ids=lambda recipe: recipe.__name__)
def test_every_loss_is_proven_with_a_fault_that_is_noticed(recipe: Any) -> None:
    """A loss that is new has no case, and fails here."""
    own = [case for case in CASES if case.loss is recipe]
    assert own, f"{recipe.__name__} has no case in support.stationary_cases"
    assert any(case.faults for case in own)


@pytest.mark.parametrize("case", others, ids=named)
def test_the_exact_map_is_stationary(case: Case) -> None:
    found = gradient(case, case.made(), case.options)
    if isinstance(case, Exactly):
        assert found.size < 1e-11
    else:
        assert isinstance(case, OnAverage)
        assert found.worst < STILL
        assert float(found.error.max()) > 1e-9  # it is an average of what is not 0


@faulty(others)
def test_with_a_fault_it_is_not(case: Case, fault: Fault, monkeypatch: Any) -> None:
    model = case.made()
    found = gradient(case, model, fault(monkeypatch, model, case.options))
    assert found.worst > MOVES


@pytest.mark.parametrize("case", falling, ids=named)
def test_discrete_losses_are_nearly_stationary(case: Falling) -> None:
    """The gradient falls with the step at the rate of theory."""
    rate = -slope(right_sizes(case), case.steps)
    assert rate == pytest.approx(case.rate, abs=NEAR)


@faulty(falling)
def test_with_a_fault_they_are_not(case: Falling, fault: Fault, monkeypatch: Any) -> None:
    """It falls by half an order less at least, and is larger where the step is small."""
    right, model = right_sizes(case), case.made()
    found = sizes(case, model, fault(monkeypatch, model, case.options))
    assert -slope(found, case.steps) < case.rate - 0.5
    assert found[-1] > 3 * right[-1]
