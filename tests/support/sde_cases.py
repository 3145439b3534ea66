"""Equations, states and noise that the tests of the t-space solvers share."""

import math

import torch

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.denoisers.oracles import Gaussian

F64 = torch.float64
SEED = 7
VP, DATA = cm.VP(), Gaussian(0.5, 0.2)
T = [1.0, 0.8, 0.5, 0.3, 0.1]
REVERSE = VP.reverse(VP.score_of(DATA))
OWN = cm.SDE(lambda x, t: -x, lambda x, t: 0.1 * x, state_dependent=True)


def latent(dtype=F64, shape=(5, 2, 4)):
    return noise.normal(shape, 3).to(dtype)


def z(x, draw, seed=SEED):
    return noise.normal(x.shape, seed, draw=draw, stream=noise.STEPS, dtype=x.dtype)


def close(got, expected, rtol=1e-10):
    error = (got.double() - expected).abs().max() / expected.abs().max()
    assert error < rtol, error


def two_normals(x):
    """(z of I_1, z of the area) from the built-in draws a, b of the documented rotation."""

    def noises(i):
        a, b = z(x, 2 * i), z(x, 2 * i + 1)
        return math.sqrt(0.75) * a + 0.5 * b, 0.5 * a - math.sqrt(0.75) * b

    return noises
