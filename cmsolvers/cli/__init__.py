"""The command line."""

from cmsolvers.cli.main import main

__all__ = ["main"]
