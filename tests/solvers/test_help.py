"""What `help()` says of each solver: complete, in one place."""

import inspect
import re

import pytest

import cmsolvers as cm
from cmsolvers.engine import catalogue

each_solver = pytest.mark.parametrize("name", sorted(catalogue.SOLVERS))
SECTIONS = ("Args", "Returns", "Raises", "Source")


def sections(text):
    """Sections of a docstring by name; the first, without one, is the summary."""
    parts = re.split(r"^(Args|Returns|Raises|Source):", text, flags=re.MULTILINE)
    assert parts[1::2] == list(SECTIONS)
    return dict(zip(("", *parts[1::2]), parts[::2], strict=True))


def entries(section):
    """Texts by name of entries that stand four columns in."""
    found = re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE)
    assert len({name for name, _ in found}) == len(found)
    return {name: " ".join(text.split()) for name, text in found}


@each_solver
def test_every_parameter_is_documented_here(name):
    function = getattr(cm, name)
    text = sections(inspect.getdoc(function))
    told = entries(text["Args"])
    assert list(told) == list(inspect.signature(function).parameters)
    for parameter, words in told.items():
        assert len(words) > 5 and words.endswith("."), f"{parameter}: {words}"
    assert text[""].strip() and text["Returns"].strip() and text["Source"].strip()
    errors = {kind for names in entries(text["Raises"]) for kind in names.split(", ")}
    assert {"TypeError", "ValueError"} <= errors


@each_solver
def test_nobody_is_sent_to_another_docstring(name):
    text = inspect.getdoc(getattr(cm, name))
    assert "as in `euler_pf_ode`" not in text and "as there" not in text
    assert not re.search(r"\{\w+\}", text)  # every word that a shared text leaves open is put in
    assert all(len(line) <= 100 for line in text.splitlines())


@each_solver
def test_signatures(name):
    function = getattr(cm, name)
    first, x, grid, *options = inspect.signature(function).parameters.values()
    assert x.name == "x" and grid.name in ("sigmas", "times", "ts")
    assert first.name in ("denoiser", "f", "sde")
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in options)
    assert function.__name__ == name and function.__module__.startswith("cmsolvers.solvers.")
    assert catalogue.SOLVERS[name].function is function


@pytest.mark.parametrize("name", [f.name for f in catalogue.SOLVERS.values() if not f.adaptive])
def test_the_source_is_the_formula(name):
    source = inspect.getsource(getattr(cm, name))
    assert re.search(rf"def {name}\(\s*step: ", source)


def test_the_check_sees_what_is_missing():
    text = inspect.getdoc(cm.heun_pf_ode)
    with pytest.raises(AssertionError):
        sections(text.replace("Raises:", "Errors:"))
    told = entries(sections(text.replace("    s_tmin:", "    tmin:"))["Args"])
    assert list(told) != list(inspect.signature(cm.heun_pf_ode).parameters)
