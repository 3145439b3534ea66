"""What is said where a package is needed that is not installed."""

from __future__ import annotations


def missing(what: str, package: str, extra: str) -> ModuleNotFoundError:
    """The error: `what` is read with a package, and an extra of this one brings it."""
    return ModuleNotFoundError(
        f"{what} are read with {package}, which is not installed; the extra `{extra}` brings it: "
        f'pip install --no-build-isolation ".[{extra}]"'
    )
