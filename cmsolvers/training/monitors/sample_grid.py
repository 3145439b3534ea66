"""Samples on the way, always from the same noise."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.training.checkpoints.disk import make_folders
from cmsolvers.training.data import Scale
from cmsolvers.training.picture_pages import (
    CHANNELS,
    LARGEST,
    pixels_of,
    scatter,
    tiles,
    write_png,
)
from cmsolvers.training.reports import StepReport, Training

Sample: TypeAlias = Callable[[nn.Module, Tensor], Tensor]
"""sample(model, z): unit normals [count, *shape] -> samples of that shape, as models see data."""


class SampleGrid:
    """A monitor that draws samples of an average every so many steps: FOLDER/step-00001000.png.

    The noise is that of `noise.normal((count, *shape), seed)`, always the same, so that pictures
    can be compared. Images are drawn side by side, points of a plane as a scatter plot.

    Args:
        folder: of the pictures; it is made.
        sample: sample(model, z) -> x; model is the average's network in evaluation mode, z float32
            [count, *shape] on its device. For a consistency function, for instance,
            `lambda f, z: consistency_sample(f, 80.0 * z, [80.0, 0.8], seed=0)`.
        shape: of one sample, [2] or [C, H, W] with 1, 3 or 4 channels.
        every: steps between pictures; there is one at the last step too.
        average: its name; None: the network itself.
        count: samples.
        seed: of the noise.
        columns: images in a row.
        scale: of pixels; None: models see them in [-1, 1].

    Raises:
        TypeError, ValueError: arguments of the wrong kind or out of range.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        sample: Sample,
        shape: Sequence[int],
        every: int,
        average: str | None = "ema",
        count: int = 64,
        seed: int = 0,
        columns: int = 8,
        scale: Scale | None = None,
    ) -> None:
        self.folder, self.sample = Path(folder), check.function("sample", sample)
        self.shape, self.every = tuple(shape), check.count("every", every)
        if self.shape != (2,) and not (len(self.shape) == 3 and self.shape[0] in CHANNELS):
            raise ValueError(
                "shape must be of points, [2], or of images, [C, H, W] with 1, 3 or 4 channels; "
                f"got {list(self.shape)}"
            )
        self.average, self.count = average, check.count("count", count)
        self.seed = check.count("seed", seed, least=0)
        self.columns = check.count("columns", columns)
        self.scale = Scale.between(0.0, 255.0) if scale is None else scale

    def started(self, trainer: Training) -> None:
        """Find out whether samples can be drawn.

        Raises:
            ValueError: the run has no such average.
            ImportError: what draws is not installed.
            OSError: the folder cannot be made.
        """
        if self.average is not None and self.average not in trainer.averages:
            raise ValueError(
                f"average must be of the run's, {', '.join(trainer.averages) or 'none'}; "
                f"got {self.average!r}"
            )
        if len(self.shape) == 1:
            import matplotlib.figure  # noqa: F401
        else:
            import PIL.Image  # noqa: F401
        make_folders(self.folder)

    def stepped(self, report: StepReport) -> None:
        """Nothing."""

    def reached(self, trainer: Training) -> None:
        """Draw a picture.

        Raises:
            ValueError: samples of another shape.
            OSError: it cannot be written.
        """
        if trainer.rank > 0 and not trainer.sharded:
            return
        module: nn.Module = (
            trainer.network if self.average is None else trainer.averages[self.average].module
        )
        x = self._sampled(module)
        if trainer.rank == 0:
            self._draw(x, self.folder / f"step-{trainer.step:08d}.png")

    def saved(self, path: Path) -> None:
        """Nothing."""

    def ended(self, trainer: Training) -> None:
        """Nothing."""

    @torch.no_grad()
    def _sampled(self, module: nn.Module) -> Tensor:
        device = next(iter([*module.parameters(), *module.buffers()]), torch.zeros(0)).device
        z = noise.normal((self.count, *self.shape), self.seed, device=device)
        training = [part for part in module.modules() if part.training]
        module.eval()
        try:
            return self.sample(module, z)
        finally:
            for part in training:
                part.training = True

    def _draw(self, x: Tensor, path: Path) -> None:
        if x.shape != (self.count, *self.shape):
            raise ValueError(
                f"sample must return samples of shape {[self.count, *self.shape]}; "
                f"got {list(x.shape)}"
            )
        x = torch.nan_to_num(x.detach().float()).cpu()
        if len(self.shape) == 1:
            scatter(path, x)
        else:
            write_png(path, tiles(pixels_of(x, self.scale), self.columns), most=LARGEST)
