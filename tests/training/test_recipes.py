"""The settings of the four recipes, as they reach losses, averages and optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import losses, noise, training
from cmsolvers.schedules import karras_sigmas
from cmsolvers.training import EMA, models, recipes, update_averages
from cmsolvers.training.data import torch_seed
from cmsolvers.training.step import training_step
from cmsolvers.training.trainer import Trainer

LOSSES = {"score": "dsm", "cd": "cd", "ct": "ict", "ect": "ect"}


def spec_of(kind: str, dropout: float = 0.0, **bounds: float) -> models.Spec:
    options = {"width": 8, "blocks": 1, "dropout": dropout}
    return models.Spec(kind, (1, 2, 2), options=options, **bounds)


def trainer_of(
    kind: str,
    *,
    steps: int = 4,
    batch: int = 8,
    seed: int = 5,
    spec: models.Spec | None = None,
    **options: int | float,
) -> Trainer:
    spec = spec_of(kind) if spec is None else spec
    data = 0.5 * noise.normal((max(32, batch), 1, 2, 2), 0)
    settings = training.TrainingSettings(steps, batch_size=batch, lr=1e-3, seed=seed)
    if kind == "score":
        return recipes.score_trainer(spec, data, settings)
    if kind == "ct":
        return recipes.consistency_trainer(spec, data, settings, **options)
    plain = models.Spec("score", spec.shape, options=spec.options)
    other = training.TrainingSettings(steps, batch_size=batch, seed=seed + 1)
    teacher = recipes.trained(recipes.score_trainer(plain, data, other), plain)
    make = recipes.distillation_trainer if kind == "cd" else recipes.tuning_trainer
    return make(spec, data, settings, teacher, **options)


def calls_of(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, kind: str) -> list[dict]:
    """What each step of a run hands to its loss, by name, and the levels that came of it."""
    original, calls = getattr(recipes, LOSSES[kind]), []

    def seen(model, x0, **options):
        found = original(model, x0, **options)
        calls.append({"model": model, "levels": found.levels, **options})
        return found

    monkeypatch.setattr(recipes, LOSSES[kind], seen)
    trainer.run(progress=False)
    return calls


def keys_of(trainer: Trainer) -> list[noise.Key]:
    settings = trainer.settings
    return [
        training.batch_at(trainer.data, k, settings.steps, settings.batch_size, settings.seed).key
        for k in range(settings.steps)
    ]


# --- levels and what else a loss gets -----------------------------------------------------------


def test_levels_of_the_score_recipe(monkeypatch):
    """ln sigma ~ N(-1, 1.4^2), of the step's own draw, clipped to the levels of the model."""
    trainer = trainer_of("score", batch=4096)
    calls = calls_of(monkeypatch, trainer, "score")
    for k, (call, key) in enumerate(zip(calls, keys_of(trainer), strict=True)):
        z = noise.normal((4096, 1), key, stream=noise.LEVELS, draw=k)[:, 0].double()
        expected = (-1.0 + 1.4 * z).exp().clamp(0.002, 20.0)
        torch.testing.assert_close(call["levels"][0], expected, rtol=1e-12, atol=0)
    logs = torch.cat([call["levels"][0] for call in calls]).log()
    quantiles = torch.quantile(logs, torch.tensor([0.158655, 0.5, 0.841345]).double())
    assert quantiles.tolist() == pytest.approx([-2.4, -1.0, 0.4], abs=0.05)


def test_levels_of_the_score_recipe_stay_within_those_of_the_model(monkeypatch):
    spec = spec_of("score", sigma_min=0.3, sigma_max=0.5)
    (call, *_) = calls_of(monkeypatch, trainer_of("score", batch=64, spec=spec), "score")
    sigma = call["levels"][0]
    assert (sigma.min(), sigma.max()) == (0.3, 0.5)


@pytest.mark.parametrize(("levels", "given"), [(40, {}), (6, {"levels": 6})])
def test_levels_of_the_distillation_recipe(monkeypatch, levels, given):
    """Neighbours of a Karras grid, each pair as likely, and of the step's own draw."""
    trainer = trainer_of("cd", batch=256, **given)
    grid = karras_sigmas(levels, 0.002, 20.0, append_zero=False)
    calls = calls_of(monkeypatch, trainer, "cd")
    for k, (call, key) in enumerate(zip(calls, keys_of(trainer), strict=True)):
        expected = losses.UniformPairs(grid).sample(256, key, draw=k)
        assert all(map(torch.equal, call["levels"], expected))
    seen = torch.cat([call["levels"][0] for call in calls]).unique()
    assert torch.equal(seen, grid[:-1].flip(0))


@pytest.mark.parametrize(("most", "given"), [(64, {}), (8, {"s1": 8}), (12, {"s0": 3, "s1": 12})])
def test_levels_of_the_training_recipe(monkeypatch, most, given):
    """2 pairs to begin with unless s0 says other, doubled at even intervals up to s1."""
    trainer = trainer_of("ct", steps=12, batch=16, **given)
    calls = calls_of(monkeypatch, trainer, "ct")
    for k, (call, key) in enumerate(zip(calls, keys_of(trainer), strict=True)):
        n = training.doubling_discretization(k, 12, given.get("s0", 2), most)
        grid = karras_sigmas(n, 0.002, 20.0, append_zero=False)
        expected = losses.LogNormalPairs(grid).sample(16, key, draw=k)
        assert all(map(torch.equal, call["levels"], expected))
    assert n == most + 1


@pytest.mark.parametrize(
    ("q", "stages", "given"),
    [(4.0, 4, {}), (2.0, 5, {"q": 2.0, "stages": 5}), (256.0, 1, {"q": 256.0, "stages": 1})],
)
def test_levels_of_the_tuning_recipe(monkeypatch, q, stages, given):
    """ln t ~ N(-1.1, 2^2), r = max(0, t (1 - n(t) / q^(a + 1))); stages a of equal length."""
    trainer = trainer_of("ect", steps=10, batch=512, **given)
    calls = calls_of(monkeypatch, trainer, "ect")
    length = math.ceil(10 / stages)
    for k, (call, key) in enumerate(zip(calls, keys_of(trainer), strict=True)):
        t, r = call["levels"]
        u = noise.uniform((512, 1), key, stream=noise.LEVELS, draw=k, dtype=F64)[:, 0]
        z = torch.special.ndtri(u)
        torch.testing.assert_close(t, (-1.1 + 2.0 * z).exp(), rtol=1e-12, atol=0)
        n = 1 + 8 / (1 + t.exp())
        expected = (t * (1 - n / q ** (k // length + 1))).clamp_min(0)
        torch.testing.assert_close(r, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_noise_of_a_step_is_its_own(monkeypatch, kind):
    """Ids are places in the data, so a draw that stood still would repeat a sample's noise."""
    trainer = trainer_of(kind)
    calls = calls_of(monkeypatch, trainer, kind)
    assert [call["step"] for call in calls] == [0, 1, 2, 3]
    for call, key in zip(calls, keys_of(trainer), strict=True):
        mine, theirs = (k.rows(8, torch.device("cpu")) for k in (call["key"], key))
        assert torch.equal(mine, theirs)


def test_what_the_losses_are_told(monkeypatch):
    spec = spec_of("score", sigma_data=0.7)
    trainer = trainer_of("score", spec=spec)
    (call, *_) = calls_of(monkeypatch, trainer, "score")
    assert call["sigma_data"] == 0.7
    assert call["model"].net is trainer.network

    trainer = trainer_of("cd")
    (call, *_) = calls_of(monkeypatch, trainer, "cd")
    residual = losses.Combination([(torch.tensor([[3.0, 4.0]]), 1.0)])
    c = 0.00054 * 2**0.5
    expected = torch.tensor([(25 + c * c) ** 0.5 - c]).double()
    torch.testing.assert_close(call["distance"](residual), expected)
    assert call["model"].net is trainer.network
    assert call["target"].net is trainer.averages["target"].module

    trainer = trainer_of("ct")
    (call, *_) = calls_of(monkeypatch, trainer, "ct")
    assert call["model"].net is trainer.network
    assert call.keys() == {"model", "levels", "key", "step", "times"}

    trainer = trainer_of("ect")
    (call, *_) = calls_of(monkeypatch, trainer, "ect")
    assert call["model"].net is trainer.network
    assert call.keys() == {"model", "levels", "key", "step", "times"}


def test_a_distillation_begins_with_the_weights_of_its_teacher(monkeypatch):
    trainer = trainer_of("cd", steps=1)
    begun = [p.detach().clone() for p in trainer.network.parameters()]
    (call,) = calls_of(monkeypatch, trainer, "cd")
    assert all(map(torch.equal, begun, call["teacher"].net.parameters()))


def test_a_tuning_begins_with_the_weights_of_the_score_model_and_leaves_them_alone():
    spec, data = spec_of("score"), 0.5 * noise.normal((32, 1, 2, 2), 0)
    settings = training.TrainingSettings(4, batch_size=8)
    score = recipes.score_trainer(spec, data, settings).run(progress=False)
    init = recipes.trained(score, spec)
    before = [p.clone() for p in init.network.parameters()]
    tuned = recipes.tuning_trainer(spec_of("ect"), data, settings, init)
    for network in (tuned.network, tuned.averages["ema"].module):
        assert all(map(torch.equal, before, network.parameters()))
    tuned.run(progress=False)
    assert all(map(torch.equal, before, init.network.parameters()))
    assert not any(map(torch.equal, before, tuned.network.parameters()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "ct"}, r"must be a score model of shape \[1, 2, 2\]; got a ct model of"),
        (
            {"shape": (1, 4, 4)},
            r"must be a score model of shape \[1, 2, 2\]; got a score model of .*4, 4",
        ),
        ({"options": {"width": 4}}, "must be of the same options as the model, .*8.*; got .*4"),
        ({"sigma_data": 2.0}, "must be of the same sigma_data as the model, 0.5; got 2.0"),
    ],
)
@pytest.mark.parametrize("kind", ["cd", "ect"])
def test_models_that_no_run_can_begin_with_are_refused(kind, changes, message):
    given = {"kind": "score", "shape": (1, 2, 2), "options": spec_of(kind).options, **changes}
    other = models.Spec(**given)
    network = other.build(0)
    wrong = models.Model(other, network, other.wrap(network), {})
    make = recipes.distillation_trainer if kind == "cd" else recipes.tuning_trainer
    data, settings = noise.normal((32, 1, 2, 2), 0), training.TrainingSettings(4, batch_size=8)
    name = "teacher" if kind == "cd" else "init"
    with pytest.raises(ValueError, match=f"{name} {message}"):
        make(spec_of(kind), data, settings, wrong)


@pytest.mark.parametrize(
    ("given", "message"), [({"q": 1.0}, "1 must be below q"), ({"stages": 0}, "stages must be")]
)
def test_stages_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        trainer_of("ect", **given)


# --- averages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(
    ("steps", "decay"),
    [(4, 0.5), (20, 0.5), (100, 0.9), (2000, 0.995), (10_000, 0.999), (10**6, 0.999)],
)
def test_the_average_spans_a_tenth_of_a_run_and_at_most_1000_steps(kind, steps, decay):
    ema = trainer_of(kind, steps=steps).averages["ema"]
    assert ema.decay == pytest.approx(decay, abs=1e-15) and ema.warmup


def moved(trainer: Trainer, name: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(average before, network, average after) of each step of a run, for one parameter."""
    average, seen = trainer.averages[name], []

    def update(averages: Iterable[EMA], network: nn.Module, decays: Sequence[float | None]) -> None:
        weights = [next(m.parameters()).detach() for m in (average.module, network)]
        before, given = (w.clone() for w in weights)
        update_averages(averages, network, decays)
        seen.append((before, given, weights[0].clone()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_step, "update_averages", update)
        trainer.run(progress=False)
    assert len(seen) == trainer.settings.steps
    return seen


@pytest.mark.parametrize("kind", LOSSES)
def test_the_average_warms_up(kind):
    """mu_k = min(mu, (1 + k) / (10 + k)), with mu = 0.6 in a run of 25 steps."""
    rates = [min(0.6, (1 + k) / (10 + k)) for k in range(25)]
    seen = moved(trainer_of(kind, steps=25), "ema")
    for mu, (before, given, after) in zip(rates, seen, strict=True):
        torch.testing.assert_close(after, mu * before + (1 - mu) * given)


@pytest.mark.parametrize(("mu", "given"), [(0.95, {}), (0.7, {"target_decay": 0.7})])
def test_the_target_of_a_distillation_follows_at_one_rate(mu, given):
    for before, weights, after in moved(trainer_of("cd", **given), "target"):
        torch.testing.assert_close(after, mu * before + (1 - mu) * weights)


# --- dropout ------------------------------------------------------------------------------------


def masks_of(trainer: Trainer, until: int | None = None) -> list[Tensor]:
    """What dropout let pass in the student's pass of each step."""
    masks: list[Tensor] = []
    (dropout,) = (m for m in trainer.network.modules() if isinstance(m, nn.Dropout))
    hook = dropout.register_forward_hook(
        lambda m, x, y: masks.append(y != 0) if torch.is_grad_enabled() else None
    )
    trainer.run(until, progress=False)
    hook.remove()
    return masks


@pytest.mark.parametrize("kind", LOSSES)
def test_dropout_is_another_one_in_every_step(kind, tmp_path):
    """It depends on seed and step alone: a resumed run has that of the whole one."""

    def new(seed: int = 5) -> Trainer:
        return trainer_of(kind, spec=spec_of(kind, dropout=0.5), seed=seed)

    whole, other = masks_of(new()), masks_of(new(6))
    assert len({tuple(mask.flatten().tolist()) for mask in whole + other}) == 8
    new().run(2, progress=False).save(tmp_path / "c")
    torch.manual_seed(11)
    assert all(map(torch.equal, masks_of(new().load(tmp_path / "c")), whole[2:]))


def test_seeds_of_dropout_are_those_of_the_noise_contract():
    """62 bits of two uniform numbers of a stream and an id that no sample has."""
    for step, seed in ((0, 0), (0, 1), (1, 0), (10**6, 2**40)):
        u = noise.uniform((1, 2), seed, stream=noise.OTHER, draw=step, offset=2**55, dtype=F64)
        high, low = (u[0] * 2**31).floor().long().tolist()
        assert torch_seed(step, seed) == high * 2**31 + low
    seeds = [torch_seed(step, seed) for step in range(50) for seed in range(4)]
    assert len(set(seeds)) == 200 and max(seeds) > 2**60


F64 = torch.float64


# --- optimiser ----------------------------------------------------------------------------------


def test_the_optimiser_has_the_settings_of_the_run():
    settings = training.TrainingSettings(
        20, batch_size=4, lr=0.3, warmup=0.25, weight_decay=0.07, betas=(0.6, 0.8)
    )
    net = nn.Linear(2, 2)
    trainer = Trainer(net, lambda m, b: m(b.x0).square().mean(), torch.ones(8, 2), settings)
    (group,) = trainer.optimizer.param_groups
    seen = []
    trainer.optimizer.register_step_pre_hook(lambda *_: seen.append(group["lr"]))
    trainer.run(progress=False)
    assert (group["betas"], group["weight_decay"]) == ((0.6, 0.8), 0.07)
    rise = [0.3 * share for share in (0.2, 0.4, 0.6, 0.8, 1.0)]
    fall = 0.15 * (1 + torch.cos(torch.pi * torch.arange(15, dtype=F64) / 15))
    assert seen == pytest.approx(rise + fall.tolist(), rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "steps", "lr"),
    [("score", 2000, 2e-3), ("cd", 700, 5e-4), ("ct", 1500, 1e-3), ("ect", 700, 1e-3)],
)
def test_the_settings_that_the_digits_need(kind, steps, lr):
    usual = recipes.default_settings(kind, None, 32, 7)
    assert usual == training.TrainingSettings(steps, batch_size=32, lr=lr, seed=7)
    assert recipes.default_settings(kind, 9, 32, 7).steps == 9
    with pytest.raises(ValueError, match="kind must be one of"):
        recipes.default_settings("gan", None, 32, 7)
