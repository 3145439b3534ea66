"""The compiled extension, or None with one warning.

`CMSOLVERS_REQUIRE_EXTENSION=1` makes its absence an error. `CMSOLVERS_INSTRUCTION_SET` names the
instruction set of the CPU kernels; one that cannot be used here is an error too.
"""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType
from typing import Any

import torch

from cmsolvers.version import __version__


def _load() -> ModuleType | None:
    try:
        return importlib.import_module("cmsolvers._C")
    except ImportError as error:
        if os.environ.get("CMSOLVERS_REQUIRE_EXTENSION", "0") not in ("", "0"):
            raise ImportError(
                f"CMSOLVERS_REQUIRE_EXTENSION is set and cmsolvers._C did not load: {error}"
            ) from error
        warnings.warn(
            f"cmsolvers._C did not load ({error}); every step runs in plain torch, many times "
            "slower. Build it with `pip install --no-build-isolation .`",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _check_instruction_set(extension: ModuleType | None) -> None:
    """Refuse a CMSOLVERS_INSTRUCTION_SET that the kernels would not follow.

    Without the extension nothing reads it, and the warning of its absence has been given.

    Raises:
        ValueError: it names none of the instruction sets that are built and usable here.
    """
    wanted = os.environ.get("CMSOLVERS_INSTRUCTION_SET", "")
    if not wanted or extension is None:
        return
    usable = extension.build_info()["instruction_sets"]
    if wanted not in usable:
        raise ValueError(
            "CMSOLVERS_INSTRUCTION_SET must be unset or one that is usable here, "
            f"{', '.join(usable)}; got {wanted!r}"
        )


C: ModuleType | None = _load()
_check_instruction_set(C)

CPU_ONLY: bool = C is not None and not C.build_info()["cuda"]
"""Whether the extension has no CUDA kernels. (Without it plain torch runs on any device.)"""


def build_info() -> dict[str, Any]:
    """What was built, for what, and which instruction set is in use.

    Returns:
        A dict with `version`, `extension` (bool), `torch` (version running), `cuda` (bool: CUDA
        kernels were built), and with the extension also `built_with_torch`, `compiler`,
        `cuda_architectures`, `csrc_hash`, `instruction_set` (in use) and `instruction_sets` (built
        and usable on this processor).
    """
    info: dict[str, Any] = {
        "version": __version__,
        "extension": C is not None,
        "torch": torch.__version__,
        "cuda": False,
        "instruction_set": "reference",
    }
    if C is not None:
        info.update(C.build_info())
    return info
