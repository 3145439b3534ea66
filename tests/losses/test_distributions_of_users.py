"""Distributions and formulas that users write: what they may leave out, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import ConsistencyFunction, noise
from cmsolvers.denoisers.flow_maps import AverageVelocity, TrigFlowMap
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.losses import (
    Distribution,
    LogNormal,
    State,
    ayf_emd,
    ayf_lmd,
    flow_matching,
    ict,
    loss,
    mean_square,
    meanflow,
)
from cmsolvers.processes.flows import TrigFlow

X0 = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(8, 3)


class Net(nn.Module):
    """A network that reads x alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor, *times: Tensor) -> Tensor:
        return self.scale * x


class OneTime(Net):
    """The same with one time."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        return self.scale * x


@dataclass(frozen=True)
class Fixed(Distribution[Any]):
    """t = 0.8, s = 0.3 of what its coordinates are."""

    coordinates = "karras"

    def quantiles(self, u: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(u[:, 0], 0.8), torch.full_like(u[:, 0], 0.3)


@dataclass(frozen=True)
class InFlow(Fixed):
    """The same in flow coordinates."""

    coordinates = "flow"


@dataclass(frozen=True)
class InAngles(Fixed):
    """The same as angles of data of deviation 0.5."""

    coordinates = TrigFlow(0.5)


@pytest.mark.parametrize(
    ("times", "t", "s"),
    [
        (InFlow(), 0.8, 0.3),
        (Fixed(), 0.8 / 1.8, 0.3 / 1.3),  # sigma / alpha = t / (1 - t)
        (InAngles(), *(r / (1 + r) for r in (0.5 * math.tan(0.8), 0.5 * math.tan(0.3)))),
    ],
    ids=["flow", "karras", "angles"],
)
def test_coordinates_by_name_or_process(times: Any, t: float, s: float) -> None:
    found = meanflow(AverageVelocity(Net()), X0, key=0, step=0, times=times).levels
    assert found[0].tolist() == pytest.approx([t] * 8, rel=1e-12)
    assert found[1].tolist() == pytest.approx([s] * 8, rel=1e-12)


def test_other_coordinates_are_refused() -> None:
    @dataclass(frozen=True)
    class Elsewhere(Fixed):
        coordinates = "polar"

    with pytest.raises(ValueError, match="coordinates of times must be one of 'karras', 'flow'"):
        meanflow(AverageVelocity(Net()), X0, key=0, step=0, times=Elsewhere())


@pytest.mark.parametrize("pair", [ict, meanflow], ids=lambda r: r.__name__)
def test_one_level_where_two_are_needed(pair: Any) -> None:
    """Not the loss at s = t in silence; a loss of one level takes such a distribution."""
    model = ConsistencyFunction(Net()) if pair is ict else AverageVelocity(Net())
    with pytest.raises(ValueError, match=r"times must give pairs of levels .*; LogNormal gives"):
        pair(model, X0, key=0, step=0, times=LogNormal(-1.0, 1.0))
    flow_matching(AverageVelocity(Net()), X0, key=0, step=0, times=LogNormal(-1.0, 1.0))


def test_levels_given_as_times() -> None:
    given: Any = (0.8, 0.3)
    with pytest.raises(TypeError, match=r"times must be a distribution .*levels=\(t, s\)"):
        meanflow(AverageVelocity(Net()), X0, key=0, step=0, times=given)


@pytest.mark.parametrize("recipe", [meanflow, ayf_emd, ayf_lmd], ids=lambda r: r.__name__)
def test_a_network_of_one_time_is_no_flow_map(recipe: Any) -> None:
    teacher = None if recipe is meanflow else Gaussian(0.5).denoiser
    given = {"key": 0, "step": 0, "teacher": teacher, "levels": (0.8, 0.3)}
    with pytest.raises(ValueError, match=r'two times; .*TrigFlowMap\(net, second="end"\)'):
        recipe(TrigFlowMap(OneTime()), X0, **given)
    recipe(TrigFlowMap(Net(), second="end"), X0, **given)


def test_a_composition_is_called_at_states() -> None:
    made: Any = loss(
        identity="semigroup", source="a test", times=InFlow(), coordinates="flow", model="flow map"
    )

    def two_steps(at: Any) -> Tensor:
        """f(x, t, s) against two steps."""
        (x,) = at.states(at.t)
        middle = State(at.frozen(x, at.t / 2 + at.s / 2).tensor(), at.t / 2 + at.s / 2)
        return mean_square(at.student(x, at.s) - at.frozen(middle, at.s))

    def no_state(at: Any) -> Tensor:
        """The answer itself in place of a state."""
        (x,) = at.states(at.t)
        return mean_square(at.student(at.frozen(x, at.s), at.s))

    model = AverageVelocity(Net())
    with pytest.raises(TypeError, match=r"must be called at a State; .*State\(found.tensor"):
        made(no_state)(model, X0, key=0, step=0)
    found = made(two_steps)(model, X0, key=0, step=0, reduction="none")
    x = 0.2 * X0 + 0.8 * noise.normal((8, 3), 0, stream=noise.TRAINING, dtype=torch.float64)
    # f = (1 - 0.3 gap) x: one step of 0.5 against two of 0.25
    expected = ((1 - 0.3 * 0.5) - (1 - 0.3 * 0.25) ** 2) ** 2 * x.square().mean(1)
    torch.testing.assert_close(found.loss, expected)
