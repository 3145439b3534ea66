"""Models of the diffusers library as F(x, c_noise[, c_noise_end], labels=..., **numbers)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cmsolvers.training.networks.conditioning import PLANES, Conditioning, Inputs, planes
from cmsolvers.training.networks.diffusers_base import (
    DEFAULT_SCALE,
    DiffusersNetwork,
    model_class,
)


class DiffusersUNet(DiffusersNetwork):
    """`diffusers.UNet2DModel`.

    Labels are the model's own `class_labels`. A second time and further numbers have no place in
    it: with them one vector per sample, a learnt sum of all (labels too), is added to the model's
    time embedding (`class_embed_type="identity"`).
    """

    name = "UNet2DModel"

    def settings(self, inputs: Inputs, options: Mapping[str, Any]) -> dict[str, Any]:
        color, height, width = inputs.shape
        found: dict[str, Any] = {
            "sample_size": (height, width),
            "in_channels": color,
            "out_channels": inputs.heads * color,
        }
        if _has_numbers(inputs):
            found["class_embed_type"] = "identity"
        elif inputs.classes is not None:
            found["num_class_embeds"] = inputs.rows
        return found

    def check_sizes(self, inputs: Inputs, settings: Mapping[str, Any]) -> None:
        usual = inspect.signature(model_class(self.name)).parameters["block_out_channels"].default
        levels = len(settings.get("block_out_channels", usual))
        factor = 2 ** (levels - 1)
        if inputs.shape[1] % factor or inputs.shape[2] % factor:
            raise ValueError(
                f"shape must have rows and columns that are divisible by {factor}, for "
                f"{levels} resolutions; got {list(inputs.shape)}"
            )

    def conditioned(self, inputs: Inputs) -> Conditioning | None:
        if not _has_numbers(inputs):
            return None
        return Conditioning(self.model.time_embedding.linear_2.out_features, inputs)

    def called(
        self,
        x: Tensor,
        time: Tensor,
        end: Tensor | None,
        labels: Tensor | None,
        given: Mapping[str, Tensor],
    ) -> Tensor:
        if self.conditioning is not None:
            told: Tensor | None = self.conditioning(x, end, labels, given)
        else:
            self.inputs.numbers_of(end, given)
            told = self.inputs.labels_of(x, labels)
        made: Tensor = self.model(x, time, class_labels=told, return_dict=False)[0]
        return made


class DiffusersDiT(DiffusersNetwork):
    """`diffusers.DiTTransformer2DModel`: square images, labels by the model's own table.

    The model has one row more than `num_embeds_ada_norm` for the label that says nothing. It would
    drop labels itself in training, at random in each block: that is switched off, as losses drop
    labels by `label_dropout`, which is a function of seed, step and sample. A second time and
    further numbers are further channels of its input, see `planes`.
    """

    name = "DiTTransformer2DModel"

    def __init__(self, inputs: Inputs, time_scale: float = DEFAULT_SCALE, **options: Any) -> None:
        if inputs.classes is not None and not inputs.null_label:
            raise ValueError("null_label must be true for the network diffusers:" + self.name)
        super().__init__(inputs, time_scale, **options)

    def adopt(self, model: Any) -> None:
        for part in model.modules():
            if type(part).__name__ == "LabelEmbedding":
                part.dropout_prob = 0.0
        super().adopt(model)

    def settings(self, inputs: Inputs, options: Mapping[str, Any]) -> dict[str, Any]:
        color = inputs.shape[0]
        return {
            "sample_size": inputs.shape[1],
            "in_channels": color + PLANES * _numbers(inputs),
            "out_channels": inputs.heads * color,
            "num_embeds_ada_norm": 1 if inputs.classes is None else inputs.classes,
        }

    def check_sizes(self, inputs: Inputs, settings: Mapping[str, Any]) -> None:
        _, height, width = inputs.shape
        patch = settings.get("patch_size", 2)
        if height != width or height % patch:
            raise ValueError(
                f"shape must be square and divisible by the patch size, {patch}, for the network "
                f"diffusers:{self.name}; got {list(inputs.shape)}"
            )

    def called(
        self,
        x: Tensor,
        time: Tensor,
        end: Tensor | None,
        labels: Tensor | None,
        given: Mapping[str, Tensor],
    ) -> Tensor:
        told = self.inputs.labels_of(x, labels)
        if told is None:  # one class, whose embedding is a constant
            told = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        x = planes(x, self.inputs.numbers_of(end, given))
        made: Tensor = self.model(x, timestep=time, class_labels=told, return_dict=False)[0]
        return made


class DiffusersTextUNet(DiffusersNetwork):
    """`diffusers.UNet2DConditionModel`: what it attends to is given, or one learnt token.

    `encoder_hidden_states` [B, L, cross_attention_dim] is handed on, as a text encoder made it.
    Without it the model attends to one token, a learnt sum of labels, second time and further
    numbers.
    """

    name = "UNet2DConditionModel"

    def settings(self, inputs: Inputs, options: Mapping[str, Any]) -> dict[str, Any]:
        color, height, width = inputs.shape
        return {
            "sample_size": (height, width),
            "in_channels": color,
            "out_channels": inputs.heads * color,
        }

    check_sizes = DiffusersUNet.check_sizes

    def conditioned(self, inputs: Inputs) -> Conditioning | None:
        if not (_has_numbers(inputs) or inputs.rows):
            return None
        width = self.model.config.cross_attention_dim
        if not isinstance(width, int):
            raise ValueError(
                "cross_attention_dim must be one number where the network reads labels or further "
                f"numbers; got {width}"
            )
        return Conditioning(width, inputs)

    def called(
        self,
        x: Tensor,
        time: Tensor,
        end: Tensor | None,
        labels: Tensor | None,
        given: Mapping[str, Tensor],
    ) -> Tensor:
        rest = dict(given)
        tokens = rest.pop("encoder_hidden_states", None)
        if self.conditioning is not None:
            own: Tensor = self.conditioning(x, end, labels, rest)[:, None]
            tokens = own if tokens is None else torch.cat([tokens, own], dim=1)
        else:
            self.inputs.numbers_of(end, rest)
            self.inputs.labels_of(x, labels)
        if tokens is None:
            width = self.model.config.cross_attention_dim
            tokens = x.new_zeros(len(x), 1, width if isinstance(width, int) else width[0])
        made: Tensor = self.model(x, time, tokens, return_dict=False)[0]
        return made


ADAPTERS: dict[str, type[DiffusersNetwork]] = {
    kind.name: kind for kind in (DiffusersUNet, DiffusersDiT, DiffusersTextUNet)
}
"""By the name of the model's class."""


class UNet(DiffusersUNet):
    """A small `diffusers.UNet2DModel` without attention: for images of 16 x 16 and more.

    Args:
        inputs: the shape of a sample [C, H, W], and what the network reads besides x and c_noise.
        time_scale: factor of c_noise.
        channels: width of each resolution, multiples of 8; H and W must be divisible by
            2^(len(channels) - 1).
        layers: residual blocks per resolution.
        dropout: in [0, 1).

    Raises:
        ValueError: sizes that do not divide.
    """

    def __init__(
        self,
        inputs: Inputs,
        time_scale: float = DEFAULT_SCALE,
        channels: Sequence[int] = (32, 64, 64),
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            inputs,
            time_scale,
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            norm_num_groups=8,
            dropout=dropout,
        )


def _numbers(inputs: Inputs) -> int:
    """How many numbers the network reads besides c_noise."""
    return inputs.times - 1 + len(inputs.numbers)


def _has_numbers(inputs: Inputs) -> bool:
    return _numbers(inputs) > 0
