"""Gradients of losses with derivatives, in two processes as in one."""

import pytest
from torch import distributed

from support import two_processes

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)


def check(found, negative):
    wrong = found.pop(negative)
    assert wrong > 1e-3, wrong  # two processes that do not average see other gradients
    exact = {name: value for name, value in found.items() if "finite" not in name}
    for name, value in exact.items():
        assert not isinstance(value, str), f"{name}: {value}"
    assert max(exact.values()) < 1e-12, exact
    # Rounding of the loss's finite differences depends on the batch: eps / step.
    differences = {name: value for name, value in found.items() if name not in exact}
    for name, value in differences.items():
        assert not isinstance(value, str), f"{name}: {value}"
    assert max(differences.values()) < 1e-8, differences


def test_two_processes_have_the_gradients_of_one():
    found = two_processes.run(two_processes.loss_cases)
    check(found, "ddp, student's pass without the wrapper")


def test_two_processes_have_the_gradients_of_one_through_derivatives():
    found = two_processes.run(two_processes.through_cases)
    check(found, "ddp, derivative's pass without the wrapper")
