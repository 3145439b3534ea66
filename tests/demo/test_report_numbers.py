"""What the report measures of its own: Heun in few steps, and a loss by noise level."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("matplotlib")

from cmsolvers import noise
from cmsolvers.demo import heun_errors
from cmsolvers.demo import picture_style as style
from cmsolvers.demo.loss_by_level import EDGES, LossByLevel, names, peaks, smooth
from cmsolvers.training.reports import StepReport

S = 0.5
LOW, HIGH = 0.002, 20.0


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of data N(0, S^2)."""
    share = S**2 / (S**2 + sigma.to(x.dtype) ** 2)
    return x * share.reshape(-1, *[1] * (x.dim() - 1))


def exact(a: float, b: float) -> float:
    """What the exact path from a to b multiplies a state with."""
    return math.sqrt((S**2 + b**2) / (S**2 + a**2))


def heun_factor(a: float, b: float) -> float:
    """What Heun's step from a to b does, from the formula that the report writes out."""
    r, share_a, share_b = a / b, S**2 / (S**2 + a**2), S**2 / (S**2 + b**2)
    middle = 1 / r + (1 - 1 / r) * share_a
    return middle + (r - 1) / 2 * (share_b * middle - share_a)


@pytest.fixture(scope="module")
def measured() -> tuple[Tensor, heun_errors.HeunErrors]:
    x = HIGH * noise.normal((200, 1), 0, dtype=torch.float64)
    return x, heun_errors.measure(gaussian, x, (5, 9, 18), sigma_min=LOW, sigma_max=HIGH)


def test_errors_of_steps_are_those_of_the_formula(measured: tuple[Tensor, heun_errors.HeunErrors]):
    x, found = measured
    size = heun_errors.rms(x)
    assert len(found["steps"]) == 4
    run = size
    for step in found["steps"]:
        a, b = step["start"], step["end"]
        begun = size * exact(HIGH, a)
        alone = begun * abs(heun_factor(a, b) - exact(a, b))
        assert step["heun"] == pytest.approx(alone, rel=0.02, abs=1e-4)
        share = S**2 / (S**2 + a**2)
        euler = b / a + (1 - b / a) * share
        assert step["euler"] == pytest.approx(begun * abs(euler - exact(a, b)), rel=0.02, abs=1e-4)
        assert step["at_end"] == pytest.approx(alone * exact(b, LOW), rel=0.02, abs=1e-3)
        run *= heun_factor(a, b)
        assert step["so_far"] == pytest.approx(abs(run - size * exact(HIGH, b)), rel=0.02, abs=1e-4)
        assert step["overshoot"] == pytest.approx(a / b / 2)


def test_more_steps_are_nearer_and_the_fine_run_is_the_truth(
    measured: tuple[Tensor, heun_errors.HeunErrors],
):
    x, found = measured
    ends = [found["runs"][n][-1][1] for n in ("5", "9", "18")]
    assert ends[0] > 3 * ends[1] > 9 * ends[2] > 0
    assert found["fine_steps"] >= 200
    assert found["samples"] == 200
    true = float(x.std()) * exact(HIGH, LOW)
    assert found["spread"]["fine"] == pytest.approx(true, rel=1e-3)
    assert abs(found["spread"]["5"] / true - 1) > 0.1  # few steps are not
    for n in (5, 9, 18):
        assert len(found["runs"][str(n)]) == n


def test_loss_by_level():
    levels = torch.tensor([0.1, 0.2, 2.0, 9.0, 10.0, 11.0], dtype=torch.float64)
    terms = torch.tensor([1.0, 3.0, 5.0, 1.0, 2.0, 6.0])
    noted = LossByLevel()
    noted.stepped(StepReport(0, 3.0, 0.1, None, 0.1, False, levels, terms))
    (bands,) = noted.bands
    np.testing.assert_array_equal(bands, [2.0, math.nan, 5.0, math.nan, 3.0])
    with pytest.raises(TypeError, match="LossOutput"):
        noted.stepped(StepReport(0, 3.0, 0.1, None, 0.1, False))
    assert len(names(LOW, HIGH)) == len(EDGES) + 1 == len(bands)
    assert names(LOW, HIGH)[0] == "σ 0.002 to 0.3"


def test_running_means_leave_out_what_is_not_there():
    np.testing.assert_allclose(smooth([1, 2, 3, 4], 2), [1.5, 2.5, 3.5])
    np.testing.assert_allclose(smooth([1, math.nan, 3, math.nan], 2), [1, 3, 3])
    assert np.isnan(smooth([math.nan, math.nan], 2)).all()


def test_peaks_are_found_where_they_are_and_only_there():
    steps = np.arange(700.0)
    hill = np.exp(-(((steps - 300) / 80) ** 2))
    later = np.exp(-(((steps - 450) / 80) ** 2))
    never = np.full(700, math.nan)
    falls = 2.0 - steps / 700 + 0.01 * np.sin(steps)
    found = peaks(np.stack([1 + hill, 1 + later, falls, steps, never], 1).tolist())
    assert found[0] == pytest.approx(300, abs=5)
    assert found[1] == pytest.approx(450, abs=5)
    assert found[2:] == [None, None, None]


@pytest.mark.parametrize("key", style.COLORS)
def test_text_in_these_colours_can_be_read(key: str):
    """4.5 to 1 against white, as WCAG 2.1 asks of text (1.4.3)."""
    red, green, blue = (int(style.COLORS[key][i : i + 2], 16) / 255 for i in (1, 3, 5))

    def linear(c: float) -> float:
        return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4

    light = 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)
    assert 1.05 / (light + 0.05) >= 4.5


def test_samplers_differ_in_marks_too():
    assert len(set(style.MARKERS.values())) == len(style.MARKERS) == len(style.COLORS) - 1
