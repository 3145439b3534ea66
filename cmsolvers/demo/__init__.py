"""The demo: from the digits that ship with scikit-learn to a page with pictures and numbers."""

from cmsolvers.demo.demo_settings import DemoSettings
from cmsolvers.demo.run_demo import run_demo

__all__ = ["DemoSettings", "run_demo"]
