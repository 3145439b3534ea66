"""Features in which sets of samples are compared: pixels, a classifier's, Inception's, your own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers.runs.evaluate.digit_classifier import Classifier
from cmsolvers.training.data import Scale
from cmsolvers.training.named_options import IMPORT, imported, nearest

PIXELS, CLASSIFIER, INCEPTION = "pixels", "classifier", "inception"
NAMES = (PIXELS, CLASSIFIER, INCEPTION)


@dataclass(frozen=True)
class Features:
    """How samples become rows of numbers.

    Attributes:
        name: as it was given.
        of: `of(x)`: samples as models see them [b, ...] -> [b, d].
        frechet: what the Frechet distance of these features may be called.
        kernel: what their kernel distance may be called.
        about: more of them, for the results.
    """

    name: str
    of: Callable[[Tensor], Tensor]
    frechet: str = "frechet"
    kernel: str = "kernel_distance"
    about: dict[str, object] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Features of a batch, float32 [b, d] on the CPU.

        Raises:
            TypeError: the extractor returned no tensor.
            ValueError: another shape, or values that are not finite.
        """
        made = self.of(x)
        if not _is_floating(made):
            raise TypeError(
                f"features {self.name} must return a floating tensor [b, d]; got "
                f"{check.describe(made)}"
            )
        if made.ndim != 2 or len(made) != len(x):
            raise ValueError(
                f"features {self.name} must return shape [{len(x)}, d]; got {list(made.shape)}"
            )
        if not bool(made.isfinite().all()):
            raise ValueError(f"features {self.name} must be finite; got nan or inf")
        return made.float().cpu()


def _is_floating(made: object) -> bool:
    return isinstance(made, Tensor) and made.is_floating_point()


def pixels() -> Features:
    """The samples themselves, as models see them."""
    return Features(PIXELS, lambda x: x.flatten(1))


def of_classifier(classifier: Classifier) -> Features:
    """The last features of the digits' classifier."""
    return Features(CLASSIFIER, classifier.features)


def own(name: str, scale: Scale | None, device: torch.device) -> Features:
    """Features of a function or module "package.module:name".

    It gets images as float32 in [0, 1], [b, C, H, W] on the device, or points as they are, and
    returns [b, d]. A subclass of `nn.Module` is made without arguments; modules are put on the
    device and in evaluation mode.

    Raises:
        ImportError: no such module or name.
        TypeError: something that cannot be called.
    """
    found = imported("features", IMPORT + name)
    if isinstance(found, type) and issubclass(found, nn.Module):
        found = found()
    if isinstance(found, nn.Module):
        found = found.to(device).eval()
    if not callable(found):
        raise TypeError(f"features {name} must be a function or a module; got {found!r:.60}")

    def of(x: Tensor) -> Tensor:
        made: Tensor = found(shares(x.to(device), scale))
        return made

    return Features(name, of)


def inception(weights: Path | None, scale: Scale | None, device: torch.device) -> Features:
    """The 2,048 features of torch-fidelity's Inception, from a local file of weights.

    Raises:
        ValueError: no file, or samples that are no images of 1 or 3 channels.
        ModuleNotFoundError: torch-fidelity is not installed.
    """
    if weights is None or not weights.is_file():
        raise ValueError(
            "weights must be the file weights-inception-2015-12-05-6726825d.pth of torch-fidelity "
            f"for features 'inception'; got {weights}"
        )
    if scale is None:
        raise ValueError("features must be others than 'inception' for samples that are no images")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; pip install cmsolvers[fid] brings it") from error
    except RuntimeError as error:  # a torchvision that does not fit this torch
        raise ValueError(f"torch-fidelity cannot be imported here: {error}") from error
    network: Any = FeatureExtractorInceptionV3(
        "cmsolvers", ["2048"], feature_extractor_weights_path=str(weights)
    )
    network = network.to(device).eval()

    def of(x: Tensor) -> Tensor:
        images = (255.0 * shares(x, scale)).round().to(torch.uint8)
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"features 'inception' need images [n, 1 or 3, H, W]; got {list(images.shape)}"
            )
        made: Tensor = network(images.expand(-1, 3, -1, -1).contiguous().to(device))[0]
        return made

    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    about: dict[str, object] = {"weights": weights.name, "weights_sha256": digest}
    return Features(INCEPTION, of, "fid", "kid", about)


def shares(x: Tensor, scale: Scale | None) -> Tensor:
    """Samples as models see them -> [0, 1], where they are images."""
    if scale is None:
        return x
    return (scale.to_pixels(x) - scale.low) / (scale.high - scale.low)


def check_name(name: str) -> str:
    """A name of features.

    Raises:
        ValueError: an unknown one.
    """
    if name not in NAMES and ":" not in name:
        raise ValueError(
            f"features must be one of {', '.join(NAMES)} or 'package.module:function'; "
            f"got {name!r}{nearest(name, NAMES)}"
        )
    return name
