"""Models as checkpoints hold them: what a network is, and the function around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from cmsolvers import checks as check
from cmsolvers.denoisers import EDM, ConsistencyFunction, Preconditioned
from cmsolvers.training.checkpoint import read_checkpoint
from cmsolvers.training.ema import EMA
from cmsolvers.training.images import SIGMA_DATA
from cmsolvers.training.networks import build_network

CONSISTENCY_KINDS = ("cd", "ct", "ect")
"""Kinds of consistency functions: distilled, trained from scratch, tuned from a score model."""
KINDS = ("score", *CONSISTENCY_KINDS)


@dataclass(frozen=True)
class Spec:
    """What a model is: enough to build it again from a checkpoint.

    Attributes:
        kind: "score" (a denoiser), "cd", "ct" or "ect" (consistency functions).
        shape: of one sample, (C, H, W).
        network: "mlp" or "unet".
        options: of the network.
        sigma_min: smallest level.
        sigma_max: largest level, where sampling starts. 20 is 40 standard deviations of the data;
            80, made for 1,000 times more pixels, would spend a third of all levels on pure noise.
        sigma_data: standard deviation of the data.
    """

    kind: str
    shape: tuple[int, ...]
    network: str = "mlp"
    options: Mapping[str, object] | None = None
    sigma_min: float = 0.002
    sigma_max: float = 20.0
    sigma_data: float = SIGMA_DATA

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}; got {self.kind!r}")
        check.positive("sigma_data", self.sigma_data)
        check.sigma_range(self.sigma_min, self.sigma_max)

    def build(self, seed: int) -> nn.Module:
        """A network with fresh weights, which depend on `seed` alone."""
        return build_network(self.network, self.shape, seed, **dict(self.options or {}))

    def wrap(self, network: nn.Module) -> Preconditioned:
        """The denoiser or consistency function around a network."""
        if self.kind == "score":
            return EDM(network, self.sigma_data)
        return ConsistencyFunction(network, self.sigma_data, self.sigma_min)

    @staticmethod
    def read(about: object) -> Spec:
        """The spec that `about` described: its inverse.

        Raises:
            KeyError, TypeError, ValueError: about describes no model.
        """
        if not isinstance(about, dict):
            raise TypeError(f"spec must be a dict; got {check.describe(about)}")
        return Spec(**(about | {"shape": tuple(about["shape"])}))

    def about(self) -> dict[str, object]:
        """What JSON can hold of it."""
        described = asdict(self)
        return described | {"shape": list(self.shape), "options": dict(self.options or {})}


@dataclass(frozen=True)
class Model:
    """A trained model, ready to sample: `function` is D(x, sigma) or f(x, sigma)."""

    spec: Spec
    network: nn.Module
    function: Preconditioned
    about: dict[str, object]


def load_model(path: str | Path) -> Model:
    """The averaged network of a checkpoint.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no checkpoint of a recipe.
    """
    groups, about = read_checkpoint(path)
    if "spec" not in about or "average.ema" not in groups:
        raise ValueError(f"path must be a checkpoint of `cmsolvers train` or `demo`; got {path}")
    try:
        spec = Spec.read(about["spec"])
        ema = EMA(spec.build(0))
        ema.load_state_dict(groups["average.ema"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"path must be an undamaged checkpoint; {path}: {error}") from error
    return Model(spec, ema.module, spec.wrap(ema.module), about)
