"""Brownian paths: their law, exactly and by statistics, and what must not change their bits."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cmsolvers import noise
from cmsolvers.noise import BrownianPath
from cmsolvers.ops import levy
from support.exact import SETS, assert_same_bits, instruction_set, threads

T0, T1 = -1.25, 2.0
SHAPE = (4, 3, 7)


def some_times(count: int, seed: int = 0) -> list[float]:
    """Times in [T0, T1], with the ends and some places where the tree has nodes."""
    source = random.Random(seed)
    nodes = [T0, T1, T0 + (T1 - T0) / 2, T0 + (T1 - T0) * 5 / 128, T0 + (T1 - T0) * 31 / 32]
    return sorted(nodes + [source.uniform(T0, T1) for _ in range(count - len(nodes))])


def vector(path: BrownianPath, t: float) -> dict[int, float]:
    """W(t) - W(t0) as weights of independent unit normals."""
    length = path.t1 - path.t0
    draws, weights = levy.terms(0.0, (t - path.t0) / length, length, path.depth, False)
    assert len(set(draws)) == len(draws)
    return dict(zip(draws, weights, strict=True))


def covariance(a: dict[int, float], b: dict[int, float]) -> float:
    return math.fsum(w * b.get(draw, 0.0) for draw, w in a.items())


def recursive(draw: Callable[[int], Tensor], t: float, depth: int) -> Tensor:
    """W(t) - W(T0) of seed and shape behind `draw`: a plain bridge, cell by cell, in float64."""
    length = (T1 - T0) / 32
    part = min(int((t - T0) / length), 31)
    left, w_left = T0 + part * length, sum((draw(k) for k in range(part)), torch.zeros(()))
    w_left = w_left * math.sqrt(length)
    w_right = w_left + math.sqrt(length) * draw(part)
    index, level = part, 5
    while level < depth:
        middle = left + length / 2
        w_middle = (w_left + w_right) / 2 + math.sqrt(length) / 2 * draw(2**level + index)
        length, level, index = length / 2, level + 1, 2 * index
        if t < middle or middle == T1:
            w_right = w_middle
        else:
            left, w_left, index = middle, w_middle, index + 1
    f = (t - left) / length
    bridge = math.sqrt(max(f * (1 - f), 0.0) * length) * draw(2**level + index)
    return w_left + f * (w_right - w_left) + bridge


class TestLaw:
    @pytest.mark.parametrize("spacing", [None, 1e-9, 1e-3])
    def test_covariance_is_exactly_that_of_brownian_motion(self, spacing):
        """Cov(W(s), W(t)) = min(s, t) - t0 for times in different cells, without sampling."""
        path = BrownianPath(0, T0, T1, SHAPE, spacing=spacing)
        times = [
            t for i, t in enumerate(some_times(60)) if i == 0 or t - some_times(60)[i - 1] > 2e-3
        ]
        assert len(times) > 40
        vectors = [vector(path, t) for t in times]
        for (s, a), (t, b) in itertools.combinations_with_replacement(
            zip(times, vectors, strict=True), 2
        ):
            assert abs(covariance(a, b) - (min(s, t) - T0)) < 1e-12

    def test_times_in_one_cell_are_too_much_alike(self):
        """Negative control, and what the promise of a spacing is for."""
        path = BrownianPath(0, 0.0, 1.0, SHAPE, spacing=0.1)
        cell = 2.0**-path.depth
        s, t = (10 + 0.3) * cell, (10 + 0.7) * cell
        a, b = vector(path, s), vector(path, t)
        assert abs(covariance(a, a) - s) < 1e-12 and abs(covariance(b, b) - t) < 1e-12
        assert covariance(a, b) - s > 0.05 * cell

    @pytest.mark.parametrize("depth", [5, 8, 31])
    def test_increments_have_the_variance_of_their_length(self, depth):
        for a, b in itertools.combinations(some_times(30), 2):
            u, v = (a - T0) / (T1 - T0), (b - T0) / (T1 - T0)
            if levy.entangled(u, v, depth):
                continue
            _, weights = levy.terms(u, v, T1 - T0, depth, False)
            assert abs(math.fsum(w * w for w in weights) / (b - a) - 1) < 1e-10
            _, weights = levy.terms(u, v, T1 - T0, depth, True)
            assert abs(math.fsum(w * w for w in weights) - 1) < 1e-10

    def test_unit_within_one_cell(self):
        _, weights = levy.terms(0.3, 0.3 + 2.0**-40, 1.0, 31, True)
        assert abs(math.fsum(w * w for w in weights) - 1) < 1e-6
        assert len(weights) <= 28

    def test_few_normals_a_query(self):
        for a, b in itertools.combinations(some_times(30), 2):
            u, v = (a - T0) / (T1 - T0), (b - T0) / (T1 - T0)
            for depth in (5, 9, 31):
                draws, _ = levy.terms(u, v, T1 - T0, depth, False)
                assert len(draws) <= 32 + 2 * (depth - 4) <= 86
                assert all(0 <= d < 2**32 for d in draws)

    def test_statistics(self):
        """2 million paths: variances, covariances, fourth moments of normals."""
        shape = (2000, 1000)
        path = BrownianPath(11, 0.0, 1.0, shape, spacing=0.01)
        times = [0.0, 0.013, 0.3, 0.31416, 0.8, 1.0]
        steps = [path(a, b).double() for a, b in itertools.pairwise(times)]
        count = shape[0] * shape[1]
        for step, (a, b) in zip(steps, itertools.pairwise(times), strict=True):
            z = step / math.sqrt(b - a)
            assert abs(z.mean()) < 5 / math.sqrt(count)
            assert abs((z * z).mean() - 1) < 5 * math.sqrt(2 / count)
            assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / count)
        for (i, x), (j, y) in itertools.combinations(enumerate(steps), 2):
            assert abs((x * y).mean() / (x.std() * y.std())) < 5 / math.sqrt(count), (i, j)
            # independent, not only uncorrelated
            squares = (x * x / x.var() - 1) * (y * y / y.var() - 1)
            assert abs(squares.mean()) < 5 * 2 / math.sqrt(count)
        s, t = path(0.0, 0.3).double(), path(0.0, 0.8).double()
        assert abs((s * t).mean() - 0.3) < 5 * math.sqrt((0.3 * 0.8 + 0.09) / count)
        assert abs((steps[2] * s).mean()) < 5 * math.sqrt(0.3 * 0.0142 / count)

    def test_neighbouring_elements_and_samples_are_independent(self):
        z = BrownianPath(3, 0.0, 1.0, (1500, 800)).unit(0.2, 0.7).double()
        for shifted in (z[1:, :] * z[:-1, :], z[:, 1:] * z[:, :-1], z[:, 4:] * z[:, :-4]):
            assert abs(shifted.mean()) < 5 / math.sqrt(shifted.numel())


class TestValues:
    @pytest.mark.parametrize("spacing", [None, 0.02])
    def test_against_a_recursive_bridge(self, spacing):
        path = BrownianPath(5, T0, T1, SHAPE, spacing=spacing, dtype=torch.float64, offset=9)

        def draw(k: int) -> Tensor:
            return noise.normal(
                SHAPE, 5, stream=noise.BROWNIAN, draw=k, offset=9, dtype=torch.float64
            )

        times = some_times(12, seed=3)
        expected = [recursive(draw, t, path.depth) for t in times]
        for (a, w_a), (b, w_b) in itertools.combinations(zip(times, expected, strict=True), 2):
            torch.testing.assert_close(path(a, b), w_b - w_a, rtol=0, atol=2e-6)
        shifted = recursive(lambda k: draw(k ^ 1), times[5], path.depth)
        assert (shifted - expected[5]).abs().max() > 0.1  # negative control

    def test_stream(self):
        from cmsolvers.noise import brownian as _brownian

        assert _brownian.STREAM == noise.BROWNIAN == 2

    def test_additive(self):
        path = BrownianPath(1, T0, T1, (16, 500))
        times = some_times(14, seed=1)
        for a, b, c in itertools.combinations(times, 3):
            parts, whole = path(a, b) + path(b, c), path(a, c)
            assert (parts - whole).abs().max() < 1e-5
        fresh = [noise.normal((16, 500), 1, draw=k) for k in range(3)]  # negative control
        assert (fresh[0] + fresh[1] - math.sqrt(2.0) * fresh[2]).abs().max() > 1

    def test_small_increments_keep_their_digits(self):
        path = BrownianPath(1, 0.0, 1.0, (16, 500))
        a, b, c = 0.7, 0.7 + 3e-8, 0.7 + 8e-8
        parts, whole = path(a, b) + path(b, c), path(a, c)
        assert (parts - whole).abs().max() < 2e-6 * math.sqrt(c - a)
        assert 0.9 < whole.std() / math.sqrt(c - a) < 1.1

    def test_order_and_history_do_not_matter(self):
        queries = [(0.1, 0.7), (0.7, 0.2), (0.0, 1.0), (0.1, 0.1), (0.25, 0.5)]
        path = BrownianPath(1, 0.0, 1.0, SHAPE)
        first = [path(*q) for q in queries]
        again = [path(*q) for q in reversed(queries)][::-1]
        other = [BrownianPath(1, 0.0, 1.0, SHAPE)(*q) for q in queries]
        assert_same_bits(first, again)
        assert_same_bits(first, other)

    def test_backwards_and_nowhere(self):
        path = BrownianPath(1, T0, T1, SHAPE)
        for a, b in itertools.combinations(some_times(10), 2):
            assert_same_bits(path(b, a), -path(a, b))
            assert_same_bits(path.unit(b, a), -path.unit(a, b))
        assert_same_bits(path(0.3, 0.3), torch.zeros(SHAPE))

    def test_unit_is_the_increment_over_its_root(self):
        path = BrownianPath(1, T0, T1, SHAPE)
        for a, b in itertools.combinations(some_times(10), 2):
            torch.testing.assert_close(
                path.unit(a, b), path(a, b) / math.sqrt(b - a), rtol=1e-5, atol=1e-6
            )

    def test_depths_agree_on_the_coarser_grid(self):
        coarse = BrownianPath(1, T0, T1, SHAPE, spacing=0.05)
        fine = BrownianPath(1, T0, T1, SHAPE)
        assert (coarse.depth, fine.depth) == (8, 31)
        grid = [T0 + (T1 - T0) * k / 2**coarse.depth for k in (0, 3, 77, 128, 255, 256)]
        for a, b in itertools.combinations(grid, 2):
            torch.testing.assert_close(coarse(a, b), fine(a, b), rtol=0, atol=1e-5)
        between = grid[2] + 0.4 * (T1 - T0) / 2**coarse.depth
        assert (coarse(T0, between) - fine(T0, between)).abs().max() > 1e-3

    def test_depth(self):
        for spacing, depth in (
            (1.0, 5),
            (5.0, 5),
            (1 / 16, 5),
            (1 / 17, 6),
            (1e-3, 11),
            (1e-30, 31),
        ):
            assert BrownianPath(1, 0.0, 1.0, SHAPE, spacing=spacing).depth == depth

    @pytest.mark.parametrize("t0, t1", [(0.1, 80.1), (-0.3, 0.7), (0.002, 1.0 / 3.0)])
    def test_ends_as_float32_holds_them(self, t0, t1):
        """They may lie outside by more than float64 rounds; further out is an error."""
        path = BrownianPath(3, t0, t1, (4, 3))
        a, b = (torch.tensor(t, dtype=torch.float32) for t in (t0, t1))
        assert a.item() != t0 and b.item() != t1
        middle = 0.5 * (t0 + t1)
        for start in (a.item(), a.expand(4)):
            got = path(start, middle)
            torch.testing.assert_close(got, path(t0, middle), rtol=0.0, atol=1e-2)
        for end in (b.item(), b.expand(4)):
            got = path(middle, end)
            torch.testing.assert_close(got, path(middle, t1), rtol=0.0, atol=1e-2)
        for wrong in (t0 - 1e-6 * abs(t1), t1 + 1e-5 * abs(t1)):
            with pytest.raises(ValueError, match="must lie in"):
                path(wrong, middle)

    def test_ends_are_clamped(self):
        path = BrownianPath(1, T0, T1, SHAPE)
        whole = path(T0, T1)
        below, above = T0, T1
        for _ in range(2):
            below, above = math.nextafter(below, -9.0), math.nextafter(above, 9.0)
            assert_same_bits(path(below, above), whole)


class TestSameBits:
    path = BrownianPath(5, T0, T1, (6, 3, 5, 4), offset=2)
    value = path(-0.3, 1.7)

    @pytest.mark.parametrize("name", SETS)
    def test_instruction_sets(self, name):
        with instruction_set(name):
            assert_same_bits(self.path(-0.3, 1.7), self.value)

    def test_threads(self):
        path = BrownianPath(5, T0, T1, (3, 50_000))
        with threads(1):
            one = path(0.1, 0.3)
        with threads(2):
            assert_same_bits(path(0.1, 0.3), one)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
    def test_dtypes(self, dtype):
        path = BrownianPath(5, T0, T1, (6, 3, 5, 4), offset=2, dtype=dtype)
        assert_same_bits(path(-0.3, 1.7), self.value.to(dtype))

    def test_layouts_and_out(self):
        layout = torch.channels_last
        path = BrownianPath(5, T0, T1, (6, 3, 5, 4), offset=2, memory_format=layout)
        found = path(-0.3, 1.7)
        assert found.is_contiguous(memory_format=layout)
        assert_same_bits(found, self.value)
        out = torch.empty(4, 6, 3, 5, dtype=torch.float64).permute(1, 2, 3, 0)
        assert self.path(-0.3, 1.7, out=out) is out
        assert_same_bits(out, self.value.double())
        assert self.path.unit(-0.3, 1.7, out=out) is out
        scaled = self.value.double() / math.sqrt(2.0)
        torch.testing.assert_close(out, scaled, rtol=1e-5, atol=1e-5)

    def test_batch(self):
        for cut in range(7):
            parts = [
                BrownianPath(5, T0, T1, (size, 3, 5, 4), offset=2 + start)(-0.3, 1.7)
                for start, size in ((0, cut), (cut, 6 - cut))
            ]
            assert_same_bits(torch.cat(parts), self.value)
        order = torch.tensor([4, 0, 5, 1, 3, 2])
        mixed = BrownianPath(5, T0, T1, (6, 3, 5, 4), ids=order + 2)(-0.3, 1.7)
        assert_same_bits(mixed, self.value[order])

    def test_seeds(self):
        assert not torch.equal(
            BrownianPath(6, T0, T1, (6, 3, 5, 4), offset=2)(-0.3, 1.7), self.value
        )
        each = BrownianPath(torch.arange(6), T0, T1, (6, 3, 5, 4))(-0.3, 1.7)
        alone = BrownianPath(4, T0, T1, (1, 3, 5, 4))(-0.3, 1.7)
        assert_same_bits(each[4:5], alone)
        torch.manual_seed(3)
        path = BrownianPath(None, T0, T1, SHAPE)
        torch.manual_seed(3)
        assert_same_bits(path(0.0, 1.0), BrownianPath(None, T0, T1, SHAPE)(0.0, 1.0))

    @pytest.mark.parametrize("spacing", [None, 0.01])
    @pytest.mark.parametrize("unit", [False, True])
    def test_a_time_for_each_sample(self, spacing, unit):
        source = random.Random(4)
        ends = [(source.uniform(T0, T1), source.uniform(T0, T1)) for _ in range(40)]
        ends += [(T0, T1), (T1, T0), (T0, T0 + 0.5), (1.0, T1), (0.5, 0.53)]
        if spacing is None:
            ends += [(1.0, 1.0 + 1e-12), (1.0, 1.0)][: 1 if unit else 2]
        a, b = (torch.tensor(v, dtype=torch.float64) for v in zip(*ends, strict=True))
        path = BrownianPath(5, T0, T1, (len(ends), 90), spacing=spacing)
        found = (path.unit if unit else path)(a, b)
        for k, (s, t) in enumerate(ends):
            one = BrownianPath(5, T0, T1, (1, 90), offset=k, spacing=spacing)
            assert_same_bits(found[k : k + 1], (one.unit if unit else one)(s, t))
        mixed = path(0.125, b)
        assert_same_bits(mixed, path(torch.full_like(a, 0.125), b))
        assert_same_bits(path.unit(a, a), torch.zeros_like(found))

    def test_compiled(self):
        path = self.path
        step = torch.compile(lambda x: x + path(-0.3, 1.7), fullgraph=True, backend="aot_eager")
        assert_same_bits(step(torch.zeros(6, 3, 5, 4)), self.value)

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_cuda(self):
        path = BrownianPath(5, T0, T1, (6, 3, 5, 4), offset=2, device="cuda")
        assert_same_bits(path(-0.3, 1.7).cpu(), self.value)
        a = torch.linspace(T0, 1.0, 6, dtype=torch.float64)
        found = path.unit(a.cuda(), T1).cpu()
        assert_same_bits(found, self.path.unit(a, T1))


def euler(steps: int, increment: Callable[[float, float], Tensor]) -> Tensor:
    """Euler's X(1) of dX = -2 t X dt + (1 + t) dW, X(0) = 1, over uneven steps."""

    def time(k: int) -> float:
        return min(1.0, k / steps + 0.03 * math.sin(2 * math.pi * k / steps))

    x = torch.ones(1, 4_000, dtype=torch.float64)
    for k in range(steps):
        t, following = time(k), time(k + 1)
        x = x + (following - t) * -2 * t * x + (1 + t) * increment(t, following)
    return x


def brownian(spacing: float | None = None) -> BrownianPath:
    return BrownianPath(3, 0.0, 1.0, (1, 4_000), spacing=spacing, dtype=torch.float64)


def fresh(a: float, b: float) -> Tensor:
    z = noise.normal((1, 4_000), 3, draw=int(a * 2**30), dtype=torch.float64)
    return math.sqrt(b - a) * z


def strong_order(make: Callable[[int], Callable[[float, float], Tensor]]) -> float:
    """Slope of the root mean square error, 12 to 192 steps against 3072 on the path."""
    reference = euler(3072, brownian())
    counts = [12 * 2**k for k in range(5)]
    errors = [float((euler(n, make(n)) - reference).square().mean().sqrt()) for n in counts]
    x = torch.arange(5.0) - 2.0
    y = -torch.tensor(errors).log2()
    return float((x * (y - y.mean())).sum() / (x * x).sum())


class TestRefinement:
    """Halving the steps keeps the path; the numbers of steps are no powers of two."""

    def test_strong_order_on_one_path(self):
        assert abs(strong_order(lambda n: brownian()) - 1) < 0.1

    def test_strong_order_with_no_more_depth_than_needed(self):
        assert abs(strong_order(lambda n: brownian(0.8 / n)) - 1) < 0.1

    def test_fresh_normals_do_not_converge(self):
        assert abs(strong_order(lambda n: fresh)) < 0.1


BAD = [
    ({"t0": "0"}, TypeError, "t0 must be a number; got '0'"),
    ({"t0": math.nan}, ValueError, "t0 must be a number; got nan"),
    ({"t1": math.inf}, ValueError, "t1 must be finite; got inf"),
    ({"t0": 1.0}, ValueError, "t0 must be below t1; got 1 and 1"),
    ({"t0": 2.0}, ValueError, "t0 must be below t1; got 2 and 1"),
    ({"t0": -1e308, "t1": 1e308}, ValueError, "t1 - t0 must be finite; got inf"),
    ({"t0": 0.0, "t1": 1e308}, ValueError, r"t1 - t0 must be in \[1e-60, 1e\+60\]; got 1e\+308"),
    ({"t0": 0.0, "t1": 5e-324}, ValueError, r"t1 - t0 must be in \[1e-60, 1e\+60\]"),
    ({"shape": 3}, TypeError, "shape must be a sequence of ints; got 3"),
    ({"shape": ()}, ValueError, r"shape must have a batch dimension; got \[\]"),
    ({"shape": (2, -1)}, ValueError, "shape must be at least 0; got -1"),
    ({"shape": (2, 1.5)}, TypeError, "shape must be an int; got 1.5"),
    ({"spacing": 0.0}, ValueError, "spacing must be positive; got 0"),
    ({"spacing": "x"}, TypeError, "spacing must be a number; got 'x'"),
    ({"dtype": torch.int32}, TypeError, "dtype must be float64, float32, float16 or bfloat16"),
    ({"seed": -1}, ValueError, r"seed must lie in \[0, 2\^64\); got -1"),
    ({"seed": 1.5}, TypeError, "seed must be an int, an int64 tensor"),
    (
        {"seed": torch.arange(3)},
        ValueError,
        r"seed must have shape \[2\], one per sample; got \[3\]",
    ),
    ({"offset": -1}, ValueError, "offset must leave sample ids"),
    ({"ids": torch.zeros(3).long()}, ValueError, r"ids must have shape \[2\]"),
]

BAD_QUERIES = [
    ((-0.1, 1.0), {}, ValueError, r"a must lie in \[0.0, 1.0\]; got -0.1"),
    ((0.0, 1.0 + 1e-15), {}, ValueError, r"b must lie in \[0.0, 1.0\]; got 1.000000000000001"),
    ((math.nan, 1.0), {}, ValueError, "a must be a number; got nan"),
    ((0.0, math.inf), {}, ValueError, "b must be finite; got inf"),
    ((0.0, "1"), {}, TypeError, "b must be a number; got '1'"),
    ((0.0, None), {}, TypeError, "b must be a number; got None"),
    ((torch.tensor([0.0, 2.0]), 0.5), {}, ValueError, r"a must lie in \[0.0, 1.0\]; got 2.0"),
    ((torch.tensor([0.0, math.nan]), 0.5), {}, ValueError, r"a must lie in .*; got nan"),
    ((0.5, torch.zeros(3)), {}, ValueError, r"b must be a number or have shape \[2\]; got \[3\]"),
    ((0.5, torch.zeros(2).long()), {}, TypeError, "b must be floating; got torch.int64"),
    ((0.5, torch.zeros(2, device="meta")), {}, ValueError, "b must be on the device of the path"),
    ((0.0, 1.0), {"out": [1]}, TypeError, "out must be a torch.Tensor; got an object"),
    ((0.0, 1.0), {"out": torch.zeros(2)}, ValueError, r"out must have shape \[2, 3\]; got \[2\]"),
    ((0.0, 1.0), {"out": torch.zeros(2, 3).int()}, TypeError, "out must be float64, float32"),
    (
        (0.0, 1.0),
        {"out": torch.zeros(2, 3, requires_grad=True)},
        ValueError,
        "out must not require a gradient",
    ),
]


@pytest.mark.parametrize(("given", "error", "text"), BAD)
def test_bad_input(given, error, text):
    arguments = {"seed": 1, "t0": 0.0, "t1": 1.0, "shape": (2, 3), **given}
    positional = [arguments.pop(name) for name in ("seed", "t0", "t1", "shape")]
    with pytest.raises(error, match=text):
        BrownianPath(*positional, **arguments)


@pytest.mark.parametrize(("times", "given", "error", "text"), BAD_QUERIES)
def test_bad_queries(times, given, error, text):
    path = BrownianPath(1, 0.0, 1.0, (2, 3))
    for query in (path, path.unit):
        with pytest.raises(error, match=text):
            query(*times, **given)


def test_unit_of_nothing():
    with pytest.raises(
        ValueError, match=r"b must differ from a for a unit normal; got 0.5 and 0.5"
    ):
        BrownianPath(1, 0.0, 1.0, (2, 3)).unit(0.5, 0.5)


def test_broken_promise():
    path = BrownianPath(1, 0.0, 1.0, (2, 3), spacing=0.1)
    assert torch.equal(path(0.5, 0.5), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="a and b must be as far apart as the spacing"):
        path(0.51, 0.52)
    path(0.5, 0.6)
    path(1.0 - 2.0**-path.depth, 1.0)  # the ends of a cell are no times inside it
