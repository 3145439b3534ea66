"""The scale in which models see pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

from cmsolvers import checks as check

SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Scale:
    """Models see (pixel - mean) / std * 0.5, so the data has mean 0 and deviation 0.5.

    Attributes:
        mean: of all pixels of the training images.
        std: of all pixels of the training images.
        low: smallest pixel value.
        high: largest pixel value.

    A fixed scale has the same form: [low, high] goes to [-1, 1] with mean (low + high) / 2 and std
    (high - low) / 4, which is x / 127.5 - 1 for 8-bit pixels.
    """

    mean: float
    std: float
    low: float
    high: float

    @staticmethod
    def of(pixels: Tensor) -> Scale:
        """The scale that gives these training images mean 0 and deviation 0.5.

        Raises:
            ValueError: images of a single colour.
        """
        std = float(pixels.double().std())
        if not std > 0:
            raise ValueError(f"images must not all be of one colour; got standard deviation {std}")
        return Scale(float(pixels.double().mean()), std, float(pixels.min()), float(pixels.max()))

    @staticmethod
    def between(low: float, high: float) -> Scale:
        """The scale in which models see pixels in [low, high] as [-1, 1].

        Raises:
            ValueError: low is not below high.
        """
        check.below("low", low, "high", high)
        return Scale((low + high) / 2, (high - low) / 4, low, high)

    def about(self) -> dict[str, float]:
        """What JSON can hold of it; `read` is the inverse."""
        return asdict(self)

    @staticmethod
    def read(about: object) -> Scale:
        """The scale that a checkpoint describes as `dataclasses.asdict(scale)`.

        Raises:
            ValueError: about describes no scale.
        """
        try:
            if isinstance(about, dict):
                return Scale(**about)
        except TypeError:
            pass
        raise ValueError(f"scale must be a dict with mean, std, low and high; got {about!r}")

    def to_model(self, pixels: Tensor) -> Tensor:
        """Pixels -> what models see, float32."""
        return ((pixels.double() - self.mean) / self.std * SIGMA_DATA).float()

    def to_pixels(self, x: Tensor) -> Tensor:
        """What models return -> pixels in [low, high], float32."""
        return (x.double() / SIGMA_DATA * self.std + self.mean).clamp(self.low, self.high).float()
