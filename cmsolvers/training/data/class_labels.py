"""Labels: integers from 0, one for each sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cmsolvers import checks as check


def checked_labels(
    labels: object, n: int, classes: int | None = None, class_names: Sequence[str] = ()
) -> tuple[Tensor | None, int | None]:
    """The labels as int64 [n], and how many classes there are.

    Args:
        labels: None, or an integer tensor [n] with entries from 0.
        n: samples.
        classes: None: as many as there are names, else the largest label + 1.
        class_names: names of the classes; empty without names.

    Raises:
        TypeError: labels that are no integers.
        ValueError: another shape, a negative label, or one that is no class.
    """
    if labels is None:
        if classes is not None or class_names:
            raise ValueError("classes must be left out where there are no labels")
        return None, None
    if not isinstance(labels, Tensor) or labels.dtype in check.PRECISION or labels.is_complex():
        raise TypeError(f"labels must be a tensor of integers; got {check.describe(labels)}")
    if labels.shape != (n,):
        raise ValueError(
            f"labels must have shape [{n}], one per sample; got {list(labels.shape)}"
            + (" (one-hot? give labels.argmax(1))" if labels.ndim == 2 else "")
        )
    labels = labels.to(torch.int64)
    low, high = (int(labels.min()), int(labels.max())) if n else (0, -1)
    if low < 0:
        raise ValueError(f"labels must not be negative; got {low}")
    if classes is None:
        classes = len(class_names) or high + 1
    classes = check.count("classes", classes)
    if class_names and len(class_names) != classes:
        raise ValueError(f"class_names must name {classes} classes; got {len(class_names)}")
    if high >= classes:
        raise ValueError(f"labels must be below the number of classes, {classes}; got {high}")
    return labels, classes
