"""Forms: their algebra, what is dropped, what is rewritten."""

import math

import pytest
import torch

from cmsolvers.engine.forms import ZERO, Form, Symbol, form_of

F64 = torch.float64
A, B, C = (Symbol(name) for name in "ABC")
a, b, c = map(form_of, (A, B, C))


def test_algebra():
    form = 2.0 * a + b * 3.0 - (a - 4.0 * c) / 2.0
    assert form.terms == {A: 1.5, B: 3.0, C: 2.0}
    assert (-form).terms == {A: -1.5, B: -3.0, C: -2.0}
    assert (form + ZERO).terms == form.terms and (form - form).terms == {}
    assert list(form.terms) == [A, B, C]  # the order in which symbols came


def test_algebra_of_weights_per_sample():
    w = torch.tensor([0.5, -1.0], dtype=F64)
    form = w * a + (1.0 - w) * a / 2.0 + w * b
    assert form.terms[A].tolist() == [0.75, 0.0] and form.terms[B] is not w
    assert torch.equal(form.terms[B], w)
    wide = torch.arange(6.0, dtype=F64).reshape(2, 3)
    both = w * a + wide * a  # an entry per sample, and one per element
    assert torch.equal(both.terms[A], w[:, None] + wide)
    assert torch.equal((wide * a + w * a).terms[A], w[:, None] + wide)


def test_weights_that_are_the_number_0_are_dropped():
    """Nothing reads what stands there: 0 * inf must not make NaN."""
    for form in (0.0 * a, -0.0 * a, a - a, Form({A: 0.0}), a * 0.0 + 0.0 * b):
        assert form.terms == {} and repr(form) == "0"
    assert (0.0 * a + b).terms == {B: 1.0}
    zeros = torch.zeros(2, dtype=F64)
    assert list((zeros * a).terms) == [A]  # its entries are not known on the host
    assert math.isnan((math.nan * a).terms[A])  # nor is it 0, and a check will see it


def test_symbols_are_told_apart_by_identity():
    again = Symbol("A")
    assert (a + form_of(again)).terms == {A: 1.0, again: 1.0}
    assert repr(a + form_of(again)) == "1 A + 1 A"


def test_forms_do_not_change():
    form = 2.0 * a + b
    before = dict(form.terms)
    form + c, form - a, 3.0 * form, form / 2.0, -form
    form.replace(lambda s: c)
    assert form.terms == before


def test_replace():
    form = 2.0 * a + 3.0 * b
    meanings = {A: 0.5 * b + c}
    assert form.replace(meanings.get).terms == {B: 4.0, C: 2.0}
    assert form.replace(lambda s: None).terms == form.terms
    assert form.replace(lambda s: ZERO if s is A else None).terms == {B: 3.0}
    # at once, not one after the other
    swapped = form.replace({A: b, B: a}.get)
    assert swapped.terms == {B: 2.0, A: 3.0}
    # what cancels is dropped
    assert (a - b).replace({B: a}.get).terms == {}
    w = torch.tensor([0.5, 2.0], dtype=F64)
    assert torch.equal((w * a + b).replace({A: 2.0 * b}.get).terms[B], 2.0 * w + 1.0)


def test_division_by_zero_raises():
    with pytest.raises(ZeroDivisionError):
        a / 0.0


@pytest.mark.parametrize(
    "slip, text",
    [
        (lambda: a + 1.0, r"to a form only forms may be added; got 1\.0"),
        (lambda: 1.0 + a, r"to a form only forms may be added; got 1\.0"),
        (lambda: a - torch.ones(2), "from a form only forms may be subtracted; got a torch"),
        (lambda: 2.0 - a, r"may be subtracted from forms only; got 2\.0"),
        (lambda: a * b, "multiplied by numbers: a step is linear; got the form 1 B"),
        (lambda: a * "2", "multiplied by numbers: a step is linear; got '2'"),
        (lambda: a / b, "divided by numbers: a step is linear; got the form 1 B"),
        (lambda: 1.0 / a, r"nothing may be divided by a form: a step is linear; got 1\.0"),
    ],
)
def test_what_is_not_linear_is_said(slip, text):
    with pytest.raises(TypeError, match=text):
        slip()
