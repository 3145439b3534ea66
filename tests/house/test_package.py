"""What holds for the package as a whole: one version, file names that name one file."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import cmsolvers

ROOT = Path(cmsolvers.__file__).parents[1]
IN_CHECKOUT = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="needs a checkout, not an installed package"
)


@IN_CHECKOUT
def test_the_version_stands_once():
    """Built, imported and reported it is the same; the build reads it without importing torch."""
    pytest.importorskip("setuptools")
    program = (
        "import sys\n"
        "from setuptools import Distribution\n"
        "from setuptools.config.pyprojecttoml import apply_configuration\n"
        "built = apply_configuration(Distribution(), 'pyproject.toml')\n"
        "print(built.get_version(), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [cmsolvers.__version__, "False"]
    assert cmsolvers.build_info()["version"] == cmsolvers.__version__
    text = f'"{cmsolvers.__version__}"'
    places = [*(ROOT / "cmsolvers").rglob("*.py"), ROOT / "pyproject.toml", ROOT / "setup.py"]
    assert [p.name for p in places if text in p.read_text("utf-8")] == ["version.py"]


def test_no_two_modules_share_a_file_name():
    """A traceback or a search result then names one file."""
    files = Path(cmsolvers.__file__).parent.rglob("*.py")
    names = Counter(path.name for path in files if path.name != "__init__.py")
    assert len(names) > 50
    assert [name for name, count in names.items() if count > 1] == []


def test_the_help_needs_nothing_of_the_demo():
    program = (
        "import sys\n"
        "for name in ('matplotlib', 'sklearn', 'PIL', 'diffusers'):\n"
        "    sys.modules[name] = None\n"
        "from cmsolvers.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    loaded = sorted(n for n in sys.modules if n.startswith('cmsolvers.demo'))\n"
        "    print(loaded, 'cmsolvers.training' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[] False"
    for name in (
        "demo",
        "train",
        "sample",
        "evaluate",
        "precision",
        "benchmark",
        "solvers",
        "info",
    ):
        assert f"\n    {name}" in done.stdout
