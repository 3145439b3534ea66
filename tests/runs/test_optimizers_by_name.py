"""Optimisers, rates and averages from plain settings."""

import math

import pytest
import torch
from torch import nn

from cmsolvers.runs.building import averages_of, optimizer_of, schedule_of
from cmsolvers.runs.building.named_optimizers import OPTIMIZERS
from cmsolvers.runs.building.rates import RATES
from cmsolvers.training.averages import power_decay


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_by_name(name):
    net = nn.Linear(3, 2)
    net.bias.requires_grad_(False)
    made = optimizer_of(name, net, 1e-2)
    assert type(made) is OPTIMIZERS[name] and made.param_groups[0]["lr"] == 1e-2
    assert [p for group in made.param_groups for p in group["params"]] == [net.weight]
    before = net.weight.detach().clone()
    net(torch.ones(1, 3)).sum().backward()
    made.step()
    assert not torch.equal(net.weight, before)


def test_options_of_optimisers():
    made = optimizer_of(
        {"name": "adamw", "betas": [0.8, 0.95], "weight_decay": 0.1}, nn.Linear(3, 2), 1e-3
    )
    group = made.param_groups[0]
    assert (group["betas"], group["weight_decay"], group["fused"]) == ((0.8, 0.95), 0.1, True)
    own = optimizer_of("import:torch.optim:Adamax", nn.Linear(3, 2), 1e-3)
    assert isinstance(own, torch.optim.Adamax)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("adanw", ValueError, "did you mean 'adamw'"),
        ({"name": "adamw", "beta": [0.9, 0.9]}, TypeError, "did you mean 'betas'"),
        ({"name": "adamw", "lr": 0.1}, TypeError, "no option 'lr'"),
        ({"name": "adamw", "betas": [2.0, 0.9]}, ValueError, "optimizer adamw: Invalid beta"),
        ({"betas": [0.9, 0.9]}, TypeError, "optimizer must have a name"),
        ("import:torch.optim:Adamox", ImportError, "did you mean 'Adamax'"),
        ("import:torch.nn:Linear", TypeError, "optimizer import:torch.nn:Linear"),
        (3, TypeError, "optimizer must be a name or a table"),
    ],
)
def test_optimisers_that_make_no_sense(value, error, text):
    with pytest.raises(error, match=text):
        optimizer_of(value, nn.Linear(3, 2), 1e-3)
    with pytest.raises(ValueError, match="lr must"):
        optimizer_of("adamw", nn.Linear(3, 2), 0.0)
    with pytest.raises(ValueError, match="must have parameters that are trained"):
        optimizer_of("adamw", nn.Linear(3, 2).requires_grad_(False), 1e-3)


EXACT = {
    "constant": lambda k: 1.0,
    "cosine": lambda k: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (k - 10) / 90)),
    "linear": lambda k: 1.0 - 0.9 * (k - 10) / 90,
    "inverse_sqrt": lambda k: min(1.0, math.sqrt(40 / k)),
}


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("warmup", [0.1, 10])
def test_rates(name, warmup):
    options = {"last": 0.1} if name in ("cosine", "linear") else {}
    options |= {"reference": 40} if name == "inverse_sqrt" else {}
    rate = schedule_of({"name": name, "warmup": warmup, **options}, 100)
    assert [rate(k) for k in range(10)] == pytest.approx([(k + 1) / 10 for k in range(10)])
    for k in range(10, 101):
        assert rate(k) == pytest.approx(EXACT[name](k)), k
    assert rate(1000) == pytest.approx(EXACT[name](1000 if name == "inverse_sqrt" else 100))


def half(total, share=0.5):
    """A schedule of a user."""
    return lambda step: share if step < total / 2 else 0.0


def test_rates_of_the_user():
    rate = schedule_of({"name": f"import:{__name__}:half", "share": 0.25}, 10)
    assert [rate(4), rate(5)] == [0.25, 0.0]
    assert schedule_of({"name": "constant", "warmup": 0}, 10)(0) == 1.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("cosinus", "did you mean 'cosine'"),
        ({"name": "constant", "last": 0.1}, "no option 'last'"),
        ({"name": "cosine", "total": 10}, "no option 'total'"),
        ({"name": "cosine", "warmup": -1}, "warmup"),
        ({"name": "cosine", "last": -1.0}, "last"),
        ({"name": "inverse_sqrt", "reference": 0}, "reference"),
    ],
)
def test_rates_that_make_no_sense(value, text):
    with pytest.raises((TypeError, ValueError), match=text):
        schedule_of(value, 10)


def test_averages():
    net = nn.Linear(3, 2)
    made = averages_of(
        [{"name": "ema", "decay": 0.99, "warmup": True}, {"name": "wide", "sigma_rel": 0.1}],
        net,
        100,
    )
    assert list(made) == ["ema", "wide"]
    assert made["ema"].decay == 0.99 and made["ema"].warmup
    assert made["wide"].decay == power_decay(0.1) and not made["wide"].warmup
    usual = averages_of(None, net, 100)
    assert list(usual) == ["ema"] and usual["ema"].decay == pytest.approx(0.9)
    assert averages_of(None, net, 10**6)["ema"].decay == 0.999
    assert averages_of([], net, 100) == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([{"name": "ema"}], "either decay or sigma_rel"),
        ([{"name": "ema", "decay": 0.9, "sigma_rel": 0.1}], "either decay or sigma_rel"),
        ([{"name": "ema", "deacy": 0.9}], "did you mean 'decay'"),
        ([{"name": "ema", "decay": 0.9}] * 2, "different names.*got 'ema'"),
        ([{"name": "target", "decay": 0.9}], "other than 'target'"),
        ([{"name": "a/b", "decay": 0.9}], "letters and digits"),
        ([{"name": "ema", "decay": 1.5}], "averages ema: decay"),
        ([{"name": "ema", "sigma_rel": 0.5}], "averages ema: sigma_rel"),
        ({"name": "ema"}, "averages must be a list"),
    ],
)
def test_averages_that_make_no_sense(value, text):
    with pytest.raises((TypeError, ValueError), match=text):
        averages_of(value, nn.Linear(3, 2), 100)
