"""Everything runs where x is, whatever torch's default device; here one that holds no data."""

import pytest
import torch

import cmsolvers as cm
from cmsolvers import denoisers, losses, noise
from cmsolvers.engine.catalogue import SOLVERS

F64 = torch.float64


@pytest.fixture(autouse=True)
def meta():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def net(x, c):
    return 0.1 * x + c.reshape(-1, 1).to(x.dtype)


MODELS = {
    "callable": lambda x, s: x / (1 + s.reshape(-1, 1)),
    "edm": denoisers.EDM(net),
    "guided": denoisers.guided(denoisers.EDM(net), 2.0, unconditional={}),
}


class Own:
    """An SDE that the library does not know."""

    def drift(self, x, t):
        return -x

    def diffusion(self, t):
        return 1.0 + 0.0 * t


def x_of(dtype=torch.float32):
    return torch.ones(4, 3, dtype=dtype, device="cpu")


@pytest.mark.parametrize("name", [n for n, f in SOLVERS.items() if f.space == "sigma"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seed", [3, None])
def test_samplers(name, model, seed):
    levels = [3.0, 0.5] if SOLVERS[name].adaptive else cm.karras_sigmas(5, 0.1, 3.0)
    kwargs = {"trajectory": True, "check_nan": True}
    y, info = SOLVERS[name].function(MODELS[model], x_of(), levels, seed=seed, **kwargs)
    assert y.device.type == info.trajectory.device.type == "cpu" and y.isfinite().all()


@pytest.mark.parametrize("name", [n for n, f in SOLVERS.items() if f.space == "time"])
@pytest.mark.parametrize("kind", ["library", "own"])
def test_solvers_in_time(name, kind):
    sde = cm.VP().reverse(lambda x, t: -x) if kind == "library" else Own()
    if name == "predictor_corrector" and kind == "own":
        pytest.skip("for reverse SDEs of the library")
    y = SOLVERS[name].function(sde, x_of(), [1.0, 0.5, 0.2], seed=1)
    assert y.device.type == "cpu" and y.isfinite().all()


def test_what_they_stand_on():
    assert cm.karras_sigmas(5).device.type == "cpu"
    x = x_of(F64)
    path = noise.BrownianPath(1, 0.0, 1.0, (4, 3), device="cpu")
    assert path(0.0, 0.3).isfinite().all()
    run = cm.capture(cm.dpmpp_2m, MODELS["edm"], x, cm.karras_sigmas(5))
    assert run(x, seed=1).isfinite().all()
    f = cm.ConsistencyFunction(net)
    given = {"key": 1, "step": 0}
    for levels in ((2.0, 1.0), (torch.full((4,), 2.0, device="cpu"), 0.0)):
        assert losses.ict(f, x, levels=levels, **given).loss.isfinite()
    assert losses.cd(f, x, teacher=MODELS["edm"], **given).loss.isfinite()
    for loss in (losses.ct, losses.ict, losses.ect):
        assert loss(f, x, **given).loss.isfinite()
    assert losses.tcm(f, x, teacher=f, **given).loss.isfinite()
    assert losses.dsm(MODELS["edm"], x, levels=2.0, **given).loss.isfinite()
