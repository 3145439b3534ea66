"""Signatures: equal where a prepared run may serve both denoisers, different or None elsewhere."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

import cmsolvers as cm
from cmsolvers.denoisers import (
    EDM,
    ConsistencyFunction,
    Preconditioned,
    autoguided,
    clipped,
    from_eps,
    from_flow,
    from_trigflow,
    from_v,
    guided,
    thresholded,
)
from cmsolvers.denoisers.clipping import Clipped
from cmsolvers.denoisers.composed import Composed, signature
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.processes import DDPM
from cmsolvers.processes.coordinates import KARRAS
from cmsolvers.tasks.editing import Inpaint, conditioned


def net():
    return nn.Linear(3, 3)  # a new one each time


def own_noise(sigma):
    return sigma


class Scale:
    """A callable of a user."""

    def __init__(self, by):
        self.by = by

    def __call__(self, sigma):
        return self.by * sigma


LABEL = torch.zeros(4)


def labelled(model, **options):
    return guided(
        model, 2.0, conditional={"label": LABEL}, unconditional={"label": LABEL}, **options
    )


DIFFERENT = {
    "edm": lambda: EDM(net()),
    "edm data": lambda: EDM(net(), 0.6),
    "edm noise": lambda: EDM(net(), c_noise="published"),
    "edm dtype": lambda: EDM(net(), dtype=torch.float16),
    "consistency": lambda: ConsistencyFunction(net()),
    "consistency end": lambda: ConsistencyFunction(net(), sigma_min=0.01),
    "trigflow": lambda: from_trigflow(net()),
    "trigflow data": lambda: from_trigflow(net(), 0.6),
    "eps": lambda: from_eps(net(), process=cm.Karras()),
    "v": lambda: from_v(net(), process=cm.VP()),
    "v betas": lambda: from_v(net(), process=cm.VP(0.2, 20.0)),
    "v chain": lambda: from_v(net(), process=DDPM()),
    "v short chain": lambda: from_v(net(), process=DDPM(100)),
    "v given chain": lambda: from_v(net(), process=DDPM(3, [0.1, 0.2, 0.3])),
    "v nearest": lambda: from_v(net(), process=DDPM(), c_noise=DDPM().nearest_time),
    "v integers": lambda: from_v(net(), process=DDPM(), time_dtype=torch.int64),
    "v short integers": lambda: from_v(net(), process=DDPM(), time_dtype=torch.int32),
    "flow": lambda: from_flow(net()),
    "clipped": lambda: clipped(EDM(net())),
    "clipped bounds": lambda: clipped(EDM(net()), -2.0, 2.0),
    "clipped inner": lambda: clipped(EDM(net(), 0.6)),
    "clipped callable": lambda: clipped(Gaussian(0.5)),
    "thresholded": lambda: thresholded(EDM(net())),
    "thresholded floor": lambda: thresholded(EDM(net()), floor=2.0),
    "guided": lambda: labelled(EDM(net())),
    "guided twice": lambda: labelled(EDM(net()), batched=False),
    "guided interval": lambda: labelled(EDM(net()), interval=(0.1, 1.0)),
    "guided rescale": lambda: labelled(EDM(net()), rescale=0.5),
    "guided inner": lambda: labelled(EDM(net(), 0.6)),
    "weak": lambda: autoguided(EDM(net()), EDM(net()), 2.0),
    "weak scale": lambda: autoguided(EDM(net()), EDM(net()), 2.5),
    "weak other": lambda: autoguided(EDM(net()), Gaussian(0.5), 2.0),
    "other weak": lambda: autoguided(Gaussian(0.5), EDM(net()), 2.0),
    "nested": lambda: clipped(labelled(EDM(net()))),
    "callable": lambda: Gaussian(0.5),
}


@pytest.mark.parametrize("make", DIFFERENT.values(), ids=DIFFERENT)
def test_made_alike_is_equal(make):
    one, other = make(), make()
    assert signature(one) == signature(other) is not None
    assert hash(signature(one)) == hash(signature(other))


def test_made_differently_is_different():
    found = {signature(make()): name for name, make in DIFFERENT.items()}
    assert len(found) == len(DIFFERENT)


def test_a_signature_follows_the_denoiser():
    denoiser = EDM(net())
    before = denoiser.signature
    assert copy.deepcopy(denoiser).signature == before
    denoiser.dtype = torch.float16
    assert denoiser.signature == EDM(net(), dtype=torch.float16).signature != before


def test_what_is_only_called_has_the_signature_of_a_callable():
    class Clips(EDM):
        def forward(self, x, sigma, **extra):
            return super().forward(x, sigma, **extra).clamp(-1, 1)

    hooked = clipped(EDM(net()))
    hooked.register_forward_hook(lambda module, args, output: output)
    for denoiser in (Clips(net(), 0.7), hooked, lambda x, s: x):
        assert signature(denoiser) == signature(Gaussian(0.5)) is not None


class Learned(nn.Module):
    def forward(self, sigma):
        return sigma


class OwnCoefficients(EDM):
    def coefficients(self, sigma):
        return super().coefficients(2.0 * sigma)


class OwnProcess(cm.VP):
    """Compares equal to any other VP."""


def overridden(denoiser):
    denoiser.coefficients = denoiser.coefficients
    return denoiser


class OwnClip(Clipped):
    def rewrite(self, x, d):
        return 2.0 * super().rewrite(x, d)


class Plain(Composed):
    coordinates = KARRAS

    def at(self, x, sigma, level, extra):
        return x


KEPT_BY_NOBODY = {
    # A user's function may read anything, and a user's object compare as it likes.
    "own noise": lambda: EDM(net(), c_noise=own_noise),
    "own lambda": lambda: EDM(net(), c_noise=lambda sigma: sigma),
    "own partial": lambda: EDM(net(), c_noise=partial(math.pow, 2.0)),
    "own object": lambda: EDM(net(), c_noise=Scale(2.0)),
    "own scalings": lambda: Preconditioned(net(), own_noise),
    "own process": lambda: from_v(net(), process=OwnProcess()),
    "instance's coefficients": lambda: overridden(EDM(net())),
    "scale": lambda: autoguided(EDM(net()), EDM(net()), torch.tensor(2.0)),
    "scales": lambda: autoguided(EDM(net()), EDM(net()), torch.ones(4)),
    "learned": lambda: EDM(net(), c_noise=Learned()),
    "learned in a process": lambda: from_v(net(), process=cm.VP(), c_noise=Learned()),
    "side": lambda: autoguided(EDM(net()), EDM(net(), c_noise=Learned()), 2.0),
    "inner": lambda: clipped(EDM(net(), c_noise=Learned())),
    "threshold inner": lambda: thresholded(EDM(net(), c_noise=Learned())),
    "own coefficients": lambda: OwnCoefficients(net()),
    "own clip": lambda: OwnClip(EDM(net()), -1.0, 1.0),
    "own": Plain,
    "conditioned": lambda: conditioned(
        EDM(net()), torch.zeros(1, 3), Inpaint(torch.ones(3, dtype=torch.bool))
    ),
}


@pytest.mark.parametrize("make", KEPT_BY_NOBODY.values(), ids=KEPT_BY_NOBODY)
def test_what_must_not_be_kept(make):
    assert make().signature is None
