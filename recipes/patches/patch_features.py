"""What the patches are compared by: the means of blocks of 4 x 4, and their contrast.

3,072 pixels are too many for a Frechet distance of 2,048 patches, and networks that know
photographs would have to be downloaded. These 256 numbers see colour, layout and sharpness, and
need no weights.
They are no FID, and compare with nothing but runs of this recipe.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 4


def means_and_contrast(x: Tensor) -> Tensor:
    """Features of images.

    Args:
        x: [b, 3, H, W] in [0, 1]; H and W divisible by 4.

    Returns:
        [b, 4 H W / 16]: means of blocks per channel, then the deviation of each block's grey.
    """
    blocks = x.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK).flatten(4)  # [b, 3, h, w, 16]
    grey = blocks.mean(dim=1)
    contrast = (grey - grey.mean(dim=-1, keepdim=True)).square().mean(dim=-1).sqrt()
    return torch.cat((blocks.mean(dim=-1).flatten(1), contrast.flatten(1)), dim=1)
