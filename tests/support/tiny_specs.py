"""Small specs of every kind of network, for tests of models and settings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmsolvers.training.models import Spec

UNET: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 8,
}

OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {"width": 16, "blocks": 1},
    "unet": {"channels": [16, 16]},
    "diffusers:UNet2DModel": UNET,
    "diffusers:UNet2DConditionModel": {
        **UNET,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 8,
    },
    "diffusers:DiTTransformer2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "norm_num_groups": 4,
        "patch_size": 2,
    },
}
"""Options of a tiny network of each name."""

SHAPE = (3, 8, 8)


def spec(kind: str = "edm", network: str = "mlp", **given: Any) -> Spec:
    """A spec of a tiny network."""
    options = OPTIONS.get(network, {}) | given.pop("options", {})
    return Spec(kind, given.pop("shape", SHAPE), network, options, **given)


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with all weights random: nothing that is 0 at first hides what it depends on."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan = max(1, parameter[0].numel()) if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return network


def samples(batch: int = 4, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    """Samples with standard deviation 0.5."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(batch, *shape, generator=generator)


class OwnNet(nn.Module):
    """A network of a user: `import:support.tiny_specs:OwnNet`."""

    def __init__(self, shape: tuple[int, ...], width: int = 8, classes: int | None = None) -> None:
        super().__init__()
        size = torch.Size(shape).numel()
        self.first, self.last = nn.Linear(size + 1, width), nn.Linear(width, size)
        self.labels = None if classes is None else nn.Embedding(classes + 1, width)

    def forward(self, x: Tensor, c_noise: Tensor, *, labels: Tensor | None = None) -> Tensor:
        hidden = self.first(torch.cat([x.flatten(1), c_noise[:, None]], dim=1)).tanh()
        if self.labels is not None and labels is not None:
            hidden = hidden + self.labels(labels)
        made: Tensor = self.last(hidden)
        return made.view_as(x)


NOT_A_NETWORK = 3
