"""Targets by name; teachers from files; trainings that begin with trained weights."""

import json
import warnings

import diffusers
import pytest
import torch

from cmsolvers.losses import SquareRootPairs
from cmsolvers.losses.times.curricula import cm_discretization, cm_ema_rate
from cmsolvers.runs.building import (
    RECIPES,
    begin_with,
    digest,
    spec_like,
    target_of,
    teacher_of,
    usual_target,
)
from cmsolvers.training.checkpoints import write_checkpoint
from cmsolvers.training.models import Model, export_network
from support.tiny_specs import samples, shaken, spec


def model_of(one, seed=1):
    net = shaken(one.build(0), seed).eval().requires_grad_(False)
    return Model(one, net, one.wrap(net), {})


@pytest.mark.parametrize("around", [False, True])
def test_an_average_as_target(around):
    one = spec("consistency", options={"dropout": 0.5})
    net = shaken(one.build(0))
    module = one.wrap(net) if around else net
    target = target_of({"name": "ema", "decay": 0.8}, module, one, 100)
    before = net.last.bias.detach().clone()
    with torch.no_grad():
        net.last.bias.add_(1.0)
    target.average.update(module)
    inner = target.function.net
    torch.testing.assert_close(inner.last.bias, before + 0.2)
    assert type(target.function) is type(one.wrap(net)) and target.decay is None
    assert inner.training and not any(p.requires_grad for p in inner.parameters())


def test_the_curriculum_of_the_target():
    one, total = spec("consistency"), 1000
    target = target_of({"name": "ema", "curriculum": "cm"}, one.build(0), one, total)
    for step in (0, 500, 1000):
        assert target.decay(step) == cm_ema_rate(cm_discretization(step, total), 2, 0.95)
    assert target.average.decay == pytest.approx(0.9025)  # as published for two levels
    own = {"name": "ema", "curriculum": "cm", "mu0": 0.9, "s1": 20}
    times = SquareRootPairs(total, s0=4, s1=30)
    decay = target_of(own, one.build(0), one, total, times).decay
    assert (decay.s0, decay.s1, decay.mu0) == (4, 20, 0.9)


def test_the_model_itself():
    assert target_of("self", spec().build(0), spec(), 10) is None
    for name in RECIPES:
        target_of(usual_target(name), spec("consistency").build(0), spec("consistency"), 10)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("emma", "did you mean 'ema'"),
        ({"name": "self", "decay": 0.5}, "target self has no option 'decay'"),
        ({"name": "ema", "deacy": 0.5}, "did you mean 'decay'"),
        ({"name": "ema", "decay": 1.0}, "decay must be below 1"),
        ({"name": "ema", "curriculum": "ict"}, "target.curriculum must be one of cm"),
        ({"name": "ema", "curriculum": "cm", "decay": 0.5}, "target ema has no option 'decay'"),
        ({"name": "ema", "curriculum": "cm", "s1": 1}, "s1 must not be below s0"),
    ],
)
def test_targets_that_make_no_sense(value, text):
    with pytest.raises((TypeError, ValueError), match=text):
        target_of(value, spec().build(0), spec(), 10)


def test_a_teacher_is_still(tmp_path):
    one = spec(options={"dropout": 0.5})
    model = model_of(one)
    write_checkpoint(
        tmp_path / "it", {"network": model.network.state_dict()}, {"spec": one.about()}
    )
    teacher = teacher_of(tmp_path / "it", device="cpu")
    x = samples().requires_grad_()
    assert torch.equal(teacher.function(x, 0.7), teacher.function(x, 0.7))
    assert not any(p.requires_grad for p in teacher.function.parameters())
    assert digest(teacher.network) == digest(model.network)
    other = shaken(one.build(0), 2)
    assert digest(other) != digest(model.network)
    assert len(digest(other.bfloat16())) == 16


def test_a_teacher_of_diffusers(tmp_path):
    model = model_of(spec("edm", "diffusers:UNet2DModel"))
    export_network(model, tmp_path / "own")
    assert torch.equal(
        teacher_of(tmp_path / "own").function(samples(), 0.7), model.function(samples(), 0.7)
    )


# --- beginning with trained weights --------------------------------------------------------------

NETWORKS = ["mlp", "unet", "diffusers:UNet2DModel", "diffusers:DiTTransformer2DModel"]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_flow_map_begins_as_its_flow(network):
    """The average velocity from t to any s is the flow's velocity at t at first, to rounding."""
    source = model_of(spec("flow", network, classes=3))
    begun = spec_like(spec("average_velocity", "mlp"), source.spec)
    assert begun.network == network and begun.classes == 3
    net = begun.build(5)
    new = begin_with(net, begun, source)
    assert new or network == NETWORKS[3]
    assert all(name.startswith("conditioning.") for name in new)
    x, labels = samples(), torch.tensor([0, 1, 2, 3])
    t = torch.tensor([0.2, 0.5, 0.7, 0.9])
    for s in (t, t * 0.5, t * 0.0):
        torch.testing.assert_close(
            net.eval()(x, t, s, labels=labels),
            source.network(x, t, labels=labels),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize("network", NETWORKS)
def test_a_consistency_function_begins_with_the_score_model(network):
    source = model_of(spec("edm", network, options={"dropout": 0.1} if network == "mlp" else {}))
    begun = spec_like(spec("consistency", learned_weight=1), source.spec)
    net = begun.build(5)
    assert all(name.startswith("loss_weight.") for name in begin_with(net, begun, source))
    x, t = samples(), torch.tensor([0.2, 0.5, 0.7, 0.9])
    assert torch.equal(net.eval()(x, t), source.network(x, t))


def test_a_pipeline_gives_its_network_to_a_student(tmp_path):
    """A student on the chain of a pipeline of noise begins with its network and scale of times."""
    unet = model_of(spec("edm", "diffusers:UNet2DModel", classes=3)).network.model
    unet.save_pretrained(tmp_path / "unet")
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0", "unet": ["", ""]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    teacher = teacher_of(tmp_path)
    student = spec_like(
        spec("latent_consistency", wrapper=dict(teacher.spec.wrapper), inputs=["w"]), teacher.spec
    )
    net = student.build(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        begin_with(net, student, teacher)
    x, time, labels = samples(), torch.full((4,), 400.0), torch.tensor([0, 1, 2, 2])
    made = net.eval()(x, time, labels=labels, w=torch.full((4,), 3.0))
    torch.testing.assert_close(made, unet(x, time, labels)[0], rtol=1e-5, atol=1e-5)


def test_other_questions_get_a_warning():
    source = model_of(spec("edm"))
    with pytest.warns(UserWarning, match="'edm' answers another question than that of 'trigflow'"):
        begin_with(spec("trigflow").build(0), spec("trigflow"), source)


@pytest.mark.parametrize(
    ("mine", "text"),
    [
        ({"options": {"width": 20}}, r"must have shape \[20, 192\], and has \[16, 192\]"),
        ({"options": {"blocks": 2}}, "it has no weight blocks.1"),
        ({"network": "unet"}, "has no place there"),
    ],
)
def test_networks_that_do_not_fit(mine, text):
    source = model_of(spec("edm"))
    with pytest.raises(ValueError, match=text):
        begin_with(spec(**mine).build(0), spec(**mine), source)


def test_a_source_with_labels_is_no_beginning_without():
    source = model_of(spec("edm", classes=3))
    with pytest.raises(ValueError, match=r"conditioning\.labels\.weight has no place there"):
        begin_with(spec().build(0), spec(), source)
