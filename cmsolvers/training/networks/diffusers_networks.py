"""Models of the diffusers library as F(x, c_noise[, c_noise_end], labels=..., **numbers)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers.training.named_options import check_options
from cmsolvers.training.networks.conditioning import PLANES, Conditioning, Inputs, planes

DEFAULT_SCALE = 250.0
"""c_noise = ln(sigma) / 4 spans a few units; sinusoids of diffusers are made for times to 1000."""


def model_class(name: str) -> Any:
    """A model class of diffusers.

    Raises:
        ImportError: the package is missing.
        ValueError: a class that there is no adapter for.
    """
    check.choice("network", f"diffusers:{name}", [f"diffusers:{known}" for known in ADAPTERS])
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            f"network 'diffusers:{name}' needs `pip install cmsolvers[train]`"
        ) from error
    return getattr(diffusers, name)


class DiffusersNetwork(nn.Module):
    """A model of diffusers, called as this library calls networks; the model is `self.model`.

    Times are multiplied by `time_scale`, as the models' sinusoids are made for times of 0 ... 1000.
    Of outputs with more channels than asked, such as DiT's variance, the first ones count.

    Args:
        inputs: the shape of a sample [C, H, W], and what the network reads besides x and c_noise.
        time_scale: factor of c_noise.
        options: of the model's class, where they differ from what `inputs` says and from the
            model's defaults.

    Raises:
        TypeError: an option that the class does not have.
        ValueError: a shape that is no image, or sizes that do not divide.
    """

    name = ""

    def __init__(self, inputs: Inputs, time_scale: float = DEFAULT_SCALE, **options: Any) -> None:
        super().__init__()
        if len(inputs.shape) != 3:
            raise ValueError(
                f"shape must be that of an image, [C, H, W], for the network "
                f"diffusers:{self.name}; got {list(inputs.shape)}"
            )
        made = model_class(self.name)
        check_options(f"network diffusers:{self.name}", options, _options_of(made))
        self.inputs, self.time_scale = inputs, check.positive("time_scale", time_scale)
        settings = self.settings(inputs, options) | options
        self.check_sizes(inputs, settings)
        self.model: Any
        self.adopt(made(**{name: _tupled(value) for name, value in settings.items()}))
        self.channels = inputs.heads * inputs.shape[0]
        given = self.model.config.out_channels
        given = self.model.config.in_channels if given is None else given
        if given < self.channels:
            raise ValueError(
                f"out_channels must be at least {self.channels}, for {inputs.heads} outputs of "
                f"{inputs.shape[0]} channels; got {given}"
            )
        self.conditioning = self.conditioned(inputs)

    def adopt(self, model: Any) -> None:
        """Take a model of the same class and options, such as one that was read from a folder."""
        self.model = model

    def settings(self, inputs: Inputs, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of the class that follow from the shape and the inputs."""
        raise NotImplementedError

    def check_sizes(self, inputs: Inputs, settings: Mapping[str, Any]) -> None:
        """ValueError where the image does not divide into what the model makes of it."""

    def conditioned(self, inputs: Inputs) -> Conditioning | None:
        """What the adapter learns beside the model."""
        return None

    def called(
        self,
        x: Tensor,
        time: Tensor,
        end: Tensor | None,
        labels: Tensor | None,
        given: Mapping[str, Tensor],
    ) -> Tensor:
        """The model's output at times that were multiplied, [B, out_channels, H, W]."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        c_noise_end: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **numbers: Tensor,
    ) -> Tensor | tuple[Tensor, ...]:
        """[B, C, H, W], [B][, [B]] -> [B, C, H, W], or a tuple of these with two heads.

        Raises:
            TypeError: labels, times or numbers that the network was not built for.
        """
        time = c_noise if self.time_scale == 1.0 else c_noise * self.time_scale
        made = self.called(x, time, c_noise_end, labels, numbers)[:, : self.channels]
        if self.inputs.heads == 1:
            return made
        return tuple(made.chunk(self.inputs.heads, dim=1))

    def enable_gradient_checkpointing(self) -> None:
        """Compute the blocks again in the backward pass instead of keeping what they made."""
        self.model.enable_gradient_checkpointing()


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


def _options_of(made: Any) -> list[str]:
    """Names of a model class's options."""
    return [name for name in inspect.signature(made.__init__).parameters if name != "self"]


def _tupled(value: object) -> object:
    """Lists, as JSON and TOML have them, as the tuples that diffusers expects."""
    return tuple(_tupled(entry) for entry in value) if isinstance(value, list) else value
