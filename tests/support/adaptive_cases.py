"""Problems, solvers and measures that the tests of the adaptive solvers share."""

from functools import lru_cache

import torch
from scipy.integrate import solve_ivp

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.denoisers.oracles import Gaussian, GaussianMixture
from cmsolvers.solvers import adaptive_sde, dpm_adaptive, rk_pf_ode
from cmsolvers.solvers.tableaux import TABLEAUX
from support.orders import F64, FIRST, LAST

MIXTURE = GaussianMixture([-1.0, 0.2, 1.1], [0.3, 0.2, 0.4], [0.3, 0.3, 0.4])
GAUSSIAN = Gaussian(0.5, 0.3)
START = FIRST * torch.linspace(-1.5, 2, 8, dtype=F64)[:, None]
METHODS = tuple(TABLEAUX)
MODES = ("compact", "masked")


def elementwise(x, sigma, **_):
    """A denoiser of IEEE operations on single elements: it cannot know its batch."""
    s = sigma.reshape(-1, *[1] * (x.ndim - 1))
    pull = 0.25 * x / (0.25 + s * s)
    return pull + 0.5 * x / (1 + x.abs()) / (1 + s)


def rate(s, y):
    y = torch.tensor(y)[:, None]
    return ((y - MIXTURE(y, s)) / s)[:, 0].numpy()


@lru_cache
def path_to(last, start):
    """One sample, to 1e-12."""
    span = (FIRST, last)
    return solve_ivp(rate, span, [start], method="DOP853", rtol=1e-12, atol=1e-13).y[0, -1]


def reference(last=LAST, start=START):
    return torch.tensor([path_to(last, v) for v in start[:, 0].tolist()])[:, None]


EXACT = reference()


def worst(a, b=EXACT):
    return (a.double() - b.double()).abs().max().item()


SOLVERS = {
    **{
        f"{name}-{coordinate}": lambda d, x, s, name=name, coordinate=coordinate, **o: rk_pf_ode(
            d, x, s, method=name, coordinate=coordinate, **o
        )
        for name in METHODS
        for coordinate in ("sigma", "log_sigma")
    },
    **{
        f"dpm{order}": lambda d, x, s, order=order, **o: dpm_adaptive(d, x, s, order=order, **o)
        for order in (2, 3)
    },
}


def sde_run(d, x, s, **options):
    p = cm.VP()
    return adaptive_sde(p.reverse(p.score_of(d)), x, [1.0, 0.01], **options)


ALONE = {
    **{k: v for k, v in SOLVERS.items() if "heun21" not in k},
    "heun21": SOLVERS["heun21-sigma"],
    "dpm2-eta": lambda d, x, s, **o: dpm_adaptive(d, x, s, order=2, eta=1.0, h_init=3.0, **o),
    "sde": sde_run,
}


def own_seed(name, rows):
    if name not in ("sde", "dpm2-eta"):
        return {}
    return {"seed": noise.key(9, len(rows), ids=torch.tensor(rows))}
