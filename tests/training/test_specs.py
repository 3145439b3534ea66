"""Specs: every kind of model built, wrapped, written as JSON and read again."""

import json

import pytest
import torch

from cmsolvers import denoisers
from cmsolvers.processes import DDPM
from cmsolvers.training.model_wrappers import WRAPPERS
from cmsolvers.training.models import KINDS, Spec
from support.tiny_specs import SHAPE, samples, shaken, spec

MADE = {
    "edm": lambda n: denoisers.EDM(n, 0.4),
    "eps": lambda n: denoisers.from_eps(n, process=DDPM()),
    "v": lambda n: denoisers.from_v(n, process=DDPM()),
    "x0": lambda n: denoisers.from_x0(n, process=DDPM()),
    "flow": lambda n: denoisers.from_flow(n),
    "trigflow_velocity": lambda n: denoisers.from_trigflow(n, 0.4),
    "consistency": lambda n: denoisers.ConsistencyFunction(n, 0.4, 0.003),
    "latent_consistency": lambda n: denoisers.LatentConsistencyFunction(n, DDPM(), sigma_data=0.4),
    "trigflow": lambda n: denoisers.TrigFlowMap(n, 0.4, sigma_max=30.0),
    "trigflow_map": lambda n: denoisers.TrigFlowMap(n, 0.4, sigma_max=30.0, second="end"),
    "average_velocity": lambda n: denoisers.AverageVelocity(n),
    "velocity_heads": lambda n: denoisers.VelocityHeads(n),
    "trajectory": lambda n: denoisers.TrajectoryFunction(n, 0.4, 0.003),
}
"""What a user would write by hand, for sigma_data 0.4 and levels 0.003 to 30."""


def test_every_kind_is_tested():
    assert MADE.keys() == WRAPPERS.keys()


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_kind_is_what_one_would_write_by_hand(kind):
    one = spec(kind, sigma_data=0.4, sigma_min=0.003, sigma_max=30.0)
    network = shaken(one.build(0)).eval()
    made, expected = one.wrap(network), MADE[kind](network)
    assert type(made) is type(expected)
    assert made.coordinates == expected.coordinates
    assert torch.equal(made(samples(), 0.7), expected(samples(), 0.7))


@pytest.mark.parametrize("kind", [*WRAPPERS, *KINDS])
def test_json_and_back(kind):
    one = spec(kind, classes=3, inputs=["w"], learned_weight=1, dtype="float32")
    text = json.dumps(one.about(), sort_keys=True)
    two = Spec.read(json.loads(text))
    assert json.dumps(two.about(), sort_keys=True) == text
    first, second = one.build(1).state_dict(), two.build(1).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(key.startswith("loss_weight.") for key in first)


def test_the_old_names_are_kinds():
    assert [spec(kind).wrapping for kind in KINDS] == ["edm", *["consistency"] * 3]
    old = {"kind": "score", "shape": [1, 8, 8], "network": "mlp", "options": {"width": 8}}
    old |= {"sigma_min": 0.002, "sigma_max": 20.0, "sigma_data": 0.5}
    assert isinstance(Spec.read(old).wrap(Spec.read(old).build(0)), denoisers.EDM)


def test_options_of_kinds():
    chain = {"name": "ddpm", "num_steps": 50, "schedule": "cosine"}
    one = spec("v", wrapper={"process": chain})
    network = shaken(one.build(0)).eval()
    by_hand = denoisers.from_v(network, process=DDPM(50, "cosine"))
    assert torch.equal(one.wrap(network)(samples(), 0.7), by_hand(samples(), 0.7))
    second = spec("average_velocity", wrapper={"second": {"name": "step_index", "finest": 64}})
    network = shaken(second.build(0)).eval()
    by_hand = denoisers.AverageVelocity(network, second=denoisers.step_index(64))
    assert torch.equal(second.wrap(network)(samples(), 0.75, 0.5), by_hand(samples(), 0.75, 0.5))
    length = spec("average_velocity", wrapper={"second": "length"}).wrap(network)
    assert not torch.equal(length(samples(), 0.75, 0.5), by_hand(samples(), 0.75, 0.5))


def test_the_dtype_is_that_of_the_networks_input():
    seen = []
    one = spec("edm", dtype="bfloat16")
    network = one.build(0).bfloat16()
    network.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    one.wrap(network)(samples(), 0.5)
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"kind": "edn"}, ValueError, "kind must be one of .*did you mean 'edm'"),
        ({"kind": 3}, TypeError, "kind must be a name"),
        ({"sigma_min": 30.0}, ValueError, "sigma_min"),
        ({"dtype": "int8"}, ValueError, "dtype"),
        ({"wrapper": {"scnd": "end"}}, TypeError, "no option 'scnd'"),
        ({"classes": 0}, ValueError, "classes"),
        ({"learned_weight": 3}, ValueError, "learned_weight"),
    ],
)
def test_specs_that_make_no_sense(given, error, text):
    with pytest.raises(error, match=text):
        spec(**given)


@pytest.mark.parametrize(
    ("kind", "wrapper", "text"),
    [
        ("average_velocity", {"second": "lenght"}, "did you mean 'length'"),
        ("average_velocity", {"second": {"name": "step_index", "finest": 3}}, "power of 2"),
        ("eps", {"process": "ddmp"}, "did you mean 'ddpm'"),
        ("eps", {"process": {"name": "ddpm", "schedul": "linear"}}, "did you mean 'schedule'"),
        ("latent_consistency", {"process": "vp"}, "process must be 'ddpm'"),
        ("edm", {"c_noise": "nothing"}, "c_noise must be"),
        ("edm", {"sigma_data": 1.0}, "leave sigma_data to the spec"),
    ],
)
def test_options_of_kinds_that_make_no_sense(kind, wrapper, text):
    one = spec(kind, wrapper=wrapper)
    with pytest.raises((TypeError, ValueError), match=text):
        one.wrap(one.build(0))


@pytest.mark.parametrize(
    ("about", "error", "text"),
    [
        (3, TypeError, "spec must be a dict"),
        ({"kind": "edm"}, ValueError, "spec must have 'shape'"),
        ({"kind": "edm", "shape": 3}, TypeError, "spec.shape must be a list"),
        ({"kind": "edm", "shape": [3], "options": 3}, TypeError, "spec.options must be a table"),
        ({"kind": "edm", "shape": [3], "netwrk": "mlp"}, TypeError, "did you mean 'network'"),
        ({"kind": "edm", "shape": [0]}, ValueError, "shape"),
    ],
)
def test_descriptions_of_no_model(about, error, text):
    with pytest.raises(error, match=text):
        Spec.read(about)


def test_shape_is_kept_as_a_tuple():
    assert spec(shape=[2]).shape == (2,) and spec().shape == SHAPE
