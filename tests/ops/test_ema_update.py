"""Moving averages in one pass: the right average, and the same bits from every kernel."""

from __future__ import annotations

import math
import os
import shutil
import subprocess

import pytest
import torch
from torch import Tensor

from cmsolvers.ops import ema_update
from cmsolvers.ops.ema_update import _plain
from support import ROOT, cases
from support.exact import SETS, assert_same_bits, instruction_set, threads

CSRC = ROOT / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
WEIGHTS = [0.001, 0.3, 0.5, 0.9, 1.0, 0.0]
SHAPES = [(5,), (), (3, 0), (1,), (64, 33), (2, 3, 17, 5), (40_003,), (1, 1024)]
LAYOUTS = [
    cases.dense, cases.channels_last, cases.transposed, cases.misaligned, cases.strided,
]  # fmt: skip
WIDE = [torch.float32, torch.float64]


def drawn(seed: int, dtype: torch.dtype = torch.float32, shapes=SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def copied(lists: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[t.clone() for t in one] for one in lists]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_is_the_average(k, dtype):
    """Against extended precision: two roundings at most, of numbers up to the larger of the two."""
    averages, values = [drawn(j, dtype) for j in range(k)], drawn(99, dtype)
    before = copied(averages)
    ema_update(averages, values, WEIGHTS[:k])
    worst = 0.0
    for j in range(k):
        w = float(torch.tensor(WEIGHTS[j], dtype=dtype))
        for a, b, v in zip(averages[j], before[j], values, strict=True):
            exact = b.double() + w * (v.double() - b.double())
            size = torch.maximum(torch.maximum(b.abs(), v.abs()), (v - b).abs()).double()
            if a.numel():
                bound = 2 * torch.finfo(dtype).eps * size
                worst = max(worst, float(((a.double() - exact).abs() / bound).max()))
    assert worst <= 1.0
    wrong = before[0][4].double() + 0.01 * (values[4].double() - before[0][4].double())
    assert (averages[0][4].double() - wrong).abs().max() > 1e-3  # negative control


def test_ends_are_exact():
    averages, values = [drawn(1), drawn(1)], drawn(2)
    before = copied(averages)
    ema_update(averages, values, [0.0, 1.0])
    assert_same_bits(averages[0], before[0])
    assert_same_bits(averages[1], values)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("value_dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_instruction_sets(name, dtype, value_dtype):
    averages, values = [drawn(j, dtype) for j in range(3)], drawn(9, value_dtype)
    values[4][0, 0] = math.inf
    values[4][0, 1] = math.nan
    expected = copied(averages)
    with instruction_set(SETS[0]):
        ema_update(expected, values, WEIGHTS[:3], infinite=[4])
    with instruction_set(name):
        ema_update(averages, values, WEIGHTS[:3], infinite=[4])
    for one, other in zip(averages, expected, strict=True):
        assert_same_bits(one, other, name)
    assert averages[0][4][0, 0] == math.inf and averages[0][4][0, 1].isnan()


@pytest.mark.parametrize("value_dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("by_table", [False, True])
def test_twin(by_table, dtype, value_dtype):
    """`torch._foreach_lerp_` on the CPU may multiply and add with two roundings or with one."""
    averages, values = [drawn(j, dtype) for j in range(6)], drawn(9, value_dtype)
    twins = copied(averages)
    table = torch.tensor(WEIGHTS, dtype=torch.float64)
    ema_update(averages, values, table if by_table else WEIGHTS)
    flat = [t for one in twins for t in one]
    _plain(flat, values, [] if by_table else WEIGHTS, table if by_table else None, [])
    for j in range(6):
        for found, twin, value in zip(averages[j], twins[j], values, strict=True):
            size = torch.maximum(twin.abs(), value.abs().to(dtype))
            wide = (found.double() - twin.double()).abs()
            assert (wide <= torch.finfo(dtype).eps * size.double()).all()


def test_same_bits_from_tensor_weights():
    averages, values = [drawn(j) for j in range(3)], drawn(9)
    others = copied(averages)
    ema_update(averages, values, WEIGHTS[:3])
    ema_update(others, values, torch.tensor(WEIGHTS[:3], dtype=torch.float64))
    for one, other in zip(averages, others, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("of_value", LAYOUTS)
@pytest.mark.parametrize("of_average", LAYOUTS)
def test_layouts(of_average, of_value):
    """All averages and the value in layouts of their own."""
    shape = (4, 3, 10, 9)
    first, second, value = drawn(1, shapes=[shape] * 3)
    expected = [[first.clone()], [second.clone()]]
    ema_update(expected, [value], [0.1, 0.7])
    mine = [of_average(first.clone()), second.clone()]
    strides = [t.stride() for t in mine]
    ema_update([[mine[0]], [mine[1]]], [of_value(value)], [0.1, 0.7])
    assert_same_bits(mine, [expected[0][0], expected[1][0]])
    assert [t.stride() for t in mine] == strides


def test_channels_last_averages_are_not_copied():
    """Tensors in one dense layout are moved where they lie."""
    value = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    average = torch.zeros_like(value)
    with torch.profiler.profile() as profile:
        ema_update([[average]], [value], [0.5])
    assert not [e for e in profile.events() if "copy_" in e.name or "empty" in e.name]
    assert torch.equal(average, value / 2)


def test_thread_count_and_many_tensors():
    shapes = [(7,)] * 150 + [(100_001,), (30_000,)] + [(1,)] * 20
    averages, values = [drawn(j, shapes=shapes) for j in range(2)], drawn(9, shapes=shapes)
    others = copied(averages)
    with threads(1):
        ema_update(averages, values, WEIGHTS[:2])
    with threads(3):
        ema_update(others, values, WEIGHTS[:2])
    for j in range(2):
        assert_same_bits(averages[j], others[j])
        for i in (0, 149, 150, 151, 171):  # each as if it were alone
            alone = drawn(j, shapes=shapes)[i]
            ema_update([[alone]], [values[i]], [WEIGHTS[j]])
            assert_same_bits(averages[j][i], alone)


def test_dtypes_may_differ_from_list_to_list():
    values = drawn(9, torch.bfloat16)
    averages = [drawn(0), drawn(1, torch.float64), [*drawn(2)[:4], *drawn(2, torch.float64)[4:]]]
    expected = copied(averages)
    ema_update(averages, values, WEIGHTS[:3])
    for j in range(3):
        for i in range(len(values)):
            ema_update([[expected[j][i]]], [values[i]], [WEIGHTS[j]])
        assert_same_bits(averages[j], expected[j])


def test_infinite_entries():
    inf, nan = math.inf, math.nan
    values = [torch.tensor([-inf, inf, 1.0, nan, 2.0])]
    for w in (0.1, 0.5, 1.0):
        average = torch.tensor([-inf, 3.0, -inf, 0.0, 1.0])
        ema_update([[average]], values, [w], infinite=[0])
        expected = torch.tensor([-inf, inf, 1.0, nan, 1.0 + w])
        torch.testing.assert_close(average, expected, equal_nan=True)
    average = torch.tensor([-inf, 3.0, -inf, 0.0, 1.0])
    ema_update([[average]], values, [0.1])  # without the word nothing hides a broken network
    assert average.isnan().tolist() == [True, False, True, True, False]


class TestSharedMemory:
    def test_twice_in_one_list(self):
        average, values = torch.zeros(3), [torch.ones(3), torch.full((3,), 2.0)]
        ema_update([[average, average]], values, [0.5])
        assert average.tolist() == [1.25] * 3

    def test_overlapping_averages(self):
        memory = torch.zeros(6)
        ema_update([[memory[:4], memory[2:]]], [torch.ones(4), torch.ones(4)], [0.5])
        assert memory.tolist() == [0.5, 0.5, 0.75, 0.75, 0.5, 0.5]

    def test_interleaved_averages(self):
        memory = torch.zeros(4, 2)
        ema_update([[memory[:, 0], memory[:, 1]]], [torch.ones(4), torch.ones(4) * 2], [0.5])
        assert memory.tolist() == [[0.5, 1.0]] * 4

    def test_same_list_twice(self):
        average = torch.zeros(3)
        ema_update([[average], [average]], [torch.ones(3)], torch.tensor([0.5, 0.25]).double())
        assert average.tolist() == [0.625] * 3

    def test_value_is_its_average(self):
        average, other = torch.arange(3.0), torch.zeros(3)
        ema_update([[average], [other]], [average], [0.5, 0.5])
        assert average.tolist() == [0.0, 1.0, 2.0] and other.tolist() == [0.0, 0.5, 1.0]

    def test_value_overlaps_its_average(self):
        memory = torch.arange(6.0)
        ema_update([[memory[1:]]], [memory[:-1]], [1.0])
        assert memory.tolist() == [0.0, 0.0, 1.0, 2.0, 3.0, 4.0]

    def test_value_is_another_average(self):
        first, second = torch.zeros(2), torch.zeros(2)
        ema_update([[first, second]], [torch.ones(2), first], [0.5])
        assert first.tolist() == [0.5] * 2 and second.tolist() == [0.25] * 2

    def test_one_value_for_several(self):
        value, averages = torch.ones(3), [torch.zeros(3), torch.zeros(3)]
        ema_update([averages], [value, value], [0.5])
        assert all(a.tolist() == [0.5] * 3 for a in averages)


def test_nothing_to_do():
    ema_update([], [], [])
    ema_update([[], []], [], [0.5, 0.5])
    ema_update([], [torch.ones(3)], [])
    ema_update([[torch.empty(0, 3)]], [torch.empty(0, 3)], [0.5])


def test_values_that_require_gradients_are_read():
    value, average = torch.ones(3, requires_grad=True), torch.zeros(3)
    ema_update([[average]], [value * 2], [0.5])
    assert average.tolist() == [1.0] * 3 and not average.requires_grad


def test_autograd_notices_the_change():
    average, x = torch.ones(3), torch.ones(3, requires_grad=True)
    y = (x * average).sum()
    ema_update([[average]], [torch.zeros(3)], [0.5])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


ONE = torch.zeros(3)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"weights": [1.5]}, ValueError, r"weights\[0\] must .*1\.5"),
        ({"weights": [math.nan]}, ValueError, r"weights\[0\] must .*nan"),
        ({"weights": ["a"]}, TypeError, r"weights\[0\] must"),
        ({"weights": [0.5, 0.5]}, ValueError, "weights must hold one number per list"),
        ({"weights": torch.tensor([0.5])}, TypeError, "weights must be float64.*float32"),
        ({"weights": torch.ones(2).double()}, ValueError, r"weights must have shape \[1\]"),
        ({"averages": [[1.0]]}, TypeError, r"averages\[0\]\[0\] must be a tensor; got 1.0"),
        ({"values": [None]}, TypeError, r"values\[0\] must be a tensor; got None"),
        ({"averages": [[ONE, ONE]]}, ValueError, r"averages\[0\] must hold one tensor per value"),
        ({"averages": [[torch.zeros(4)]]}, ValueError, r"averages\[0\]\[0\] must have the shape"),
        ({"averages": [[ONE.half()]]}, TypeError, r"averages\[0\]\[0\] must be float64 or float32"),
        ({"averages": [[ONE.int()]]}, TypeError, r"averages\[0\]\[0\] must be float64 or float32"),
        ({"values": [ONE.int()]}, TypeError, r"values\[0\] must be float64, float32, float16"),
        (
            {"averages": [[torch.zeros(1).expand(3)]]},
            RuntimeError,
            "more than one element of the written-to tensor refers to a single memory location",
        ),
        (
            {"averages": [[torch.zeros(3, requires_grad=True)]]},
            RuntimeError,
            "averages must not require gradients",
        ),
        ({"infinite": [1]}, ValueError, "infinite must hold places in values, 0 to 0; got 1"),
    ],
)
def test_bad_input(given, error, text):
    arguments = {"averages": [[torch.zeros(3)]], "values": [torch.ones(3)], "weights": [0.5]}
    arguments |= given
    tensors = [t for one in arguments["averages"] for t in one if isinstance(t, Tensor)]
    before = [t.clone() for t in tensors]
    with pytest.raises(error, match=text):
        ema_update(**arguments)
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True))


@pytest.mark.parametrize("fault", ["dtype", "shape", "value"])
def test_twin_refuses_the_same(fault):
    average = torch.zeros(3, dtype=torch.int32 if fault == "dtype" else torch.float32)
    value = torch.ones(4 if fault == "shape" else 3)
    with pytest.raises((TypeError, ValueError), match=r"must (be float64|have the shape)"):
        _plain([average], [value.int() if fault == "value" else value], [0.5], None, [])


def test_twin_copies_infinite_entries():
    average = torch.tensor([-math.inf, 0.0])
    _plain([average], [torch.tensor([-math.inf, 1.0])], [0.5], None, [0])
    assert average.tolist() == [-math.inf, 0.5]


@pytest.mark.parametrize("by_table", [False, True])
def test_registration(by_table):
    averages, values = [*drawn(1), *drawn(2)], drawn(3)
    table = torch.tensor([0.5, 0.1]).double() if by_table else None
    arguments = (averages, values, [] if by_table else [0.5, 0.1], table, [4])
    torch.library.opcheck(torch.ops.cmsolvers.ema_update, arguments)


def test_compiles_as_one_graph():
    values = [torch.ones(3), torch.ones(2, 2)]

    def step(a, b):
        ema_update([[a, b]], values, [0.25])
        return a + 1

    averages = [torch.zeros(3), torch.zeros(2, 2)]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert compiled(*averages).tolist() == [1.25] * 3
    assert averages[1].tolist() == [[0.25] * 2] * 2


def test_vmap_is_refused():
    with pytest.raises(RuntimeError, match="vmap over ema_update"):
        torch.vmap(lambda x: ema_update([[x]], [torch.ones(2)], [0.5]))(torch.zeros(3, 2))


HARNESS = """
#include <cstdio>
#include "ema/group.h"
using namespace cmsolvers;
int main() {
  float pair[2];
  const double weights[] = {0.001, 0.3, 0.5, 0.9, 1.0, 0.0};
  while (std::fread(pair, 4, 2, stdin) == 2)
    for (double w : weights) {
      const float found = portable::moved(portable::move_of<float>(w), pair[0], pair[1]);
      std::fwrite(&found, 4, 1, stdout);
    }
}
"""


@pytest.mark.skipif(COMPILER is None or not CSRC.exists(), reason="needs a compiler and sources")
def test_what_a_cuda_thread_does(tmp_path):
    """The header that CUDA threads run, compiled for the host."""
    (tmp_path / "harness.cpp").write_text(HARNESS)
    command = [COMPILER, "-std=c++17", "-O1", "-ffp-contract=off", f"-I{CSRC}", "harness.cpp"]
    subprocess.run([*command, "-o", "harness"], cwd=tmp_path, check=True)
    (average,), (value,) = drawn(1, shapes=[(500,)]), drawn(2, shapes=[(500,)])
    given = torch.stack((average, value), dim=1).numpy().tobytes()
    done = subprocess.run([str(tmp_path / "harness")], input=given, capture_output=True, check=True)
    found = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).reshape(500, 6)
    averages = [[average.clone()] for _ in WEIGHTS]
    ema_update(averages, [value], WEIGHTS)
    assert_same_bits(found.T.contiguous(), torch.stack([a for (a,) in averages]))


cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


class TestCuda:
    pytestmark = cuda

    @pytest.mark.parametrize("value_dtype", cases.DTYPES, ids=str)
    @pytest.mark.parametrize("dtype", WIDE, ids=str)
    @pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
    def test_is_the_cpu_to_the_bit(self, k, dtype, value_dtype):
        shapes = [*SHAPES, *[(5, 3)] * 150, (300_001,)]
        averages = [drawn(j, dtype, shapes) for j in range(k)]
        values = drawn(9, value_dtype, shapes)
        there = [[t.cuda() for t in one] for one in averages]
        for weights in (WEIGHTS[:k], torch.tensor(WEIGHTS[:k], dtype=torch.float64)):
            ema_update(averages, values, weights, infinite=[4])
            given = weights.cuda() if isinstance(weights, Tensor) else weights
            ema_update(there, [v.cuda() for v in values], given, infinite=[4])
            for one, other in zip(there, averages, strict=True):
                assert_same_bits([t.cpu() for t in one], other)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, layout):
        first, second, value = drawn(1, shapes=[(4, 3, 10, 9)] * 3)
        mine = [layout(first.cuda()), second.cuda()]
        ema_update([[mine[0]], [mine[1]]], [layout(value.cuda())], [0.1, 0.7])
        ema_update([[first], [second]], [value], [0.1, 0.7])
        assert_same_bits([t.cpu() for t in mine], [first, second])

    def test_mixed_devices(self):
        """Averages stay where they are; values come to them."""
        averages, values = [drawn(1)], drawn(2)
        there = [[t.cuda() if i % 2 else t.clone() for i, t in enumerate(averages[0])]]
        ema_update(there, [v.cuda() for v in values], [0.3])
        ema_update(averages, values, [0.3])
        assert_same_bits([t.cpu() for t in there[0]], averages[0])

    def test_is_one_kernel_and_does_not_wait(self):
        averages, values = [[t.cuda() for t in drawn(j)] for j in range(3)], drawn(9)
        values = [v.cuda() for v in values]
        table = torch.tensor(WEIGHTS[:3], dtype=torch.float64, device="cuda")
        ema_update(averages, values, table)
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            torch.cuda.set_sync_debug_mode("error")
            try:
                ema_update(averages, values, table)
                ema_update(averages, values, WEIGHTS[:3])
            finally:
                torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
        on_device = [
            e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA
        ]
        assert len(on_device) == 2 and all("ema_kernel" in name for name in on_device), on_device

    def test_graph_replays_with_new_weights(self):
        averages, values = [[t.cuda() for t in drawn(1)]], [v.cuda() for v in drawn(2)]
        expected = copied(averages)
        table = torch.zeros(1, dtype=torch.float64, device="cuda")
        graph = torch.cuda.CUDAGraph()
        ema_update(averages, values, table)  # w = 0 moves nothing
        with torch.cuda.graph(graph):
            ema_update(averages, values, table)
        for w in (0.5, 0.1):
            table.fill_(w)
            graph.replay()
            ema_update(expected, values, [w])
        assert_same_bits(averages[0], expected[0])
