"""Memory: layouts kept, strides, alignment, outputs of the caller, sizes beyond 2^31."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from cmsolvers import noise, ops
from support.exact import SETS, assert_same_bits, instruction_set, threads

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
SHAPE = (4, 3, 10, 6)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stored(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same values, dense, with the dimensions stored in another order."""
    back = tuple(order.index(d) for d in range(x.dim()))
    return x.permute(order).contiguous().permute(back)


def part(x: Tensor, extra: int) -> Tensor:
    """The same values, `extra` elements behind the start of the storage."""
    return torch.empty(x.numel() + extra, dtype=x.dtype)[extra:].view(x.shape).copy_(x)


def spread(x: Tensor) -> Tensor:
    """The same values in every second place of a larger tensor."""
    return torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)[..., ::2].copy_(x)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    **{f"stored {o}": lambda x, o=o: stored(x, o) for o in itertools.permutations(range(4))},
    "misaligned": lambda x: part(x, 1),
    "misaligned by 3": lambda x: part(x, 3),
    "every second": spread,
    "a part": lambda x: torch.empty(*(n + 2 for n in x.shape), dtype=x.dtype)[
        tuple(slice(1, n + 1) for n in x.shape)
    ].copy_(x),
}  # fmt: skip


def steps(x: Tensor, m: Tensor, k: Tensor) -> list[Tensor]:
    """With and without noise, rows, a second output."""
    rows = torch.linspace(-1, 1, x.shape[0], dtype=F64)
    clamped = {"x0": (0.2, 0.8), "clamp": (-1, 1)}
    return [
        ops.weighted_step(x, (m, k), (0.5, 0.25, -0.125)),
        ops.euler_maruyama_step(x, m, 0.7, 0.01, seed=3),
        ops.weighted_step(x, (m, k), (0.5, rows, -0.125)),
        ops.weighted_step(x, (m, k), (0.5, rows, -0.125), w_z=rows, seed=3),
        *ops.weighted_step(x, (m,), (0.5, 0.5), **clamped, second="x0", w_z=1.0, seed=2),
        *ops.add_noise(x, 0.5, sigma_next=rows, seed=5),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [F32, BF16, F64])
@pytest.mark.parametrize("name", LAYOUTS)
def test_values_do_not_depend_on_layout(name, dtype):
    x, m, k = (randn(*SHAPE, seed=s, dtype=dtype) for s in range(3))
    plain = steps(x, m, k)
    layout = LAYOUTS[name]
    for arguments in (
        (layout(x), layout(m), layout(k)),
        (layout(x), m, k),
        (x, layout(m), k),
        (x, m, layout(k)),
    ):
        results = steps(*arguments)
        for got, want in zip(results, plain, strict=True):
            assert_same_bits(got, want, name)
            assert got.stride() == torch.empty_like(arguments[0]).stride()
    if name not in ("every second", "a part"):
        assert all(t.stride() == layout(x).stride() for t in steps(layout(x), m, k))


@pytest.mark.parametrize("name", SETS)
def test_expanded(name):
    x, m = randn(4, 1, 5).expand(4, 3, 5), randn(1, 3, 1, seed=1).expand(4, 3, 5)
    with instruction_set(name):
        got = ops.euler_maruyama_step(x, m, 0.5, 0.1, seed=1)
        assert_same_bits(
            got, ops.euler_maruyama_step(x.contiguous(), m.contiguous(), 0.5, 0.1, seed=1)
        )
        scalar = torch.tensor(2.0).expand(4, 3)
        assert torch.equal(
            ops.weighted_step(scalar, (scalar,), (1.0, 1.0)), torch.full((4, 3), 4.0)
        )


@pytest.mark.parametrize("shape", [(2, 3, 4, 2, 3), (2, 1, 3, 1, 2, 2, 3), (1,) * 12, (2,) * 10])
def test_many_dimensions(shape):
    x, m = randn(*shape), randn(*shape, seed=1)
    torch.testing.assert_close(ops.weighted_step(x, (m,), (0.5, 0.25)), 0.5 * x + 0.25 * m)
    plain = ops.add_noise(x, 1.0, seed=4)
    order = tuple(reversed(range(len(shape))))
    noisy = ops.add_noise(stored(x, order), 1.0, seed=4)
    assert_same_bits(noisy, plain)
    assert noisy.stride() == stored(x, order).stride()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4), (0, 0)])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_empty(shape, dtype):
    x = torch.empty(shape, dtype=dtype)
    rows = torch.ones(shape[0], dtype=F64)
    for y in (
        ops.weighted_step(x, (x,), (1.0, 2.0)),
        ops.weighted_step(x, (x,), (rows, 2.0), w_z=1.0, seed=1),
        ops.euler_maruyama_step(x, x, 1.0, 0.1, seed=torch.zeros(shape[0], dtype=torch.int64)),
        ops.add_noise(x, 0.1, sigma_next=0.2, seed=1)[1],
        ops.heun_step(x, x, 2.0, 1.0, x),
        ops.consistency_output(x, x, 1.0, out=x),
    ):
        assert y.shape == x.shape and y.dtype == dtype


@pytest.mark.parametrize("dtype", [F64, F32, F16])
def test_zero_dimensions(dtype):
    """A tensor without dimensions is one sample with one element."""
    x, m = torch.tensor(2.0, dtype=dtype), torch.tensor(4.0, dtype=dtype)
    assert float(ops.pf_ode_step(x, m, 2.0, 1.0)) == 3.0
    assert float(ops.pf_ode_step(x, m, torch.tensor(2.0), torch.tensor([1.0]))) == 3.0
    noisy = ops.add_noise(x, 1.0, alpha=0.0, seed=9, stream=0, offset=3)
    assert noisy.shape == ()
    assert_same_bits(noisy, noise.normal((1,), 9, offset=3, dtype=dtype)[0])


class TestOut:
    @pytest.mark.parametrize(
        "layout", ["contiguous", "channels last", "stored (3, 0, 2, 1)", "misaligned"]
    )
    @pytest.mark.parametrize("dtype", [F32, F16, F64])
    @pytest.mark.parametrize("mode", ["plain", "noise", "rows", "x0"])
    def test_fresh_and_in_place(self, layout, dtype, mode):
        x, m, k = (LAYOUTS[layout](randn(*SHAPE, seed=s, dtype=dtype)) for s in range(3))
        options = {
            "plain": {},
            "noise": {"w_z": 0.3, "seed": 1},
            "rows": {"w_z": torch.linspace(0, 1, 4, dtype=F64), "seed": 1},
            "x0": {"x0": (0.5, 0.5), "clamp": (-1, 1)},
        }[mode]
        arguments = (0.5, 0.25, -0.125)
        want = ops.weighted_step(x, (m, k), arguments, **options)
        fresh = torch.full_like(x, math.nan)
        assert ops.weighted_step(x, (m, k), arguments, **options, out=fresh) is fresh
        assert_same_bits(fresh, want)
        for which in range(3):
            tensors = [LAYOUTS[layout](t) for t in (x.clone(), m.clone(), k.clone())]
            tensors = [t.clone(memory_format=torch.preserve_format) for t in tensors]
            others = [t.clone() for t in tensors]
            out = tensors[which]
            got = ops.weighted_step(tensors[0], tensors[1:], arguments, **options, out=out)
            assert got is out
            assert_same_bits(got, want, f"in place of {which}")
            for i in {0, 1, 2} - {which}:
                assert_same_bits(tensors[i], others[i])

    def test_one_tensor_in_every_place(self):
        x = randn(4, 50)
        want = ops.weighted_step(x, (x, x), (0.5, 0.25, 0.125))
        y = x.clone()
        assert_same_bits(ops.weighted_step(y, (y, y), (0.5, 0.25, 0.125), out=y), want)

    @pytest.mark.parametrize("name", SETS)
    @pytest.mark.parametrize("second", [0.5, "x0", ("pair", 0.5, 0.25)])
    def test_second_out(self, name, second):
        x, m = randn(5, 700), randn(5, 700, seed=1)
        options = {"x0": (0.5, 0.5), "w_z": 0.2, "seed": 3, "second": second, "second_dtype": BF16}
        with instruction_set(name):
            want = ops.weighted_step(x, (m,), (0.3, 0.7), **options)
            out, other = torch.empty_like(x), torch.empty(5, 700, dtype=BF16)
            got = ops.weighted_step(x, (m,), (0.3, 0.7), **options, out=out, second_out=other)
            assert got[0] is out and got[1] is other
            assert_same_bits(got, want)
            only = ops.weighted_step(x, (m,), (0.3, 0.7), **options, second_out=other)
            assert only[1] is other
            assert_same_bits(only, want)
            only = ops.weighted_step(x, (m,), (0.3, 0.7), **options, out=out)
            assert only[0] is out
            assert_same_bits(only, want)

    @pytest.mark.parametrize("name", SETS)
    @pytest.mark.parametrize("dtype", [F32, F64, F16])
    @pytest.mark.parametrize("place", ["none", "x", "input"])
    def test_two_outputs_of_one_dtype(self, name, dtype, place):
        """Each output has the bits of a step that makes it alone, wherever the first is written."""
        noise_of = {"seed": 3, "draw": 2}
        x0, weights = (0.5, 0.25), (0.3, 0.7)
        for second in (0.5, "x0", ("pair", 0.5, 0.25)):
            x, m = randn(5, 700, dtype=dtype), randn(5, 700, seed=1, dtype=dtype)
            with instruction_set(name):
                options = {"x0": x0, "clamp": (-1.0, 0.5), "w_z": 0.2, **noise_of}
                want = ops.weighted_step(x, (m,), weights, **options)
                other = torch.empty_like(x)
                if second == "x0":
                    alone = ops.weighted_step(x, (m,), x0).clamp(-1.0, 0.5)
                elif second == 0.5:  # a power of two, which commutes with rounding
                    alone = ops.weighted_step(want, (), (0.5,))
                else:
                    alone = ops.weighted_step(x, (), (0.5,), w_z=0.25, **noise_of)
                out = {"none": torch.empty_like(x), "x": x, "input": m}[place]
                got = ops.weighted_step(
                    x, (m,), weights, **options, second=second, out=out, second_out=other
                )
            assert got[0] is out and got[1] is other
            assert_same_bits(got, (want, alone), f"{second}")

    def test_named(self):
        x, m, k = randn(4, 9), randn(4, 9, seed=1), randn(4, 9, seed=2)
        for call in (
            lambda **o: ops.euler_maruyama_step(x, m, 0.5, 0.1, seed=1, **o),
            lambda **o: ops.pf_ode_step(x, m, 2.0, 1.0, **o),
            lambda **o: ops.heun_step(x, m, 2.0, 1.0, k, **o),
            lambda **o: ops.consistency_output(x, m, 2.0, **o),
            lambda **o: ops.edm_input(x, 2.0, **o),
            lambda **o: ops.edm_output(x, m, 2.0, **o),
            lambda **o: ops.add_noise(x, 2.0, seed=1, **o),
            lambda **o: ops.scale_input(x, 2.0, **o),
            lambda **o: ops.pf_ode_step(x, m, torch.ones(4), 1.0, **o),
        ):
            out = torch.empty(4, 9)
            assert call(out=out) is out
            assert_same_bits(out, call())
        half = torch.empty(4, 9, dtype=F16)
        assert ops.scale_input(x, 0.5, dtype=F16, out=half) is half
        assert_same_bits(half, (0.5 * x).half())
        assert ops.edm_input(x, 0.0, dtype=F16, out=half) is half
        assert_same_bits(half, (2.0 * x).half())
        near, far = ops.add_noise(x, 2.0, sigma_next=1.0, seed=1, out=x)
        assert near is x and far.shape == x.shape

    def test_grad_mode(self):
        x = randn(4, 9).requires_grad_()
        with torch.no_grad():
            ops.pf_ode_step(x, x, 2.0, 1.0, out=x)
        with torch.inference_mode():
            ops.pf_ode_step(torch.ones(3), torch.ones(3), 2.0, 1.0)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_large_outputs_stream_past_the_caches(name, offset):
    """Beyond 8 MiB stores go past the caches: any alignment and length, nothing outside."""
    n = (1 << 21) + 77
    base = torch.full((n + 16,), math.nan)
    out = base[offset : offset + n]
    x = randn(n)
    with instruction_set(name), threads(1):
        ops.add_noise(x, 0.5, seed=4, stream=0, out=out)
        torch.testing.assert_close(out, x + 0.5 * noise.normal((n,), 4))
        before = base[:offset].isnan().all() and base[offset + n :].isnan().all()
    assert before


def test_threads_do_not_matter():
    x, m = randn(3, 100_003), randn(3, 100_003, seed=1)
    rows = torch.rand(3, dtype=F64)
    with threads(1):
        one = [*steps(x, m, m), ops.weighted_step(x, (m,), (rows, rows), w_z=rows, seed=1)]
    with threads(2):
        two = [*steps(x, m, m), ops.weighted_step(x, (m,), (rows, rows), w_z=rows, seed=1)]
    assert_same_bits(one, two)


def available_memory() -> int:
    try:
        with open("/proc/meminfo") as file:
            line = next(text for text in file if text.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0
    return int(line.split()[1]) * 1024


@pytest.mark.slow
def test_more_than_2_31_elements():
    if available_memory() < 12 << 30:
        pytest.skip("needs 12 GiB of free memory")
    rows, count = 3, (1 << 30) - 5
    x = torch.empty(rows, count, dtype=BF16)
    assert x.numel() > 1 << 31
    x.fill_(2.0)
    ops.add_noise(x, 0.5, seed=7, stream=0, out=x)
    for b in range(rows):
        for first in (0, 1 << 20, count - 4001):
            first -= first % 4
            z = piece(7, b, first, 4000)
            want = (2.0 + 0.5 * z.double()).to(BF16)
            assert torch.equal(x[b, first : first + 4000], want), (b, first)
    ops.weighted_step(x, (), (0.0,), out=x)
    assert not x[:, ::1009].any() and not x[-1, -1000:].any()


def piece(seed: int, sample: int, first: int, count: int) -> Tensor:
    """Elements `first` .. of a sample, from the contract alone."""
    from cmsolvers.ops import reference

    groups = torch.arange(first // 4, (first + count) // 4)
    zero = torch.zeros_like(groups)
    r = reference.philox((groups, zero, zero + sample, zero), (zero + seed, zero))
    z = (*reference._box_muller(r[0], r[1]), *reference._box_muller(r[2], r[3]))
    return torch.stack(z, dim=1).flatten().float()
