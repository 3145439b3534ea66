"""Trainings that are killed or told to stop end with the bits of those that are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def found(*arguments: object) -> dict:
    command = [sys.executable, "-m", "support.killed_training", *map(str, arguments)]
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.faults)])
def test_killed_at_random_instants_and_resumed(kills: int, tmp_path: Path):
    """Every file of the last checkpoint is that of the run that was left alone."""
    result = found(kills, tmp_path)
    assert result["kills"] == kills and result["runs"] >= 1
    assert result["different"] == 0
    assert result["strays"] == []
    assert kills < 50 or result["in saves"] > 0
    print(f"SIGKILL of a training at {kills} random instants: {result}")


def test_signals_save_soon_and_end_with_their_status(tmp_path: Path):
    result = found("signals", tmp_path)
    assert list(result) == ["SIGTERM", "SIGHUP", "SIGINT"]
    for status, (code, seconds, step, same, strays) in zip(
        (143, 129, 130), result.values(), strict=True
    ):
        assert code == status
        assert seconds < 10.0
        assert 0 < step < 60
        assert same and strays == []
