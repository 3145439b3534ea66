"""Gradients of losses with derivatives, in two processes as in one."""

import pytest
from torch import distributed

from support import two_processes

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)


@pytest.fixture(scope="module")
def found():
    """Differences of gradients to one process, per case."""
    return two_processes.findings()["derivatives"]


def test_no_case_raises(found):
    assert [f"{name}: {value}" for name, value in found.items() if isinstance(value, str)] == []


def test_two_processes_have_the_gradients_of_one(found):
    exact = {n: value for n, value in found.items() if "jvp" in n}
    assert len(exact) == 8 and max(exact.values()) < 1e-12, exact


def test_finite_differences_have_too_up_to_their_rounding(found):
    """Of 1e-16 in the network, through a division by the step; it depends on the batch."""
    differences = {n: value for n, value in found.items() if "finite_difference" in n}
    assert len(differences) == 6 and max(differences.values()) < 1e-9, differences


def test_passes_with_gradient_beside_the_wrapper_lose_it(found):
    beside = {n: value for n, value in found.items() if "beside" in n}
    assert len(beside) == 2 and min(beside.values()) > 1e-3, beside
