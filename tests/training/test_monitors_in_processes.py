"""Monitors of a training in two processes write what those of one process do."""

import pytest
from torch import distributed

from support import two_processes

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)
KINDS = pytest.mark.parametrize("kind", ["ddp", "fsdp2"])


@pytest.fixture(scope="module")
def found():
    """What two processes found, by name."""
    return two_processes.monitors()


@KINDS
def test_the_same_files_with_whole_averages(found, kind):
    assert found[f"{kind}, names"] == found["names"]
    assert "samples/step-00000010.png" in found["names"]
    assert "snapshots/step-00000008/average.long.safetensors" in found["names"]
    assert "snapshots/step-00000020/manifest.json" in found["names"]
    assert found[f"{kind}, snapshots"] < 1e-6


@KINDS
def test_one_process_logs(found, kind):
    rows = [line.split(",") for line in found[f"{kind}, log"][1:]]
    assert [int(row[0]) for row in rows] == list(range(1, 21))
    assert [float(row[1]) for row in rows] == found[f"{kind}, history"]


@KINDS
def test_one_that_cannot_write_is_left_out_everywhere(found, kind):
    assert found[f"{kind}, whole"] == 4


@KINDS
def test_all_processes_must_have_them(found, kind):
    text = "monitors must be given to all processes, the same ones; this one has 1, all 2 have 1"
    assert found[f"{kind}, different"] == text
