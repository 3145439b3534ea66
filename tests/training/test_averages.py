"""Several averages of one network in one pass, and the power-function decay."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cmsolvers import training
from cmsolvers.training import EMA, PowerDecay, power_decay, update_averages
from cmsolvers.training.averages import move_averages


class Mixed(nn.Module):
    """Everything that a network may hold: tied and half-precision weights, masks, counters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.half = nn.Linear(4, 3, bias=False).bfloat16()
        self.conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        self.wave = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        table = torch.randn(6)
        self.register_buffer("table", table)
        self.register_buffer("part", table[2:])
        self.register_buffer("spread", torch.randn(1).expand(5))
        self.register_buffer("mask", torch.tensor([-math.inf, 0.0]))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("flag", torch.tensor([False, True]))

    def wander(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for p in self.parameters():
                p += torch.randn(p.shape, generator=generator, dtype=p.dtype)
            self.table += 1.0
            self.count += 1
            self.flag.logical_not_()


def by_hand(a: Tensor, b: Tensor, mu: float) -> Tensor:
    if not (a.is_floating_point() or a.is_complex()):
        return b.clone()
    mean = mu * a.to(torch.complex128) + (1 - mu) * b.to(torch.complex128)
    moved = (mean if a.is_complex() else mean.real).to(a.dtype)
    return moved if a.is_complex() else torch.where(b.isinf(), b.to(a.dtype), moved)


def test_together_as_alone_and_as_by_hand():
    torch.manual_seed(0)
    network = Mixed()
    mus = [0.999, 0.5, 0.1, 0.9, 0.0]
    together, alone = ([EMA(network, mu) for mu in mus] for _ in range(2))
    hand = [[t.clone() for t in e.module.state_dict().values()] for e in together]
    names = list(network.state_dict())
    for step in range(4):
        network.wander(step)
        update_averages(together, network)
        for ema in alone:
            ema.update(network)
        now = network.state_dict().values()
        hand = [
            [by_hand(a, b, mu) for a, b in zip(old, now, strict=True)]
            for old, mu in zip(hand, mus, strict=True)
        ]
    for one, other, third in zip(together, alone, hand, strict=True):
        assert one.steps == other.steps == 4
        state = one.module.state_dict()
        for name, mine, theirs in zip(names, state.values(), third, strict=True):
            assert torch.equal(mine, other.module.state_dict()[name]), name
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, msg=name)
        assert state["count"] == 4 and state["mask"].tolist() == [-math.inf, 0.0]
        assert one.module.tied.weight is one.module.first.weight
    bare = hand[1][names.index("table")] + 0.1  # negative control
    assert not torch.allclose(bare, together[1].module.table, rtol=1e-5, atol=1e-6)


def test_views_of_one_buffer_are_averaged_once_each():
    torch.manual_seed(0)
    network = Mixed()
    before = network.table.clone()
    ema = EMA(network, 0.5)
    network.wander(0)
    ema.update(network)
    torch.testing.assert_close(ema.module.table, before + 0.5)
    torch.testing.assert_close(ema.module.part, before[2:] + 0.5)


def test_each_average_keeps_its_own_rate():
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    slow, warm, led = EMA(network, 0.9), EMA(network, 0.9, warmup=True), EMA(network, 0.9)
    falling = EMA(network, lambda k: 1.0 / (2 + k))
    nn.init.ones_(network.weight)
    for _ in range(2):
        update_averages([slow, warm, led, falling], network, [None, None, 0.25, None])
    kept = {"slow": 0.9**2, "warm": 0.1 * 2 / 11, "led": 0.25**2, "falling": 0.5 / 3}
    for ema, part in zip((slow, warm, led, falling), kept.values(), strict=True):
        assert float(ema.module.weight) == pytest.approx(1 - part, rel=1e-6)


def test_all_move_or_none():
    network = nn.Linear(2, 2)
    mine, other = EMA(network, 0.5), EMA(nn.Linear(3, 2), 0.5)
    before = mine.module.weight.clone()
    nn.init.zeros_(network.weight)
    with pytest.raises(ValueError, match="network must have the parameters and buffers"):
        update_averages([mine, other], network)
    with pytest.raises(ValueError, match="decay must be below 1"):
        update_averages([mine, mine], network, [0.5, 1.0])
    with pytest.raises(ValueError, match=r"decay must .*2"):
        update_averages([EMA(network, lambda k: 2.0)], network)
    with pytest.raises(ValueError, match="decays must hold one entry per average, 1; got 2"):
        update_averages([mine], network, [0.5, 0.5])
    assert torch.equal(mine.module.weight, before) and mine.steps == other.steps == 0
    update_averages([], network)


def test_weights_from_a_tensor():
    network = Mixed()
    one, other = EMA(network, 0.9), EMA(network, 0.9)
    network.wander(3)
    one.update(network)
    move_averages([other], network, torch.tensor([1.0 - 0.9], dtype=torch.float64))
    theirs = other.module.state_dict()
    for name, mine in one.module.state_dict().items():
        assert torch.equal(mine, theirs[name]), name
    assert other.steps == 0


def test_a_float64_network_keeps_its_digits():
    network = nn.Linear(2, 2).double()
    ema = EMA(network, 1 - 1e-12)
    before = network.weight.detach().clone()
    with torch.no_grad():
        network.weight += 1.0
    ema.update(network)
    assert ema.module.weight.dtype is torch.float64
    torch.testing.assert_close(ema.module.weight - before, torch.full((2, 2), 1e-12).double(),
                               rtol=1e-3, atol=0.0)  # fmt: skip


def test_sharded_tensors_are_averaged_where_they_are(tmp_path):
    distributed = torch.distributed
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

        mesh = init_device_mesh("cpu", (1,))
        network = nn.Linear(4, 4, bias=False)
        network.weight = nn.Parameter(distribute_tensor(torch.zeros(4, 4), mesh, [Shard(0)]))
        ema = EMA(network, 0.75)
        with torch.no_grad():
            network.weight += 1.0
        ema.update(network)
        assert ema.module.weight.to_local().tolist() == [[0.25] * 4] * 4
    finally:
        distributed.destroy_process_group()


class TestPowerDecay:
    @pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
    def test_published_pairs(self, width, gamma):
        assert power_decay(width).gamma == pytest.approx(gamma, abs=0.005)
        assert power_decay(1.1 * width).gamma != pytest.approx(gamma, abs=0.005)

    @pytest.mark.parametrize("width", [1e-6, 0.003, 0.05, 0.1, 0.2, 0.28, 12**-0.5])
    def test_solves_its_equation(self, width):
        decay = power_decay(width)
        assert decay.sigma_rel == pytest.approx(width, rel=1e-9)
        s = width**-2
        roots = np.roots([1.0, 7.0, 16.0 - s, 12.0 - s])
        assert decay.gamma == pytest.approx(max(roots.real), rel=1e-6, abs=1e-6)

    def test_sigma_rel_is_the_deviation_of_the_profile(self):
        """Of the density proportional to s^gamma on [0, 1], by quadrature."""
        for gamma in (0.0, 1.5, 6.94):
            s = (np.arange(200_000) + 0.5) / 200_000
            weight = s**gamma / np.sum(s**gamma)
            mean = np.sum(weight * s)
            deviation = math.sqrt(np.sum(weight * (s - mean) ** 2))
            assert PowerDecay(gamma).sigma_rel == pytest.approx(deviation, rel=1e-6)

    @pytest.mark.parametrize("gamma", [0.0, 6.94])
    def test_weights_of_the_networks(self, gamma):
        """mu of the updates makes the t-th network count as t^gamma, up to O(1/t)."""
        decay, total = PowerDecay(gamma), 4000
        kept, share = 1.0, np.empty(total)
        for k in reversed(range(total)):
            mu = decay(k)
            share[k], kept = (1 - mu) * kept, mu * kept
        assert share.sum() == pytest.approx(1.0, rel=1e-9)
        t = np.arange(1, total + 1)
        profile = t**gamma / np.sum(t**gamma)
        late = slice(total // 2, None)
        np.testing.assert_allclose(share[late], profile[late], rtol=0.02)
        wrong = t ** (gamma + 1) / np.sum(t ** (gamma + 1))  # negative control
        assert np.abs(share[late] / wrong[late] - 1).max() > 0.1

    def test_mean_of_all_networks(self):
        network = nn.Linear(1, 1, bias=False)
        ema = EMA(network, power_decay(12**-0.5))
        for value in (1.0, 5.0, 9.0, 3.0):
            nn.init.constant_(network.weight, value)
            ema.update(network)
        assert float(ema.module.weight) == pytest.approx(4.5, rel=1e-6)

    def test_goes_on_after_a_checkpoint(self):
        network = nn.Linear(2, 2)
        whole, part = (EMA(network, power_decay(0.1)) for _ in range(2))
        for step in range(6):
            with torch.no_grad():
                network.weight += step
            whole.update(network)
            part.update(network)
            if step == 2:
                state = {name: t.clone() for name, t in part.state_dict().items()}
                part = EMA(nn.Linear(2, 2), power_decay(0.1))
                part.load_state_dict(state)
        assert torch.equal(whole.module.weight, part.module.weight)

    @pytest.mark.parametrize("width", [0.0, -0.1, 0.2887, math.nan, math.inf])
    def test_bad_widths(self, width):
        with pytest.raises(ValueError, match="sigma_rel must"):
            power_decay(width)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="gamma must"):
            PowerDecay(-1.0)
        with pytest.raises(TypeError, match="k must"):
            PowerDecay(1.0)(0.5)
        with pytest.raises(TypeError, match="decay must"):
            EMA(nn.Linear(1, 1), "fast")


def test_a_trainer_moves_its_averages_in_one_pass(monkeypatch):
    import cmsolvers.training.averages.ema as module

    passes = []
    original = module.ema_update
    monkeypatch.setattr(
        module,
        "ema_update",
        lambda a, *rest, **more: passes.append(len(a)) or original(a, *rest, **more),
    )
    network = nn.Linear(2, 1)
    averages = {"a": EMA(network), "b": EMA(network, power_decay(0.1)), "c": EMA(network, 0.5)}
    training.Trainer(
        network,
        lambda model, batch: model(batch.x0).square().mean(),
        torch.randn(8, 2),
        training.TrainingSettings(steps=3, batch_size=4),
        averages=averages,
    ).run(progress=False)
    assert passes == [3, 3, 3]
    assert all(ema.steps == 3 for ema in averages.values())
