"""The folder of a run as CHECKPOINT: its newest valid one, with a warning for a damaged one."""

from __future__ import annotations

import json

import pytest

from cmsolvers import cli
from cmsolvers.training import RunFolder
from cmsolvers.training.data import Scale
from cmsolvers.training.models import Spec
from support.sampled_models import NETWORK


def test_a_damaged_checkpoint_is_passed_over_with_a_line(tmp_path, capsys):
    spec = Spec("score", (1, 4, 4), NETWORK)
    run = RunFolder(tmp_path / "run")
    about = {"spec": spec.about(), "scale": Scale.between(0.0, 255.0).about()}
    for step in (10, 20):
        network = spec.build(0)
        network.a.data += step  # type: ignore[operator]
        run.save(step, {"network": network.state_dict()}, about)
    words = ("--num", "2", "--steps", "2", "--trust", NETWORK, "--quiet", "--device", "cpu")
    assert cli.main(["sample", str(run.path), *words, "--out", str(tmp_path / "a")]) == 0
    place = run.path / "checkpoints" / "step-00000020" / "network.safetensors"
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    with pytest.warns(UserWarning, match="damaged"):
        assert cli.main(["sample", str(run.path), *words, "--out", str(tmp_path / "b")]) == 0
    found = [json.loads((tmp_path / name / "samples.json").read_text()) for name in "ab"]
    assert [one["checkpoint"]["step"] for one in found] == [20, 10]
    assert found[0]["settings"]["checkpoint"] != found[1]["settings"]["checkpoint"]
    capsys.readouterr()
    # The digest decides, not the path: samples of step 20 are not mixed with those of step 10.
    with pytest.warns(UserWarning, match="damaged"):
        assert cli.main(["sample", str(run.path), *words, "--out", str(tmp_path / "a")]) == 2
    assert "cmsolvers sample: checkpoint must be" in capsys.readouterr().err
