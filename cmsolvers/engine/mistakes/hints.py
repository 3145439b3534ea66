"""What to write instead, for calls that are right in other libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

_ELSEWHERE = {
    "device": "a run is on the device of x",
    "disable": "there is no bar unless progress=True",
    "generator": "give the torch.Generator as seed",
    "guidance_scale": "guidance is part of the denoiser, see denoisers.guided",
    "cfg_scale": "guidance is part of the denoiser, see denoisers.guided",
    "noise_level": "how much noise a step adds is eta=...",
    "num_inference_steps": "the steps are those of the grid, the third argument",
}
"""Arguments of samplers elsewhere, and what takes their place."""


def unknown_argument(solver: str, name: str) -> str:
    """The text of the TypeError for a keyword argument that a solver does not have."""
    text = f"{solver}() got an unexpected keyword argument {name!r}"
    hint = _ELSEWHERE.get(name, "what the model reads besides goes into extra_args={...}")
    return f"{text}: {hint}"


def too_many(solver: str, names: Sequence[str], given: Sequence[object]) -> str:
    """The text of the TypeError for more positional arguments than `names`."""
    first, second, grid = names
    text = (
        f"{solver}() takes {first}, {second} and {grid} by position and all others by name; "
        f"got {len(given)} by position"
    )
    if isinstance(given[3], Mapping):
        return f"{text}: the dict of further arguments is extra_args=..."
    if isinstance(given[2], Real) and grid == "sigmas":
        return f"{text}: sigmas is one sequence of levels, the largest first, see karras_sigmas"
    return text
