"""Errors about levels call the model what it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cmsolvers as cm
from cmsolvers.denoisers import AverageVelocity, TrajectoryFunction, TrigFlowMap, from_flow
from cmsolvers.denoisers.flow_map_base import kind_of
from cmsolvers.losses import flow_matching, meanflow, sct

X = torch.ones(4, 2)


def net(x: Tensor, *times: Tensor) -> Tensor:
    return 0.0 * x


def plain(x: Tensor, t: Tensor) -> Tensor:
    return 0.0 * x


plain.coordinates = "flow"  # type: ignore[attr-defined]

FLOW = AverageVelocity(net)
ONE_TIME = TrigFlowMap(net)
DENOISER = from_flow(net)


def loss_of(loss: Any, model: Callable[..., Tensor]) -> Callable[[], object]:
    return lambda: loss(model, X, key=0, step=0, levels=2.0)


CASES: dict[str, tuple[Callable[[], object], str]] = {
    "flow map": (lambda: FLOW(X, 2.0, 0.0), "t must lie in [0, 1] for a flow map in flow"),
    "one time": (lambda: ONE_TIME(X, 2.0), "for a consistency function in the coordinates of Trig"),
    "denoiser": (lambda: DENOISER(X, 2.0), "t must lie in [0, 1] for a denoiser in flow"),
    "loss of a map": (loss_of(meanflow, FLOW), "levels must lie in [0, 1] for a flow map in flow"),
    "loss of one time": (loss_of(sct, ONE_TIME), "for a consistency function in the coordinates"),
    "loss of a denoiser": (loss_of(flow_matching, DENOISER), "for a denoiser in flow coordinates"),
    "loss of a callable": (loss_of(flow_matching, plain), "for a model in flow coordinates"),
    "sampler of a map": (
        lambda: cm.flow_map_sample(FLOW, X, [2.0, 0.0]),
        "times must lie in [0, 1] for a flow map in flow coordinates; got 2",
    ),
    "sampler of one time": (
        lambda: cm.flow_map_sample(ONE_TIME, X, [2.0, 0.0]),
        "for a consistency function in the coordinates of TrigFlow",
    ),
    "sampler": (lambda: cm.heun_pf_ode(DENOISER, X, [2.0, 0.0]), "for a denoiser in flow coord"),
    "below its end": (
        lambda: cm.ConsistencyFunction(net)(X, 0.001),
        "sigma_min, 0.002, where this consistency function ends; got 0.001",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_errors_name_the_kind(name: str) -> None:
    run, text = CASES[name]
    with pytest.raises(ValueError) as found:
        run()
    assert text in str(found.value)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (FLOW, "flow map"),
        (partial(FLOW, label=1), "flow map"),
        (nn.DataParallel(TrajectoryFunction(net)), "flow map"),
        (ONE_TIME, "consistency function"),
        (cm.ConsistencyFunction(net), "consistency function"),
        (cm.denoisers.EDM(net), "denoiser"),
        (plain, "thing"),
        (nn.Linear(2, 2), "thing"),
    ],
)
def test_kinds(model: object, kind: str) -> None:
    assert kind_of(model, "thing") == kind
