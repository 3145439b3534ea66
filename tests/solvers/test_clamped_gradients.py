"""Gradients of runs around a clamped denoiser, against autograd of the published algorithms."""

import pytest
import torch

import cmsolvers as cm
from cmsolvers import denoisers
from support.algorithms import TABLE
from support.algorithms.row import SEED, Path, fresh

F64 = torch.float64
SHAPE = (5, 2, 4)
LEVELS = cm.karras_sigmas(6, 0.05, 10.0).tolist()
BOUNDS = (-0.3, 0.4)
ROWS = [row for row in TABLE if row.sampler is not cm.consistency_sample]


def by_hand(x, sigma, w):
    """D of EDM (sigma_data = 0.5) around F(x, c) = sin(w (1.3 x + 0.8 c)), before the clamp."""
    sigma = torch.as_tensor(sigma, dtype=F64).reshape(-1, 1, 1)
    root = (sigma**2 + 0.25).sqrt()
    f = torch.sin(w * (1.3 * x / root + 0.2 * sigma.log()))
    return 0.25 / root**2 * x + 0.5 * sigma / root * f


def edm(w):
    return denoisers.EDM(lambda x, c: torch.sin(w * (1.3 * x + 0.8 * c.reshape(-1, 1, 1))))


def guided(w):
    """2 D(w) - D(w / 2), each side raw, the sum clamped."""
    return denoisers.autoguided(edm(w), edm(w / 2), 2.0)


KINDS = {
    "callable": (lambda w: lambda x, s: by_hand(x, s, w), by_hand),
    "edm": (edm, by_hand),
    "guided": (guided, lambda x, s, w: 2 * by_hand(x, s, w) - by_hand(x, s, w / 2)),
}


def gradients(run, model):
    """(result, slopes in x and in w) of a weighted sum of the result."""
    w = torch.tensor(0.8, dtype=F64, requires_grad=True)
    x = 10 * torch.randn(SHAPE, dtype=F64, generator=torch.Generator().manual_seed(2))
    got = run(model(w), x.requires_grad_())
    arrow = torch.linspace(-1, 1, got.numel(), dtype=F64).reshape(SHAPE)
    return got.detach(), *torch.autograd.grad((arrow * got).sum(), (x, w))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_beside_a_clamp(row, kind):
    make, plain = KINDS[kind]
    told, drawn = {"seed": SEED}, fresh(SHAPE)
    if row.path:
        path = Path(SHAPE)
        told, drawn = {"noise_sampler": path}, lambda i, a, b: path(a, b)
    outside = []

    def clamped(x, s, w):
        d = plain(x, s, w)
        outside.append(((d < BOUNDS[0]) | (d > BOUNDS[1])).double().mean().item())
        return d.clamp(*BOUNDS)

    found = gradients(
        lambda model, x: row.sampler(model, x, LEVELS, grad=True, **told, **row.options),
        lambda w: denoisers.clipped(make(w), *BOUNDS),
    )
    expected = gradients(
        lambda model, x: row.algorithm(model, x, LEVELS, drawn),
        lambda w: lambda x, s: clamped(x, s, w),
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert expected[2] != 0
    assert 0.1 < sum(outside) / len(outside) < 0.9  # held somewhere, free elsewhere
