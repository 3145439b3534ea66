"""What all adapters of models of the diffusers library share."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers.training.named_options import check_options
from cmsolvers.training.networks.conditioning import Conditioning, Inputs

DEFAULT_SCALE = 250.0
"""c_noise = ln(sigma) / 4 spans a few units; sinusoids of diffusers are made for times to 1000."""


def model_class(name: str) -> Any:
    """A model class of diffusers, which is imported here and not before.

    Raises:
        ImportError: the package is missing.
    """
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


def _options_of(made: Any) -> list[str]:
    """Names of a model class's options."""
    return [name for name in inspect.signature(made.__init__).parameters if name != "self"]


def _tupled(value: object) -> object:
    """Lists, as JSON and TOML have them, as the tuples that diffusers expects."""
    return tuple(_tupled(entry) for entry in value) if isinstance(value, list) else value
