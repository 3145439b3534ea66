"""Documentation that is made from the code, or names it."""

import inspect
import re

import pytest

import cmsolvers
from cmsolvers.engine import catalogue
from cmsolvers.losses import loss_table
from support import ROOT

DOCS = ROOT / "docs"
MARKS = "<!-- solvers -->\n", "\n<!-- /solvers -->"


def test_the_table_of_solvers_is_the_catalogue():
    """To write it anew: `cmsolvers solvers`, between the marks."""
    text = (DOCS / "choosing.md").read_text()
    start, end = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
    assert text[start:end] == catalogue.table()


def test_the_table_of_losses_is_theirs():
    """To write it anew: `cmsolvers losses`, between the marks."""
    text = (DOCS / "losses.md").read_text()
    start = text.index("<!-- losses -->\n") + len("<!-- losses -->\n")
    assert text[start : text.index("\n<!-- /losses -->")] == loss_table.table()


def test_every_loss_is_public_and_documented():
    for loss in loss_table.losses():
        assert getattr(cmsolvers.losses, loss.__name__) is loss
        text = inspect.getdoc(loss)
        for part in ("Args:", "key:", "step:", "Returns:", "Raises:", "Source:"):
            assert part in text, f"{loss.__name__}: {part}"
        own = set(inspect.signature(loss).parameters)
        told = {line.split(":")[0].strip() for line in text.splitlines() if ":" in line}
        assert own <= told, f"{loss.__name__} says nothing of {sorted(own - told)}"


def test_every_public_solver_is_in_the_catalogue():
    known = set(catalogue.SOLVERS)
    assert all(getattr(cmsolvers, name) is catalogue.SOLVERS[name].function for name in known)
    for name in ("heun_pf_ode", "rk_pf_ode", "sra1", "dpm_adaptive", "predictor_corrector"):
        assert name in known


def names_here():
    """What the right-hand columns of names.md and the text of choosing.md call ours."""
    for line in (DOCS / "names.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 4 and "`" in cells[2]:
            yield from (n for n in re.findall(r"`([^`]+)`", cells[2]) if n != "eta=0")


def resolve(name):
    thing = cmsolvers
    for part in re.match(r"[\w.]+", name).group().split("."):
        if not hasattr(thing, part):
            __import__(f"{thing.__name__}.{part}")
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize("name", sorted(set(names_here())))
def test_names_elsewhere_point_to_something_here(name):
    assert resolve(name) is not None


def test_a_name_that_is_not_here_is_found_out():
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        resolve("dpmpp_9m")
