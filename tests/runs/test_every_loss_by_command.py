"""Every recipe trains from a configuration that names it, and draws samples on the way."""

import math

import pytest

from cmsolvers.runs.building import RECIPES
from cmsolvers.runs.config import Config, overridden
from cmsolvers.runs.train import train

KEYS = [
    "data.source=toy:two_moons",
    "data.n=64",
    "network.options={width=16, blocks=1}",
    "train.batch_size=16",
    "train.steps=2",
    "logging.progress=false",
    "logging.picture_every=0",
    "sampling.every=2",
    "sampling.count=4",
]
TEACHERS = {"flow": "flow_matching", "karras": "dsm", "trigflow": "dsm"}


def trained(name, *overrides):
    keys = [*KEYS, f"loss.name={name}", f"run.out={name}", *overrides]
    return train(Config.of(overridden({}, keys)), tell=len)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    place = tmp_path_factory.mktemp("teachers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name in set(TEACHERS.values()):
            trained(name)
    return place


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains(name, teachers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    about = RECIPES[name].recipe
    needs = about.teacher == "required" or name == "reflow"
    more = [f"teacher.path={teachers / TEACHERS[about.coordinates]}"] if needs else []
    trainer = trained(name, *more)
    assert trainer.step == 2 and trainer.skipped == 0
    assert all(map(math.isfinite, trainer.history))
    assert (tmp_path / name / "samples" / "step-00000002.png").exists()
