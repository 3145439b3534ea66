"""Curricula, levels, averages, and a loop whose resume changes no bit."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cmsolvers import losses, noise, training
from cmsolvers.schedules import karras_sigmas
from cmsolvers.training import models, recipes
from cmsolvers.training.data import Scale, load_images
from cmsolvers.training.trainer import Trainer, TrainingSettings
from support.saved import content

# --- curricula -----------------------------------------------------------------------------------


def test_discretization_of_consistency_training():
    values = [training.cm_discretization(k, 800_000, 2, 150) for k in range(0, 800_001, 1000)]
    assert values[0] == 2
    assert values[-1] == 151
    assert values == sorted(values)
    k, total = 123_456, 800_000
    formula = math.ceil(math.sqrt(k / total * (151**2 - 4) + 4) - 1) + 1
    assert training.cm_discretization(k, total) == formula


def test_discretization_has_no_rounding_at_perfect_squares():
    # k / K (9 - 4) + 4 = 9 exactly: N = 3, although the float root may be 3 - 4e-16 or 3 + 4e-16.
    assert [training.cm_discretization(k, 5, 2, 2) for k in range(6)] == [2, 3, 3, 3, 3, 3]
    assert training.cm_discretization(7, 7, 2, 150) == 151


def test_ema_rate():
    assert training.cm_ema_rate(2) == pytest.approx(0.9025, abs=1e-15)
    assert training.cm_ema_rate(3) == pytest.approx(0.95, abs=1e-15)
    assert training.cm_ema_rate(151) == pytest.approx(math.exp(2 * math.log(0.95) / 150))


def test_improved_discretization_doubles():
    total = 400_000
    assert training.doubling_discretization(0, total) == 11
    assert training.doubling_discretization(total, total) == 1281
    interval = math.floor(total / (math.log2(128) + 1))
    for stage in range(8):
        expected = min(10 * 2**stage, 1280) + 1
        assert training.doubling_discretization(stage * interval, total) == expected
        assert training.doubling_discretization((stage + 1) * interval - 1, total) == expected


def test_doubling_where_the_sizes_are_no_powers_of_two():
    """N(k) of 1000 steps from 4 to 15 pairs: log2 of s1 / s0 rounded down, and 15 is the most."""
    found = {k: training.doubling_discretization(k, 1000, 4, 15) for k in KS}
    assert found == dict(zip(KS, (5, 5, 9, 9, 16, 16), strict=True))


KS = (0, 385, 386, 771, 772, 1000)


@pytest.mark.parametrize("function", [training.cm_discretization, training.doubling_discretization])
def test_bad_curricula(function):
    with pytest.raises(ValueError, match="k must not exceed total"):
        function(11, 10)
    with pytest.raises(ValueError, match="k must be at least 0"):
        function(-1, 10)
    with pytest.raises(TypeError, match="k must be an int"):
        function(1.5, 10)
    with pytest.raises(ValueError, match="s1 must not be below s0"):
        function(1, 10, 5, 4)
    with pytest.raises(ValueError, match="n must be at least 2"):
        training.cm_ema_rate(1)
    with pytest.raises(ValueError, match="mu0"):
        training.cm_ema_rate(2, mu0=1.0)


# --- levels --------------------------------------------------------------------------------------


def test_lognormal_levels():
    sigma = losses.LogNormal(-1.2, 1.2, 1e-6, 1e6).sample(200_000, 0)
    assert float(sigma.log().mean()) == pytest.approx(-1.2, abs=0.01)
    assert float(sigma.log().std()) == pytest.approx(1.2, abs=0.01)
    clipped = losses.LogNormal(0.0, 3.0, 0.5, 2.0).sample(1000, 0)
    assert (float(clipped.min()), float(clipped.max())) == (0.5, 2.0)


@pytest.mark.parametrize("kind", [losses.UniformPairs, losses.LogNormalPairs])
def test_pairs_are_adjacent_and_as_likely_as_said(kind):
    grid = karras_sigmas(12, append_zero=False)
    pairs = kind(grid)
    high, low = pairs.sample(100_000, 3)
    index = torch.searchsorted(-grid, -high)
    assert torch.equal(grid[index], high)
    assert torch.equal(grid[index + 1], low)
    shares = torch.bincount(index, minlength=11) / 100_000
    torch.testing.assert_close(shares.double(), pairs.probabilities(), atol=0.006, rtol=0)


def test_lognormal_pairs_follow_the_paper():
    grid = karras_sigmas(11, append_zero=False)
    p = losses.LogNormalPairs(grid).probabilities()
    edges = [math.erf((math.log(s) + 1.1) / (math.sqrt(2) * 2.0)) for s in grid.tolist()]
    raw = torch.tensor([a - b for a, b in itertools.pairwise(edges)]).double()
    torch.testing.assert_close(p, raw / raw.sum(), atol=1e-7, rtol=1e-6)


def test_levels_do_not_depend_on_companions():
    pairs = losses.LogNormalPairs(karras_sigmas(20, append_zero=False))
    whole = pairs.sample(16, noise.key(5, 16), draw=2)[0]
    ids = torch.tensor([3, 11])
    assert torch.equal(pairs.sample(2, noise.key(5, 2, ids=ids), draw=2)[0], whole[ids])


def test_bad_levels():
    with pytest.raises(ValueError, match="strictly descending"):
        losses.UniformPairs([1.0, 2.0])
    with pytest.raises(ValueError, match="without the final 0"):
        losses.UniformPairs([2.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="std must be positive"):
        losses.LogNormal(std=0.0)


# --- averages ------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A half-precision parameter, a floating buffer and a counter."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, dtype=dtype))
        self.register_buffer("mean", torch.zeros(2, dtype=dtype))
        self.register_buffer("count", torch.tensor(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_average_is_kept_in_float32_at_least(dtype: torch.dtype):
    net = Mixed(dtype)
    ema = training.EMA(net, 0.999)
    net.w.data.fill_(1)
    net.mean.fill_(1)
    net.count.fill_(7)
    for _ in range(100):
        ema.update(net)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    assert ema.module.w.dtype is ema.module.mean.dtype is wide
    expected = 1 - 0.999**100
    # In half precision the first step, 0.001, would be the last: 0.999 * x + 0.001 stalls.
    assert float(ema.module.w[0]) == pytest.approx(expected, rel=1e-5)
    assert float(ema.module.mean[0]) == pytest.approx(expected, rel=1e-5)
    assert int(ema.module.count) == 7
    assert not ema.module.w.requires_grad
    ema.copy_to(net)
    assert net.w.dtype is dtype


@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128])
def test_average_of_complex_parameters_and_buffers(dtype: torch.dtype):
    """As an average of real and imaginary parts: not a copy of the last value."""
    net = nn.Module()
    net.w = nn.Parameter(torch.zeros(2, dtype=dtype))
    net.register_buffer("mean", torch.zeros(3, dtype=dtype))
    ema = training.EMA(net, 0.75)
    net.w.data.fill_(2 + 1j)
    net.mean.fill_(-4j)
    ema.update(net)
    ema.update(net)
    wide = torch.complex128 if dtype is torch.complex128 else torch.complex64
    assert ema.module.w.dtype is ema.module.mean.dtype is wide
    share = 1 - 0.75**2
    assert torch.equal(ema.module.w.data, torch.full((2,), share * (2 + 1j), dtype=wide))
    assert torch.equal(ema.module.mean, torch.full((3,), share * -4j, dtype=wide))
    ema.copy_to(net)
    assert net.w.dtype is dtype and net.w[0].item() == share * (2 + 1j)


@pytest.mark.parametrize("mu", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex64])
def test_infinite_entries_of_buffers_are_copied(mu: float, dtype: torch.dtype):
    """A mask stays what it is: -inf + (1 - mu) (-inf - -inf) would be NaN."""
    inf = math.inf
    net = nn.Linear(1, 1)
    net.register_buffer("mask", torch.tensor([-inf, inf, 0.0, 2.0]).to(dtype))
    net.register_buffer("lowest", torch.tensor([inf, -inf, 1.0]).to(dtype))
    ema = training.EMA(net, mu)
    net.lowest.copy_(torch.tensor([3.0, inf, -inf]))
    for _ in range(2):
        ema.update(net)
        assert torch.equal(ema.module.mask, net.mask.to(ema.module.mask))
        assert torch.equal(ema.module.lowest, net.lowest.to(ema.module.lowest))
    net.mask[3] = math.nan
    ema.update(net)
    assert ema.module.mask.isnan().tolist() == [False, False, False, True]


def test_half_precision_average_would_have_stalled():
    """The negative control: what the class avoids."""
    w = torch.ones((), dtype=torch.bfloat16)
    for _ in range(1000):
        w = w.lerp(torch.zeros_like(w), 0.001)
    assert float(w) == 1.0


def test_average_warms_up_and_takes_a_rate():
    net = nn.Linear(1, 1)
    ema = training.EMA(net, 0.999, warmup=True)
    net.weight.data.fill_(5.0)
    before = float(ema.module.weight.detach())
    ema.update(net)
    assert float(ema.module.weight) == pytest.approx(0.1 * before + 0.9 * 5.0)
    other = training.EMA(net, 0.5)
    net.weight.data.fill_(9.0)
    other.update(net, decay=0.0)
    assert float(other.module.weight) == 9.0


class Around(nn.Module):
    """A denoiser that is a module around a network, with a number and a function beside it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.sigma_data, self.c_noise = net, 0.5, math.log

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        return self.sigma_data * self.net(x) + self.c_noise(sigma)


def test_average_of_a_module_around_a_network_is_one_too():
    net = nn.Linear(2, 2)
    model = Around(net)
    ema = training.EMA(model, 0.5)
    before = net.weight.detach().clone()
    net.weight.data += 1.0
    ema.update(model)
    torch.testing.assert_close(ema.module.net.weight, before + 0.5)
    assert ema.module.net is not net and not ema.module.training
    x = torch.ones(1, 2)
    expected = 0.5 * nn.functional.linear(x, before + 0.5, net.bias) + math.log(2.0)
    torch.testing.assert_close(ema.module(x, 2.0), expected)
    other = training.EMA(Around(nn.Linear(2, 2)))
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.module(x, 2.0), ema.module(x, 2.0)) and other.steps == 1


def test_bad_averages():
    with pytest.raises(ValueError, match="below 1"):
        training.EMA(nn.Linear(1, 1), 1.0)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        training.EMA(lambda x: x)
    with pytest.raises(ValueError, match="parameters and buffers"):
        training.EMA(nn.Linear(1, 1)).update(nn.Linear(2, 1))


# --- data order and the loop ---------------------------------------------------------------------


def test_every_pass_is_a_permutation():
    data = torch.arange(20.0)[:, None]
    first = torch.cat([training.batch_at(data, k, 9, 5, 1).index for k in range(4)])
    second = torch.cat([training.batch_at(data, k, 9, 5, 1).index for k in range(4, 8)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(20))
    assert first.tolist() != second.tolist()
    with pytest.raises(ValueError, match="batch_size must not exceed the data"):
        training.batch_at(data, 0, 1, 21, 0)


def test_the_order_of_a_pass_is_made_once(monkeypatch):
    data, made = torch.zeros(23, 1), []
    original = noise.uniform
    monkeypatch.setattr(
        noise, "uniform", lambda shape, *a, **k: (made.append(shape), original(shape, *a, **k))[1]
    )
    first = [training.batch_at(data, k, 9, 5, 77).index for k in range(8)]
    assert made == [(23, 1)] * 2
    want = [index.clone() for index in first]
    for index in first:
        index.zero_()
    again = [training.batch_at(data, k, 9, 5, 77).index for k in range(8)]
    assert all(map(torch.equal, again, want))


def images(n: int = 40) -> Tensor:
    return 0.5 * noise.normal((n, 1, 4, 4), 0)


def make(kind: str, seed: int = 0) -> Trainer:
    settings = TrainingSettings(8, batch_size=8, lr=1e-3, seed=seed)
    spec = models.Spec(kind, (1, 4, 4), options={"width": 16, "blocks": 1, "dropout": 0.2})
    if kind == "score":
        return recipes.score_trainer(spec, images(), settings)
    if kind == "ct":
        return recipes.consistency_trainer(spec, images(), settings, s1=8)
    options = dict(spec.options or {})
    score = models.Spec("score", spec.shape, options=options)
    teacher = recipes.trained(recipes.score_trainer(score, images(), settings), score)
    if kind == "ect":
        return recipes.tuning_trainer(spec, images(), settings, teacher, stages=3)
    return recipes.distillation_trainer(spec, images(), settings, teacher, levels=6)


@pytest.mark.parametrize("kind", models.KINDS)
def test_resume_changes_no_bit(kind: str, tmp_path: Path):
    whole = make(kind).run(progress=False).save(tmp_path / "whole")
    first = make(kind).run(3, progress=False).save(tmp_path / "part")
    assert first.step == 3
    torch.rand(17)  # Nothing depends on the global generator.
    make(kind).load(tmp_path / "part").run(progress=False).save(tmp_path / "resumed")
    a = content(tmp_path / "whole")
    assert a == content(tmp_path / "resumed")
    assert len(whole.history) == 8
    other = make(kind, seed=1).run(progress=False).save(tmp_path / "other")
    assert other.history != whole.history


def test_resume_without_the_optimizer_would_differ(tmp_path: Path):
    """The negative control."""
    whole = make("score").run(progress=False)
    make("score").run(3, progress=False).save(tmp_path / "part")
    again = make("score").load(tmp_path / "part")
    again.optimizer.state.clear()
    assert again.run(progress=False).history[:4] == whole.history[:4]
    assert again.history[5:] != whole.history[5:]


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    make("ct").run(progress=False)
    assert torch.equal(torch.rand(2), expected)


def test_dropout_falls_on_student_and_target_of_a_distillation_alike():
    trainer, masks = make("cd"), []
    target = trainer.averages["target"].module
    for network in (trainer.network, target):
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.register_forward_hook(lambda m, x, y: masks.append(y == 0))
    trainer.run(1, progress=False)
    assert len(masks) == 2
    assert torch.equal(*masks)
    assert 0.05 < masks[0].double().mean() < 0.5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pairs", [losses.LogNormal(), losses.UniformPairs([3.0, 2.0, 0.5])])
def test_levels_lie_where_the_batch_lies(pairs):
    data = images().cuda()
    batch = training.batch_at(data, 2, 9, 8, 1)
    here, there = (
        pairs.sample(8, noise.key(1, 8, ids=index), draw=2)
        for index in (batch.index.cpu(), batch.index)
    )
    here, there = (v if isinstance(v, tuple) else (v,) for v in (here, there))
    for a, b in zip(here, there, strict=True):
        assert b.device == data.device
        torch.testing.assert_close(b.cpu(), a)


def test_checkpoints_of_another_run_are_refused(tmp_path: Path):
    path = tmp_path / "c"
    make("score").run(2, progress=False).save(path)
    with pytest.raises(ValueError, match=r"settings\.seed must be 0 to resume; got 1"):
        make("score", seed=1).load(path)
    with pytest.raises(ValueError, match="spec must be"):
        make("ct").load(path)
    with pytest.raises(FileNotFoundError):
        make("ct").load(tmp_path / "none")
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ValueError, match="junk is a file"):
        make("ct").load(tmp_path / "junk")


def test_resuming_needs_the_same_teacher_and_curriculum(tmp_path: Path):
    settings, path = TrainingSettings(8, batch_size=8), tmp_path / "c"
    spec = models.Spec("ct", (1, 4, 4), options={"width": 16, "blocks": 1})
    recipes.consistency_trainer(spec, images(), settings, s1=8).run(1, progress=False).save(path)
    with pytest.raises(ValueError, match="course must be"):
        recipes.consistency_trainer(spec, images(), settings, s1=16).load(path)
    score, spec = (models.Spec(k, spec.shape, options=spec.options) for k in ("score", "cd"))
    trainer = recipes.score_trainer(score, images(), settings)
    teacher = recipes.trained(trainer, score)
    first = recipes.distillation_trainer(spec, images(), settings, teacher)
    first.run(1, progress=False).save(path)
    recipes.distillation_trainer(spec, images(), settings, teacher).load(path)
    trainer.run(2, progress=False)  # The teacher is another one now.
    with pytest.raises(ValueError, match="course must be"):
        recipes.distillation_trainer(spec, images(), settings, teacher).load(path)


def test_resuming_a_tuning_needs_the_same_start_and_stages(tmp_path: Path):
    settings, path = TrainingSettings(8, batch_size=8), tmp_path / "c"
    score, spec = (
        models.Spec(k, (1, 4, 4), options={"width": 16, "blocks": 1}) for k in ("score", "ect")
    )
    trainer = recipes.score_trainer(score, images(), settings)
    init = recipes.trained(trainer, score)
    recipes.tuning_trainer(spec, images(), settings, init).run(1, progress=False).save(path)
    recipes.tuning_trainer(spec, images(), settings, init).load(path)
    for given in ({"q": 3.0}, {"stages": 2}):
        with pytest.raises(ValueError, match="course must be"):
            recipes.tuning_trainer(spec, images(), settings, init, **given).load(path)
    trainer.run(2, progress=False)  # The start is another one now.
    with pytest.raises(ValueError, match="course must be"):
        recipes.tuning_trainer(spec, images(), settings, init).load(path)


def test_damaged_checkpoints_are_refused(tmp_path: Path):
    path, bad = tmp_path / "c", tmp_path / "bad"
    make("score").run(2, progress=False).save(path)
    groups, about = training.read_checkpoint(path)
    missing = {**groups, "average.ema": dict(list(groups["average.ema"].items())[1:])}
    without = {name: group for name, group in groups.items() if name != "progress"}
    texts = ("the checkpoint has no average.ema/", "path must be an undamaged checkpoint")
    for damaged, text in zip((missing, without), texts, strict=True):
        training.write_checkpoint(bad, damaged, about)
        with pytest.raises(ValueError, match=text):
            make("score").load(bad)
    training.write_checkpoint(bad, missing, about)
    with pytest.raises(ValueError, match="path must be a checkpoint of a model"):
        models.load_model(bad)
    training.write_checkpoint(bad, groups, about | {"spec": {"kind": "score"}})
    with pytest.raises(ValueError, match="path must be a checkpoint of a model"):
        models.load_model(bad)
    training.write_checkpoint(bad, {}, {"step": 3})
    with pytest.raises(ValueError, match="checkpoint of a training run"):
        make("score").load(bad)
    network = path / "network.safetensors"
    network.write_bytes(network.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"network\.safetensors is damaged: it has \d+ bytes"):
        make("score").load(path)


@pytest.mark.parametrize("lacking", ["group", "tensor", "description"])
def test_a_partial_optimizer_is_refused(lacking: str, tmp_path: Path):
    """Each of these was silently accepted once; the trainer that refuses stays as it was."""
    path = tmp_path / "c"
    make("score").run(2, progress=False).save(path)
    groups, about = training.read_checkpoint(path)
    if lacking == "group":
        del groups["optimizer"]
    elif lacking == "tensor":
        del groups["optimizer"]["3.exp_avg"]
    else:
        del about["optimizer"]
    training.write_checkpoint(path, groups, about)
    trainer = make("score").run(1, progress=False)
    before = [p.clone() for p in trainer.network.parameters()]
    with pytest.raises(ValueError, match="optimizer's state"):
        trainer.load(path)
    assert trainer.step == 1
    assert all(map(torch.equal, before, trainer.network.parameters()))


def test_models_come_back_from_checkpoints(tmp_path: Path):
    path = tmp_path / "c"
    trainer = make("ct").run(progress=False).save(path)
    model = models.load_model(path)
    x = images(3)
    expected = recipes.trained(trainer, model.spec).function(x, 2.0)
    assert torch.equal(model.function(x, 2.0), expected)
    assert torch.equal(model.function(x, model.spec.sigma_min), x)


@pytest.mark.parametrize("kind", models.KINDS)
def test_data_of_another_shape_is_refused(kind: str):
    """Before anything is trained or written: the network's own error would name no argument."""
    spec = models.Spec(kind, (1, 4, 4), options={"width": 16, "blocks": 1})
    score = models.Spec("score", (1, 4, 4), options=spec.options)
    settings, data = TrainingSettings(8, batch_size=8), noise.normal((40, 1, 6, 6), 0)
    teacher = recipes.trained(recipes.score_trainer(score, images(), settings), score)
    make = {
        "score": recipes.score_trainer,
        "cd": lambda *a: recipes.distillation_trainer(*a, teacher),
        "ct": recipes.consistency_trainer,
        "ect": lambda *a: recipes.tuning_trainer(*a, teacher),
    }[kind]
    with pytest.raises(ValueError, match=r"model's shape, \[1, 4, 4\]; got \[1, 6, 6\]"):
        make(spec, data, settings)


@pytest.mark.parametrize("wrong", [{"every": -1}, {"every": 1.5}, {"until": -1}, {"until": 2.5}])
def test_bad_limits_of_a_run_are_refused(wrong):
    trainer = make("score")
    with pytest.raises((ValueError, TypeError), match=f"^{next(iter(wrong))} must be"):
        trainer.run(progress=False, **wrong)
    assert trainer.step == 0


def test_learning_rate_rises_and_falls():
    settings = TrainingSettings(100, lr=1.0, warmup=0.1)
    assert settings.rate(0) == pytest.approx(0.1)
    assert settings.rate(9) == settings.rate(10) == pytest.approx(1.0)
    assert settings.rate(99) < 0.001
    for wrong in ({"steps": 0}, {"steps": 1, "lr": 0.0}, {"steps": 1, "warmup": 1.0}):
        with pytest.raises(ValueError):
            TrainingSettings(**wrong)


# --- images --------------------------------------------------------------------------------------


def test_images_load_in_every_layout(tmp_path: Path):
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    np.save(tmp_path / "last.npy", pixels)
    np.savez(tmp_path / "first.npz", x=pixels.transpose(0, 3, 1, 2))
    np.save(tmp_path / "grey.npy", pixels[..., 0])
    last, first = load_images(tmp_path / "last.npy"), load_images(tmp_path / "first.npz")
    assert torch.equal(last, first)
    assert load_images(tmp_path / "grey.npy").shape == (2, 1, 4, 5)
    scale = Scale.of(last)
    x = scale.to_model(last)
    assert float(x.double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(x.double().std()) == pytest.approx(0.5, abs=1e-6)
    torch.testing.assert_close(scale.to_pixels(x), last, atol=1e-4, rtol=0)
    np.save(tmp_path / "bad.npy", np.zeros(3))
    with pytest.raises(ValueError, match="images must have shape"):
        load_images(tmp_path / "bad.npy")
    np.savez(tmp_path / "bad.npz")
    for junk in (None, b"", b"junk", b"PK\x03\x04junk"):
        if junk is not None:
            (tmp_path / "bad.npz").write_bytes(junk)
        with pytest.raises(ValueError, match=r"data must be an \.npy or \.npz file of numbers"):
            load_images(tmp_path / "bad.npz")
    with pytest.raises(FileNotFoundError):
        load_images(tmp_path / "none.npy")
    with pytest.raises(ValueError, match="one colour"):
        Scale.of(torch.zeros(3))


def test_unet_of_diffusers_fits():
    pytest.importorskip("diffusers")
    spec = models.Spec("score", (3, 16, 16), "unet", {"channels": (8, 16)})
    function = spec.wrap(spec.build(0))
    assert function(torch.zeros(2, 3, 16, 16), 1.0).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="divisible by 2"):
        models.Spec("score", (1, 7, 8), "unet", {"channels": (8, 16)}).build(0)
    with pytest.raises(ValueError, match="network must be one of"):
        models.Spec("score", (1, 8, 8), "resnet").build(0)
    with pytest.raises(ValueError, match="sigma_max must be finite"):
        models.Spec("score", (1, 8, 8), sigma_max=math.inf)
    with pytest.raises(ValueError, match="kind must be one of"):
        models.Spec("gan", (1, 8, 8))


# --- what a step does -------------------------------------------------------------------------


def small_trainer(**settings):
    net = nn.Linear(4, 4)

    def loss(model, batch):
        return 1e3 * (model(batch.x0) - batch.x0).square().mean()

    decays = settings.pop("decays", None)
    averages = None if decays is None else {"ema": training.EMA(net)}
    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    course = TrainingSettings(5, batch_size=8, **settings)
    return Trainer(net, loss, data, course, averages=averages, decays=decays)


@pytest.mark.parametrize("clip", [0.25, 1.0, 7.0])
def test_gradients_are_clipped_to_any_norm(clip):
    trainer, norms = small_trainer(clip=clip), []

    def norm(*_):
        grads = [p.grad for p in trainer.network.parameters()]
        norms.append(torch.cat([g.flatten() for g in grads]).norm().item())

    trainer.optimizer.register_step_pre_hook(norm)
    trainer.run(progress=False)
    assert norms == pytest.approx([clip] * 5, rel=1e-4)  # they are all far above it


def test_the_rate_of_an_average_is_that_of_its_step():
    asked = []
    trainer = small_trainer(decays={"ema": lambda step: asked.append(step) or 0.5})
    trainer.run(progress=False)
    assert asked == [0, 1, 2, 3, 4]


def test_noise_belongs_to_samples_not_to_places():
    """The key of a batch has the positions in the data set as ids, whatever the order."""
    data = torch.arange(40.0).reshape(20, 2)
    batches = [training.batch_at(data, step, 10, 8, seed=3) for step in range(6)]
    for batch in batches:
        ids = batch.key.rows(8, torch.device("cpu"))[:, 1]
        assert torch.equal(ids, batch.index) and torch.equal(data[batch.index], batch.x0)
    assert any(not torch.equal(b.index, torch.arange(8)) for b in batches)
