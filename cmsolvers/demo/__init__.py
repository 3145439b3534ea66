"""The demo: from the digits that ship with scikit-learn to a page with pictures and numbers."""

from cmsolvers.demo.run_demo import run_demo
from cmsolvers.demo.settings import DemoSettings

__all__ = ["DemoSettings", "run_demo"]
