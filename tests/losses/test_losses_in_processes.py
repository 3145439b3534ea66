"""Public losses in two processes: DistributedDataParallel around or in the model, and FSDP2."""

import pytest
from torch import distributed

from support import two_processes
from support.shared_losses import NAMES, WRAPS

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)


@pytest.fixture(scope="module")
def found():
    """Differences of gradients to one process, per case."""
    return two_processes.findings()["losses"]


@pytest.mark.parametrize("wrap", [wrap.__name__ for wrap in WRAPS])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_have_the_gradients_of_one(found, name, wrap):
    """Each with its half of the batch, and a key with the half's place."""
    difference = found[f"{name}, {wrap}"]
    assert not isinstance(difference, str), difference
    assert difference < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_the_same_noise_in_both_is_another_gradient(found, name):
    """The control: keys that do not say where the half stands."""
    difference = found[f"{name}, same noise"]
    assert not isinstance(difference, str), difference
    assert difference > 1e-3
