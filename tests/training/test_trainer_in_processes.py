"""A training in two processes is that of one: DistributedDataParallel and FSDP2, with gloo."""

import pytest
from torch import distributed

from support import two_processes
from support.shared_training import OPTIONS

pytest.importorskip("accelerate")
pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)
ROUNDING = 2e-6
KINDS = pytest.mark.parametrize("kind", ["ddp", "fsdp2"])


@pytest.fixture(scope="module")
def found():
    """What two processes found, by name."""
    return two_processes.training()


@KINDS
@pytest.mark.parametrize("options", OPTIONS)
def test_losses_weights_and_averages_are_those_of_one_process(found, kind, options):
    """Each with half of every batch, over 20 steps, relative to the largest entries."""
    assert found[f"{kind}, {options}"] < ROUNDING
    assert len(found["losses"]) == 20


@KINDS
def test_noise_by_places_would_be_another_training(found, kind):
    """The control."""
    assert found[f"{kind}, same noise"] > 1e-2


@KINDS
def test_a_checkpoint_is_resumed_with_another_number_of_processes(found, kind):
    """What is loaded is what was saved, to the bit; the rest of the run is that of one process."""
    assert found[f"{kind}, loaded"] == found[f"{kind}, saved"] == 0.0
    assert found[f"{kind}, resumed in two"] < ROUNDING
    assert found[f"{kind}, resumed in one"] < ROUNDING


@KINDS
def test_a_bad_sample_in_one_process_is_skipped_by_all(found, kind):
    assert found[f"{kind}, poisoned"] < ROUNDING
    assert found[f"{kind}, skipped"] == 2
    assert "in steps 4 to 6 they were not" in found[f"{kind}, report"]
    assert found[f"{kind}, kept"] == 6


@KINDS
@pytest.mark.parametrize(
    ("signal", "left"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", "KeyboardInterrupt")]
)
def test_a_signal_to_one_process_ends_all_at_the_same_step(found, kind, signal, left):
    """The first process, which saves, is the one that got none."""
    assert found[f"{kind}, {signal}"] == (left, 6, 6)


@KINDS
def test_a_failure_to_write_is_an_error_in_all_processes(found, kind):
    assert found[f"{kind}, no folder"] in ("FileNotFoundError", "NotADirectoryError")


@KINDS
def test_reports_are_of_the_whole_batch(found, kind):
    """Levels in the order of one process's batch, and the norm of the mean gradient."""
    for same_levels, norms in found[f"{kind}, reports"]:
        assert same_levels and norms < 1e-5
