"""Networks F(x_in, c_noise) for recipes, built by name."""

from cmsolvers.training.networks.building import (
    DIFFUSERS,
    NETWORKS,
    build_network,
    enable_gradient_checkpointing,
)
from cmsolvers.training.networks.conditioning import Conditioning, Inputs, LevelEmbedding
from cmsolvers.training.networks.diffusers_base import DiffusersNetwork
from cmsolvers.training.networks.diffusers_networks import UNet
from cmsolvers.training.networks.residual_mlp import ResidualBlock, ResidualMLP

__all__ = [
    "DIFFUSERS",
    "NETWORKS",
    "Conditioning",
    "DiffusersNetwork",
    "Inputs",
    "LevelEmbedding",
    "ResidualBlock",
    "ResidualMLP",
    "UNet",
    "build_network",
    "enable_gradient_checkpointing",
]
