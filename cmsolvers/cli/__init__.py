"""The command line: one file per command, put together in `main`."""

from cmsolvers.cli.main import main

__all__ = ["main"]
