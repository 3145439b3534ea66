"""Train a score model of two moons: your own data loader, optimiser, schedule and evaluation."""

import argparse

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cmsolvers import EDM, heun_pf_ode, karras_sigmas, noise
from cmsolvers.losses import LossOutput, dsm
from cmsolvers.training import EMA, Batch, RunFolder, Trainer, TrainingSettings, power_decay
from cmsolvers.training.data import toys


class Net(nn.Module):
    """F(x, c_noise) of shape [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        made: Tensor = self.layers(torch.cat((x, c_noise[:, None].to(x.dtype)), dim=1))
        return made


def loss(model: nn.Module, batch: Batch) -> LossOutput:
    """Denoising score matching; noise and levels are functions of key and step."""
    return dsm(model, batch.x0, key=batch.key, step=batch.step)


def main(out: str, steps: int) -> float:
    """Train, or go on from what is in `out`; the mean distance of samples to the data."""
    torch.manual_seed(0)
    denoiser = EDM(Net(), sigma_data=0.5)
    points, _ = toys("two_moons", 4096).samples(torch.arange(4096), seed=0, step=0)
    loader = DataLoader(TensorDataset(points), batch_size=256, shuffle=True, drop_last=True)
    trainer = Trainer(
        denoiser,
        loss,
        loader,
        TrainingSettings(steps, batch_size=256, clip=1.0),
        optimizer=lambda parameters: torch.optim.RAdam(parameters, lr=3e-3),
        schedule=lambda step: (1.0 - step / steps) ** 0.5,
        averages={"ema": EMA(denoiser, power_decay(0.1))},
    )
    folder = RunFolder(out)
    if folder.checkpoints():
        trainer.resume(folder)
    trainer.run(folder=folder, every=500)
    x = 80.0 * noise.normal((1000, 2), seed=1)
    samples = heun_pf_ode(trainer.averages["ema"].module, x, karras_sigmas(18))
    return float(torch.cdist(samples, points).min(dim=1).values.mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="two-moons")
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    print(f"mean distance to the data: {main(options.out, options.steps):.3f}")
