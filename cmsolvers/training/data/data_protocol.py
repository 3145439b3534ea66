"""What a data set is to a training."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from cmsolvers.training.data.pixel_scale import Scale


@runtime_checkable
class TrainingData(Protocol):
    """Samples that are found by their position, and changed as (seed, step) say.

    Attributes:
        shape: of one sample.
        classes: how many classes the labels name; None without labels.
        scale: from pixels to what models see and back; None where samples are no pixels.
        fingerprint: 16 hex digits that other data, or the same data read in another way, do not
            have (see `fingerprints`); a resumed run compares them.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def classes(self) -> int | None: ...
    @property
    def scale(self) -> Scale | None: ...
    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def samples(self, index: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor | None]:
        """Samples as models see them, and their labels.

        Args:
            index: positions, int64 [b].
            seed: of the run.
            step: k; with seed and position it decides flips and crops.

        Returns:
            x0 [b, *shape], and labels int64 [b] or None.

        Raises:
            ValueError: a sample cannot be read; the text names it.
        """
        ...


def describe(data: TrainingData) -> dict[str, object]:
    """What a checkpoint says of a data set; JSON can hold it.

    Besides the attributes of every data set it has, where there are any, the names of the classes
    (`class_names`), where the data came from (`source`) and what was noticed (`notes`).
    """
    scale = data.scale
    about: dict[str, object] = {
        "samples": len(data),
        "shape": list(data.shape),
        "classes": data.classes,
        "scale": None if scale is None else scale.about(),
        "fingerprint": data.fingerprint,
    }
    for name in ("class_names", "notes"):
        if entries := getattr(data, name, ()):
            about[name] = list(entries)
    if source := getattr(data, "source", ""):
        about["source"] = source
    return about
