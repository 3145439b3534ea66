"""Weights and levels given as tensors: the bits of host numbers, from any dtype and stride, in one
launch; and outputs that nobody reads are not made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cmsolvers import noise, ops
from cmsolvers.ops import rules
from support.exact import SETS, assert_same_bits, instruction_set, reference_kernels

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = [F64, F32, F16, BF16]
X, M, M2 = (torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(k)) for k in range(3))
S = torch.tensor([80.0, 3.7, 1.0, 0.3, 0.01], dtype=F64)
T = torch.tensor([71.0, 0.125, 0.9, 0.1, 0.002], dtype=F64)

Step = Callable[..., Any]
# Each takes x, two inputs, two levels and the id of the first sample.
STEPS: dict[str, Step] = {
    "pf_ode": lambda x, m, n, s, t, b: ops.pf_ode_step(x, m, s, t),
    "predictor": lambda x, m, n, s, t, b: ops.heun_step(x, m, s, t),
    "heun": lambda x, m, n, s, t, b: ops.heun_step(x, m, s, t, n),
    "euler_maruyama": lambda x, m, n, s, t, b: ops.euler_maruyama_step(
        x, m, s, t, seed=5, draw=2, offset=b
    ),
    "consistency": lambda x, m, n, s, t, b: ops.consistency_output(x, m, s, sigma_min=0.0),
    "edm_input": lambda x, m, n, s, t, b: ops.edm_input(x, s),
    "edm_input, float16": lambda x, m, n, s, t, b: ops.edm_input(x, s, 0.7, dtype=F16),
    "edm_output": lambda x, m, n, s, t, b: ops.edm_output(x, m, s, 0.3),
    "scale_input": lambda x, m, n, s, t, b: ops.scale_input(x, s),
    "scale_input, float16": lambda x, m, n, s, t, b: ops.scale_input(x, s, dtype=F16),
    "add_noise": lambda x, m, n, s, t, b: ops.add_noise(x, s, alpha=t, seed=5, offset=b),
    "pair": lambda x, m, n, s, t, b: ops.add_noise(x, s, sigma_next=t, seed=5, offset=b),
    "weights": lambda x, m, n, s, t, b: ops.weighted_step(x, (m, n), (t, s, 0.5)),
    "x0": lambda x, m, n, s, t, b: ops.weighted_step(x, (m, n), (t, s, 0.5), x0=(s, 0.3)),
    "clamp": lambda x, m, n, s, t, b: ops.weighted_step(
        x, (m,), (t, 0.5), x0=(s, t), clamp=(-1.0, 1.0), second=s
    ),
}
NAMED = ["pf_ode", "predictor", "heun", "euler_maruyama", "consistency", "scale_input"]
NAMED += ["scale_input, float16", "add_noise", "pair", "edm_input", "edm_input, float16"]
NAMED += ["edm_output"]


def spread(values: Tensor) -> Tensor:
    """The same values, each third of a larger tensor."""
    return torch.stack((values, values + 1, values + 2), dim=1).flatten()[::3]


def one_by_one(step: Step, s: Tensor, t: Tensor, dtype: torch.dtype = F32) -> tuple[Tensor, ...]:
    """Sample after sample, with numbers."""
    x, m, n = (v.to(dtype) for v in (X, M, M2))
    parts = []
    for b in range(len(x)):
        only = slice(b, b + 1)
        result = step(x[only], m[only], n[only], float(s[b]), float(t[b]), b)
        parts.append((result,) if isinstance(result, Tensor) else result)
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


@pytest.mark.parametrize("name", STEPS)
class TestSameBits:
    @pytest.mark.parametrize("levels", DTYPES, ids=str)
    @pytest.mark.parametrize("state", DTYPES, ids=str)
    def test_as_numbers(self, name, levels, state):
        """In every instruction set, contiguous and strided."""
        s, t = S.to(levels), T.to(levels)
        want = one_by_one(STEPS[name], s, t, state)
        x, m, n = (v.to(state) for v in (X, M, M2))
        for kind in SETS:
            with instruction_set(kind):
                for a, b in ((s, t), (spread(s), spread(t)), (s.double(), spread(t))):
                    assert_same_bits(STEPS[name](x, m, n, a, b, 0), want, f"{name} {kind}")

    def test_negative_and_zero(self, name):
        if name in ("euler_maruyama", "weights", "x0", "pf_ode", "add_noise"):
            t = torch.tensor([-0.5, 0.0, 0.25, -0.0, 1.5], dtype=F64)
            t = t.abs() if name == "pf_ode" else t
            want = one_by_one(STEPS[name], S, t)
            assert_same_bits(STEPS[name](X, M, M2, S, t, 0), want)

    def test_one_number_and_one_tensor(self, name):
        for s, t in ((S, torch.full_like(S, 0.25)), (torch.full_like(S, 90.0), T)):
            want = one_by_one(STEPS[name], s, t)
            if t[0] == t[1]:
                got = STEPS[name](X, M, M2, s, 0.25, 0)
            else:
                got = STEPS[name](X, M, M2, 90.0, t, 0)
            assert_same_bits(got, want)

    @pytest.mark.parametrize("shape", [(1,), ()], ids=str)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_one_value_for_all(self, name, shape, dtype):
        s, t = torch.full(shape, 3.7, dtype=dtype), torch.full(shape, 0.3, dtype=dtype)
        got = STEPS[name](X, M, M2, s, t, 0)
        assert_same_bits(got, STEPS[name](X, M, M2, float(s), float(t), 0))
        assert_same_bits(STEPS[name](X, M, M2, s, t.expand(5), 0), got)

    def test_layouts(self, name):
        """Memory orders in which a sample is, and is not, one run."""
        x, m, n = (
            torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(k)) for k in range(3)
        )
        want = STEPS[name](x, m, n, S, T, 0)
        for change in (
            lambda v: v.contiguous(memory_format=torch.channels_last),
            lambda v: v.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
            lambda v: v.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        ):
            assert_same_bits(STEPS[name](*(change(v) for v in (x, m, n)), S, T, 0), want)

    def test_plain_torch(self, name):
        """The reference makes the same weights; it has no fused multiply-add."""
        got = STEPS[name](X.double(), M.double(), M2.double(), S.float(), T.half(), 0)
        with reference_kernels():
            plain = STEPS[name](X.double(), M.double(), M2.double(), S.float(), T.half(), 0)
        torch.testing.assert_close(got, plain, rtol=1e-3 if "16" in name else 1e-12, atol=1e-12)

    def test_empty_and_tiny(self, name):
        none = torch.empty(0, dtype=F64)
        result = STEPS[name](X[:0], M[:0], M2[:0], none, none, 0)
        assert (result if isinstance(result, Tensor) else result[0]).shape == X[:0].shape
        one = [v[:1, 0, 0] for v in (X, M, M2)]
        whole = STEPS[name](*one, S[:1], T[:1], 0)
        assert_same_bits(whole, STEPS[name](*one, float(S[0]), float(T[0]), 0))


class TestArguments:
    def test_a_table_of_weights_is_read_in_place(self):
        table = torch.randn(3, 5, dtype=F64).T
        want = ops.weighted_step(X, (M, M2), list(table.unbind(1)))
        for given in (table, table.contiguous(), spread_rows(table)):
            assert_same_bits(ops.weighted_step(X, (M, M2), given), want)
            assert_same_bits(ops.weighted_step(X, (M, M2), given, clamp=(-99.0, 99.0)), want)
        one = table[:1]
        numbers = one[0].tolist()
        want = ops.weighted_step(X, (M, M2), numbers)
        assert_same_bits(ops.weighted_step(X, (M, M2), one), want)

    @pytest.mark.parametrize("clamp", [None, (-100.0, 100.0)], ids=["fast", "general"])
    def test_levels_in_the_memory_that_is_written(self, clamp):
        x, m = torch.rand(6, 4) + 1, torch.randn(6, 4)
        want = ops.weighted_step(x, (m,), (x[:, 0].clone(), x[:, 1].clone()), clamp=clamp)
        ops.weighted_step(x, (m,), (x[:, 0], x[:, 1]), clamp=clamp, out=x)
        assert_same_bits(x, want)
        second = torch.rand(6, 4)
        level = second[:, 0].clone()
        got = ops.weighted_step(m, (), (second[:, 0],), second=0.5, second_out=second)
        assert_same_bits(got, ops.weighted_step(m, (), (level,), second=0.5))

    def test_a_negated_view(self):
        negated = torch.complex(torch.zeros(5), S.float()).conj().imag
        assert negated.is_neg()
        for given in (X, X.clone().requires_grad_()):
            got = ops.weighted_step(given, (M,), (negated, 1.0))
            assert_same_bits(got, ops.weighted_step(X, (M,), (-S.float(), 1.0)))

    def test_bad_values_are_not_read(self):
        """Levels in tensors are not checked; what they make is the caller's."""
        bad = torch.tensor([float("nan"), 0.0, -1.0, float("inf"), 1.0], dtype=F64)
        y = ops.pf_ode_step(X, M, bad, 0.5)
        assert y[0].isnan().all() and not y[1].isfinite().any() and y[4].isfinite().all()
        assert_same_bits(y[4:], ops.pf_ode_step(X[4:], M[4:], 1.0, 0.5))

    @pytest.mark.parametrize("sigma_next", [-0.5, float("nan"), "1", True])
    def test_numbers_beside_tensors_are_checked(self, sigma_next):
        with pytest.raises((ValueError, TypeError), match="sigma_next must"):
            ops.pf_ode_step(X, M, S, sigma_next)
        with pytest.raises((ValueError, TypeError), match="sigma_next must"):
            ops.heun_step(X, M, S, sigma_next, M2)
        with pytest.raises(ValueError, match="sigma must be positive"):
            ops.heun_step(X, M, -1.0, T, M2)
        with pytest.raises(ValueError, match="positive for the corrector"):
            ops.heun_step(X, M, S, 0.0, M2)
        with pytest.raises(ValueError, match="dt must be finite"):
            ops.euler_maruyama_step(X, M, S, float("inf"), seed=1)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", [(5,), (1,), ()], ids=str)
    def test_identity_at_a_rounded_boundary(self, dtype, shape):
        f = torch.full_like(X, float("inf"))
        levels = torch.full(shape, 0.002, dtype=dtype)
        assert_same_bits(ops.consistency_output(X, f, levels), X)
        with reference_kernels():
            assert_same_bits(ops.consistency_output(X, f, levels), X)
        x = X.clone().requires_grad_()
        y = ops.consistency_output(x, torch.ones_like(X), levels)
        assert_same_bits(y, X)
        assert_same_bits(torch.autograd.grad(y.sum(), x)[0], torch.ones_like(X))

    def test_every_other_level_keeps_its_boundary(self):
        """Levels in float32 get the weights of the same levels in float64, and of numbers."""
        end, x = 0.0035, X.double()
        f = torch.ones_like(x)
        levels = torch.tensor([0.0036, 0.0034, end, 0.5, 80.0])
        y = ops.consistency_output(x, f, levels, sigma_min=end)
        assert_same_bits(y, ops.consistency_output(x, f, levels.double(), sigma_min=end))
        for b, s in enumerate(levels.tolist()):
            alone = ops.consistency_output(x[b : b + 1], f[b : b + 1], s, sigma_min=end)
            assert_same_bits(y[b : b + 1], alone)
        rounded = levels[2].item()
        assert rounded != end  # and a boundary that is rounded for all levels is another function
        assert not torch.equal(y, ops.consistency_output(x, f, levels, sigma_min=rounded))

    @pytest.mark.parametrize("end", [0.002, 1e-3 / 3, 0.1, 7e4, 3e-9, 1e-320, 1.0 + 2.0**-9])
    def test_held_is_what_tensors_hold(self, end):
        levels = torch.tensor(end, dtype=F32)
        expected = [levels.to(dtype).item() for dtype in (F32, torch.float16, torch.bfloat16)]
        assert list(rules.held(end)) == expected
        for level in expected[: 3 if end < 6e4 else 1]:
            y = ops.consistency_output(X, torch.full_like(X, float("inf")), level, sigma_min=end)
            assert_same_bits(y, X)

    def test_levels_changed_before_the_backward_pass(self):
        x, levels = X.clone().requires_grad_(), S.clone()
        y = ops.pf_ode_step(x, M, levels, 0.5)
        levels.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def spread_rows(table: Tensor) -> Tensor:
    """The same values in every second row and column of a larger table."""
    wide = torch.zeros(2 * table.shape[0], 2 * table.shape[1], dtype=table.dtype)
    wide[::2, ::2] = table
    return wide[::2, ::2]


class Recorded(TorchDispatchMode):
    """Notes every operator below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@contextmanager
def profiled() -> Iterator[list[str]]:
    names: list[str] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield names
    names += [e.name for e in profile.events() if "::" in e.name]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("levels", [S, S.float(), spread(S.half()), S[:1], S[0]], ids=list("abcde"))
class TestOneLaunch:
    def test_operators(self, name, levels):
        """One of ours, and none of torch's but those that give memory."""
        following = levels * 0.75
        with Recorded() as recorded:
            STEPS[name](X, M, M2, levels, following, 0)
        ours = [n for n in recorded.names if n.startswith("cmsolvers::")]
        others = [n for n in recorded.names if not n.startswith(("cmsolvers::", "aten::empty"))]
        assert len(ours) == 1 and not others, recorded.names

    def test_what_runs(self, name, levels):
        """The short way too calls no operator of torch's but those that give memory."""
        following = levels * 0.75
        with profiled() as names:
            STEPS[name](X, M, M2, levels, following, 0)
        others = [n for n in names if not n.startswith(("cmsolvers::", "aten::empty"))]
        assert not others, names
        assert sum(n.startswith("cmsolvers::") for n in names) <= 1, names


def test_recording_can_find_something():
    """Negative control."""
    with Recorded() as recorded:
        ops.pf_ode_step(X, M, S * 1.0, 0.5)
    assert any(n.startswith("aten::mul") for n in recorded.names)
    with profiled() as names:
        ops.pf_ode_step(X, M, S * 1.0, 0.5)
    assert "aten::mul" in names


class TestSecondAlone:
    """scale_input to another dtype makes only what is asked for."""

    @pytest.mark.parametrize("state", DTYPES, ids=str)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("kind", SETS)
    def test_values(self, state, dtype, kind):
        for shape in ((5, 3, 7), (5, 2, 300, 4), (5,)):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(state)
            with instruction_set(kind):
                for c in (0.3, S.clamp(max=9.0)):
                    if dtype == state:
                        continue
                    pair = ops.weighted_step(
                        x, (), (0.0,), second=("pair", c, 0.0), second_dtype=dtype
                    )
                    assert_same_bits(ops.scale_input(x, c, dtype=dtype), pair[1])
                    out = torch.empty_like(x, dtype=dtype)
                    assert ops.scale_input(x, c, dtype=dtype, out=out) is out
                    assert_same_bits(out, pair[1])

    @pytest.mark.parametrize("out", [False, True])
    def test_memory(self, out):
        given = torch.empty_like(X, dtype=F16) if out else None
        with Recorded() as recorded:
            result = ops.scale_input(X, 0.5, dtype=F16, out=given)
        assert [n for n in recorded.names if n.startswith("cmsolvers::")] == [
            "cmsolvers::weighted_step_out"
        ]
        assert sum(n.startswith("aten::empty_like") for n in recorded.names) <= 1 + out
        assert result.dtype == F16

    @pytest.mark.filterwarnings("ignore:Warning only once for all operators")
    def test_plain_torch(self):
        want = ops.scale_input(X, S, dtype=BF16)
        with reference_kernels():
            assert_same_bits(ops.scale_input(X, S, dtype=BF16), want)

    def test_what_follows_x_is_kept(self):
        x = X.clone().requires_grad_()
        ops.scale_input(x, S, dtype=F64).sum().backward()
        torch.testing.assert_close(x.grad, S.float()[:, None, None].expand_as(X))
        scaled = lambda x: ops.scale_input(x, 0.5, dtype=F64)  # noqa: E731
        tangent = torch.func.jvp(scaled, (X,), (X,))[1]
        assert_same_bits(tangent, scaled(X))
        assert_same_bits(torch.func.vmap(scaled)(X), scaled(X))
        with torch.no_grad():
            assert_same_bits(scaled(x), scaled(X))

    def test_a_backward_pass_notices(self):
        out, factor = torch.ones_like(X, dtype=F64), torch.ones_like(X, dtype=F64)
        loss = (factor.requires_grad_() * out).sum()
        ops.scale_input(X, 0.5, dtype=F64, out=out)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


class TestTransforms:
    @pytest.mark.parametrize(
        "name", ["pf_ode", "heun", "consistency", "edm_output", "weights", "x0", "clamp"]
    )
    def test_derivatives(self, name):
        """Weights of all kinds among the tensors; checked against differences."""
        given = [v.double().requires_grad_() for v in (X[:, 0, :2], M[:, 0, :2], M2[:, 0, :2])]
        levels = (S[:, None].expand(5, 2)[:, 0].clamp(max=2.0), T.float() + 0.1)

        def step(*tensors: Tensor) -> Any:
            return STEPS[name](*tensors, *levels, 0)

        used = [v.detach() for v in given]
        call = step
        if name in ("pf_ode", "consistency", "clamp", "edm_output"):  # one input
            given = given[:2]
            call = lambda x, m: step(x, m, used[2])  # noqa: E731
        assert torch.autograd.gradcheck(call, given, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(call, given)

    @pytest.mark.parametrize(
        "name",
        ["pf_ode", "heun", "consistency", "edm_input", "edm_input, float16", "weights", "x0"],
    )
    @pytest.mark.parametrize("shape", [(4, 5), (4, 1), (4,)], ids=str)
    @pytest.mark.parametrize("both", [False, True])
    def test_vmap(self, name, shape, both):
        """Levels with and without the new dimension."""
        x, m, n = (
            torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(k)) for k in (3, 4, 5)
        )
        s, t = torch.rand(shape) + 1, torch.rand(shape if both else shape[1:])
        dims = (0, 0, 0, 0, 0 if both else None, None)
        got = torch.func.vmap(STEPS[name], dims)(x, m, n, s, t, 0)
        for i in range(4):
            want = STEPS[name](x[i], m[i], n[i], s[i], t[i] if both else t, 0)
            assert_same_bits(got[i], want)

    @pytest.mark.parametrize("name", NAMED)
    def test_levels_that_need_a_gradient_are_refused(self, name):
        with pytest.raises(ValueError, match="detach"):
            STEPS[name](X, M, M2, S.clone().requires_grad_(), T, 0)
        with torch.no_grad():
            want = STEPS[name](X, M, M2, S, T, 0)
            assert_same_bits(STEPS[name](X, M, M2, S.clone().requires_grad_(), T, 0), want)

    @pytest.mark.parametrize(
        "name",
        ["heun", "consistency", "pair", "scale_input, float16", "edm_input, float16", "edm_output"],
    )
    def test_compiled_whole(self, name):
        torch._dynamo.reset()
        compiled = torch.compile(STEPS[name], fullgraph=True, backend="aot_eager")
        for s, t in ((S, T[:1]), (S[0].float(), T[0])):
            assert_same_bits(compiled(X, M, M2, s, t, 0), STEPS[name](X, M, M2, s, t, 0))
        torch._dynamo.reset()


def test_noise_of_sample_levels_in_channels_last():
    """A sample is one run there, and is made in blocks."""
    x = torch.randn(5, 3, 16, 20).contiguous(memory_format=torch.channels_last)
    got = ops.add_noise(x, S, seed=3, stream=noise.TRAINING, draw=1)
    assert got.stride() == x.stride()
    assert_same_bits(got, ops.add_noise(x.contiguous(), S, seed=3, stream=noise.TRAINING, draw=1))
