"""Bad input to every public function: one typed error that names the argument, and nothing written.

A case is (what, call, exception, fragment of the text). `call` gets a fresh `Bench`, whose tensors
are compared with copies afterwards.
"""

# ruff: noqa: B008, E731 - a table binds the variables of its loops as defaults of lambdas

import inspect
import math
from functools import partial

import numpy as np
import pytest
import torch

import cmsolvers as cm
from cmsolvers import denoisers, noise, ops
from cmsolvers.denoisers.oracles import DataSet, Gaussian, GaussianMixture

F64, NAN, INF = torch.float64, math.nan, math.inf
DATA = Gaussian(0.5)
SIGMAS = [10.0, 1.0, 0.1, 0.0]
TIMES = [1.0, 0.6, 0.2]


class Bench:
    """Tensors that no refused call may touch."""

    def __init__(self):
        self.x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        self.m = self.x + 1
        self.out = self.x + 2
        self.meta = torch.empty(4, 3, device="meta")
        self.pool = torch.arange(15.0)
        self.double = self.x.double()
        self.ints = torch.arange(12).reshape(4, 3)
        self._kept = {k: v.clone() for k, v in vars(self).items() if v.device.type != "meta"}

    def untouched(self):
        return all(torch.equal(getattr(self, k), v) for k, v in self._kept.items())


def zero(x, sigma):
    return 0 * x


CASES = []


def add(what, call, error, text):
    CASES.append(pytest.param(call, error, text, id=what))


# --- the sigma-space samplers, each with the same faults ---------------------------------------

SAMPLERS = {
    "euler_pf_ode": cm.euler_pf_ode,
    "heun_pf_ode": cm.heun_pf_ode,
    "ddim": cm.ddim,
    "ddpm_ancestral": cm.ddpm_ancestral,
    "consistency_sample": cm.consistency_sample,
    "dpm_2": cm.dpm_2,
    "dpm_2_ancestral": cm.dpm_2_ancestral,
    "dpm_fast": cm.dpm_fast,
    "dpmpp_2s_ancestral": cm.dpmpp_2s_ancestral,
    "euler_ancestral": cm.euler_ancestral,
    "lms": cm.lms,
    "restart": cm.restart,
    "dpmpp_2m": cm.dpmpp_2m,
    "dpmpp_sde": cm.dpmpp_sde,
    "dpmpp_2m_sde": cm.dpmpp_2m_sde,
    "dpmpp_3m_sde": cm.dpmpp_3m_sde,
    "unipc": cm.unipc,
    "deis": cm.deis,
    "ipndm": cm.ipndm,
}

BAD_SIGMAS = {
    "up and down": ([0.1, 1.0, 0.5], ValueError, "sigmas must be strictly "),
    "duplicate": ([2.0, 1.0, 1.0], ValueError, "sigmas must be strictly descending; got 1 after 1"),
    "negative": ([1.0, -1.0], ValueError, "sigmas must not be negative; got -1 at index 1"),
    "nan": ([1.0, NAN, 0.0], ValueError, "sigmas[1] must be a number; got nan"),
    "nan tensor": (torch.tensor([1.0, NAN]), ValueError, "sigmas must be finite; got nan"),
    "inf": ([INF, 1.0], ValueError, "sigmas must be finite; got inf at index 0"),
    "zero inside": ([1.0, 0.0, 0.0], ValueError, "sigmas may be 0 only at the end; got 0 at index"),
    "zero first": ([0.0], ValueError, "sigmas must"),
    "empty": ([], ValueError, "sigmas must have at least"),
    "2-D": (torch.ones(2, 2), ValueError, "sigmas must be 1-D; got shape [2, 2]"),
    "integers": (torch.tensor([3, 2, 1]), TypeError, "sigmas must be floating; got torch.int64"),
    "an array of integers": (np.array([3, 2]), TypeError, "1-D floating array; got int64 of"),
    "an array of text": (np.array(["3", "2"]), TypeError, "sigmas must be a 1-D floating array"),
    "an array of objects": (np.array([3.0, None]), TypeError, "1-D floating array; got object of"),
    "a 2-D array": (np.ones((2, 2)), TypeError, "got float64 of shape [2, 2]"),
    "sparse": (torch.tensor([3.0, 1.0]).to_sparse(), TypeError, "must be a plain strided tensor"),
    "from 0 up": ([0.0, 1.0], ValueError, " above 0"),
    "a number": (3.0, TypeError, "sigmas must be a 1-D floating tensor"),
    "a string": ("3", TypeError, "sigmas must be a 1-D floating tensor"),
    "entries": ([1.0, "0"], TypeError, "sigmas[1] must be a number"),
    "meta": (
        torch.ones(2, device="meta"),
        ValueError,
        "sigmas must be on a device that holds data",
    ),
}
BAD_SIGMAS |= {
    "huge": ([1e60, 1.0], ValueError, "sigmas must lie in [1e-50, 1e+50] or be 0; got 1e+60 at in"),
}
BAD_X = {
    "a list": (lambda b: [1.0], TypeError, "x must be a torch.Tensor"),
    "integers": (lambda b: b.ints, TypeError, "x must be float64, float32"),
    "complex": (lambda b: b.x.to(torch.complex64), TypeError, "x must be float64, float32"),
    "meta": (lambda b: b.meta, ValueError, "x must be on a device that holds data"),
    "no batch": (lambda b: b.x[0, 0], ValueError, "x must have a batch dimension"),
}
BAD_MODELS = {
    "none": (lambda x, s: None, TypeError, "must return a torch.Tensor; it returned None"),
    "tuple": (lambda x, s: (x,), TypeError, "must return a torch.Tensor"),
    "shape": (lambda x, s: x[:, :2], ValueError, "must return the shape of x, [4, 3]"),
    "broadcast": (lambda x, s: x[:1], ValueError, "must return the shape of x, [4, 3]"),
    "higher": (lambda x, s: x.double(), TypeError, "must return the dtype of x, torch.float32"),
    "integer": (lambda x, s: x.long(), TypeError, "must return the dtype of x"),
    "meta": (lambda x, s: x.to("meta"), ValueError, "must return a tensor on the device of x"),
}
BAD_SEEDS = {
    "float": (1.5, TypeError, "seed must be an int"),
    "bool": (True, TypeError, "seed must be an int"),
    "string": ("1", TypeError, "seed must be an int"),
    "negative": (-1, ValueError, "seed must lie in [0, 2^64)"),
    "too large": (2**64, ValueError, "seed must lie in [0, 2^64)"),
    "int32": (torch.zeros(4, dtype=torch.int32), TypeError, "seed must be an int64 tensor"),
    "length": (torch.zeros(3, dtype=torch.int64), ValueError, "seed must have shape [4]"),
    "key": (noise.Key(table=torch.zeros(3, 2, dtype=torch.int64)), ValueError, "seed"),
}
BAD_OPTIONS = {
    "callback": ({"callback": 3}, TypeError, "callback must be callable; got 3"),
    "noise_sampler": ({"noise_sampler": 3}, TypeError, "noise_sampler must be callable"),
    "extra_args": ({"extra_args": [1]}, TypeError, "extra_args must be None or a dict"),
    "progress": ({"progress": 1}, TypeError, "progress must be True or False; got 1"),
    "grad": ({"grad": 1}, TypeError, "grad must be True or False; got 1"),
    "return_info": ({"return_info": "y"}, TypeError, "return_info must be True or False"),
    "check_nan": ({"check_nan": None}, TypeError, "check_nan must be True or False"),
    "trajectory": ({"trajectory": [0.37]}, ValueError, "trajectory must hold levels that the run"),
    "trajectory-kind": ({"trajectory": "all"}, TypeError, "trajectory must be"),
    "trajectory-empty": ({"trajectory": []}, ValueError, "trajectory must hold at least one level"),
}

for name, sampler in SAMPLERS.items():
    model = "f" if sampler is cm.consistency_sample else "denoiser"
    for what, (bad, error, text) in BAD_SIGMAS.items():
        add(f"{name}-sigmas-{what}", lambda b, f=sampler, s=bad: f(zero, b.x, s), error, text)
    for what, (make, error, text) in BAD_X.items():
        add(f"{name}-x-{what}", lambda b, f=sampler, m=make: f(zero, m(b), SIGMAS), error, text)
    for what, (bad, error, text) in BAD_MODELS.items():
        call = lambda b, f=sampler, d=bad: f(d, b.x, SIGMAS)
        add(f"{name}-{model}-{what}", call, error, f"{model} {text}")
        kind = denoisers.ConsistencyFunction if model == "f" else denoisers.EDM
        call = lambda b, f=sampler, d=bad, k=kind: f(k(d), b.x, SIGMAS)
        add(f"{name}-raw-{what}", call, error, f"net {text}")
    add(
        f"{name}-{model}-not-callable",
        lambda b, f=sampler: f(3, b.x, SIGMAS),
        TypeError,
        f"{model} must be callable; got 3",
    )
    for what, (bad, error, text) in BAD_SEEDS.items():
        call = lambda b, f=sampler, s=bad: f(zero, b.x, SIGMAS, seed=s)
        add(f"{name}-seed-{what}", call, error, text)
    for what, (bad, error, text) in BAD_OPTIONS.items():
        call = lambda b, f=sampler, o=bad: f(zero, b.x, SIGMAS, **o)
        add(f"{name}-{what}", call, error, text)
    for what, bad, error, text in (
        ("negative", -1.0, ValueError, "s_noise must not be negative"),
        ("nan", NAN, ValueError, "s_noise must be a number; got nan"),
        ("kind", "1", TypeError, "s_noise must be a number"),
    ):
        if "s_noise" not in inspect.signature(sampler).parameters:
            text, error = f"{name}() got an unexpected keyword argument 's_noise'", TypeError
        call = lambda b, f=sampler, v=bad: f(zero, b.x, SIGMAS, s_noise=v)
        add(f"{name}-s_noise-{what}", call, error, text)

for name in sorted(set(SAMPLERS) - {"consistency_sample"}):
    call = lambda b, f=SAMPLERS[name]: f(zero, b.x, [1.0, 1e-60, 0.0])
    add(f"{name}-sigmas-tiny", call, ValueError, "sigmas must lie in [1e-50, 1e+50] or be 0")
    call = lambda b, f=SAMPLERS[name]: f(zero, b.x, [1.0])
    add(f"{name}-zero-steps", call, ValueError, "sigmas must have at least 2 levels; got 1")
for name in ("euler_pf_ode", "heun_pf_ode", "dpm_2"):
    for option, bad, error in (
        ("s_churn", -1.0, ValueError),
        ("s_churn", INF, ValueError),
        ("s_churn", None, TypeError),
        ("s_tmin", NAN, ValueError),
        ("s_tmax", -2, ValueError),
    ):
        call = lambda b, f=SAMPLERS[name], o={option: bad}: f(zero, b.x, SIGMAS, **o)
        add(f"{name}-{option}-{bad}", call, error, option)
for name in ("ddim", "ddpm_ancestral", "dpm_fast"):
    for bad, error in ((-0.1, ValueError), (1.1, ValueError), (NAN, ValueError), ("0", TypeError)):
        call = lambda b, f=SAMPLERS[name], v=bad: f(zero, b.x, SIGMAS, eta=v)
        add(f"{name}-eta-{bad}", call, error, "eta must be")
for name in (
    "euler_ancestral",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
):
    for bad, error in ((-0.1, ValueError), (INF, ValueError), (NAN, ValueError), ("0", TypeError)):
        call = lambda b, f=SAMPLERS[name], v=bad: f(zero, b.x, SIGMAS, eta=v)
        add(f"{name}-eta-{bad}", call, error, "eta must")
for name, most in (("lms", 4), ("ipndm", 4), ("unipc", 3), ("deis", 3)):
    for bad, error in (
        (0, ValueError),
        (most + 1, ValueError),
        (2.0, TypeError),
        (True, TypeError),
    ):
        call = lambda b, f=SAMPLERS[name], v=bad: f(zero, b.x, SIGMAS, order=v)
        add(f"{name}-order-{bad}", call, error, "order must be")
for name in ("dpmpp_3m_sde", "unipc", "deis"):
    call = lambda b, f=SAMPLERS[name]: f(zero, b.x, [80.0, math.nextafter(80.0, 0), 0.1, 0.05])
    add(f"{name}-sigmas-too-close", call, ValueError, "sigmas must be far enough apart")
for bad, error in ((0.0, ValueError), (-0.5, ValueError), (1.1, ValueError), (None, TypeError)):
    call = lambda b, v=bad: cm.dpmpp_sde(zero, b.x, SIGMAS, r=v)
    add(f"dpmpp_sde-r-{bad}", call, error, "r must be")
for sampler, option, known in (
    (cm.dpmpp_2m_sde, "solver_type", "'midpoint', 'heun'"),
    (cm.unipc, "variant", "'bh1', 'bh2'"),
):
    for bad, error, text in (
        ("third", ValueError, f"{option} must be one of {known}; got 'third'"),
        (1, TypeError, f"{option} must be a str; got 1"),
    ):
        call = lambda b, f=sampler, o={option: bad}: f(zero, b.x, SIGMAS, **o)
        add(f"{sampler.__name__}-{option}-{bad}", call, error, text)
for what, bad, error, text in (
    ("number", 3, TypeError, "restarts must be a sequence; got 3"),
    ("string", "abcd", TypeError, "restarts must be a sequence"),
    ("not-nested", (0.1, 1.0, 3, 2), TypeError, "restarts[0] must be (t_min, t_max, steps, times)"),
    ("length", [(0.1, 1.0, 3)], TypeError, "restarts[0] must be (t_min, t_max, steps, times)"),
    ("t_min", [(0.1, 2.0, 3, 2), (0.0, 2.0, 3, 2)], ValueError, "t_min of restarts[1] must be pos"),
    ("t_max-kind", [(0.1, "2", 3, 2)], TypeError, "t_max of restarts[0] must be a number"),
    ("t_max-inf", [(0.1, INF, 3, 2)], ValueError, "t_max of restarts[0] must be finite"),
    ("turned", [(2.0, 0.1, 3, 2)], ValueError, "t_min of restarts[0] must be below its t_max"),
    ("steps", [(0.1, 2.0, 0, 2)], ValueError, "steps of restarts[0] must be at least 1"),
    ("steps-kind", [(0.1, 2.0, 3.0, 2)], TypeError, "steps of restarts[0] must be an int"),
    ("times", [(0.1, 2.0, 3, 0)], ValueError, "times of restarts[0] must be at least 1"),
    ("level", [(0.01, 0.05, 3, 2)], ValueError, "t_max of restarts[0] must be above 0.1, the leve"),
):
    call = lambda b, v=bad: cm.restart(zero, b.x, SIGMAS, restarts=v)
    add(f"restart-{what}", call, error, text)
call = lambda b: cm.restart(zero, b.x, SIGMAS, restarts=[(0.1, 1.0, 3, 2)], rho=0.0)
add("restart-rho", call, ValueError, "rho must be positive")
for bad, error in ((0.0, ValueError), (-1, ValueError), (INF, ValueError), (None, TypeError)):
    call = lambda b, v=bad: cm.consistency_sample(zero, b.x, [1.0], sigma_min=v)
    add(f"consistency_sample-sigma_min-{bad}", call, error, "sigma_min must be")
add(
    "consistency_sample-sigma_min-of-f",
    lambda b: cm.consistency_sample(
        cm.ConsistencyFunction(zero, sigma_min=0.01), b.x, [1.0], sigma_min=0.02
    ),
    ValueError,
    "sigma_min must be that of f: pass sigma_min=0.01; got 0.02",
)
for what, bad, error, text in (
    ("shape", lambda s, t: torch.zeros(4), ValueError, "noise_sampler must return the shape of x"),
    ("kind", lambda s, t: 0.0, TypeError, "noise_sampler must return a torch.Tensor"),
    ("dtype", lambda s, t: torch.zeros(4, 3).double(), TypeError, "noise_sampler must return the"),
):
    call = lambda b, z=bad: cm.ddpm_ancestral(zero, b.x, SIGMAS, noise_sampler=z)
    add(f"noise_sampler-{what}", call, error, text)
add(
    "nan-from-the-model",
    lambda b: cm.heun_pf_ode(lambda x, s: x * NAN, b.x, SIGMAS, check_nan=True),
    ValueError,
    "denoiser must return finite values; got NaN or infinity at step 0, sigma 10, sample 0",
)

# --- euler_maruyama ----------------------------------------------------------------------------

OU = cm.SDE(lambda x, t: -x, lambda t: 0.5)
for what, bad, error, text in (
    (
        "turning",
        [0.0, 1.0, 0.5],
        ValueError,
        "ts must be strictly ascending or strictly descending",
    ),
    ("duplicate", [0.0, 0.0], ValueError, "ts must be strictly ascending or strictly descending"),
    ("one", [0.0], ValueError, "ts must have at least 2 entries; got 1"),
    ("nan", torch.tensor([0.0, NAN]), ValueError, "ts must be finite"),
    ("inf", [0.0, INF], ValueError, "ts must be finite"),
    ("2-D", torch.ones(2, 2), ValueError, "ts must be 1-D"),
    ("integers", torch.tensor([0, 1]), TypeError, "ts must be floating"),
):
    call = lambda b, t=bad: cm.euler_maruyama(OU, b.x, t)
    add(f"euler_maruyama-ts-{what}", call, error, text)
for what, (make, error, text) in BAD_X.items():
    call = lambda b, m=make: cm.euler_maruyama(OU, m(b), TIMES)
    add(f"euler_maruyama-x-{what}", call, error, text)
for what, (bad, error, text) in BAD_SEEDS.items():
    call = lambda b, s=bad: cm.euler_maruyama(OU, b.x, TIMES, seed=s)
    add(f"euler_maruyama-seed-{what}", call, error, text)
for what, (bad, error, text) in BAD_OPTIONS.items():
    call = lambda b, o=bad: cm.euler_maruyama(OU, b.x, TIMES, **o)
    add(f"euler_maruyama-{what}", call, error, text)
for what, (bad, error, text) in BAD_MODELS.items():
    call = lambda b, d=bad: cm.euler_maruyama(cm.SDE(d, lambda t: 0.1), b.x, TIMES)
    add(f"euler_maruyama-drift-{what}", call, error, f"drift {text}")
    call = lambda b, d=bad: cm.euler_maruyama(cm.VP().reverse(d), b.x, TIMES)
    add(f"euler_maruyama-score-{what}", call, error, f"score {text}")
for what, bad, error in (
    ("kind", "1", TypeError),
    ("nan", NAN, ValueError),
    ("integers", torch.ones(4).long(), TypeError),
    ("length", torch.ones(3), ValueError),
    ("shape", torch.ones(4, 2), ValueError),
    ("dimensions", torch.ones(1, 4, 3), ValueError),
    ("meta", torch.ones(4, device="meta"), ValueError),
):
    call = lambda b, g=bad: cm.euler_maruyama(cm.SDE(OU.drift, lambda t: g), b.x, TIMES)
    add(f"euler_maruyama-diffusion-{what}", call, error, "diffusion must")
add(
    "euler_maruyama-sde",
    lambda b: cm.euler_maruyama(3, b.x, TIMES),
    TypeError,
    "sde must have drift(x, t) and diffusion(t)",
)

# --- schedules, processes, denoisers, oracles --------------------------------------------------

for make in (cm.karras_sigmas, cm.exponential_sigmas, cm.polyexponential_sigmas):
    for what, args, error, text in (
        ("zero steps", {"n": 0}, ValueError, "n must be at least 1; got 0"),
        ("n", {"n": 3.0}, TypeError, "n must be an int; got 3.0"),
        ("bool", {"n": True}, TypeError, "n must be an int; got True"),
        ("order", {"n": 3, "sigma_min": 2.0, "sigma_max": 1.0}, ValueError, "sigma_min must be"),
        ("one level", {"n": 1, "sigma_min": 2.0, "sigma_max": 1.0}, ValueError, "sigma_min must"),
        ("zero", {"n": 3, "sigma_min": 0.0}, ValueError, "sigma_min must be positive; got 0"),
        ("nan", {"n": 3, "sigma_max": NAN}, ValueError, "sigma_max must be a number; got nan"),
        ("inf", {"n": 3, "sigma_max": INF}, ValueError, "sigma_max must be finite; got inf"),
        ("append", {"n": 3, "append_zero": 1}, TypeError, "append_zero must be True or False"),
    ):
        call = lambda b, f=make, a=args: f(**a)
        add(f"{make.__name__}-{what}", call, error, text)
for make in (cm.karras_sigmas, cm.polyexponential_sigmas):
    add(f"{make.__name__}-rho", lambda b, f=make: f(3, rho=0.0), ValueError, "rho must be positive")
add("karras_sigmas-rho-tiny", lambda b: cm.karras_sigmas(3, rho=1e-3), ValueError, "rho must leave")
add("vp_sigmas-beta-huge", lambda b: cm.vp_sigmas(3, 0.1, 2e3), ValueError, "beta_max must leave")
add("vp_sigmas-n", lambda b: cm.vp_sigmas(0), ValueError, "n must be at least 1")
add("vp_sigmas-beta", lambda b: cm.vp_sigmas(3, 5.0, 1.0), ValueError, "beta_min must be below")
add("vp_sigmas-t_min", lambda b: cm.vp_sigmas(3, t_min=1.0), ValueError, "t_min must be below")

for make in (cm.VP, cm.SubVP):
    add(f"{make.__name__}-negative", lambda b, f=make: f(-1.0), ValueError, "beta_min must not be")
    add(f"{make.__name__}-order", lambda b, f=make: f(3.0, 1.0), ValueError, "beta_min must not")
    add(f"{make.__name__}-kind", lambda b, f=make: f("1"), TypeError, "beta_min must be a number")
for make in (cm.VE, cm.Karras):
    add(f"{make.__name__}-zero", lambda b, f=make: f(0.0), ValueError, "sigma_min must be positive")
    add(f"{make.__name__}-order", lambda b, f=make: f(3.0, 1.0), ValueError, "sigma_min must be")
for method in ("reverse", "probability_flow", "score_of"):
    call = lambda b, m=method: getattr(cm.VP(), m)(3)
    add(f"VP.{method}", call, TypeError, "must be callable; got 3")
for what, (bad, error, text) in BAD_MODELS.items():
    call = lambda b, d=bad: cm.VP().score_of(d)(b.x, 0.5)
    add(f"VP.score_of-denoiser-{what}", call, error, f"denoiser {text}")
for method in ("marginal", "drift"):
    call = lambda b, m=method: getattr(cm.VP(), m)(b.x, torch.ones(3))
    add(f"VP.{method}-t-length", call, ValueError, "must have shape [] or [B] = [4]; got [3]")
add(
    "ddim-unknown",
    lambda b: cm.ddim(zero, b.x, SIGMAS, s_churn=1.0),
    TypeError,
    "ddim() got an unexpected keyword argument 's_churn'",
)
add("prior-seed", lambda b: cm.VP().prior((2, 3), seed=-1), ValueError, "seed must lie in")
add("prior-shape", lambda b: cm.VP().prior((), seed=1), ValueError, "shape must have a batch")
add("marginal-x0", lambda b: cm.VP().marginal(b.ints, 0.5), TypeError, "x0 must be float64")
add("SDE-drift", lambda b: cm.SDE(3, zero), TypeError, "drift must be callable")
add("SDE-diffusion", lambda b: cm.SDE(zero, 0.5), TypeError, "diffusion must be callable")
add("SDE-flag", lambda b: cm.SDE(zero, zero, 1), TypeError, "state_dependent must be True or False")

MAKERS = {
    "EDM": denoisers.EDM,
    "ConsistencyFunction": cm.ConsistencyFunction,
    "from_eps": partial(denoisers.from_eps, process=cm.Karras()),
    "from_v": partial(denoisers.from_v, process=cm.VP()),
}
for name, make in MAKERS.items():
    add(f"{name}-net", lambda b, f=make: f(3), TypeError, "net must be callable; got 3")
    add(f"{name}-c_noise", lambda b, f=make: f(zero, c_noise="x"), ValueError, "c_noise must be")
    add(f"{name}-dtype", lambda b, f=make: f(zero, dtype=torch.int64), TypeError, "dtype must be")
    for what, (bad, error, text) in BAD_X.items():
        call = lambda b, f=make, m=bad: f(zero)(m(b), 1.0)
        add(f"{name}-x-{what}", call, error, text)
    for what, (bad, error, text) in BAD_MODELS.items():
        call = lambda b, f=make, d=bad: f(d)(b.x, 1.0)
        add(f"{name}-returns-{what}", call, error, f"net {text}")
    for what, bad, error in (
        ("zero", 0.0, ValueError),
        ("nan", NAN, ValueError),
        ("kind", "1", TypeError),
        ("length", torch.ones(3), ValueError),
        ("2-D", torch.ones(4, 1), ValueError),
        ("integers", torch.ones(4).long(), TypeError),
        ("meta", torch.ones(4, device="meta"), ValueError),
    ):
        call = lambda b, f=make, s=bad: f(zero)(b.x, s)
        add(f"{name}-sigma-{what}", call, error, "sigma must")
for name in ("EDM", "ConsistencyFunction"):
    call = lambda b, f=MAKERS[name]: f(zero, sigma_data=0.0)
    add(f"{name}-sigma_data", call, ValueError, "sigma_data must be positive; got 0")
call = lambda b: cm.ConsistencyFunction(zero, sigma_min=-1.0)
add("ConsistencyFunction-sigma_min", call, ValueError, "sigma_min must be positive")
add("from_eps-process", lambda b: denoisers.from_eps(zero, process=3), TypeError, "process must be")

POINTS = torch.zeros(2, 3)
ORACLES = {"Gaussian": DATA, "Mixture": GaussianMixture(POINTS, 1.0), "DataSet": DataSet(POINTS)}
for name, oracle in ORACLES.items():
    for method in ("denoiser", "score", "log_density"):
        for what, (bad, error, text) in BAD_X.items():
            call = lambda b, f=getattr(oracle, method), m=bad: f(m(b), 1.0)
            add(f"{name}.{method}-x-{what}", call, error, text)
        for what, bad, error in (("negative", -1.0, ValueError), ("length", POINTS[0], ValueError)):
            call = lambda b, f=getattr(oracle, method), s=bad: f(b.x, s)
            add(f"{name}.{method}-sigma-{what}", call, error, "sigma must")
        if name != "Gaussian":
            call = lambda b, f=getattr(oracle, method): f(b.x[:, :2], 1.0)
            add(f"{name}.{method}-size", call, ValueError, "x must have 3 elements per sample")
add("DataSet.score-zero", lambda b: ORACLES["DataSet"].score(b.x, 0.0), ValueError, "sigma must be")
add("Gaussian-std", lambda b: Gaussian(0.0), ValueError, "std must be positive; got 0")
add("Mixture-stds", lambda b: GaussianMixture(POINTS, -1.0), ValueError, "stds must be positive")
add("Mixture-length", lambda b: GaussianMixture(POINTS, [1.0] * 3), ValueError, "stds must have")
add("Mixture-weights", lambda b: GaussianMixture(POINTS, 1.0, [1, 0]), ValueError, "weights must")
add("DataSet-empty", lambda b: DataSet(POINTS[:0]), ValueError, "points must hold at least one")
add("DataSet-integers", lambda b: DataSet(POINTS.long()), TypeError, "points must be floating")
add("DataSet-chunk", lambda b: DataSet(POINTS, chunk=0), ValueError, "chunk must be at least 1")

# --- fused steps: outputs that alias, and mixed kinds ------------------------------------------

ROW = (0.5, 0.5)
for what, step, error, text in (
    ("out-shape", lambda b: {"out": b.out[:2]}, ValueError, "out must have the shape of x"),
    ("out-dtype", lambda b: {"out": b.double}, TypeError, "out must be torch.float32"),
    ("out-device", lambda b: {"out": b.meta}, ValueError, "out must be on the device of x"),
    ("out-layout", lambda b: {"out": b.out.t().contiguous().t()}, ValueError, "out must have the"),
    ("out-kind", lambda b: {"out": 3}, TypeError, "out must be a tensor"),
    ("second_out", lambda b: {"second_out": b.out}, ValueError, "second_out needs second"),
    (
        "two-outputs-overlap",
        lambda b: {"out": b.out, "second_out": b.out, "second": 2.0},
        ValueError,
        "second_out overlaps out",
    ),
    ("second-overlaps-x", lambda b: {"second_out": b.x, "second": 2.0}, ValueError, "second_out"),
    ("seed", lambda b: {"w_z": 1.0, "seed": -1}, ValueError, "seed must lie in"),
    ("draw", lambda b: {"w_z": 1.0, "seed": 1, "draw": 2**32}, ValueError, "draw must lie in"),
    ("stream", lambda b: {"w_z": 1.0, "seed": 1, "stream": 256}, ValueError, "stream must lie in"),
    ("w_z", lambda b: {"w_z": NAN, "seed": 1}, ValueError, "w_z must be finite"),
):
    call = lambda b, o=step: ops.weighted_step(b.x, [b.m], ROW, **o(b))
    add(f"weighted_step-{what}", call, error, text)
for what, inputs, error, text in (
    ("shape", lambda b: [b.m[:2]], ValueError, "inputs[0] must have the shape of x"),
    ("dtype", lambda b: [b.double], TypeError, "inputs[0] must be torch.float32"),
    ("integers", lambda b: [b.ints], TypeError, "inputs[0] must be float64"),
    ("device", lambda b: [b.meta], ValueError, "inputs[0] must be on the device of x"),
    ("kind", lambda b: [3.0], TypeError, "inputs[0] must be a tensor"),
    ("count", lambda b: [b.m] * 2, ValueError, "weights must hold 3 numbers"),
    ("too-many", lambda b: [b.m] * 5, ValueError, "inputs must hold at most 4 tensors"),
):
    call = lambda b, i=inputs: ops.weighted_step(b.x, i(b), ROW, out=b.out)
    add(f"weighted_step-inputs-{what}", call, error, text)


def shifted(b):
    """x and out one row apart in the same storage."""
    return b.pool[:12].reshape(4, 3), b.pool[3:].reshape(4, 3)


def aliased_input(b):
    x, out = shifted(b)
    return ops.weighted_step(b.x, [x], ROW, out=out)


def aliased_state(b):
    x, out = shifted(b)
    return ops.weighted_step(x, [b.m], ROW, out=out)


add("weighted_step-out-overlaps-x", aliased_state, ValueError, "out overlaps x in memory")
add("weighted_step-out-overlaps-input", aliased_input, ValueError, "out overlaps inputs[0]")


@pytest.mark.parametrize("call, error, text", CASES)
def test_bad_input(call, error, text):
    bench = Bench()
    with pytest.raises(error) as caught:
        call(bench)
    assert type(caught.value) in (TypeError, ValueError)
    assert text in str(caught.value)
    assert bench.untouched()


def test_there_are_enough_cases():
    assert len(CASES) >= 60


def test_levels_may_be_any_array_of_numbers():
    """Views with negative strides and other floating dtypes too."""
    x, levels = torch.ones(2, 3), [3.0, 1.0, 0.5]
    expected = cm.heun_pf_ode(lambda x, s: 0.5 * x, x, levels)
    for dtype in (np.float16, np.float32, np.float64):
        down = np.array(levels, dtype)
        for given in (down, down[::-1].copy()[::-1], np.repeat(down, 2)[::2]):
            assert torch.equal(cm.heun_pf_ode(lambda x, s: 0.5 * x, x, given), expected)
