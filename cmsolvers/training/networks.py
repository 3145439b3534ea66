"""Networks F(x_in, c_noise) for the recipes: a compact one for tiny images, and a U-Net."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cmsolvers import checks as check


class LevelEmbedding(nn.Module):
    """Sines and cosines of c_noise = ln(sigma) / 4, then two layers: [B] -> [B, width].

    Frequencies end at 8, low on purpose: consistency models compare neighbouring levels, and
    an embedding that separates them too sharply makes their difference noisy.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        frequencies = torch.exp(torch.linspace(math.log(0.5), math.log(8.0), 32))
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies)

    def forward(self, c_noise: Tensor) -> Tensor:
        """[B] -> [B, width]."""
        angle = c_noise.to(self.frequencies)[:, None] * self.frequencies
        result: Tensor = self.layers(torch.cat([angle.sin(), angle.cos()], dim=1))
        return result


class ResidualBlock(nn.Module):
    """x + W2 silu(W1 (norm(x) (1 + a) + b)), a and b from the level; starts as the identity."""

    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.level = nn.Linear(embedding, 2 * width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """[B, width], [B, embedding] -> [B, width]."""
        scale, shift = self.level(level).chunk(2, dim=1)
        hidden = torch.addcmul(shift, self.norm(x), 1 + scale)
        result: Tensor = x + self.second(self.dropout(nn.functional.silu(self.first(hidden))))
        return result


class ResidualMLP(nn.Module):
    """A residual MLP over all pixels of a very small image.

    Why not a U-Net here: on two CPU cores, 128 digits of 8 x 8, one training step of the smallest
    useful `UNet2DModel` (634k parameters) takes 117 ms, of this network at width 512 (2.7M) 27 ms;
    with 64 pixels every layer can see all of them, so convolutions have little to add.

    Args:
        shape: of one sample.
        width: of the residual stream.
        blocks: how many residual blocks.
        embedding: width of the level embedding.
        dropout: in [0, 1).
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 384,
        blocks: int = 4,
        embedding: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        size = math.prod(shape)
        self.level = LevelEmbedding(embedding)
        self.first = nn.Linear(size, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, embedding, dropout) for _ in range(blocks))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """[B, *shape], [B] -> [B, *shape]."""
        level, hidden = self.level(c_noise), self.first(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, level)
        result: Tensor = self.last(self.norm(hidden)).view_as(x)
        return result


class UNet(nn.Module):
    """`diffusers.UNet2DModel` as F(x_in, c_noise): for images of 16 x 16 and more.

    Args:
        shape: (C, H, W).
        channels: width of each resolution; H and W must be divisible by 2^(len(channels) - 1).
        layers: residual blocks per resolution.
        dropout: in [0, 1).
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int] = (32, 64, 64),
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        color, height, width = shape
        factor = 2 ** (len(channels) - 1)
        if height % factor or width % factor:
            raise ValueError(f"shape must be divisible by {factor}; got {list(shape)}")
        self.model = UNet2DModel(
            sample_size=(height, width),
            in_channels=color,
            out_channels=color,
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            norm_num_groups=8,
            dropout=dropout,
        )

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """[B, C, H, W], [B] -> [B, C, H, W]."""
        # The U-Net's sinusoids are made for times up to 1000, c_noise spans a few units.
        result: Tensor = self.model(x, c_noise * 250.0, return_dict=False)[0]
        return result


NETWORKS: dict[str, type[nn.Module]] = {"mlp": ResidualMLP, "unet": UNet}


def build_network(name: str, shape: Sequence[int], seed: int, **options: object) -> nn.Module:
    """A network by name ("mlp" or "unet") whose initial weights depend on `seed` alone.

    Raises:
        ValueError: an unknown name.
    """
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {sorted(NETWORKS)}; got {name!r}")
    check.count("seed", seed, least=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name](shape, **options)
