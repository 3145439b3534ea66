"""What a captured step refuses, and that it changes nothing then."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cmsolvers.training import EMA, capture_step
from support.capture_job import Job, adamw, assert_same


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"batch": {}}, ValueError, r"batch\['x'\] is missing"),
        ({"batch": {"y": 1}}, ValueError, r"batch\['y'\] is new"),
        ({"batch": torch.ones(2)}, ValueError, r"batch\['x'\] is missing"),
        ({"x": torch.ones(15, 4)}, ValueError, r"batch\['x'\] must be .*\[16, 4\].*\[15, 4\]"),
        ({"x": torch.ones(16, 4).double()}, ValueError, r"batch\['x'\] must be .*float32.*float64"),
        ({"scale": 1.0}, TypeError, r"batch\['scale'\] must be a tensor, as captured; got 1.0"),
        ({"step": -1}, ValueError, "step must"),
        ({"step": 0.5}, TypeError, "step must"),
        ({"step": torch.zeros(1)}, ValueError, "step must be an int or an int64 tensor"),
        ({"step": torch.zeros(2).long()}, ValueError, "step must be an int or an int64 tensor"),
        ({"lr": -1.0}, ValueError, "lr must"),
        ({"lr": math.nan}, ValueError, "lr must"),
        ({"lr": "fast"}, (TypeError, ValueError), "lr must"),
        ({"lr": [0.1, 0.1]}, ValueError, "lr must hold one number per group of parameters, 1"),
        ({"lr": torch.ones(2)}, ValueError, "lr must be numbers or a tensor of one entry"),
    ],
)
def test_bad_calls_change_nothing(given, error, text):
    job = Job()
    step = job.captured()
    job.run(step, 2)
    before = job.state(), int(step.step), float(job.optimizer.param_groups[0]["lr"])
    batch = given.pop("batch", None)
    if batch is None:
        batch = {**job.batch(5), **{n: given.pop(n) for n in ("x", "scale") if n in given}}
    with pytest.raises(error, match=text):
        step(batch, **{"step": 5, "lr": 0.5, **given})
    assert_same(job.state(), before[0])
    assert (int(step.step), float(job.optimizer.param_groups[0]["lr"])) == before[1:]
    assert [ema.steps for ema in job.averages.values()] == [2, 2]


NET = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"loss": 1}, TypeError, "loss must be"),
        ({"network": print}, TypeError, r"network must be a torch\.nn\.Module"),
        ({"network": nn.SiLU()}, ValueError, "optimizer must train parameters of network"),
        ({"network": nn.Linear(1, 1)}, ValueError, "optimizer must train parameters of network"),
        ({"optimizer": None}, TypeError, r"optimizer must be a torch\.optim\.Optimizer; got None"),
        (
            {"optimizer": torch.optim.AdamW(NET.parameters(), lr=torch.tensor(1e-3), fused=True)},
            ValueError,
            r"optimizer\.param_groups\[0\] must be capturable; got capturable=False.*fused=True",
        ),
        (
            {"optimizer": torch.optim.SGD(NET.parameters(), lr=torch.tensor(1e-3))},
            ValueError,
            r"must be capturable; got capturable=None",
        ),
        (
            {"optimizer": torch.optim.AdamW(NET.parameters(), fused=True, capturable=True)},
            TypeError,
            r"must have a tensor as lr, so that replays read a new one; got lr=0\.001",
        ),
        ({"clip": -1.0}, ValueError, "clip must"),
        ({"warmup": 0}, ValueError, "warmup must"),
        ({"graph": 1}, TypeError, "graph must"),
        ({"averages": [NET]}, TypeError, r"averages\[0\] must be an EMA; got .*Linear"),
        ({"averages": [EMA(nn.Linear(2, 1))]}, ValueError, "network must have the parameters and"),
        (
            {"example_batch": {"x": torch.ones(2, device="meta")}},
            ValueError,
            r"batch\['x'\] must be on the network's device, cpu; got meta",
        ),
        (
            {"averages": [EMA(nn.Linear(1, 1, device="meta"))]},
            ValueError,
            r"averages\[0\] must be on the network's device, cpu; got meta",
        ),
    ],
)
def test_bad_arguments(given, error, text):
    arguments = {
        "loss": lambda x, k: NET(x).sum(),
        "network": NET,
        "optimizer": adamw(NET),
        "example_batch": torch.ones(2, 1),
        **given,
    }
    with pytest.raises(error, match=text):
        capture_step(**arguments)


@pytest.mark.parametrize(
    ("result", "error", "text"),
    [
        (lambda x: 1.0, TypeError, "loss must return a tensor of one entry; got 1.0"),
        (lambda x: NET(x), ValueError, r"loss must return a tensor of one entry; got shape \[2, 1"),
        (lambda x: x.sum(), ValueError, "loss must depend on the network's parameters"),
    ],
)
def test_bad_losses(result, error, text):
    step = capture_step(lambda x, k: result(x), NET, adamw(NET), torch.ones(2, 1))
    with pytest.raises(error, match=text):
        step(torch.ones(2, 1), 0)
