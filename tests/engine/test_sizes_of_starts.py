"""An x that is not of the size of its level is told in every coordinates, of maps and denoisers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.denoisers import AverageVelocity, TrajectoryFunction, TrigFlowMap, from_flow
from cmsolvers.engine.mistakes import watching
from cmsolvers.engine.mistakes.criteria import about_start
from cmsolvers.processes.coordinates import FLOW, KARRAS, Coordinates
from support.warned import texts_of

Z = noise.normal((64, 4), seed=0)
TRIG = cm.TrigFlow(0.5)
ANGLE = TRIG.t_max  # where sigma is 80
PICTURES = 0.5 * noise.normal((64, 4), seed=1)


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "ONCE", watching.Once())
    monkeypatch.setattr(watching, "_LOOKS", itertools.count())  # of which a process has 200


def net(x: Tensor, *times: Tensor) -> Tensor:
    return 0.1 * x


def vp_map(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    return 0.5 * x


vp_map.coordinates = cm.VP()  # type: ignore[attr-defined]

MAPS: dict[str, tuple[Any, float]] = {
    "karras": (TrajectoryFunction(net), 80.0),
    "one time": (cm.ConsistencyFunction(net), 80.0),
    "trigflow": (TrigFlowMap(net, 0.5), ANGLE),
    "trigflow, two times": (TrigFlowMap(net, 0.5, second="end"), ANGLE),
    "flow": (AverageVelocity(net), 1.0),
    "vp": (vp_map, 1.0),
}
# map, x -> part of the text; None is no mistake
SIZES: list[tuple[str, Tensor, str | None]] = [
    ("karras", Z, "x must hold noise of its level 80, which is times[0]"),
    ("karras", 80.0 * Z, None),
    ("one time", Z, "Unit noise is to be multiplied by times[0]"),
    ("one time", 80.0 * Z, None),
    (
        "trigflow",
        80.0 * Z,
        "x must be noise of standard deviation 0.5 at the first level in the co",
    ),
    ("trigflow", 40.0 * Z, "its root mean square is 4"),
    ("trigflow", Z, "x must be noise of standard deviation 0.5"),
    ("trigflow", 0.05 * Z, "x must be noise of standard deviation 0.5"),
    ("trigflow", 0.5 * Z, None),
    ("trigflow, two times", 80.0 * Z, "x must be noise of standard deviation 0.5"),
    ("trigflow, two times", 0.5 * Z, None),
    ("flow", 80.0 * Z, "x must be noise of standard deviation 1 at the first level in flow coord"),
    ("flow", 0.1 * Z, "x must be noise of standard deviation 1"),
    ("flow", Z, None),
    ("flow", 0.7 * Z, None),
    ("flow", 0.0 * Z, None),
    ("flow", 80.0 * Z[:4], None),  # too few numbers
    ("vp", 80.0 * Z, "in the coordinates of VP"),
    ("vp", Z, None),
]


@pytest.mark.parametrize(("name", "x", "text"), SIZES)
def test_maps(name: str, x: Tensor, text: str | None) -> None:
    f, first = MAPS[name]
    found = texts_of(__file__, lambda: cm.flow_map_sample(f, x, [first, 0.0]))
    if text is None:
        assert found == []
        cm.flow_map_sample(f, x, [first, 0.0], check=True)
        return
    assert len(found) == 1 and text in found[0]
    with pytest.raises(ValueError) as error:
        cm.flow_map_sample(f, x, [first, 0.0], check=True)
    assert text in str(error.value)


def test_denoisers_in_other_coordinates_are_watched_too() -> None:
    denoiser, times = from_flow(net), cm.flow_times(8)
    (text,) = texts_of(__file__, lambda: cm.heun_pf_ode(denoiser, 80.0 * Z, times))
    assert "x must be noise of standard deviation 1 at the first level in flow coordinates" in text
    assert texts_of(__file__, lambda: cm.heun_pf_ode(from_flow(net), Z, times)) == []


@pytest.mark.parametrize("t", [0.9, 0.5, 0.1])
def test_a_start_from_pictures_is_no_mistake(t: float) -> None:
    flow = FLOW.alpha(t) * PICTURES + FLOW.sigma(t) * Z
    assert (
        texts_of(__file__, lambda: cm.flow_map_sample(AverageVelocity(net), flow, [t, 0.0])) == []
    )
    circle = math.cos(t) * PICTURES + math.sin(t) * 0.5 * Z
    assert texts_of(__file__, lambda: cm.flow_map_sample(TrigFlowMap(net), circle, [t, 0.0])) == []
    large = FLOW.alpha(t) * 200.0 * PICTURES + FLOW.sigma(t) * Z
    assert (
        texts_of(__file__, lambda: cm.flow_map_sample(AverageVelocity(net), large, [t, 0.0])) == []
    )


def test_an_exact_map_may_follow_x() -> None:
    """For data N(0, 1) it is x itself; a denoiser that follows noise is a mistake."""
    identity = AverageVelocity(lambda x, t, s: 0.0 * x)
    cm.flow_map_sample(identity, Z, [1.0, 0.0], check=True)
    with pytest.raises(ValueError, match="Does its network read 1000 t"):
        cm.heun_pf_ode(from_flow(lambda x, t: 0.0 * x), Z, [1.0, 0.5, 0.0], check=True)


def test_the_run_is_the_same() -> None:
    """The look reads x and nothing else; a second run of the map is not looked at."""
    calls = []

    def counted(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        calls.append(1)
        return 0.1 * x

    f = AverageVelocity(counted)
    first = cm.flow_map_sample(f, Z, [1.0, 0.5, 0.0])
    assert len(calls) == 2
    assert torch.equal(first, cm.flow_map_sample(f, Z, [1.0, 0.5, 0.0]))


@pytest.mark.parametrize("path", [KARRAS, FLOW, Coordinates(TRIG), Coordinates(cm.VP())])
def test_no_false_alarm_of_small_batches(path: Coordinates) -> None:
    """32 numbers of the right size, in 2000 draws."""
    level = 80.0 if path.karras else path.max_level
    x = path.sigma(level) * noise.normal((2000, 32), seed=3).double()
    sizes = x.square().mean(1).sqrt().tolist()
    assert [size for size in sizes if about_start(size, level, path) is not None] == []
