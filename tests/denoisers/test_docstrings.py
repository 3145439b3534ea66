"""A reader of help() needs no second page: arguments and errors stand in each docstring."""

import inspect
import re

import pytest

from cmsolvers import denoisers
from cmsolvers.denoisers import conversions, oracles

PUBLIC = {
    **{name: getattr(denoisers, name) for name in denoisers.__all__},
    **{name: getattr(conversions, name) for name in conversions.__all__},
    **{name: getattr(oracles, name) for name in ("Gaussian", "GaussianMixture", "DataSet")},
}
FORMULAS = {"edm_noise", "published_noise", "Coefficients", "Denoiser"}  # a line says it all
CALLABLES = {
    name: value
    for name, value in PUBLIC.items()
    if not inspect.ismodule(value) and name not in FORMULAS
}


def arguments(value):
    target = value.__init__ if inspect.isclass(value) else value
    return [name for name in inspect.signature(target).parameters if name != "self"]


@pytest.mark.parametrize("name", CALLABLES)
def test_every_argument_is_described(name):
    text = inspect.getdoc(CALLABLES[name])
    for argument in arguments(CALLABLES[name]):
        assert re.search(rf"^    {argument}: ", text, re.MULTILINE), argument
    assert "Raises:" in text
    assert not re.search(r"\bas (in )?`(from|to|guided)", text), "leads the reader elsewhere"
    assert "(arguments)" not in text and "{" not in text


def test_from_functions_say_what_their_network_predicts():
    outputs = {
        re.search(r"net\(x_t, t, \*\*extra_args\) -> (\w+)", inspect.getdoc(value)).group(1)
        for name, value in CALLABLES.items()
        if name.startswith("from_") and name != "from_trigflow"
    }
    assert outputs == {"eps", "v", "x_0", "score", "u"}
