"""Trainings built of plain settings alone: run, saved, resumed, read again as models."""

import pytest
import torch

from cmsolvers.runs.building import (
    averages_of,
    begin_with,
    loss_of,
    needs_of,
    optimizer_of,
    schedule_of,
    spec_like,
    target_of,
    usual_kind,
    usual_target,
)
from cmsolvers.training import Trainer, TrainingSettings
from cmsolvers.training.data import TensorData
from cmsolvers.training.models import load_model
from support.tiny_specs import samples, spec

SETTINGS = TrainingSettings(steps=6, batch_size=4, lr=1e-3, seed=3)


def data(classes=None):
    labels = None if classes is None else torch.arange(12) % classes
    return TensorData(samples(12), labels)


def built(name, one, around, *, teacher=None, classes=None, options=None, optimizer="radam"):
    """A trainer of a recipe, of the network or of the model around it."""
    network = one.build(SETTINGS.seed)
    if teacher is not None:
        begin_with(network, one, teacher)
    module = one.wrap(network) if around else network
    total = SETTINGS.steps
    first = loss_of(name, one, total, options, teacher=teacher)
    target = target_of(usual_target(name), module, one, total, first.times)
    dropout = 0.0 if classes is None else 0.2
    loss = loss_of(
        name,
        one,
        total,
        options,
        teacher=teacher,
        target=None if target is None else target.function,
        label_dropout=dropout,
    )
    averages = averages_of([{"name": "ema", "decay": 0.5}], module, total)
    decays = {}
    if target is not None:
        averages["target"] = target.average
        if target.decay is not None:
            decays["target"] = target.decay
    return Trainer(
        module,
        loss,
        data(classes),
        SETTINGS,
        optimizer=optimizer_of(optimizer, module, SETTINGS.lr),
        schedule=schedule_of({"name": "cosine", "warmup": 2}, total),
        averages=averages,
        decays=decays,
        about={"spec": one.about()},
    )


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize(
    ("name", "network", "options"),
    [
        ("dsm", "diffusers:DiTTransformer2DModel", None),
        ("ct", "mlp", None),
        ("sct", "mlp", {"weight": "learned"}),
        ("meanflow", "mlp", {"guidance": {"omega": 1.0, "kappa": 0.5}}),
        ("imf", "mlp", {"guidance": {"largest": 4.0}}),
        ("shortcut", "unet", None),
    ],
)
def test_a_training_with_labels_goes_on_from_its_checkpoint(
    name, network, options, around, tmp_path
):
    one = spec(usual_kind(name), network, classes=3, **needs_of(name, options, 3))
    whole = built(name, one, around, classes=3, options=options).run(progress=False)
    assert len(whole.history) == 6 and all(map(torch.isfinite, torch.tensor(whole.history)))
    half = built(name, one, around, classes=3, options=options).run(3, progress=False)
    half.save(tmp_path / "half")
    rest = built(name, one, around, classes=3, options=options).load(tmp_path / "half")
    rest.run(progress=False)
    assert rest.history == whole.history
    rest.save(tmp_path / "it")
    found = load_model(tmp_path / "it")
    average = whole.averages["ema"].module
    expected = (average if around else one.wrap(average)).eval()
    x, labels = samples(), torch.tensor([0, 1, 2, 3])
    given = {key: torch.full((4,), 0.5) for key in one.inputs}
    made = found.function(x, 0.7, labels=labels, **given)
    assert torch.equal(made, expected(x, 0.7, labels=labels, **given))
    if name == "sct":
        assert whole.network.state_dict().keys() & {
            "loss_weight.last.weight",
            "net.loss_weight.last.weight",
        }
        trained = load_model(tmp_path / "it", "network").network.loss_weight.last.weight
        assert trained.any()  # it was 0 at first


def test_from_a_score_model_to_a_distilled_one(tmp_path):
    """The course of a distillation: teacher, its file, the student that begins with its weights."""
    teacher = built("dsm", spec("edm"), True).run(progress=False)
    teacher.save(tmp_path / "teacher")
    source = load_model(tmp_path / "teacher")
    one = spec_like(spec("consistency"), source.spec)
    student = built("cd", one, True, teacher=source)
    begun = {key: value.clone() for key, value in student.network.net.state_dict().items()}
    assert all(torch.equal(v, source.network.state_dict()[k]) for k, v in begun.items())
    before = {key: value.clone() for key, value in source.network.state_dict().items()}
    student.run(progress=False)
    after = student.network.net.state_dict()
    assert any(not torch.equal(begun[key], after[key]) for key in begun)
    assert all(torch.equal(v, before[k]) for k, v in source.network.state_dict().items())
    student.save(tmp_path / "student")
    made = load_model(tmp_path / "student").function(samples() * 20.0, 20.0)
    assert made.isfinite().all()
