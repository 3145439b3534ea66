"""Networks by name: small ones of this library, models of diffusers, any importable module."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cmsolvers import checks as check
from cmsolvers.training.named_options import (
    IMPORT,
    called_with,
    check_options,
    imported,
    known_name,
    option_names,
)
from cmsolvers.training.networks.conditioning import Inputs
from cmsolvers.training.networks.diffusers_base import DEFAULT_SCALE
from cmsolvers.training.networks.diffusers_networks import ADAPTERS, UNet
from cmsolvers.training.networks.residual_mlp import ResidualMLP

DIFFUSERS = "diffusers:"
"""How the name of a model of diffusers begins."""

NETWORKS: dict[str, type[nn.Module]] = {
    "mlp": ResidualMLP,
    "unet": UNet,
    **{DIFFUSERS + name: kind for name, kind in ADAPTERS.items()},
}
"""By name; any other is "import:package.module:Class"."""


def build_network(
    name: str,
    inputs: Inputs,
    seed: int,
    *,
    usual_scale: float = DEFAULT_SCALE,
    **options: object,
) -> nn.Module:
    """A network by name whose initial weights depend on `seed` alone.

    A class of the user's own is called with the options, and with those of `shape`, `classes`,
    `times`, `heads`, `null_label`, `numbers` and `time_scale` that its signature names. The module
    is called as `net(x, c_noise[, c_noise_end], labels=..., **numbers)`, x [B, *shape], times [B];
    labels where there are classes. It returns the shape of x, or a tuple of two with two heads.

    Args:
        name: "mlp", "unet", "diffusers:UNet2DModel", "diffusers:UNet2DConditionModel",
            "diffusers:DiTTransformer2DModel" or "import:package.module:Class".
        inputs: what it reads and gives.
        seed: an int.
        usual_scale: factor of c_noise for networks with the sinusoids of diffusers, where their
            option `time_scale` does not say another.
        options: of the network.

    Raises:
        ImportError: no such module or class; a package is missing.
        TypeError: an option that the network does not have.
        ValueError: an unknown name, an option out of range.
    """
    check.count("seed", seed, least=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name.startswith(IMPORT):
            return _own(name, inputs, usual_scale, options)
        kind = NETWORKS[known_name("network", name, NETWORKS)]
        if name == "mlp":
            return _made(name, kind, {"inputs": inputs}, options)
        return _made(name, kind, {"inputs": inputs, "time_scale": usual_scale}, options)


def _made(
    name: str, kind: Callable[..., Any], own: dict[str, object], options: dict[str, object]
) -> nn.Module:
    """A network of the library; an option may replace `time_scale`."""
    if not name.startswith(DIFFUSERS):  # diffusers' own options are checked by the adapter
        known = [known for known in option_names(kind) if known != "inputs"]
        check_options(f"network {name}", options, known)
    made: nn.Module = kind(**(own | options))
    return made


def _own(name: str, inputs: Inputs, time_scale: float, options: dict[str, object]) -> nn.Module:
    kind = imported("network", name)
    if not callable(kind):
        raise TypeError(f"network {name} must be a class or function; got {check.describe(kind)}")
    offered = {
        "shape": inputs.shape,
        "classes": inputs.classes,
        "times": inputs.times,
        "heads": inputs.heads,
        "null_label": inputs.null_label,
        "numbers": inputs.numbers,
        "time_scale": time_scale,
    }
    named = inspect.signature(kind).parameters
    own = {key: value for key, value in offered.items() if key in named}
    made = called_with(f"network {name}", kind, own | options)
    if not isinstance(made, nn.Module):
        raise TypeError(f"network {name} must make a torch.nn.Module; got {check.describe(made)}")
    return made


SWITCHES = ("enable_gradient_checkpointing", "gradient_checkpointing_enable")
"""Methods that switch it on: this library's and diffusers', and that of other libraries."""


def enable_gradient_checkpointing(network: nn.Module) -> None:
    """Let a network compute its blocks again in the backward pass, which saves memory.

    Raises:
        TypeError: a network that has no such switch.
    """
    for switch in SWITCHES:
        method = getattr(network, switch, None)
        if callable(method):
            method()
            return
    raise TypeError(
        f"gradient checkpointing must be off for {type(network).__name__}, which has no method "
        f"{SWITCHES[0]}()"
    )
