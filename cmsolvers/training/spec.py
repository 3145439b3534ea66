"""What a model is, enough to build it again: the network, and what stands around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn

from cmsolvers import checks as check
from cmsolvers.training.data import SIGMA_DATA
from cmsolvers.training.learned_weights import LearnedWeight
from cmsolvers.training.model_wrappers import (
    ALIASES,
    DTYPES,
    Function,
    Wrapper,
    wrapped,
    wrapper_of,
)
from cmsolvers.training.named_options import check_options
from cmsolvers.training.networks import Inputs, build_network

CONSISTENCY_KINDS = ("cd", "ct", "ect")
"""Kinds of consistency functions: distilled, trained from scratch, tuned from a score model."""
KINDS = ("score", *CONSISTENCY_KINDS)

LEARNED_WEIGHT = "loss_weight"
"""The submodule of a network that learns the weight of its loss."""


@dataclass(frozen=True)
class Spec:
    """What a model is: enough to build it again from a checkpoint.

    Attributes:
        kind: a name of `wrappers.WRAPPERS`: what stands around the network. "score" is "edm"; "cd",
            "ct" and "ect" are "consistency", by how it was trained.
        shape: of one sample, [C, H, W] or any other.
        network: see `networks.build_network`.
        options: of the network.
        sigma_min: smallest level.
        sigma_max: largest level, where sampling starts. 20 is 40 standard deviations of the data;
            80, made for 1,000 times more pixels, would spend a third of all levels on pure noise.
        sigma_data: standard deviation of the data.
        classes: how many classes labels have; None: the network gets no labels.
        null_label: whether one more label, `classes`, says nothing of the sample, for guidance.
        inputs: names of further numbers that the network reads, such as "w".
        wrapper: further options of the kind, such as {"second": "length"}.
        dtype: of the network's input, "float32", "float16", "bfloat16" or "float64"; None is that
            of x.
        learned_weight: how many levels a learnt weight of the loss is a function of: 0 is none.

    Raises:
        TypeError, ValueError: a value of the wrong kind or out of range.
    """

    kind: str
    shape: tuple[int, ...]
    network: str = "mlp"
    options: Mapping[str, object] | None = None
    sigma_min: float = 0.002
    sigma_max: float = 20.0
    sigma_data: float = SIGMA_DATA
    classes: int | None = None
    null_label: bool = True
    inputs: tuple[str, ...] = ()
    wrapper: Mapping[str, object] = field(default_factory=dict)
    dtype: str | None = None
    learned_weight: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "inputs", tuple(self.inputs))
        check_options(f"kind {self.kind}", self.wrapper, self.row.options)
        check.positive("sigma_data", self.sigma_data)
        check.sigma_range(self.sigma_min, self.sigma_max)
        if self.dtype is not None:
            check.choice("dtype", self.dtype, DTYPES)
        check.count("learned_weight", self.learned_weight, least=0, most=2)
        _ = self.reads

    @property
    def row(self) -> Wrapper:
        """What is known of its kind."""
        return wrapper_of(self.kind)

    @property
    def wrapping(self) -> str:
        """The name of its kind in `wrappers.WRAPPERS`."""
        return ALIASES.get(self.kind, self.kind)

    @property
    def reads(self) -> Inputs:
        """What the network reads and gives."""
        row = self.row
        return Inputs(self.shape, row.times, self.classes, self.null_label, self.inputs, row.heads)

    @property
    def null(self) -> int | None:
        """The label that says nothing of a sample; None where there is none."""
        return self.reads.null

    def build(self, seed: int) -> nn.Module:
        """A network with fresh weights, which depend on `seed` alone.

        Raises:
            ImportError, TypeError, ValueError: as `networks.build_network`.
        """
        options: dict[str, Any] = dict(self.options or {})
        network = build_network(
            self.network, self.reads, seed, usual_scale=self.row.time_scale, **options
        )
        if self.learned_weight:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network.add_module(LEARNED_WEIGHT, LearnedWeight(self.learned_weight))
        return network

    def wrap(self, network: nn.Module) -> Function:
        """The denoiser, consistency function or flow map around a network.

        Raises:
            TypeError, ValueError: options that do not fit the kind.
        """
        numbers = {name: getattr(self, name) for name in ("sigma_min", "sigma_max", "sigma_data")}
        made = wrapped(self.kind, network, numbers, self.wrapper)
        if self.dtype is not None:
            made.dtype = getattr(torch, self.dtype)
        return made

    @staticmethod
    def read(about: object) -> Spec:
        """The spec that `about` described: its inverse.

        Raises:
            TypeError, ValueError: about describes no model.
        """
        if not isinstance(about, dict):
            raise TypeError(f"spec must be a dict; got {check.describe(about)}")
        check_options("spec", about, [known.name for known in fields(Spec)])
        for name in ("kind", "shape"):
            if name not in about:
                raise ValueError(f"spec must have {name!r}; got {sorted(about)}")
        for name in ("shape", "inputs"):
            if name in about and not isinstance(about[name], (list, tuple)):
                raise TypeError(f"spec.{name} must be a list; got {check.describe(about[name])}")
        for name in ("options", "wrapper"):
            if name in about and not isinstance(about[name], dict):
                raise TypeError(f"spec.{name} must be a table; got {check.describe(about[name])}")
        return Spec(**about)

    def about(self) -> dict[str, object]:
        """What JSON can hold of it."""
        described = asdict(self) | {"options": dict(self.options or {})}
        plain = _plain(described)
        assert isinstance(plain, dict)
        return plain


def _plain(value: object) -> object:
    """Tuples as lists, mappings as dicts."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Model:
    """A trained model, ready to sample: `function` is D(x, level), f(x, level) or f(x, t, s)."""

    spec: Spec
    network: nn.Module
    function: Function
    about: dict[str, object]
