"""Pictures of samples on the way: which model, which noise, which pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cmsolvers import noise
from cmsolvers.training import EMA, Trainer, TrainingSettings
from cmsolvers.training.data import Scale
from cmsolvers.training.monitors import SampleGrid
from support.monitored import STEPS, trainer

Image = pytest.importorskip("PIL.Image")


class Dropped(nn.Module):
    """Images with dropout, which shows whether it is in evaluation mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(channels, 1, 1))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(x) + self.level


def run(grid: SampleGrid, channels: int = 3, steps: int = 4) -> Trainer:
    network = Dropped(channels)

    def loss(model, batch):
        assert model.training
        return (model(batch.x0) - 0.5).square().mean()

    return Trainer(
        network,
        loss,
        noise.normal((16, channels, 5, 4), 3),
        TrainingSettings(steps, batch_size=4, lr=0.3),
        averages={"ema": EMA(network, 0.5)},
        monitors=[grid],
    ).run(progress=False)


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_are_the_samples_of_the_average(tmp_path: Path, channels: int):
    seen = []

    def sample(model, z):
        seen.append((model, z, model.training, torch.is_grad_enabled()))
        return model(0.3 * z)

    scale = Scale(5.0, 2.0, 0.0, 10.0)
    grid = SampleGrid(tmp_path / "s", sample, (channels, 5, 4), 2, count=5, columns=3, scale=scale)
    made = run(grid, channels)
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "step-00000002.png",
        "step-00000004.png",
    ]
    module = made.averages["ema"].module
    assert [s[0] is module for s in seen] == [True, True]
    assert [s[2:] for s in seen] == [(False, False)] * 2
    z = noise.normal((5, channels, 5, 4), 0)
    assert all(torch.equal(s[1], z) for s in seen)
    # Independently: 5 images of 5 x 4 pixels, 8 times as large, 4 pixels of white between them.
    values = (0.3 * z + module.level).double() / 0.5 * 2.0 + 5.0
    levels = (values.clamp(0, 10) * 25.5).round().numpy().astype(np.uint8)
    found = picture(tmp_path / "s" / "step-00000004.png")
    found = found.reshape(*found.shape[:2], channels)
    assert found.shape == (2 * 40 + 4, 3 * 32 + 2 * 4, channels)
    for k in range(5):
        top, left = (k // 3) * 44, (k % 3) * 36
        tile = found[top : top + 40, left : left + 32]
        np.testing.assert_array_equal(tile[::8, ::8], levels[k].transpose(1, 2, 0))
    assert (found[44:, 72:] == 255).all()
    first = picture(tmp_path / "s" / "step-00000002.png").reshape(found.shape)
    assert (first != found).any()  # negative control: the average has moved


def test_the_network_itself_goes_back_to_training(tmp_path: Path):
    """`run`'s loss asserts the mode of each step."""
    modes = []

    def sample(model, z):
        modes.append(model.training)
        return model(z)

    made = run(SampleGrid(tmp_path, sample, (3, 5, 4), 1, average=None))
    assert modes == [False] * 4 and made.step == 4


def test_a_large_grid_gets_smaller(tmp_path: Path):
    grid = SampleGrid(tmp_path, lambda m, z: z, (3, 90, 70), 1, average=None, count=900, columns=30)
    grid._draw(noise.normal((900, 3, 90, 70), 0), tmp_path / "p.png")
    assert max(picture(tmp_path / "p.png").shape) == 2000


def test_samples_that_are_not_finite_are_drawn(tmp_path: Path):
    grid = SampleGrid(tmp_path, lambda m, z: z / 0.0 * 0.0, (1, 5, 4), 1, count=4)
    run(grid, channels=1, steps=1)
    assert picture(tmp_path / "step-00000001.png").shape == (40, 4 * 32 + 3 * 4)


def test_points_are_a_scatter_plot(tmp_path: Path):
    pytest.importorskip("matplotlib")
    grid = SampleGrid(tmp_path, lambda m, z: m(z, 1.0), [2], 15, average="long")
    trainer(grid).run(progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000015.png", "step-00000020.png"]
    assert picture(tmp_path / "step-00000020.png").std() > 1.0


def test_a_sampler_that_fails_is_one_warning(tmp_path: Path):
    grid = SampleGrid(tmp_path, lambda m, z: z[:3], [2], 5, average="long")
    made = trainer(grid)
    with pytest.warns(
        RuntimeWarning, match=r"SampleGrid failed at step 5.*shape \[64, 2\]"
    ) as told:
        made.run(progress=False)
    assert len(told) == 1 and made.step == STEPS


def test_no_such_average_is_told_before_the_first_step(tmp_path: Path):
    made = trainer(SampleGrid(tmp_path / "s", lambda m, z: z, [2], 5))
    with pytest.raises(ValueError, match="average must be of the run's, short, long; got 'ema'"):
        made.run(progress=False)
    assert made.step == 0 and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"shape": [3]}, ValueError, r"shape must be of points.*got \[3\]"),
        ({"shape": [2, 8, 8]}, ValueError, r"shape must be of points.*got \[2, 8, 8\]"),
        ({"count": 0}, ValueError, "count must be at least 1"),
        ({"every": 0}, ValueError, "every must be at least 1"),
        ({"columns": 0}, ValueError, "columns must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"sample": "heun"}, TypeError, "sample must"),
    ],
)
def test_bad_arguments(tmp_path: Path, options, error, text: str):
    given = {"sample": lambda m, z: z, "shape": [2], "every": 1} | options
    with pytest.raises(error, match=text):
        SampleGrid(tmp_path, **given)
