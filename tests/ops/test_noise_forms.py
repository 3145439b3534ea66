"""Forms of one noise: values, bits, layouts, keys that hold draws, derivatives, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from cmsolvers import noise, ops
from cmsolvers.ops import noising, rules
from support import cases
from support.exact import (
    SETS,
    Exact,
    assert_accurate,
    assert_same_bits,
    errors,
    instruction_set,
    reference_kernels,
    threads,
)

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
CASES = [case for case in cases.cases() if len(case.shape) > 0]
PLACE = {"seed": 11, "stream": noise.TRAINING, "draw": 3, "offset": 5}
DTYPES = (None, F32, F16, BF16, F64, None)


def rows(batch: int, count: int = 6, one: bool = False) -> Tensor:
    """Weights that differ from sample to sample; some are zero."""
    generator = torch.Generator().manual_seed(count)
    w = torch.randn(count, 2, 1 if one else batch, generator=generator, dtype=F64)
    w[1, 0], w[2, 1] = 0.0, 0.0
    if not one and batch > 1:
        w[3, 1, ::3] = 0.0
    return w


def normals(x: Tensor) -> Tensor:
    return noise.normal(x.shape, 11, stream=3, draw=3, offset=5, dtype=F64)


def general(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
    """The way around the fast call."""
    kept, noising.FAST = noising.FAST, None
    try:
        return ops.noise_forms(*arguments, **options)
    finally:
        noising.FAST = kept


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(case, one):
    x = case.make()
    w = rows(len(x), one=one)
    kept = x.clone()
    found = ops.noise_forms(x, w, dtypes=DTYPES, **PLACE)
    z = normals(x)
    for out, (a, b), dtype in zip(found, w, DTYPES, strict=True):
        assert out.dtype == (dtype or x.dtype)
        assert out.stride() == torch.empty_like(x).stride()
        exact = Exact.of(x, (a, x), (b, z))
        assert_accurate(out, exact, x.dtype, str(case))
    assert_same_bits(x, kept, "x0 was written to")


def test_the_bounds_can_fail():
    """Negative controls: a weight off by 4e-6 of itself, another draw, weights in another order."""
    x, w = torch.randn(4, 3, 8, 8), rows(4)
    z = normals(x)
    out = ops.noise_forms(x, w, **PLACE)[0]
    a, b = w[0]
    assert np.max(errors(out, Exact.of(x, (a, x), (b, z)), F32)) <= 1
    assert np.max(errors(out, Exact.of(x, (a, x), (b * (1 + 4e-6), z)), F32)) > 1
    assert np.max(errors(out, Exact.of(x, (b, x), (a, z)), F32)) > 1
    other = ops.noise_forms(x, w, **{**PLACE, "draw": 4})[0]
    assert np.max(errors(other, Exact.of(x, (a, x), (b, z)), F32)) > 1


@pytest.mark.parametrize("name", SETS)
def test_same_bits_as_the_steps(name):
    """A pair is that of add_noise, an input is scale_input's of it but for one rounding, z is z."""
    levels = torch.linspace(0.1, 9.0, 7, dtype=F64)
    for shape in ((7, 2), (7, 3, 5, 5), (7, 1100)):
        x = torch.randn(shape)
        noise_rows, _ = ops.consistency_rows(levels, 0.5 * levels)
        with instruction_set(name):
            first, second, c_first, _ = ops.noise_forms(x, noise_rows, **PLACE)
            pair = ops.add_noise(x, levels, sigma_next=0.5 * levels, **PLACE)
            alone = ops.noise_forms(x, torch.tensor([[[0.0], [1.0]]], dtype=F64), **PLACE)[0]
        assert_same_bits((first, second), pair)
        assert_same_bits(alone, normals(x).float())
        torch.testing.assert_close(c_first, ops.edm_input(first, levels), rtol=3e-7, atol=1e-6)


def test_instruction_sets_same_bits():
    for case in CASES:
        x = case.make()
        found = []
        for name in SETS:
            with instruction_set(name):
                found.append(ops.noise_forms(x, rows(len(x)), dtypes=DTYPES, **PLACE))
        for other in found[1:]:
            assert_same_bits(other, found[0], str(case))


def test_parts_of_a_batch_and_threads():
    x, w = torch.randn(9, 40_001), rows(9)
    whole = ops.noise_forms(x, w, **PLACE)
    for count in (1, 2, 3):
        with threads(count):
            assert_same_bits(ops.noise_forms(x, w, **PLACE), whole)
    part = ops.noise_forms(x[4:6], w[..., 4:6], **{**PLACE, "offset": 9})
    assert_same_bits(part, [out[4:6] for out in whole])


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
def test_plain_torch_twin():
    for case in CASES[::3]:
        x, w = case.make(), rows(case.shape[0])
        with reference_kernels():
            found = ops.noise_forms(x, w, dtypes=DTYPES, **PLACE)
        for out, (a, b) in zip(found, w, strict=True):
            exact = Exact.of(x, (a, x), (b, normals(x)))
            assert_accurate(out, Exact(exact.value, 1.5 * exact.size), x.dtype, str(case))
            assert out.stride() == torch.empty_like(x).stride()


def test_fast_call_and_the_general_way():
    x, w = torch.randn(5, 33), rows(5)
    keys = [7, noise.key(3, 5, offset=2), noise.key(torch.arange(5), 5)]
    for seed in keys:
        for dtypes in (None, DTYPES, list(DTYPES)):
            fast = ops.noise_forms(x, w, seed=seed, draw=2, dtypes=dtypes)
            assert_same_bits(fast, general(x, w, seed=seed, draw=2, dtypes=dtypes))
    scalar = torch.tensor(3.0)
    for call in (ops.noise_forms, general):
        first, second = call(scalar, rows(1, 2, one=True), seed=7)
        assert first.shape == second.shape == ()


class TestDraws:
    """The draw in a tensor, as a column of the key's table."""

    def keys(self, batch: int, draw: int) -> list[noise.Key]:
        return [
            noise.key(5, batch, offset=7, draw=torch.tensor(draw)),
            noise.key(5, batch, offset=7, draw=torch.tensor([draw])),
            noise.key(5, batch, offset=7, draw=torch.full((batch,), draw)),
            noise.key(5, batch, ids=7 + torch.arange(batch), draw=torch.tensor(draw)),
        ]

    @pytest.mark.parametrize("name", SETS)
    @pytest.mark.parametrize("draw", [0, 3, 2**32 - 1])
    def test_same_values_as_the_number(self, draw, name):
        for shape in ((5, 2), (5, 3, 7, 7), (5, 2000)):
            x, w, batch = torch.randn(shape), rows(5), 5
            place = {"seed": 5, "offset": 7, "draw": draw}
            with instruction_set(name):
                for key in self.keys(batch, draw):
                    assert key.holds_draws
                    assert_same_bits(
                        ops.noise_forms(x, w, seed=key), ops.noise_forms(x, w, **place)
                    )
                    assert_same_bits(general(x, w, seed=key), ops.noise_forms(x, w, **place))
                    assert_same_bits(
                        ops.add_noise(x, 0.3, seed=key), ops.add_noise(x, 0.3, **place)
                    )
                    assert_same_bits(noise.normal(shape, key), noise.normal(shape, **place))
                    assert_same_bits(noise.uniform(shape, key), noise.uniform(shape, **place))
            last = x.clone().contiguous().transpose(0, -1).contiguous().transpose(0, -1)
            assert_same_bits(ops.add_noise(last, 0.3, seed=key), ops.add_noise(last, 0.3, **place))

    def test_each_sample_its_own(self):
        draws = torch.tensor([4, 0, 2**32 - 1])
        key = noise.key(5, 3, draw=draws)
        for shape in ((3, 2), (3, 1000)):
            z = noise.normal(shape, key)
            for b, draw in enumerate(draws.tolist()):
                one = noise.normal((1, *shape[1:]), 5, offset=b, draw=draw)
                assert_same_bits(z[b : b + 1], one)
            assert not torch.equal(z, noise.normal(shape, 5))

    def test_written_to(self):
        """A table that is written to gives the new draw, as a replayed graph needs it."""
        key = noise.key(5, 4, draw=torch.tensor(1))
        assert key.table is not None
        key.table[:, 2] = 9
        assert_same_bits(noise.normal((4, 3), key), noise.normal((4, 3), 5, draw=9))

    @pytest.mark.filterwarnings("ignore:Warning only once for all operators")
    def test_plain_torch(self):
        key = noise.key(5, 4, draw=torch.arange(4))
        x, w = torch.zeros(4, 9), rows(4)
        with reference_kernels():
            found = ops.noise_forms(x, w, seed=key)
        torch.testing.assert_close(found, ops.noise_forms(x, w, seed=key))

    def test_refused(self):
        key = noise.key(5, 4, draw=torch.tensor(1))
        x, w = torch.zeros(4, 9), rows(4)
        for call in (
            lambda: ops.noise_forms(x, w, seed=key, draw=1),
            lambda: ops.add_noise(x, 1.0, seed=key, draw=1),
            lambda: noise.normal((4, 9), key, draw=1),
            lambda: noise.uniform((4, 9), key, draw=1),
            lambda: torch.ops.cmsolvers.noise_forms(x, w, [0, 0, 3, 1], key.table, [1] * 6),
        ):
            with pytest.raises(ValueError, match=r"draw must be 0 where the key .*; got 1"):
                call()
        with pytest.raises(ValueError, match="a key that holds draws is for one draw"):
            noise.BrownianPath(key, 0.0, 1.0, (4, 9))
        with pytest.raises(ValueError, match="key must not hold draws"):
            torch.ops.cmsolvers.noise_sum(x, [1], [1.0], None, [0, 0, 3], key.table)
        with pytest.raises(ValueError, match="a key that holds draws is for one draw"):
            key.rows(4, torch.device("cpu"))
        with pytest.raises(ValueError, match="already"):
            noise.key(key, 4, draw=torch.tensor(1))

    @pytest.mark.parametrize(
        ("draw", "error", "text"),
        [
            (3, TypeError, "draw of a key must be an int64 tensor; got int"),
            (torch.tensor(1.0), TypeError, "int64 tensor; got torch.float32"),
            (torch.tensor([1, 2]), ValueError, r"shape \[4\], \[1\] or \[\]; got \[2\]"),
            (torch.tensor(-1), ValueError, r"in \[0, 2\^32\); got -1"),
            (torch.tensor(2**32), ValueError, r"in \[0, 2\^32\); got 4294967296"),
        ],
    )
    def test_bad_draws(self, draw, error, text):
        with pytest.raises(error, match=text):
            noise.key(5, 4, draw=draw)


class TestDerivatives:
    def test_first_and_second(self):
        x = torch.randn(3, 4, dtype=F64, requires_grad=True)
        w = rows(3)
        call = lambda v: ops.noise_forms(v, w, **PLACE)  # noqa: E731
        assert gradcheck(call, (x,), check_forward_ad=True, check_batched_grad=False)
        assert gradgradcheck(lambda v: sum(out.square() for out in call(v)), (x,))

    def test_mixed_dtypes_and_layouts(self):
        x = torch.randn(3, 2, 4, 4).to(memory_format=torch.channels_last)
        w = rows(3)
        plain = ops.noise_forms(x, w, dtypes=DTYPES, **PLACE)
        followed = ops.noise_forms(x.requires_grad_(), w, dtypes=DTYPES, **PLACE)
        for left, right in zip(plain, followed, strict=True):
            assert left.dtype == right.dtype
            torch.testing.assert_close(left, right.detach(), rtol=1e-2, atol=1e-2)
        sum(out.float().sum() for out in followed).backward()
        assert x.grad is not None
        expected = w[:, 0].sum(0).float().reshape(3, 1, 1, 1).expand_as(x)
        torch.testing.assert_close(x.grad, expected)

    def test_transforms(self):
        x, w = torch.randn(3, 4, dtype=F64), rows(3)
        total = lambda v: sum(out.sum() for out in ops.noise_forms(v, w, **PLACE))  # noqa: E731
        expected = w[:, 0].sum(0)[:, None].expand(3, 4)
        torch.testing.assert_close(torch.func.grad(total)(x), expected)
        _, tangent = torch.func.jvp(total, (x,), (torch.ones_like(x),))
        torch.testing.assert_close(tangent, expected.sum())
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            found = forward_ad.unpack_dual(total(dual)).tangent
        torch.testing.assert_close(found, expected.sum())

    def test_vmap_is_refused(self):
        with pytest.raises(RuntimeError, match="vmap over forms of noise"):
            torch.vmap(lambda x: ops.noise_forms(x, rows(3), seed=1))(torch.zeros(2, 3, 4))


def test_compiled():
    x, w = torch.randn(4, 6), rows(4)
    call = lambda v, w: ops.noise_forms(v, w, dtypes=DTYPES, **PLACE)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(x, w), call(x, w))
    y = x.clone().requires_grad_()
    sum(out.float().sum() for out in compiled(y, w)).backward()
    torch.testing.assert_close(y.grad, w[:, 0].sum(0).float()[:, None].expand(4, 6))


def test_registration():
    op, w = torch.ops.cmsolvers.noise_forms, rows(4)
    table = torch.tensor([[5, 0, 2]])
    for x in (torch.randn(4, 7), torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)):
        torch.library.opcheck(op, (x, w, [5, 0, 3, 2], None, [1, 2, 3, 0, 1, 1]))
        torch.library.opcheck(op, (x, w[:1], [5, 0, 3, 0], table, [3]))
        torch.library.opcheck(op, (x.double().requires_grad_(), w, [5, 0, 3, 2], None, [0] * 6))


GOOD: dict[str, Any] = {"x0": torch.zeros(2, 3), "weights": rows(2), "seed": 1}


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"x0": 3.0}, TypeError, "x0 must be a tensor; got float"),
        ({"x0": torch.zeros(2, 3).int()}, TypeError, "x0 must be float64, float32"),
        ({"x0": torch.zeros(2, 3).to_sparse()}, TypeError, "x0 must be a plain strided tensor"),
        ({"weights": [[1.0, 2.0]]}, TypeError, "weights must be a tensor; got list"),
        ({"weights": rows(2).float()}, TypeError, "weights must be float64; got torch.float32"),
        ({"weights": rows(3)}, ValueError, "weights must have 2 or 1 as its last size"),
        ({"weights": rows(2)[0]}, ValueError, r"weights must have shape \[J, 2, 2\] or"),
        ({"weights": rows(2, 7)}, ValueError, "J from 1 to 6"),
        ({"weights": rows(2)[:0]}, ValueError, "J from 1 to 6"),
        ({"weights": rows(2).requires_grad_()}, ValueError, "weights must not require a gradient"),
        ({"weights": rows(2).to("meta")}, ValueError, "weights must be on the device of x"),
        ({"dtypes": (F32,)}, ValueError, "dtypes must hold 6 entries; got 1"),
        ({"dtypes": (torch.int32,) * 6}, TypeError, r"dtypes\[0\] must be float64"),
        ({"stream": 256}, ValueError, "stream must lie in"),
        ({"draw": -1}, ValueError, "draw must lie in"),
        ({"seed": [1, 2, 3]}, ValueError, "seed must hold 2 entries"),
        ({"offset": 2**56}, ValueError, "offset must leave sample ids"),
    ],
)
def test_bad_input(given, error, text):
    ops.noise_forms(**GOOD)
    with pytest.raises(error, match=text):
        ops.noise_forms(**{**GOOD, **given})


class TestRows:
    """The weights of a consistency pair."""

    def formulas(self, s: float, data: float, least: float) -> tuple[Any, Any, Any]:
        skip, out, root = rules.consistency(s, data, least, rules.held(least))
        return skip, out, 1.0 / root

    @pytest.mark.parametrize("path", ["fast", "operator", "twin"])
    @pytest.mark.filterwarnings("ignore:Warning only once for all operators")
    def test_formulas(self, path):
        high = torch.tensor([80.0, 3.0, 0.5, 0.01, 0.002], dtype=F64)
        low = torch.tensor([3.0, 0.002, 0.002, 0.0, 0.0], dtype=F64)
        low[2] = float(torch.tensor(0.002).bfloat16())
        for data, least in ((0.5, 0.002), (1.0, 0.1)):
            given = (high, low, data, least)
            if path == "fast":
                found = ops.consistency_rows(*given)
            elif path == "operator":
                found = torch.ops.cmsolvers.consistency_rows(*given)
            else:
                with reference_kernels():
                    found = ops.consistency_rows(*given)
            for b in range(5):
                s, t = float(high[b]), float(low[b])
                skip, out, c = self.formulas(s, data, least)
                skip_next, out_next, c_next = self.formulas(t, data, least)
                if t == 0.0:
                    skip_next, out_next = 1.0, 0.0
                want = [[1, s], [1, t], [c, c * s], [c_next, c_next * t]]
                torch.testing.assert_close(
                    found[0][..., b], torch.tensor(want, dtype=F64), rtol=1e-15, atol=0
                )
                want = [skip, out, -skip_next, -out_next]
                torch.testing.assert_close(
                    found[1][:, b], torch.tensor(want, dtype=F64), rtol=4e-16, atol=0
                )
        held = ops.consistency_rows(high, low)[1]
        assert held[:, 4].tolist() == [1.0, 0.0, -1.0, 0.0]
        assert held[2:, 1].tolist() == held[2:, 2].tolist() == [-1.0, 0.0]
        assert held[1, 3] != 0  # negative control: 0.01 is not the boundary

    def test_strided_levels_and_gradients(self):
        both = torch.rand(6, 2, dtype=F64).sort(dim=1, descending=True).values
        found = ops.consistency_rows(both[:, 0].requires_grad_(), both[:, 1])
        want = ops.consistency_rows(both[:, 0].detach().clone(), both[:, 1].clone())
        assert_same_bits(found, want)
        assert not found[0].requires_grad
        empty = ops.consistency_rows(both[:0, 0], both[:0, 1])
        assert [t.shape for t in empty] == [(4, 2, 0), (4, 0)]

    def test_registration(self):
        s = torch.rand(4, dtype=F64)
        torch.library.opcheck(torch.ops.cmsolvers.consistency_rows, (s + 1, s, 0.5, 0.002))
        compiled = torch.compile(ops.consistency_rows, fullgraph=True, backend="aot_eager")
        assert_same_bits(compiled(s + 1, s), ops.consistency_rows(s + 1, s))

    @pytest.mark.parametrize(
        ("given", "error", "text"),
        [
            ({"sigma": 3.0}, TypeError, "sigma must be a float64 tensor; got float"),
            ({"sigma_next": torch.ones(3)}, TypeError, "sigma_next must be a float64 tensor"),
            ({"sigma_next": torch.ones(2).double()}, ValueError, r"shape \[B\], as sigma has"),
            ({"sigma": torch.ones(3, 1).double()}, ValueError, r"sigma must have shape \[B\]"),
            ({"sigma_next": torch.ones(3).double().to("meta")}, ValueError, "device of sigma"),
            ({"sigma_data": 0.0}, ValueError, "sigma_data must be positive; got 0"),
            ({"sigma_min": -1.0}, ValueError, "sigma_min must not be negative"),
            ({"sigma_min": float("nan")}, ValueError, "sigma_min must be a number"),
        ],
    )
    def test_bad_input(self, given, error, text):
        good: dict[str, Any] = {"sigma": 2 * torch.ones(3).double()}
        good["sigma_next"] = torch.ones(3).double()
        ops.consistency_rows(**good)
        with pytest.raises(error, match=text):
            ops.consistency_rows(**{**good, **given})
