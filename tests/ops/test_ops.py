"""Every step against extended precision on every kind of input; instruction sets to the bit."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmsolvers import noise, ops
from cmsolvers.ops import reference
from support.cases import Case, cases
from support.exact import (
    SETS,
    Exact,
    assert_accurate,
    assert_same_bits,
    exact_step,
    instruction_set,
    reference_kernels,
)
from support.modes import MODES, Mode

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
CASES = list(cases())


def z_of(x: Tensor, options: dict[str, Any]) -> Tensor | None:
    if "seed" not in options:
        return None
    place = {k: options[k] for k in ("draw", "offset")}
    shape = x.shape if x.dim() else (1,)
    return noise.normal(shape, options["seed"], stream=noise.STEPS, **place, dtype=F64).reshape(
        x.shape
    )


def exact_options(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k in ("w_z", "x0", "clamp", "second")}


def call(mode: Mode, case: Case) -> tuple[Tensor, ...]:
    x, inputs, weights, options = mode.arguments(case)
    result = ops.weighted_step(x, inputs, weights, **options)
    return (result,) if isinstance(result, Tensor) else result


@pytest.mark.parametrize("mode", MODES)
def test_against_extended_precision(mode):
    for case in CASES:
        x, inputs, weights, options = MODES[mode].arguments(case)
        before = [t.clone() for t in (x, *inputs)]
        result = ops.weighted_step(x, inputs, weights, **options)
        got = (result,) if isinstance(result, Tensor) else result
        z = z_of(x, options)
        want = exact_step(x, inputs, weights, z=z, **exact_options(options))
        for actual, exact in zip(got, want, strict=False):
            assert_accurate(actual, exact, x.dtype, str(case))
        assert len(got) == (1 if want[1] is None else 2)
        assert got[0].dtype == x.dtype and got[0].device == x.device
        assert got[0].stride() == torch.empty_like(x).stride(), str(case)
        if len(got) == 2:
            assert got[1].dtype == options.get("second_dtype", x.dtype)
        for t, kept in zip((x, *inputs), before, strict=True):
            assert_same_bits(t, kept, "an argument was written to")


@pytest.mark.parametrize("wrong", [1 + 4e-6, 1 - 4e-6])
def test_the_bounds_can_fail(wrong):
    """Negative control: a weight off by 4e-6 of itself is found in float32, 2 % in bfloat16."""
    case = next(c for c in CASES if str(c).startswith("4x3x32x32-float32-dense"))
    x, m = case.make(0), case.make(1)
    exact = Exact.of(x, (0.25, x), (0.75 * wrong, m))
    with pytest.raises(AssertionError, match="times what is allowed"):
        assert_accurate(ops.weighted_step(x, (m,), (0.25, 0.75)), exact, F32)
    x, m = x.bfloat16(), m.bfloat16()
    exact = Exact.of(x, (0.25, x), (0.75 + 5e3 * (wrong - 1), m))
    with pytest.raises(AssertionError, match="times what is allowed"):
        assert_accurate(ops.weighted_step(x, (m,), (0.25, 0.75)), exact, BF16)


@pytest.mark.parametrize("mode", MODES)
def test_instruction_sets_same_bits(mode):
    """All sets give the same bits: their order of operations is that of csrc/step/group.h."""
    for case in CASES:
        results = []
        for name in SETS:
            with instruction_set(name):
                results.append(call(MODES[mode], case))
        for other in results[1:]:
            assert_same_bits(other, results[0], str(case))


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
@pytest.mark.parametrize("mode", MODES)
def test_plain_torch_twin(mode):
    """ops/reference.py in such bounds, with the same zeros (it has no fused multiply-add)."""
    for case in CASES[::3]:
        x, inputs, weights, options = MODES[mode].arguments(case)
        got = call(MODES[mode], case)
        with reference_kernels():
            twin = ops.weighted_step(x, inputs, weights, **options)
        twin = (twin,) if isinstance(twin, Tensor) else twin
        want = exact_step(x, inputs, weights, z=z_of(x, options), **exact_options(options))
        for actual, plain, exact in zip(got, twin, want, strict=False):
            # Without fma each product is rounded too: a little more for six terms.
            assert exact is not None
            looser = Exact(exact.value, exact.size * 1.5)
            assert_accurate(plain, looser, x.dtype, str(case))
            assert plain.dtype == actual.dtype and plain.shape == actual.shape
            zero = (actual == 0) & (plain == 0)
            assert torch.equal(torch.signbit(actual[zero]), torch.signbit(plain[zero])), str(case)


class TestZeroWeights:
    """A term whose weight is zero is not there, whatever its input holds."""

    @pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
    @pytest.mark.parametrize("name", SETS)
    @pytest.mark.parametrize("shape", [(2, 3), (3, 1000)])
    def test_dropped(self, bad, name, shape):
        x, m, poison = torch.randn(shape), torch.randn(shape), torch.full(shape, bad)
        zero = torch.zeros(shape[0], dtype=F64)
        with instruction_set(name):
            plain = ops.weighted_step(x, (m,), (0.5, 0.25))
            for w in (0.0, -0.0, zero, -zero):
                assert_same_bits(ops.weighted_step(x, (poison, m), (0.5, w, 0.25)), plain)
                assert_same_bits(ops.weighted_step(x, (m, poison), (0.5, 0.25, w)), plain)
                alone = ops.weighted_step(x * 0, (m,), (0.0, 0.25))
                assert_same_bits(ops.weighted_step(poison, (m,), (w, 0.25)), alone)
                skipped = ops.weighted_step(poison, (m,), (0.0, 0.25), x0=(w, 1.0), clamp=(-9, 9))
                assert_same_bits(skipped, alone)
                ignored = ops.weighted_step(x, (poison,), (0.5, 1.0), x0=(1.0, w), clamp=(-9, 9))
                torch.testing.assert_close(ignored, 1.5 * x)
                quiet = ops.weighted_step(x, (m,), (0.5, 0.25), w_z=w, seed=1)
                assert_same_bits(quiet, plain)
            found = ops.weighted_step(x, (poison, m), (0.5, 1.0, 0.25))
            assert not found.isfinite().any()  # negative control

    def test_rows_drop_each_for_itself(self):
        x, m = torch.ones(4, 5), torch.full((4, 5), math.inf)
        w = torch.tensor([0.0, 1.0, 0.0, -1.0], dtype=F64)
        y = ops.weighted_step(x, (m,), (1.0, w))
        assert_same_bits(y[::2], x[::2])
        assert (y[1] == math.inf).all() and (y[3] == -math.inf).all()


class TestSpecialValues:
    @pytest.mark.parametrize("name", SETS)
    @pytest.mark.parametrize("dtype", [F64, F32, F16, BF16])
    def test_nan_passes_the_clamp(self, name, dtype):
        m = torch.tensor(
            [[math.nan, -3.0, 3.0, 0.5, math.inf, -math.inf, -0.0, 0.0] * 5], dtype=dtype
        )
        x = torch.zeros_like(m)
        with instruction_set(name):
            y = ops.weighted_step(x, (m,), (0.0, 1.0), clamp=(-1.0, 1.0))
            z = ops.weighted_step(x, (m,), (0.0, 1.0), clamp=(-math.inf, 1.0), second="x0")[1]
        assert torch.equal(y.isnan(), m.isnan())
        assert torch.equal(y.nan_to_num(), m.clamp(-1, 1).nan_to_num())
        assert torch.equal(z.nan_to_num(7), m.clamp(max=1).nan_to_num(7))

    @pytest.mark.parametrize("name", SETS)
    @pytest.mark.parametrize("dtype", [F64, F32, F16, BF16])
    @pytest.mark.parametrize("count", [1, 3, 700])
    def test_sign_of_zero(self, name, dtype, count):
        x = torch.full((2, count), -0.0, dtype=dtype)
        zero = torch.zeros_like(x)
        with instruction_set(name):
            assert_same_bits(ops.weighted_step(x, (), (1.0,)), x)
            assert_same_bits(ops.weighted_step(x, (x,), (1.0, 0.0)), x)
            assert_same_bits(ops.weighted_step(x, (zero,), (1.0, 1.0)), zero)
            assert_same_bits(ops.weighted_step(x, (x,), (0.0, 1.0)), zero)  # a sum from +0
            assert_same_bits(ops.weighted_step(x, (x,), (1.0, torch.zeros(2))), x)

    @pytest.mark.parametrize("name", SETS)
    @pytest.mark.parametrize("dtype", [F16, BF16])
    def test_rounding_to_half_is_torchs(self, name, dtype):
        """All float32 exponents, ties, subnormals, overflow, infinities and NaN."""
        generator = torch.Generator().manual_seed(1)
        words = torch.randint(-(2**31), 2**31, (300_000,), generator=generator).to(torch.int32)
        x = words.view(F32)
        ties = (torch.randint(0, 2**16, (65536,), generator=generator) << 16 | 0x8000).to(
            torch.int32
        )
        halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(F16).float()
        between = (halves[:-1].double() + halves[1:].double()).div(2).float()
        x = torch.cat(
            (x, ties.view(F32), halves, between, torch.tensor([65504.0, 65519.9, 65520.0]))
        )
        with instruction_set(name):
            y = ops.weighted_step(x, (), (1.0,), second=1.0, second_dtype=dtype)[1]
        want = x.to(dtype)
        assert torch.equal(y.isnan(), x.isnan())
        assert_same_bits(y[~x.isnan()], want[~x.isnan()])

    @pytest.mark.parametrize("name", SETS)
    @pytest.mark.parametrize("dtype", [F16, BF16])
    def test_every_half_is_read_rightly(self, name, dtype):
        m = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        with instruction_set(name):
            for part in (m, m[:7], m[3:100]):
                x = torch.zeros(part.shape)
                y = ops.weighted_step(x, (part,), (0.0, 1.0))
                number = ~part.isnan()
                assert torch.equal(y[number], part.float()[number])
                assert torch.equal(y.isnan(), part.isnan())

    def test_float16_state_overflows_only_at_the_end(self):
        x = torch.full((1, 8), 60000.0, dtype=F16)
        y = ops.weighted_step(x, (x,), (3.0, -2.5))  # 180000 on the way
        assert torch.equal(y, torch.full_like(x, 30000.0))


class TestNamed:
    @pytest.mark.parametrize("sigma", [80.0, 0.7])
    @pytest.mark.parametrize("case", CASES[::2], ids=str)
    def test_formulas(self, case, sigma):
        x, m, m2 = case.make(0), case.make(1), case.make(2)
        t = 0.9 * sigma
        s, h = np.longdouble(sigma), np.longdouble(t) - np.longdouble(sigma)
        assert_accurate(
            ops.pf_ode_step(x, m, sigma, t),
            Exact.of(x, (t / s, x), (1 - t / s, m)),
            x.dtype,
            "pf_ode",
        )
        assert_same_bits(ops.heun_step(x, m, sigma, t), ops.pf_ode_step(x, m, sigma, t))
        slope = Exact.of(x, (1 / s, x), (-1 / s, m))
        euler = Exact.of(x, (1.0, x), (h, slope))
        corrected = Exact.of(x, (1.0, x), (h / 2, slope), (h / 2 / t, euler), (-h / 2 / t, m2))
        assert_accurate(ops.heun_step(x, m, sigma, t, m2), corrected, x.dtype, "heun")
        z = z_of(x, {"seed": 3, "draw": 2, "offset": 1})
        step = ops.euler_maruyama_step(x, m, 1.5, -0.04, seed=3, draw=2, offset=1)
        exact = Exact.of(x, (1.0, x), (-0.04, m), (1.5 * math.sqrt(0.04), z))
        assert_accurate(step, exact, x.dtype, "euler_maruyama")
        assert_accurate(ops.scale_input(x, 0.3), Exact.of(x, (0.3, x)), x.dtype)
        for dtype in (F16, F32):
            scaled = ops.scale_input(x, 0.3, dtype=dtype)
            assert scaled.dtype == dtype
            assert_accurate(scaled, Exact.of(x, (0.3, x)), x.dtype, "scale_input")
        d, total = np.longdouble(0.4), s * s + np.longdouble(0.4) ** 2
        for dtype in (x.dtype, F16, F32):
            scaled = ops.edm_input(x, sigma, 0.4, dtype=dtype)
            assert scaled.dtype == dtype
            assert_accurate(scaled, Exact.of(x, (1 / np.sqrt(total), x)), x.dtype, "edm_input")
        exact = Exact.of(x, (d * d / total, x), (s * d / np.sqrt(total), m))
        assert_accurate(ops.edm_output(x, m, sigma, 0.4), exact, x.dtype, "edm_output")
        noisy = ops.add_noise(x, sigma, alpha=0.9, seed=3, draw=2, offset=1, stream=noise.STEPS)
        assert_accurate(noisy, Exact.of(x, (0.9, x), (sigma, z)), x.dtype, "add_noise")

    @pytest.mark.parametrize("case", CASES[::3], ids=str)
    def test_consistency_output(self, case):
        x, f = case.make(0), case.make(1)
        for sigma in (0.002, 0.01, 0.5, 80.0):
            skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)
            scale = (sigma - 0.002) * 0.5 / math.sqrt(sigma**2 + 0.25)
            exact = Exact.of(x, (skip, x), (scale, f))
            assert_accurate(ops.consistency_output(x, f, sigma), exact, x.dtype, f"sigma {sigma}")
        if x.dim() and x.shape[0]:
            levels = torch.linspace(0.002, 3.0, x.shape[0], dtype=F64)
            rows = ops.consistency_output(x, f, levels)
            for b, level in enumerate(levels.tolist()):
                assert_same_bits(
                    rows[b : b + 1], ops.consistency_output(x[b : b + 1], f[b : b + 1], level)
                )

    @pytest.mark.parametrize("dtype", [F64, F32, F16, BF16])
    @pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
    def test_identity_at_sigma_min(self, dtype, bad):
        x = torch.randn(4, 333, dtype=F64).to(dtype)
        x[0, :3] = torch.tensor([-0.0, 0.0, 65000.0])
        f = torch.full_like(x, bad)
        assert_same_bits(ops.consistency_output(x, f, 0.002), x)
        assert_same_bits(ops.consistency_output(x, f, torch.full((4,), 0.002, dtype=F64)), x)
        assert_same_bits(ops.consistency_output(x, f, 0.1, sigma_min=0.1, sigma_data=2.0), x)
        levels = torch.full((x.shape[0],), 0.002)  # float32, which rounds 0.002
        assert_same_bits(ops.consistency_output(x, f, levels), x)
        assert not torch.equal(ops.consistency_output(x, torch.ones_like(x), 0.5), x)

    def test_edm_at_its_ends(self):
        """Sigma = 0 is the identity; and what EDM's formulas for the denoiser make is the same."""
        x, f = torch.randn(4, 9), torch.full((4, 9), math.inf)
        assert_same_bits(ops.edm_output(x, f, 0.0), x)
        assert_same_bits(ops.edm_output(x, f, torch.zeros(4)), x)
        assert_same_bits(ops.edm_input(x, 0, 0.25), 4 * x)
        f = torch.randn(4, 9)
        for sigma in (0.002, 0.3, 80.0):
            total = sigma * sigma + 0.5 * 0.5
            root = math.sqrt(total)
            want = ops.weighted_step(x, (f,), (0.5 * 0.5 / total, sigma * 0.5 / root))
            assert_same_bits(ops.edm_output(x, f, sigma), want)
            assert_same_bits(ops.edm_input(x, sigma), ops.scale_input(x, 1.0 / root))

    def test_last_step_returns_the_denoised(self):
        x, d = torch.full((2, 3), math.inf), torch.randn(2, 3)
        assert torch.equal(ops.pf_ode_step(x, d, 0.5, 0.0), d)
        assert torch.equal(ops.pf_ode_step(x, d, torch.tensor([0.5, 2.0]), 0.0), d)

    def test_per_sample_levels(self):
        x, d, d2 = torch.randn(3, 4, 5), torch.randn(3, 4, 5), torch.randn(3, 4, 5)
        s = torch.tensor([80.0, 1.0, 0.1], dtype=F64)
        for b in range(3):
            one = slice(b, b + 1)
            level, following = float(s[b]), float(s[b] / 2)
            pairs = (
                (
                    ops.pf_ode_step(x, d, s, s / 2),
                    ops.pf_ode_step(x[one], d[one], level, following),
                ),
                (
                    ops.heun_step(x, d, s, s / 2, d2),
                    ops.heun_step(x[one], d[one], level, following, d2[one]),
                ),
                (
                    ops.euler_maruyama_step(x, d, s, -s / 2, seed=5),
                    ops.euler_maruyama_step(x[one], d[one], level, -following, seed=5, offset=b),
                ),
                (ops.add_noise(x, s, seed=5), ops.add_noise(x[one], level, seed=5, offset=b)),
                (ops.scale_input(x, s), ops.scale_input(x[one], level)),
            )
            for whole, alone in pairs:
                torch.testing.assert_close(whole[one], alone, rtol=3e-7, atol=1e-7)

    def test_pair_has_the_same_noise(self):
        x = torch.randn(5, 3, 8)
        near, far = ops.add_noise(x, 0.4, sigma_next=0.8, alpha=0.5, seed=6, draw=2)
        assert_same_bits(near, ops.add_noise(x, 0.4, alpha=0.5, seed=6, draw=2))
        assert_same_bits(far, ops.add_noise(x, 0.8, alpha=0.5, seed=6, draw=2))
        z = noise.normal(x.shape, 6, stream=noise.TRAINING, draw=2)
        assert_accurate(far, Exact.of(x, (0.5, x), (0.8, z)), F32)
        s = torch.rand(5, dtype=F64)
        near, far = ops.add_noise(x, s, sigma_next=2 * s, seed=6)
        torch.testing.assert_close(far - x, 2 * (near - x), rtol=1e-5, atol=1e-6)

    def test_seeds_of_every_kind(self):
        x, f = torch.randn(4, 9), torch.randn(4, 9)
        step = lambda seed, **k: ops.euler_maruyama_step(x, f, 1.0, 0.01, seed=seed, **k)  # noqa: E731
        plain = step(2**64 - 5, draw=9, offset=2)
        assert_same_bits(step(noise.key(2**64 - 5, 4, offset=2), draw=9), plain)
        assert_same_bits(step(torch.tensor([7, 7, 7, 7]))[2:], step(torch.tensor([8, 8, 7, 7]))[2:])
        assert_same_bits(step(torch.full((4,), 7))[:1], step(7)[:1])
        torch.manual_seed(1)
        first = step(None)
        torch.manual_seed(1)
        assert_same_bits(step(None), first)
        g = torch.Generator().manual_seed(2)
        first = step(g)
        assert_same_bits(step(g.manual_seed(2)), first)


@pytest.mark.parametrize("g, dt", [(0.0, 0.1), (0, 0.1), (0.5, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("reference", [False, True])
def test_a_step_without_noise_draws_none(g, dt, reference):
    """Where g or dt is the number 0: no seed is read or drawn, and vmap has nothing to refuse."""
    x, f = (torch.randn(4, 3, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    expected = x + dt * f
    with reference_kernels() if reference else contextlib.nullcontext():
        before = torch.get_rng_state()
        generator = torch.Generator().manual_seed(5)
        state = generator.get_state()
        for seed in (None, generator, 3):
            y = ops.euler_maruyama_step(x, f, g, dt, seed=seed)
            torch.testing.assert_close(y, expected)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(generator.get_state(), state)
        y = torch.func.vmap(lambda x, f: ops.euler_maruyama_step(x, f, g, dt))(x[None], f[None])
        torch.testing.assert_close(y[0], expected)
        noisy = ops.euler_maruyama_step(x, f, 0.5, 0.1)  # the control: this one draws
        assert not torch.equal(torch.get_rng_state(), before) and not torch.equal(noisy, x)


@pytest.mark.parametrize(
    "step",
    [
        lambda x, m: ops.pf_ode_step(x, m, 1e-300, 1e300),
        lambda x, m: ops.heun_step(x, m, 1.0, 1e-320, m),
        lambda x, m: ops.euler_maruyama_step(x, m, 1e300, 1e300, seed=1),
        lambda x, m: ops.edm_output(x, m, 1e-200, 1e-200),
    ],
)
def test_numbers_whose_weights_overflow_are_refused(step):
    x = torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"weights must be finite; .* they are not"):
        step(x, x)


def test_weights_are_taken_in_float64():
    """A float64 state sees all bits of a float64 weight, from the host and from rows."""
    x = torch.ones(2, 3, dtype=F64)
    w = 1.0 + 2.0**-50
    assert torch.equal(ops.weighted_step(x, (), (w,)), x * w)
    assert torch.equal(ops.weighted_step(x, (), (torch.full((2,), w, dtype=F64),)), x * w)


@pytest.mark.parametrize("dtype", [F16, F32])
def test_folded_weights_are_multiplied_in_float64(dtype):
    """D = c_skip x + c_out F put into the weights costs no accuracy, whatever the dtype of rows."""
    x, f, w = torch.ones(4, 3, dtype=F64), torch.ones(4, 3, dtype=F64), torch.rand(4).to(dtype)
    got = ops.weighted_step(x, (f,), (w, w), x0=(0.3, 0.7))
    want = (w.double() + w.double() * 0.3 + w.double() * 0.7)[:, None].expand(4, 3)
    torch.testing.assert_close(got, want, rtol=1e-15, atol=0.0)


def test_whole_numbers_as_numbers():
    """An int or a NumPy scalar is what the float is, and stays on the host."""
    x, f = torch.randn(4, 9), torch.randn(4, 9)
    for g, dt in ((2, -1), (np.float64(2.0), -1), (2.0, np.float32(-1.0))):
        got = ops.euler_maruyama_step(x, f, g, dt, seed=3)
        assert_same_bits(got, ops.euler_maruyama_step(x, f, 2.0, -1.0, seed=3))
    assert_same_bits(ops.pf_ode_step(x, f, 2, 1), ops.pf_ode_step(x, f, 2.0, 1.0))


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
def test_one_number_in_plain_torch():
    """A 0-dim state with a weight a sample."""
    x, w = torch.tensor(2.0, dtype=F64), torch.tensor([0.25], dtype=F64)
    step = lambda: ops.weighted_step(x, (x,), (w, 1.0), w_z=w, seed=1)  # noqa: E731
    got = step()
    with reference_kernels():
        torch.testing.assert_close(step(), got)


def test_reference_is_what_runs_without_the_binary():
    x, m = torch.randn(3, 5), torch.randn(3, 5)
    weights = [0.5, 0.25, 0.0, 0.0, 1.0, 0.0, 0.0]
    first, other = reference.weighted_step(
        x, [m], weights, [], [], 0, [], None, [], reference.NONE, F32
    )
    assert other is None
    torch.testing.assert_close(first, ops.weighted_step(x, (m,), (0.5, 0.25)))
