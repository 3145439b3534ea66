"""How losses are called: samples, arguments, dtypes, and bad input."""

from __future__ import annotations

import math
import types

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import losses, noise
from cmsolvers.denoisers import EDM, ConsistencyFunction

SIGMA_MIN = 0.002


def data(n: int = 64, std: float = 0.5, dim: int = 3) -> Tensor:
    return std * noise.normal((n, dim), 3, dtype=torch.float64)


def test_consistency_function_is_the_identity_at_sigma_min_to_the_bit():
    net = nn.Linear(3, 3)
    f = ConsistencyFunction(lambda x, c: net(x) * 1e3, sigma_min=SIGMA_MIN)
    x = data(16).float()
    assert torch.equal(f(x, SIGMA_MIN), x)
    assert torch.equal(f(x, torch.full((16,), SIGMA_MIN, dtype=torch.float64)), x)


def test_losses_of_a_sample_do_not_depend_on_its_companions():
    x0, sigma = data(12).float(), torch.linspace(0.1, 3, 12).double()
    model = EDM(lambda x, c: torch.tanh(x) * c[:, None])
    ids = torch.arange(12)

    def run(chosen: Tensor) -> Tensor:
        key = noise.key(7, len(chosen), ids=chosen)
        return losses.dsm(model, x0[chosen], key=key, step=3, levels=sigma[chosen]).per_sample

    whole = run(ids)
    some = torch.tensor([10, 2, 7])
    assert torch.equal(run(some), whole[some])


def test_the_teacher_gets_extra_args_unless_it_has_its_own():
    seen = []

    def model(name):
        def call(x, sigma, **extra):
            seen.append((name, extra))
            return 0.5 * x

        return call

    models, shared, own = [model(n) for n in ("student", "target", "teacher")], {"a": 1}, {"b": 2}
    for teacher_args, expected in ((None, shared), (own, own), ({}, {})):
        seen.clear()
        student, target, teacher = models
        losses.cd(
            student,
            data(8),
            key=1,
            step=0,
            levels=(2.0, 1.0),
            target=target,
            teacher=teacher,
            extra_args=shared,
            teacher_args=teacher_args,
        )
        assert {name for name, _ in seen} == {"student", "target", "teacher"}
        for name, extra in seen:
            assert extra == (expected if name == "teacher" else shared)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_get_levels_in_float32(dtype: torch.dtype):
    seen = []

    def model(x, sigma):
        assert x.dtype is dtype and sigma.dtype is torch.float32
        seen.append(sigma[0].item())
        return 0.5 * x

    x0, high, low = data(8).to(dtype), 80.1, 79.9  # one number in half precision
    assert torch.tensor(high).to(torch.bfloat16) == torch.tensor(low).to(torch.bfloat16)
    given = {"key": 1, "step": 0, "levels": (high, low)}
    losses.ict(model, x0, **given)
    losses.cd(model, x0, teacher=model, **given)
    losses.dsm(model, x0, key=1, step=0, levels=high)
    rounded = {torch.tensor(v).item() for v in (high, low)}
    # Small levels are looks, once in a process: is it a consistency function, is it a denoiser?
    assert {level for level in seen if level > 1.0} == rounded


# --- bad input -----------------------------------------------------------------------------------

X0 = torch.zeros(4, 3)


def same(x: Tensor, sigma: Tensor) -> Tensor:
    return x


BAD = [
    ({"levels": (1.0, 1.0)}, ValueError, r"levels must be \(t, s\) with t above s"),
    ({"levels": (1.0, 2.0)}, ValueError, r"levels must be \(t, s\) with t above s"),
    ({"levels": (-1.0, 1.0)}, ValueError, "levels must be positive"),
    ({"levels": (2.0, -0.5)}, ValueError, "levels must not be negative"),
    ({"levels": (2.0, torch.tensor([1.0, 0.5, -0.1, 0.0]))}, ValueError, "levels must not be neg"),
    ({"levels": (0.0, 0.0)}, ValueError, "levels must be positive"),
    ({"levels": (torch.ones(3), 0.5)}, ValueError, "levels must have shape"),
    ({"levels": (torch.ones(4, dtype=torch.int64), 0.5)}, TypeError, "levels must be floating"),
    ({"levels": (float("nan"), 0.5)}, ValueError, "levels"),
    ({"x0": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "x0"),
    ({"x0": [1.0]}, TypeError, "x0 must be a torch.Tensor"),
    ({"model": 3}, TypeError, "model must be callable"),
    ({"target": 3}, TypeError, "target must be callable"),
    ({"model": lambda x, s: x[:2]}, ValueError, "model must return the shape"),
    ({"model": lambda x, s: None}, TypeError, "model must return"),
    ({"distance": "l3"}, TypeError, "distance must be callable"),
    ({"distance": 4}, TypeError, "distance must be callable"),
    ({"distance": lambda r: r.square_sum().sum()}, ValueError, "one number per sample"),
    ({"weight": lambda s, t: torch.ones(2)}, ValueError, "weight must return"),
    ({"weight": 3}, TypeError, "weight must be callable; got 3"),
    ({"reduction": "max"}, ValueError, "reduction must be"),
    ({"extra_args": 3}, TypeError, "extra_args"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD)
def test_bad_input_of_consistency_losses(change: dict, error: type, text: str):
    given = {"model": same, "x0": X0, "levels": (2.0, 1.0), "key": 0, "step": 0} | change
    model, x0 = given.pop("model"), given.pop("x0")
    for loss in (losses.ct, losses.ict, losses.ect):
        with pytest.raises(error, match=text):
            loss(model, x0, **given)
    with pytest.raises(error, match=text):
        losses.cd(model, x0, teacher=same, **given)


def test_bad_input_of_the_others():
    given = {"key": 0, "step": 0, "levels": (2.0, 1.0)}
    with pytest.raises(ValueError, match='solver must be "heun", "euler" or a callable'):
        losses.cd(same, X0, teacher=same, solver="rk4", **given)
    with pytest.raises(TypeError, match="solver must return a State"):
        losses.cd(same, X0, teacher=same, solver=lambda teacher, x, end: x.x, **given)
    with pytest.raises(ValueError, match="teacher must be given to cd; got None"):
        losses.cd(same, X0, **given)
    with pytest.raises(ValueError, match="model must return"):
        losses.dsm(lambda x, s: x[:1], X0, key=0, step=0, levels=1.0)
    with pytest.raises(ValueError, match="levels must be positive"):
        losses.dsm(same, X0, key=0, step=0, levels=torch.zeros(4))
    with pytest.raises(ValueError, match="levels must be positive and finite; got inf"):
        losses.dsm(same, X0, key=0, step=0, levels=torch.tensor([1.0, 1.0, math.inf, 1.0]))
    with pytest.raises(ValueError, match="c must not be negative"):
        losses.pseudo_huber(-1.0)
    with pytest.raises(ValueError, match="c must be positive"):
        losses.elementwise_huber(0.0)
    with pytest.raises(ValueError, match="sigma_data"):
        losses.edm_weight(-1)


def test_extra_arguments_come_in_any_mapping():
    def scaled(x: Tensor, sigma: Tensor, *, factor: float = 0.0) -> Tensor:
        return factor * x

    def value(extra: object) -> Tensor:
        return losses.dsm(scaled, data(), key=1, step=0, levels=1.0, extra_args=extra).loss

    assert torch.equal(value(types.MappingProxyType({"factor": 0.5})), value({"factor": 0.5}))
    with pytest.raises(TypeError, match="extra_args must be None or a dict with str keys"):
        value(types.MappingProxyType({1: 0.5}))


def test_losses_take_samples_of_any_shape():
    def shrink(x, sigma):
        return 0.5 * x

    for shape in ((5,), (5, 1), (5, 1, 1)):
        x0 = data(5).float().flatten()[:5].reshape(shape)
        score = losses.dsm(shrink, x0, key=0, step=0, levels=1.0).loss
        training = losses.ict(shrink, x0, key=0, step=0, levels=(1.0, 0.5)).loss
        if len(shape) == 1:
            first = score, training
        assert (score, training) == first
    none = losses.ict(shrink, torch.zeros(0, 3), key=0, step=0, levels=(1.0, 0.5))
    assert none.per_sample.shape == (0,)
