# ruff: noqa: E501  (a table reads better with one case a line)
"""Bad input to the steps and the noise: one clear typed error each, before anything is written."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmsolvers import noise, ops
from cmsolvers.ops import rules

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
NAN, INF = math.nan, math.inf
X = torch.ones(4, 3)
M = torch.ones(4, 3)
META = torch.ones(4, 3, device="meta")
B = torch.ones(4, dtype=F64)
with warnings.catch_warnings():  # torch says that nested tensors are a prototype
    warnings.simplefilter("ignore")
    NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def step(x: Any = X, inputs: Any = (M,), weights: Any = (0.5, 0.5), **options: Any) -> Any:
    return ops.weighted_step(x, inputs, weights, **options)


def em(**options: Any) -> Any:
    """An Euler-Maruyama step with noise; on valid arguments it takes the short way into the kernel."""
    given = {"x": X, "drift": M, "diffusion": 1.0, "dt": 0.1, "seed": 1, **options}
    return ops.euler_maruyama_step(
        given.pop("x"), given.pop("drift"), given.pop("diffusion"), given.pop("dt"), **given
    )


Bad = tuple[str, Callable[[Tensor], Any], type[Exception] | tuple[type[Exception], ...], str]

# name, call with an output to write to, error, fragment of its text
TABLE: list[Bad] = [
    # the state
    ("x is a list", lambda o: step([1.0]), TypeError, "x must be a tensor; got list"),
    ("x is an array", lambda o: step(np.ones((4, 3))), TypeError, "x must be a tensor; got ndarray"),
    ("x is None", lambda o: em(x=None, out=o), TypeError, "x must be a tensor; got NoneType"),
    ("x of integers", lambda o: step(X.long(), (M.long(),)), TypeError, "x must be float64, float32"),
    ("x of booleans", lambda o: em(x=X.bool(), out=o), TypeError, "x must be float64, float32"),
    ("x is complex", lambda o: step(X.cfloat(), ()), TypeError, "x must be float64, float32"),
    ("x in float8", lambda o: step(X.to(torch.float8_e4m3fn), (), (1.0,)), TypeError, "x must be"),
    ("x is sparse", lambda o: step(X.to_sparse(), out=o), TypeError, "x must be a plain strided tensor; got torch.sparse_coo"),
    ("x is nested", lambda o: em(x=NESTED, drift=NESTED, out=o), TypeError, "x must be a plain strided tensor; got nested"),
    # the inputs
    ("drift is nested", lambda o: em(drift=NESTED, out=o), TypeError, r"inputs\[0\] must be a plain strided tensor; got nested"),
    ("input is a list", lambda o: step(inputs=([1.0],), out=o), TypeError, r"inputs\[0\] must be a tensor"),
    ("drift is None", lambda o: em(drift=None, out=o), TypeError, r"inputs\[0\] must be a tensor"),
    ("other shape", lambda o: step(inputs=(M[:2],), out=o), ValueError, r"shape of x, \[4, 3\]; got \[2, 3\]"),
    ("no broadcasting", lambda o: em(drift=M[:1], out=o), ValueError, r"got \[1, 3\]"),
    ("second input's shape", lambda o: step(inputs=(M, M.T), weights=(1.0, 1, 1), out=o), ValueError, r"inputs\[1\]"),
    ("input of integers", lambda o: em(drift=M.long(), out=o), TypeError, r"inputs\[0\] must be float64"),
    ("wider input", lambda o: em(drift=M.double(), out=o), TypeError, "or of lower precision; got torch.float64"),
    ("bfloat16 into float16", lambda o: step(X.half(), (M.bfloat16(),)), TypeError, "lower precision"),
    ("float16 into bfloat16", lambda o: step(X.bfloat16(), (M.half(),)), TypeError, "lower precision"),
    ("two dtypes", lambda o: step(inputs=(M, M.half()), weights=(1.0, 1, 1), out=o), TypeError, "share one dtype"),
    ("other device", lambda o: em(drift=META, out=o), ValueError, "device of x, cpu; got meta"),
    ("second on meta", lambda o: step(inputs=(M, META), weights=(1.0, 1, 1), out=o), ValueError, r"inputs\[1\].*meta"),
    ("five inputs", lambda o: step(inputs=(M,) * 5, weights=(1.0,) * 6, out=o), ValueError, "at most 4 tensors; got 5"),
    # the weights
    ("too few weights", lambda o: step(weights=(0.5,), out=o), ValueError, "weights must hold 2 numbers.*got 1"),
    ("too many weights", lambda o: step(weights=(0.5, 1, 1), out=o), ValueError, "weights must hold 2 numbers.*got 3"),
    ("NaN weight", lambda o: step(weights=(0.5, NAN), out=o), ValueError, "weights must be finite; got nan"),
    ("infinite weight", lambda o: step(weights=(INF, 1.0), out=o), ValueError, "weights must be finite; got inf"),
    ("weight is a string", lambda o: step(weights=("1", 1.0), out=o), TypeError, "weights must be a number"),
    ("weight is None", lambda o: step(weights=(None, 1.0), out=o), TypeError, "weights must be a number"),
    ("weight is a boolean", lambda o: step(weights=(True, 1.0), out=o), TypeError, "weights must be a number"),
    ("weight is complex", lambda o: step(weights=(1j, 1.0), out=o), TypeError, "weights must be a number"),
    ("rows of a wrong length", lambda o: step(weights=(B[:3], 1.0), out=o), ValueError, r"shape \[4\].*got \[3\]"),
    ("rows in 2-D", lambda o: step(weights=(torch.ones(4, 3), 1.0), out=o), ValueError, r"got \[4, 3\]"),
    ("rows of integers", lambda o: step(weights=(B.long(), 1.0), out=o), TypeError, "weights must be floating"),
    ("rows on meta", lambda o: step(weights=(B.to("meta"), 1.0), out=o), ValueError, "weights must be on the device"),
    ("rows with gradient", lambda o: step(weights=(B.clone().requires_grad_(), 1.0)), ValueError, "detach it"),
    ("one tensor, wrong columns", lambda o: step(weights=torch.ones(4, 3), out=o), ValueError, r"\[B, 2\]; got"),
    ("one tensor, wrong rows", lambda o: step(weights=torch.ones(3, 2), out=o), ValueError, r"\[4\].*got \[3\]"),
    ("one tensor, 1-D", lambda o: step(weights=torch.ones(2), out=o), ValueError, r"weights must have shape \[B, 2\]"),
    ("w_z is NaN", lambda o: step(w_z=NAN, seed=1, out=o), ValueError, "w_z must be finite"),
    ("w_z of a wrong length", lambda o: step(w_z=B[:2], seed=1, out=o), ValueError, "w_z must be a number or"),
    ("diffusion is NaN", lambda o: em(diffusion=NAN, out=o), ValueError, "diffusion must be finite"),
    ("diffusion is infinite", lambda o: em(diffusion=INF, out=o), ValueError, "diffusion must be finite"),
    ("dt is NaN", lambda o: em(dt=NAN, out=o), ValueError, "must be finite; got nan"),
    ("dt is a string", lambda o: em(dt="0.1", out=o), TypeError, "dt must be a number"),
    ("dt of a wrong length", lambda o: em(dt=B[:3], out=o), ValueError, r"got \[3\]"),
    ("x0 is a string", lambda o: step(x0=("1", 1.0), out=o), TypeError, "x0 must be a number"),
    ("folded weight is None", lambda o: step(weights=(1.0, None), x0=(1.0, 1.0), out=o), TypeError, "weights must be"),
    # x0, clamp, second
    ("x0 without inputs", lambda o: step(inputs=(), weights=(1.0,), x0=(1.0, 1.0), out=o), ValueError, "not be empty"),
    ("clamp without inputs", lambda o: step(inputs=(), weights=(1.0,), clamp=(0, 1), out=o), ValueError, "not be empty"),
    ("second x0 without inputs", lambda o: step(inputs=(), weights=(1.0,), second="x0"), ValueError, "not be empty"),
    ("c_skip is NaN", lambda o: step(x0=(NAN, 1.0), clamp=(0, 1), out=o), ValueError, "x0 must be finite"),
    ("c_out is infinite", lambda o: step(x0=(1.0, INF), clamp=(0, 1), out=o), ValueError, "x0 must be finite"),
    ("clamp reversed", lambda o: step(clamp=(1, -1), out=o), ValueError, r"low <= high; got \(1, -1\)"),
    ("clamp is NaN", lambda o: step(clamp=(NAN, 1), out=o), ValueError, "low <= high"),
    ("clamp of three", lambda o: step(clamp=(0, 1, 2), out=o), ValueError, "low, high"),
    ("second by a wrong name", lambda o: step(second="x1", out=o), ValueError, 'second must be "x0"'),
    ("second by a wrong tuple", lambda o: step(second=("both", 1.0, 1.0), out=o), ValueError, "second must be"),
    ("pair of one", lambda o: step(second=("pair", 1.0), out=o), ValueError, "second must be"),
    ("second is NaN", lambda o: step(second=NAN, out=o), ValueError, "second must be finite"),
    ("second_dtype alone", lambda o: step(second_dtype=F16, out=o), ValueError, "second_dtype needs second"),
    ("second_dtype of integers", lambda o: step(second=1.0, second_dtype=torch.int32, out=o), TypeError, "second_dtype"),
    ("second_out alone", lambda o: step(second_out=torch.ones(4, 3), out=o), ValueError, "second_out needs second"),
    # outputs
    ("out is a list", lambda o: step(out=[1.0]), TypeError, "out must be a tensor; got list"),
    ("out is a number", lambda o: em(out=3.0), TypeError, "out must be a tensor; got float"),
    ("out is False", lambda o: step(out=False), TypeError, "out must be a tensor; got bool"),
    ("out of a scaled input", lambda o: ops.scale_input(X, 2.0, out=[1.0]), TypeError, "out must be a tensor; got list"),
    ("out of a cast input", lambda o: ops.scale_input(X, 2.0, dtype=F16, out=[1.0]), TypeError, "out must be a tensor; got list"),
    ("out of an EDM input", lambda o: ops.edm_input(X, 2.0, out="a"), TypeError, "out must be a tensor; got str"),
    ("out of a cast EDM input", lambda o: ops.edm_input(X, 2.0, dtype=F16, out=True), TypeError, "out must be a tensor; got bool"),
    ("out of an EDM output", lambda o: ops.edm_output(X, M, 2.0, out=(X,)), TypeError, "out must be a tensor; got tuple"),
    ("out of a consistency output", lambda o: ops.consistency_output(X, M, 2.0, out=3), TypeError, "out must be a tensor; got int"),
    ("out of an ODE step", lambda o: ops.pf_ode_step(X, M, 2.0, 1.0, out=False), TypeError, "out must be a tensor; got bool"),
    ("out of a Heun step", lambda o: ops.heun_step(X, M, 2.0, 1.0, M, out=X.numpy()), TypeError, "out must be a tensor; got ndarray"),
    ("out of added noise", lambda o: ops.add_noise(X, 2.0, seed=1, out=[1.0]), TypeError, "out must be a tensor; got list"),
    ("second_out is a list", lambda o: step(second=1.0, second_out=[1.0]), TypeError, "second_out must be a tensor; got list"),
    ("out of noise", lambda o: noise.normal((4, 3), 1, out=[1.0]), TypeError, "out must be a"),
    ("out of another shape", lambda o: step(out=o[:2]), ValueError, r"out must have the shape of x, \[4, 3\]"),
    ("out of another dtype", lambda o: em(out=o.double()), TypeError, "out must be torch.float32; got torch.float64"),
    ("out on another device", lambda o: em(out=META), ValueError, "out must be on the device of x"),
    ("out in another layout", lambda o: em(out=torch.full((3, 4), NAN).T), ValueError, "out must have the layout of x"),
    ("out is expanded", lambda o: em(out=o[:1].expand(4, 3)), ValueError, "layout"),
    ("out needs a gradient", lambda o: em(out=o.clone().requires_grad_()), ValueError, "not require a gradient"),
    ("x needs a gradient", lambda o: em(x=X.clone().requires_grad_(), out=o), ValueError, "automatic diff"),
    ("drift needs a gradient", lambda o: em(drift=M.clone().requires_grad_(), out=o), ValueError, "automatic diff"),
    ("second_out's dtype", lambda o: step(second=1.0, second_out=torch.ones(4, 3, dtype=F16), out=o), TypeError, "second_out must be"),
    ("second_out's shape", lambda o: step(second=1.0, second_out=torch.ones(3, 4), out=o), ValueError, "second_out must have"),
    ("out negates", lambda o: em(out=torch._neg_view(torch.full((4, 3), NAN))), ValueError, "out must be a plain tensor; got a view that negates"),
    ("noise that negates", lambda o: noise.normal((4, 3), 1, out=torch._neg_view(torch.full((4, 3), NAN))), ValueError, "out must be a plain tensor"),
    ("second_out is out", lambda o: step(second=1.0, out=o, second_out=o), ValueError, "second_out overlaps out"),
    ("second_out is x", lambda o: step(second=1.0, second_out=X, out=o), ValueError, "second_out overlaps x"),
    ("second_out is an input", lambda o: step(second=1.0, second_out=M, out=o), ValueError, r"second_out overlaps inputs\[0\]"),
    # seeds and places
    ("seed is a string", lambda o: em(seed="1", out=o), TypeError, "seed must be an int.*got str"),
    ("seed is a float", lambda o: em(seed=1.0, out=o), TypeError, "seed must be an int.*got float"),
    ("seed is a boolean", lambda o: em(seed=True, out=o), TypeError, "seed must be an int.*got bool"),
    ("seed is negative", lambda o: em(seed=-1, out=o), ValueError, r"seed must lie in \[0, 2\^64\); got -1"),
    ("seed is too large", lambda o: em(seed=2**64, out=o), ValueError, r"seed must lie in \[0, 2\^64\)"),
    ("seeds as a list of another length", lambda o: em(seed=[1, 2], out=o), ValueError, "seed must hold 4 entries, one per sample; got 2"),
    ("seeds in float", lambda o: em(seed=B, out=o), TypeError, "seed must be an int64 tensor; got torch.float64"),
    ("seeds in int32", lambda o: em(seed=B.int(), out=o), TypeError, "seed must be an int64 tensor"),
    ("too few seeds", lambda o: em(seed=torch.arange(3), out=o), ValueError, r"seed must have shape \[4\].*got \[3\]"),
    ("0-dim seed", lambda o: em(seed=torch.tensor(3), out=o), ValueError, r"seed must have shape \[4\]"),
    ("seeds and offset", lambda o: em(seed=torch.arange(4), offset=1, out=o), ValueError, "offset must be 0"),
    ("a key of another batch", lambda o: em(seed=noise.key(torch.arange(3), 3), out=o), ValueError, "key holds 3 rows"),
    ("a key and offset", lambda o: em(seed=noise.key(1, 4), offset=2, out=o), ValueError, "offset and ids belong to"),
    ("a key and its own offset", lambda o: step(w_z=1.0, seed=noise.key(1, 4, offset=5), offset=5, out=o), ValueError, "offset and ids belong to"),
    ("a key of a string", lambda o: em(seed=noise.Key("1"), out=o), TypeError, "seed of a Key must be an int; got str"),
    ("a key out of range", lambda o: em(seed=noise.Key(2**64), out=o), ValueError, "seed of a Key must lie in"),
    ("a key with a negative offset", lambda o: em(seed=noise.Key(1, -1), out=o), ValueError, "offset of a Key must lie in"),
    ("a key of floats", lambda o: em(seed=noise.Key(table=torch.zeros(4, 2)), out=o), TypeError, "table of a Key must be an int64"),
    ("a key at the last id", lambda o: em(seed=noise.Key(1, 2**56 - 3), out=o), ValueError, "offset must leave"),
    ("a key in 1-D", lambda o: em(seed=noise.Key(table=torch.arange(4)), out=o), ValueError, r"shape \[B, 2\].*got \[4\]"),
    ("offset is negative", lambda o: em(offset=-1, out=o), ValueError, r"offset must leave.*\[0, 2\^56\); got -1"),
    ("offset is too large", lambda o: em(offset=2**56 - 3, out=o), ValueError, "offset must leave"),
    ("offset is a float", lambda o: em(offset=1.0, out=o), TypeError, "offset must be an int; got float"),
    ("stream is negative", lambda o: em(stream=-1, out=o), ValueError, "stream must lie in"),
    ("stream is too large", lambda o: em(stream=256, out=o), ValueError, "stream must lie in .*got 256"),
    ("stream is a float", lambda o: em(stream=1.0, out=o), TypeError, "stream must be an int"),
    ("draw is negative", lambda o: em(draw=-1, out=o), ValueError, "draw must lie in"),
    ("draw is too large", lambda o: em(draw=2**32, out=o), ValueError, "draw must lie in"),
    ("draw is a float", lambda o: em(draw=0.5, out=o), TypeError, "draw must be an int; got float"),
    # the named steps
    ("sigma is 0", lambda o: ops.pf_ode_step(X, M, 0.0, 0.0, out=o), ValueError, "sigma must be positive; got 0"),
    ("sigma is negative", lambda o: ops.pf_ode_step(X, M, -1.0, 0.5, out=o), ValueError, "sigma must be positive"),
    ("sigma is NaN", lambda o: ops.pf_ode_step(X, M, NAN, 0.5, out=o), ValueError, "sigma must be finite; got nan"),
    ("sigma is infinite", lambda o: ops.pf_ode_step(X, M, INF, 1.0, out=o), ValueError, "must be finite"),
    ("sigma_next is negative", lambda o: ops.heun_step(X, M, 1.0, -0.5, out=o), ValueError, "sigma_next must not be negative"),
    ("sigma_next is NaN", lambda o: ops.heun_step(X, M, 1.0, NAN, M, out=o), ValueError, "sigma_next must be finite"),
    ("corrector at 0", lambda o: ops.heun_step(X, M, 1.0, 0.0, M, out=o), ValueError, "positive for the corrector"),
    ("D' of another shape", lambda o: ops.heun_step(X, M, 1.0, 0.5, M[:2], out=o), ValueError, r"inputs\[1\]"),
    ("levels of a wrong length", lambda o: ops.pf_ode_step(X, M, B[:3], 0.1, out=o), ValueError, r"got \[3\]"),
    ("sigma_data is 0", lambda o: ops.consistency_output(X, M, 1.0, sigma_data=0.0, out=o), ValueError, "sigma_data must be positive"),
    ("sigma_data is NaN", lambda o: ops.consistency_output(X, M, 1.0, sigma_data=NAN, out=o), ValueError, "sigma_data"),
    ("consistency at NaN", lambda o: ops.consistency_output(X, M, NAN, out=o), ValueError, "must be finite"),
    ("sigma_data of EDM", lambda o: ops.edm_output(X, M, 1.0, -0.5, out=o), ValueError, "sigma_data must be positive; got -0.5"),
    ("sigma_data of the input", lambda o: ops.edm_input(X, B, INF, out=o), ValueError, "sigma_data must be finite; got inf"),
    ("sigma_data of every sample", lambda o: ops.edm_output(X, M, 1.0, B, out=o), ValueError, "sigma_data must be a number"),
    ("sigma_data with a gradient", lambda o: ops.consistency_output(X, M, 1.0, sigma_data=torch.tensor(0.5, requires_grad=True), out=o), ValueError, "sigma_data must not require a gradient"),
    ("EDM at a negative level", lambda o: ops.edm_output(X, M, -1.0, out=o), ValueError, "sigma must not be negative; got -1.0"),
    ("EDM's input at NaN", lambda o: ops.edm_input(X, NAN, out=o), ValueError, "sigma must be finite"),
    ("EDM's levels of a wrong length", lambda o: ops.edm_output(X, M, B[:3], out=o), ValueError, r"got \[3\]"),
    ("EDM's input of integers", lambda o: ops.edm_input(X, 1.0, dtype=torch.int8), TypeError, "second_dtype must be"),
    ("c_in is NaN", lambda o: ops.scale_input(X, NAN, out=o), ValueError, "c_in must be finite"),
    ("dtype of integers", lambda o: ops.scale_input(X, 1.0, dtype=torch.int8), TypeError, "second_dtype must be"),
    ("noise at NaN", lambda o: ops.add_noise(X, NAN, seed=1, out=o), ValueError, "sigma must be finite"),
    ("alpha is NaN", lambda o: ops.add_noise(X, 1.0, alpha=NAN, seed=1, out=o), ValueError, "alpha must be finite"),
    ("sigma_next of the pair", lambda o: ops.add_noise(X, 1.0, sigma_next=NAN, seed=1, out=o), ValueError, "sigma_next must be finite"),
    ("noise by a string", lambda o: ops.add_noise(X, 1.0, seed="a", out=o), TypeError, "seed must be an int"),
    # the noise
    ("shape without a batch", lambda o: noise.normal((), 1), ValueError, "shape must have a batch dimension"),
    ("negative shape", lambda o: noise.normal((4, -3), 1), ValueError, "shape must not be negative"),
    ("normal of integers", lambda o: noise.normal((4, 3), 1, dtype=torch.int64), TypeError, "dtype must be float64"),
    ("normal, draw", lambda o: noise.normal((4, 3), 1, draw=2**32, out=o), ValueError, "draw must lie in"),
    ("normal, stream", lambda o: noise.normal((4, 3), 1, stream=256, out=o), ValueError, "stream must lie in"),
    ("normal, seed", lambda o: noise.normal((4, 3), 1.5, out=o), TypeError, "seed must be an int"),
    ("normal, out's shape", lambda o: noise.normal((3, 4), 1, out=o), ValueError, r"out must have shape \[3, 4\]"),
    ("normal, out is a list", lambda o: noise.normal((3, 4), 1, out=[1]), TypeError, "out must be a tensor"),
    ("normal, out of integers", lambda o: noise.normal((4, 3), 1, out=X.long()), TypeError, "must be float64"),
    ("normal, out not dense", lambda o: noise.normal((4, 3), 1, out=torch.full((4, 6), NAN)[:, ::2]), ValueError, "layout"),
    ("uniform of integers", lambda o: noise.uniform((4,), 1, dtype=torch.int64), TypeError, "dtype must be float64"),
    ("uniform, draw", lambda o: noise.uniform((4,), 1, draw=-1), ValueError, "draw must lie in"),
    ("uniform, stream", lambda o: noise.uniform((4,), 1, stream=300), ValueError, "stream must lie in"),
    ("uniform, shape", lambda o: noise.uniform((), 1), ValueError, "batch dimension"),
    ("ids in float", lambda o: noise.normal((4, 3), 1, ids=B, out=o), TypeError, "ids must be an int64 tensor"),
    ("ids as a list", lambda o: noise.normal((4, 3), 1, ids=[0, 1, 2, 3], out=o), TypeError, "ids must be an int64"),
    ("too few ids", lambda o: noise.normal((4, 3), 1, ids=torch.arange(3), out=o), ValueError, r"ids must have shape \[4\]"),
    ("negative ids", lambda o: noise.normal((4, 3), 1, ids=torch.arange(4) - 1, out=o), ValueError, r"ids must lie in \[0, 2\^56\)"),
    ("ids too large", lambda o: noise.normal((4, 3), 1, ids=torch.arange(4) + 2**56 - 3, out=o), ValueError, "ids must lie in"),
    ("ids and offset", lambda o: noise.normal((4, 3), 1, ids=torch.arange(4), offset=1, out=o), ValueError, "offset must be 0"),
    ("key, seed", lambda o: noise.key("x", 4), TypeError, "seed must be an int"),
    ("key, offset", lambda o: noise.key(1, 4, offset=2**56), ValueError, "offset must leave"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "text"), [b[1:] for b in TABLE], ids=[b[0] for b in TABLE]
)
def test_refused(call, error, text):
    out = torch.full((4, 3), NAN)
    kept = [t.clone() for t in (X, M)]
    with pytest.raises(error, match=text):
        call(out)
    assert out.isnan().all(), "the output was written to"
    assert all(torch.equal(a, b) for a, b in zip((X, M), kept, strict=True))


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("shift", [1, 5, 11])
def test_shifted_overlap(shift, second):
    """Memory that is partly shared is refused; memory that touches is not, nor is the exact same."""
    base = torch.arange(24.0)
    x, out = base[:12].view(4, 3), base[shift : shift + 12].view(4, 3)
    before = base.clone()
    options = {"second": 1.0, "second_out": out} if second else {"out": out}
    for call in (lambda: step(x, (M,), **options), lambda: step(M, (x,), **options)):
        with pytest.raises(ValueError, match=r"out overlaps (x|inputs\[0\]) in memory"):
            call()
    if not second:
        with pytest.raises(ValueError, match="overlaps"):
            em(x=x, out=out)
        with pytest.raises(ValueError, match="overlaps"):
            em(drift=x, out=out)
    assert torch.equal(base, before)
    step(x, (M,), out=base[12:].view(4, 3))


def test_same_memory_in_another_order_overlaps():
    base = torch.arange(9.0).view(3, 3)
    with pytest.raises(ValueError, match="overlaps"):
        ops.pf_ode_step(torch.ones(3, 3), base.T, 2.0, 1.0, out=base)
    with pytest.raises(ValueError, match="overlaps"):
        ops.pf_ode_step(
            torch.ones(3, 3), base.view(torch.int32).view(torch.float32).T, 2.0, 1.0, out=base
        )
    half = torch.zeros(18, dtype=F16)
    with pytest.raises(ValueError, match="overlaps"):
        ops.pf_ode_step(
            torch.ones(3, 3), half[:9].view(3, 3), 2.0, 1.0, out=half.view(F32).view(3, 3)
        )


def test_the_operator_itself_checks():
    """Called below the Python checks, the binary still never reads or writes outside."""
    op = torch.ops.cmsolvers.weighted_step
    w, plain = [0.5, 0.5, 0.0, 0.0, 1.0, 0.0, 0.0], ([], [], rules.WEIGHTS)
    place, table = [1, 0, 0, 0], torch.zeros(3, 2, dtype=torch.int64)

    def given(t: Tensor, rule: int = rules.WEIGHTS, at: int = 0, count: int = 7) -> Any:
        return [0.5] * count, [t], [at], rule

    for text, arguments in (
        ("shape of x", (X, [M[:2]], w, *plain, [], None, [])),
        ("numbers must hold 7", (X, [M], w[:3], *plain, [], None, [])),
        ("must be floating of shape", (X, [M], *given(B[:3]), [], None, [])),
        ("must be floating of shape", (X, [M], *given(torch.ones(4, 1)), [], None, [])),
        ("must be floating of shape", (X, [M], *given(B.long()), [], None, [])),
        ("numbers must hold 7", (X, [M], *given(B, count=6), [], None, [])),
        ("places must name", (X, [M], *given(B, at=7), [], None, [])),
        ("places must name", (X, [M], *given(B, at=-1), [], None, [])),
        ("places must hold 1", (X, [M], w, [B], [], rules.WEIGHTS, [], None, [])),
        ("rule must be", (X, [M], w, [], [], 8, [], None, [])),
        ("rule must be", (X, [M], w, [], [], -1, [], None, [])),
        ("numbers must hold 2", (X, [M], [1.0, 0.5, 0.5], [], [], rules.PF_ODE, [], None, [])),
        ("inputs must hold 1", (X, [], *given(B, rules.PF_ODE, count=2), [], None, [])),
        ("inputs must hold 2", (X, [M], *given(B, rules.HEUN, count=2), [], None, [])),
        ("inputs must hold 1", (X, [M, M], *given(B, rules.EULER_MARUYAMA), place, None, [])),
        ("places must name", (X, [M], *given(B, rules.CONSISTENCY, 2, 3), [], None, [])),
        ("places must name", (X, [M], *given(B, rules.EDM_OUTPUT, 1, 2), [], None, [])),
        ("inputs must hold 0", (X, [M], *given(B, rules.EDM_INPUT, count=2), [], None, [])),
        ("must not be empty", (X, [], *given(B, rules.FOLDED, count=6), [], None, [])),
        ("noise must be empty", (X, [M], w, *plain, [1, 2], None, [])),
        ("key must have shape", (X, [M], w, *plain, place, table, [])),
        ("clamp must be empty", (X, [M], w, *plain, [], None, [1.0])),
        ("at most 4", (X, [M] * 5, [0.0] * 11, *plain, [], None, [])),
        ("must not be empty", (X, [], [0.0] * 6, *plain, [], None, [0.0, 1.0])),
        ("dtype of x", (X, [M.double()], w, *plain, [], None, [])),
        ("key must be int64", (X, [M], w, *plain, place, torch.zeros(4, 2), [])),
    ):
        with pytest.raises((ValueError, TypeError), match=text):
            op(*arguments)
    write = torch.ops.cmsolvers.weighted_step_out
    for text, out, second_out, second in (
        ("out must be given", None, None, 0),
        ("second_out must go with second", None, M.clone(), 0),
        ("second_out must go with second", X.clone(), None, 1),
        ("out must have the shape of x", X[:2].clone(), None, 0),
        ("second_out must have the layout", X.clone(), M[:2].clone(), 1),
        ("second_out must have the layout", X.clone(), torch.ones(4, 6)[:, ::2], 1),
        ("out must have the shape of x", None, M[:2].clone(), 1),
        ("out must be dense", None, torch.ones(4, 6)[:, ::2], 1),
    ):
        with pytest.raises((ValueError, TypeError), match=text):
            write(out, second_out, X, [M], w, *plain, [], None, [], second)


def test_enough_cases():
    assert len(TABLE) >= 60 and len({b[0] for b in TABLE}) == len(TABLE)
