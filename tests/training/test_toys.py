"""Toys: their shapes, their spread, and points that are functions of their number."""

from __future__ import annotations

import math

import pytest
import torch

from cmsolvers.training import data
from cmsolvers.training.data import toy_points

N = 100_000


@pytest.mark.parametrize("name", toy_points.TOYS)
def test_mean_and_deviation(name):
    """Mean 0 and deviation 0.5 within five standard errors of this many points."""
    x = data.toys(name, N).x.double()
    assert x.shape == (N, 2)
    assert bool((x.mean(0).abs() < 5 * x.std(0) / math.sqrt(N)).all())
    squares = x.square().mean(1)
    error = 5 * float(squares.std()) / math.sqrt(N)
    assert abs(float(squares.mean()) - 0.25) < error < 0.005


@pytest.mark.parametrize("name", toy_points.TOYS)
def test_points_are_functions_of_their_number(name):
    few, many, other = data.toys(name, 10), data.toys(name, 50), data.toys(name, 10, seed=1)
    assert torch.equal(many.x[:10], few.x) and not torch.equal(few.x, other.x)
    assert few.fingerprint == data.toys(name, 10).fingerprint != other.fingerprint
    if many.labels is not None:
        assert torch.equal(many.labels[:10], few.labels)


def test_labels_are_the_parts():
    for name, classes in toy_points.CLASSES.items():
        toy = data.toys(name, N)
        assert toy.classes == classes
        shares = toy.labels.bincount().double() / N
        assert len(shares) == classes and (shares - 1 / classes).abs().max() < 5 * 0.5 / math.sqrt(
            N
        )
    assert data.toys("swiss_roll", 10).labels is None


def test_shapes():
    board = data.toys("checkerboard", N)
    place = (board.x.double() / 0.5 * math.sqrt(4 / 3) + 2).floor().long()
    assert place.min() == 0 and place.max() == 3
    assert bool((place.sum(1) % 2 == 0).all()) and len(place.unique(dim=0)) == 8
    corners = data.toys("eight_gaussians", N)
    x = corners.x.double() / 0.5 * math.sqrt(0.51)
    for k in range(8):
        mean = x[corners.labels == k].mean(0)
        angle = torch.tensor(k * math.pi / 4, dtype=torch.float64)
        assert (mean - torch.stack((angle.cos(), angle.sin()))).abs().max() < 0.006
    moons = data.toys("two_moons", N)
    y = moons.x.double() / 0.5 * math.sqrt((0.75 + 0.5625 - 1 / math.pi) / 2 + 0.01)
    y += torch.tensor([0.5, 0.25])
    for moon, centre in ((0, (0.0, 0.0)), (1, (1.0, 0.5))):
        radius = (y[moons.labels == moon] - torch.tensor(centre)).norm(dim=1)
        assert abs(float(radius.mean()) - 1.005) < 0.002 and abs(float(radius.std()) - 0.1) < 0.002
    spirals = data.toys("spirals", N)
    assert torch.equal(spirals.labels.unique(), torch.tensor([0, 1]))


def test_names():
    with pytest.raises(
        ValueError, match=r"toy must be one of two_moons, .*'two_moon': two_moons\?"
    ):
        data.toys("two_moon")
    with pytest.raises(ValueError, match="n must be at least 1"):
        data.toys("spirals", 0)
