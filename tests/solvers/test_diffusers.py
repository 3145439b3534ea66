"""Flow models against the schedulers of diffusers."""

from functools import partial

import numpy as np
import pytest
import torch

import cmsolvers as cm
from cmsolvers.schedules import flow_times
from support.flows import FLOWING, X, velocity
from support.orders import F64


class Double:
    """Torch or numpy with float64 for float32: schedulers round states and levels to float32."""

    def __init__(self, module):
        self._module, self.float32 = module, module.float64

    def __getattr__(self, name):
        return getattr(self._module, name)


def scheduler(monkeypatch, module, name, **config):
    schedulers = pytest.importorskip("diffusers.schedulers")
    made = getattr(schedulers, name)
    for library in (torch, np):
        short = "np" if library is np else "torch"
        monkeypatch.setattr(f"diffusers.schedulers.{module}.{short}", Double(library))
    return made(**config)


def stepped(found, x):
    for t in found.timesteps:
        u = velocity(x, torch.full((len(x),), float(t) / 1000, dtype=F64))
        x = found.step(u, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize(
    ("config", "more", "times"),
    [
        ({}, {}, {}),
        ({"shift": 3.0}, {}, {"shift": 3.0}),
        ({"use_dynamic_shifting": True}, {"mu": 0.8}, {"mu": 0.8}),
        (
            {"use_dynamic_shifting": True, "shift_terminal": 0.02},
            {"mu": 0.7},
            {"mu": 0.7, "terminal": 0.02},
        ),
    ],
    ids=["plain", "shift 3", "dynamic", "terminal"],
)
def test_flow_match_euler(monkeypatch, config, more, times):
    found = scheduler(
        monkeypatch,
        "scheduling_flow_match_euler_discrete",
        "FlowMatchEulerDiscreteScheduler",
        **config,
    )
    n = 9
    found.set_timesteps(sigmas=np.linspace(1, 1 / n, n), **more)
    levels = flow_times(n, **times)
    torch.testing.assert_close(found.sigmas, levels, rtol=1e-13, atol=1e-14)
    got = cm.euler_pf_ode(FLOWING, X, levels)
    torch.testing.assert_close(got, stepped(found, X), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_heun(monkeypatch, shift):
    found = scheduler(
        monkeypatch,
        "scheduling_flow_match_heun_discrete",
        "FlowMatchHeunDiscreteScheduler",
        shift=shift,
    )
    found.set_timesteps(8)
    levels = torch.cat([found.sigmas[:1], found.sigmas[1:-1:2], found.sigmas[-1:]]).double()
    got = cm.heun_pf_ode(FLOWING, X, levels)
    torch.testing.assert_close(got, stepped(found, X), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("sampler", "module", "name", "config"),
    [
        (
            cm.dpmpp_2m,
            "scheduling_dpmsolver_multistep",
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "dpmsolver++", "lower_order_final": False},
        ),
        (
            partial(cm.unipc, order=1, variant="bh2"),
            "scheduling_unipc_multistep",
            "UniPCMultistepScheduler",
            {"solver_order": 1, "solver_type": "bh2", "lower_order_final": False},
        ),
        (
            partial(cm.unipc, order=2, variant="bh1"),
            "scheduling_unipc_multistep",
            "UniPCMultistepScheduler",
            {"solver_order": 2, "solver_type": "bh1", "lower_order_final": False},
        ),
        (
            partial(cm.unipc, order=2, variant="bh2"),
            "scheduling_unipc_multistep",
            "UniPCMultistepScheduler",
            {"solver_order": 2, "solver_type": "bh2", "lower_order_final": False},
        ),
    ],
    ids=["dpmpp_2m", "unipc 1", "unipc 2 bh1", "unipc 2"],
)
def test_exponential_methods_on_flow_levels(monkeypatch, sampler, module, name, config):
    found = scheduler(
        monkeypatch,
        module,
        name,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        final_sigmas_type="zero",
        **config,
    )
    found.set_timesteps(12)
    x, levels = X, found.sigmas[:-1]  # the last step is of order 1 by another rule
    for i, t in enumerate(found.timesteps[:-1]):
        u = velocity(x, torch.full((len(x),), float(levels[i]), dtype=F64))
        x = found.step(u, t, x, return_dict=False)[0]
    torch.testing.assert_close(sampler(FLOWING, X, levels), x, rtol=1e-10, atol=1e-10)
