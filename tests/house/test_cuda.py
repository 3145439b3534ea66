"""CUDA against CPU, to the bit, and what only a GPU can show: streams, graphs, sizes, no waiting.

`CMSOLVERS_REQUIRE_CUDA=1` turns the skip of this file into a failure (tools/gpu_run.py sets it).
"""

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import cmsolvers
from cmsolvers import denoisers, noise, ops
from cmsolvers.engine import catalogue
from cmsolvers.ops import reference
from cmsolvers.ops.noise_sum import noise_sum

HAS_CUDA = torch.cuda.is_available() and bool(ops.build_info()["cuda"])
REQUIRED = os.environ.get("CMSOLVERS_REQUIRE_CUDA", "0") not in ("", "0")

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not HAS_CUDA and not REQUIRED, reason="needs a GPU and the CUDA part of the extension"
    ),
]

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = [F64, F32, F16, BF16]
PAIRS = [(F64, F64), (F64, F32), (F64, BF16), (F32, F32), (F32, F16), (F32, BF16), (F16, F16)]
PAIRS.append((BF16, BF16))

Step = Callable[[Tensor, list[Tensor], "int | Tensor"], "Tensor | tuple[Tensor, Tensor]"]


def _rows(x: Tensor, *columns: float) -> list[Tensor]:
    """Weights that differ from sample to sample, on the device of x."""
    ramp = torch.linspace(0.5, 1.5, x.shape[0], dtype=F64, device=x.device)
    return [c * ramp for c in columns]


def _everything(x: Tensor, m: list[Tensor], seed: "int | Tensor"):
    return ops.weighted_step(
        x,
        m,
        (0.7, 0.3, -0.2, 0.1, 0.05),
        w_z=0.4,
        seed=seed,
        draw=3,
        x0=(0.6, 0.5),
        clamp=(-0.5, 0.75),
        second=1.3,
    )


def _levels(x: Tensor, dtype: torch.dtype, first: float, last: float) -> Tensor:
    """One a sample, each second entry of a larger tensor on the device of x."""
    ramp = torch.linspace(first, last, 2 * x.shape[0], dtype=F64, device=x.device)
    return ramp.to(dtype)[::2]


STEPS: dict[str, Step] = {
    "noise alone": lambda x, m, s: ops.weighted_step(x, (), (0.0,), w_z=1.0, seed=s),
    "one input": lambda x, m, s: ops.weighted_step(x, m[:1], (0.9, 0.1)),
    "four inputs": lambda x, m, s: ops.weighted_step(x, m, (0.9, 0.1, -0.3, 0.2, 0.7)),
    "dropped terms": lambda x, m, s: ops.weighted_step(x, m[:3], (0.0, 0.5, 0.0, 0.25)),
    "euler_maruyama": lambda x, m, s: ops.euler_maruyama_step(x, m[0], 1.7, -0.01, seed=s),
    "pf_ode": lambda x, m, s: ops.pf_ode_step(x, m[0], 2.0, 1.5),
    "heun": lambda x, m, s: ops.heun_step(x, m[0], 2.0, 1.5, m[1]),
    "consistency_output": lambda x, m, s: ops.consistency_output(x, m[0], 3.0),
    "add_noise": lambda x, m, s: ops.add_noise(x, 0.8, alpha=0.6, seed=s),
    "noise pair": lambda x, m, s: ops.add_noise(x, 0.8, sigma_next=0.4, seed=s),
    "clamp": lambda x, m, s: ops.weighted_step(x, m[:1], (0.3, 0.7), clamp=(-1.0, 1.0)),
    "x0 out": lambda x, m, s: ops.weighted_step(
        x, m[:2], (0.3, 0.7, 0.1), x0=(0.2, 0.8), clamp=(-1.0, 1.0), second="x0", w_z=0.1, seed=s
    ),
    "network input": lambda x, m, s: ops.weighted_step(
        x, m[:1], (0.4, 0.6), second=0.5, second_dtype=m[0].dtype
    ),
    "rows": lambda x, m, s: ops.weighted_step(
        x, m[:2], _rows(x, 0.9, 0.2, -0.1), w_z=_rows(x, 0.3)[0], seed=s
    ),
    "rows, everything": lambda x, m, s: ops.weighted_step(
        x,
        m,
        _rows(x, 0.9, 0.2, -0.1, 0.4, 0.3),
        w_z=_rows(x, 0.3)[0],
        seed=s,
        x0=(_rows(x, 0.5)[0], 0.5),
        clamp=(-1.0, 1.0),
        second=("pair", 0.5, _rows(x, 0.2)[0]),
    ),
    "one table of weights": lambda x, m, s: ops.weighted_step(
        x, m[:2], torch.stack(_rows(x, 0.9, 0.2, -0.1)).T
    ),
    "pf_ode, levels": lambda x, m, s: ops.pf_ode_step(
        x, m[0], _levels(x, F32, 80.0, 2.0), _levels(x, BF16, 1.5, 0.1)
    ),
    "heun, levels": lambda x, m, s: ops.heun_step(
        x, m[0], _levels(x, F64, 80.0, 2.0), _levels(x, F32, 70.0, 0.1), m[1]
    ),
    "heun, one level": lambda x, m, s: ops.heun_step(
        x, m[0], torch.full((), 2.5, dtype=F16, device=x.device), 1.25, m[1]
    ),
    "consistency_output, levels": lambda x, m, s: ops.consistency_output(
        x, m[0], _levels(x, F32, 0.002, 3.0)
    ),
    "euler_maruyama, levels": lambda x, m, s: ops.euler_maruyama_step(
        x, m[0], _levels(x, F16, 1.0, 3.0), _levels(x, F32, -0.1, -0.01), seed=s
    ),
    "folded, levels": lambda x, m, s: ops.weighted_step(
        x, m[:1], (0.4, _rows(x, 0.7)[0]), x0=(_levels(x, F32, 0.1, 0.9), 0.8)
    ),
    "noise pair, levels": lambda x, m, s: ops.add_noise(
        x, _levels(x, F32, 0.1, 0.9), sigma_next=_levels(x, F64, 0.2, 1.0), seed=s
    ),
    "edm_input to float16": lambda x, m, s: ops.edm_input(x, _levels(x, F32, 0.1, 9.0), dtype=F16),
    "edm_output, levels": lambda x, m, s: ops.edm_output(x, m[0], _levels(x, F64, 0.1, 9.0)),
    "scale to float16": lambda x, m, s: ops.scale_input(x, _levels(x, F32, 0.1, 0.9), dtype=F16),
    "everything": _everything,
}

SHAPES = [(4, 3, 8, 8), (3, 1), (5, 7), (2, 3, 5, 7), (1, 4099)]


def bits(t: Tensor) -> Tensor:
    """The tensor's bits, on the CPU: NaN equals itself and -0 differs from 0."""
    kind = {8: torch.int64, 4: torch.int32, 2: torch.int16}[t.element_size()]
    return t.detach().cpu().contiguous().view(kind)


def assert_same_bits(a: "Tensor | tuple[Tensor, ...]", b: "Tensor | tuple[Tensor, ...]") -> None:
    a, b = ((v,) if isinstance(v, Tensor) else v for v in (a, b))
    for left, right in zip(a, b, strict=True):
        assert left.dtype == right.dtype and left.shape == right.shape
        differ = bits(left) != bits(right)
        assert not differ.any(), (
            f"{int(differ.sum())} of {differ.numel()} values differ, first at "
            f"{differ.nonzero()[0].tolist()}: {left.cpu()[differ][0]} and {right.cpu()[differ][0]}"
        )


def make(shape, dtype, model, seed=0) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(shape, generator=generator, dtype=F64) for _ in range(5)]
    return draws[0].to(dtype), [d.to(model) for d in draws[1:]]


def on_gpu(x: Tensor, m: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    return x.cuda(), [t.cuda() for t in m]


class TestSameBits:
    """same_bits: every op, dtype and shape gives on CUDA what it gives on the CPU."""

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 3, 32, 32), (2, 100_003)], ids=str)
    def test_normal_same_bits(self, dtype, shape):
        arguments = {"seed": 2**63 + 5, "draw": 2**32 - 1, "stream": 255, "offset": 2**40}
        cpu = noise.normal(shape, **arguments, dtype=dtype)
        gpu = noise.normal(shape, **arguments, dtype=dtype, device="cuda")
        assert_same_bits(gpu, cpu)

    def test_normal_same_bits_as_plain_torch(self):
        plain = reference.normal((3, 1001), seed=9, offset=4, table=None, stream=1, draw=2)
        gpu = noise.normal((3, 1001), 9, stream=1, draw=2, offset=4, device="cuda")
        assert_same_bits(gpu, plain)

    @pytest.mark.slow
    def test_normal_same_bits_over_many(self):
        for draw in range(10):
            cpu = noise.normal((10, 1_000_000), 1, draw=draw)
            assert_same_bits(noise.normal((10, 1_000_000), 1, draw=draw, device="cuda"), cpu)

    @pytest.mark.parametrize("name", STEPS)
    @pytest.mark.parametrize(("dtype", "model"), PAIRS, ids=lambda d: str(d).split(".")[-1])
    def test_step_same_bits(self, name, dtype, model):
        for shape in SHAPES:
            x, m = make(shape, dtype, model)
            gpu = STEPS[name](*on_gpu(x, m), 11)
            assert_same_bits(gpu, STEPS[name](x, m, 11))

    def test_seeds_a_sample_same_bits(self):
        x, m = make((4, 3, 8, 8), F32, F32)
        seeds = torch.tensor([1, -5, 2**62, 0])
        gpu = _everything(*on_gpu(x, m), seeds.cuda())
        assert_same_bits(gpu, _everything(x, m, seeds))

    def test_special_values_same_bits(self):
        x = torch.tensor(
            [[0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, 3e38, -1.0]]
        )
        m = [x.flip(1).contiguous()]
        for name in ("one input", "clamp", "pf_ode"):
            gpu, cpu = STEPS[name](*on_gpu(x, m), 0), STEPS[name](x, m, 0)
            torch.testing.assert_close(gpu.cpu(), cpu, rtol=0, atol=0, equal_nan=True)


class TestLayouts:
    @pytest.mark.parametrize("name", STEPS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_layouts_are_kept(self, name, dtype):
        x, m = make((4, 3, 8, 6), dtype, dtype)
        expected = STEPS[name](x, m, 5)
        for change in (
            lambda t: t.contiguous(memory_format=torch.channels_last),
            lambda t: t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
            lambda t: torch.stack((t, t), dim=-1)[..., 0],  # not dense
        ):
            gx = change(x.cuda())
            gpu = STEPS[name](gx, [change(t.cuda()) for t in m], 5)
            assert_same_bits(gpu, expected)
            first = gpu if isinstance(gpu, Tensor) else gpu[0]
            assert first.stride() == torch.empty_like(gx).stride()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shift", [1, 2, 3])
    def test_misaligned_storage(self, dtype, shift):
        """A vector load at such an address faults: the scalar path must be taken."""
        x, m = make((3, 64), dtype, dtype)

        def shifted(t: Tensor) -> Tensor:
            storage = torch.empty(t.numel() + shift, dtype=t.dtype, device="cuda")
            return storage[shift:].view(t.shape).copy_(t)

        for step in STEPS.values():
            expected = step(x, m, 5)
            assert_same_bits(step(shifted(x), [shifted(t) for t in m], 5), expected)
            mixed = step(x.cuda(), [shifted(t) for t in m], 5)
            assert_same_bits(mixed, expected)

    def test_misaligned_out(self):
        x, m = make((3, 64), F32, F32)
        out = torch.empty(3 * 64 + 1, device="cuda")[1:].view(3, 64)
        gx, gm = on_gpu(x, m)
        ops.weighted_step(gx, gm[:1], (0.9, 0.1), w_z=0.3, seed=1, out=out)
        assert_same_bits(out, ops.weighted_step(x, m[:1], (0.9, 0.1), w_z=0.3, seed=1))

    def test_in_place(self):
        x, m = make((4, 3, 8, 8), F32, F16)
        gx, gm = on_gpu(x, m)
        pointer = gx.data_ptr()
        result = ops.heun_step(gx, gm[0], 2.0, 1.5, gm[1], out=gx)
        assert result.data_ptr() == pointer
        assert_same_bits(gx, ops.heun_step(x, m[0], 2.0, 1.5, m[1]))

    def test_neighbours_stay_untouched(self):
        guard = torch.full((100 + 2 * 16,), 7.0, device="cuda")
        inner = guard[16:-16].view(4, 25)
        noise.normal((4, 25), 3, out=inner)
        assert (guard[:16] == 7).all() and (guard[-16:] == 7).all()
        assert_same_bits(inner, noise.normal((4, 25), 3))

    @pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0,)], ids=str)
    def test_empty(self, shape):
        x = torch.empty(shape, device="cuda")
        for name, step in STEPS.items():
            result = step(x, [x] * 4, 1)
            first = result if isinstance(result, Tensor) else result[0]
            assert first.shape == x.shape, name


SUMS = [(1, 1), (3, 5), (4, 3, 8, 6), (2, 4099)]
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "batch in between": lambda t: t.movedim(0, -2).contiguous().movedim(-2, 0),
    "not dense": lambda t: torch.stack((t, t), dim=-1)[..., 0],
    "misaligned": lambda t: torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view(
        t.shape
    ),
}


def _sum(out: Tensor, by_sample: bool) -> Tensor:
    """A sum of three draws, or of other three for each sample, written to `out`."""
    key = noise.key(2**63 + 5, out.shape[0], offset=2**32 - 2)
    draws, weights, table = [3, 2**32 - 1, 0], [0.5, -1.25, 2.0], None
    if by_sample:
        steps = torch.arange(out.shape[0], dtype=F64, device=out.device)[:, None]
        columns = [steps * 0 + draw - 7 * steps % 2 for draw in (5.0, 2.0**32 - 1, 1.0)]
        scales = [(1 - steps % 3) * w for w in weights]
        table = torch.stack((torch.cat(columns, 1), torch.cat(scales, 1)), dim=-1).contiguous()
        draws, weights = [], []
    return noise_sum(out, draws, weights, table=table, key=key, stream=2)


class TestSumsOfNoise:
    """The kernel of Brownian paths."""

    @pytest.mark.parametrize("by_sample", [False, True])
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_sum_same_bits(self, dtype, order, by_sample):
        for shape in SUMS:
            expected = _sum(torch.empty(shape, dtype=dtype), by_sample)
            out = ORDERS[order](torch.full(shape, 7.0, dtype=dtype, device="cuda"))
            assert_same_bits(_sum(out, by_sample), expected)

    def test_sum_leaves_neighbours_untouched(self):
        for by_sample in (False, True):
            guard = torch.full((100 + 2 * 16,), 7.0, device="cuda")
            _sum(guard[16:-16].view(4, 25), by_sample)
            assert (guard[:16] == 7).all() and (guard[-16:] == 7).all()

    def test_paths_same_bits(self):
        ends = (0.25, torch.linspace(0.5, 1.0, 4, dtype=F64))
        for spacing in (0.01, None):
            cpu, gpu = (
                noise.BrownianPath(5, 0.0, 1.0, (4, 3, 7), spacing=spacing, device=device)
                for device in ("cpu", "cuda")
            )
            assert_same_bits(gpu(0.25, 0.75), cpu(0.25, 0.75))
            assert_same_bits(gpu(ends[0], ends[1].cuda()), cpu(*ends))

    def test_is_one_kernel_in_the_current_stream_and_in_a_graph(self):
        path = noise.BrownianPath(torch.arange(4), 0.0, 1.0, (4, 33), device="cuda")
        out = path(0.25, 0.75)
        want = out.clone()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            path(0.25, 0.75, out=out)
            torch.cuda.synchronize()
        on_device = [
            e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA
        ]
        assert len(on_device) == 1, on_device
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            path(0.25, 0.75, out=out)
        out.zero_()
        graph.replay()
        assert_same_bits(out, want)


def _forms(x: Tensor) -> Tensor:
    """Weights of six forms of noise, which differ from sample to sample; some are zero."""
    generator = torch.Generator().manual_seed(6)
    w = torch.randn(6, 2, x.shape[0], generator=generator, dtype=F64)
    w[1, 0], w[2, 1], w[3, 1, ::2] = 0.0, 0.0, 0.0
    return w.to(x.device)


class TestUniforms:
    """Uniforms of the noise contract."""

    @pytest.mark.parametrize(
        "shape", [(1, 1), (64, 3), (5, 7), (3, 0), (0, 4), (70_001, 9)], ids=str
    )
    def test_same_bits(self, shape):
        tables = [7, torch.arange(shape[0]), noise.key(7, shape[0], draw=torch.tensor(5))]
        for seed in tables:
            on = seed.cuda() if isinstance(seed, torch.Tensor) else seed
            if isinstance(seed, noise.Key):
                on = noise.key(7, shape[0], draw=torch.tensor(5, device="cuda"))
            options = {"stream": 4, "draw": 0, "dtype": F64}
            want = noise.uniform(shape, seed, **options)
            assert_same_bits(noise.uniform(shape, on, device="cuda", **options), want)


LOSS_SHAPES = [(1, 1), (64, 2), (5, 7), (3, 0), (0, 4), (4, 3, 32, 32), (2, 3, 17, 5), (3, 20_003)]
MIXES = [(F32, F32, F32, F32), (F32, BF16, F32, BF16), (BF16, BF16), (F16,), (F64, F64, F32)]
SIZES = [("square", 0.0), ("abs", 0.0), ("huber", 0.3), ("pseudo_huber", 0.3)]


class TestLosses:
    """Forms of one noise, sizes of residuals and their gradients, weights of pairs."""

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", LOSS_SHAPES, ids=str)
    def test_forms(self, shape, dtype):
        x = make(shape, dtype, dtype)[0]
        kinds = (None, F32, F16, BF16, F64, None)
        layouts = [x, x.transpose(-1, -2).contiguous().transpose(-1, -2), torch.cat((x, x))[1:-1]]
        if len(shape) == 4:
            layouts.append(x.to(memory_format=torch.channels_last))
        for laid in layouts if shape[0] > 1 else layouts[:1]:
            keys = [7, noise.key(7, laid.shape[0], draw=torch.tensor(5))]
            on_device = [7, noise.key(7, laid.shape[0], draw=torch.tensor(5, device="cuda"))]
            gx = laid.cuda() if laid.is_contiguous() else torch.empty_like(laid, device="cuda")
            gx.copy_(laid)
            for seed, on in zip(keys, on_device, strict=True):
                want = ops.noise_forms(laid, _forms(laid), seed=seed, dtypes=kinds)
                found = ops.noise_forms(gx, _forms(gx), seed=on, dtypes=kinds)
                for a, b in zip(found, want, strict=True):
                    assert_same_bits(a, b)

    @pytest.mark.parametrize("kinds", MIXES, ids=str)
    @pytest.mark.parametrize("shape", LOSS_SHAPES, ids=str)
    def test_distances(self, shape, kinds):
        inputs = [make(shape, d, d)[0] + 0.1 * k for k, d in enumerate(kinds)]
        w = torch.randn(len(kinds), shape[0], generator=torch.Generator().manual_seed(2), dtype=F64)
        for kind, c in SIZES:
            sides = []
            for device in ("cpu", "cuda"):
                leaves = [m.to(device).requires_grad_() for m in inputs]
                value = ops.form_distance(leaves, w.to(device), kind, c)
                grads = torch.autograd.grad(value.sum(), leaves)
                sides.append((value.detach().cpu(), [g.cpu() for g in grads]))
            torch.testing.assert_close(sides[1][0], sides[0][0], rtol=1e-12, atol=0)
            for a, b in zip(sides[1][1], sides[0][1], strict=True):
                if (
                    kind == "pseudo_huber"
                ):  # its factor has the sum, which is added in another order
                    torch.testing.assert_close(a, b, rtol=1e-2 if a.itemsize == 2 else 1e-6, atol=0)
                else:
                    assert_same_bits(a, b)

    def test_distances_belong_to_samples(self):
        inputs = [torch.randn(6, 40_001, device="cuda") for _ in range(3)]
        w = torch.randn(3, 6, dtype=F64, device="cuda")
        whole = ops.form_distance(inputs, w, "huber", 0.1)
        part = ops.form_distance([m[2:4] for m in inputs], w[:, 2:4], "huber", 0.1)
        assert_same_bits(part, whole[2:4])
        assert_same_bits(ops.form_distance(inputs, w, "huber", 0.1), whole)

    def test_rows(self):
        high = torch.linspace(0.002, 80.0, 1000, dtype=F64)
        low = 0.5 * high
        low[::7] = 0.0
        want = ops.consistency_rows(high, low)
        for a, b in zip(ops.consistency_rows(high.cuda(), low.cuda()), want, strict=True):
            assert_same_bits(a, b)

    def test_never_waits_and_replays(self):
        x, f = torch.randn(8, 3, 8, 8, device="cuda"), torch.randn(8, 3, 8, 8, device="cuda")
        f.requires_grad_()
        levels = torch.linspace(0.5, 9.0, 8, dtype=F64, device="cuda")
        draw = torch.tensor(3, device="cuda")
        graph = torch.cuda.CUDAGraph()

        def loss() -> Tensor:
            rows, weights = ops.consistency_rows(levels, 0.5 * levels)
            key = noise.key(5, 8, draw=draw)
            a, b, _, second = ops.noise_forms(x, rows, seed=key)
            value = ops.form_distance((a, f, b, second), weights, "pseudo_huber", 0.1)
            return torch.autograd.grad(value.sum(), f)[0]

        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            captured = loss()
        before = captured.clone()
        for step in (3, 4):
            draw.fill_(step)
            graph.replay()
            assert_same_bits(captured, loss())
        assert not torch.equal(captured, before)  # negative control: another draw


class TestGraphs:
    def test_graph_replays_with_new_seeds_and_weights(self):
        x, m = on_gpu(*make((6, 3, 8, 8), F32, F32))
        seeds = torch.arange(6, device="cuda")
        levels = torch.linspace(0.1, 1.0, 6, dtype=F64, device="cuda")

        def step() -> Tensor:
            return ops.weighted_step(x, m[:1], (0.9, levels), w_z=0.5, seed=seeds)

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        for shift in (0, 100, 2**40):
            seeds.copy_(torch.arange(6) + shift)
            levels.add_(0.25)
            x.add_(1.0)
            graph.replay()
            assert_same_bits(captured, step())

    def test_graph_of_a_key_table(self):
        key = noise.key(torch.arange(4, device="cuda"), 4)
        graph = torch.cuda.CUDAGraph()
        out = torch.empty(4, 33, device="cuda")
        with torch.cuda.graph(graph):
            noise.normal((4, 33), key, out=out)
        key.table.copy_(torch.tensor([[9, 1], [8, 2], [7, 3], [6, 4]]))
        graph.replay()
        for b in range(4):
            assert_same_bits(out[b : b + 1], noise.normal((1, 33), 9 - b, offset=1 + b))


class TestStreams:
    def test_runs_on_the_current_stream(self):
        """Work queued before it on the same stream is seen, although that work takes long."""
        x, m = make((64, 1024), F32, F32)
        gx, gm = torch.zeros_like(x, device="cuda"), [t.cuda() for t in m]
        source = x.cuda()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            gx.copy_(source)
            result = ops.pf_ode_step(gx, gm[0], 2.0, 1.5)
        stream.synchronize()
        assert_same_bits(result, ops.pf_ode_step(x, m[0], 2.0, 1.5))

    def test_never_waits_for_the_device(self):
        x, m = on_gpu(*make((4, 3, 8, 8), F32, F16))
        seeds = torch.arange(4, device="cuda")
        key = noise.key(5, 4, device="cuda")
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in STEPS.values():
                for seed in (7, seeds, key):
                    step(x, m, seed)
            noise.normal((4, 100), 3, device="cuda")
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_samplers_never_wait_for_the_device(self):
        """All of those that step from sigma to sigma; the adaptive ones look at their errors."""

        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            return x / (1 + sigma.reshape(-1, 1).to(x.dtype) ** 2)

        x = 80 * noise.normal((4, 100), 3, device="cuda")
        samplers = [
            getattr(cmsolvers, name)
            for name, facts in catalogue.SOLVERS.items()
            if facts.space == "sigma" and not facts.adaptive and name != "consistency_sample"
        ]
        assert len(samplers) > 15
        trig = denoisers.TrigFlowMap(lambda x, t, s: x * (t - s)[:, None].cos(), second="end")
        sigmas = cmsolvers.karras_sigmas(5)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for sampler in samplers:
                sampler(denoiser, x, sigmas, seed=1)
            cmsolvers.flow_map_sample(trig, x, [1.5, 0.8, 0.2, 0.0], gamma=0.5, seed=1)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize(
        "name",
        sorted(
            name
            for name, facts in catalogue.SOLVERS.items()
            if facts.space == "sigma" and not facts.adaptive
        ),
    )
    @pytest.mark.parametrize("preconditioned", [False, True], ids=["callable", "EDM"])
    def test_captured_samplers_are_the_samplers(self, name, preconditioned):
        """To the bit, with other inputs, seeds and arguments than those of the capture."""

        def net(x: Tensor, c: Tensor, label: Tensor) -> Tensor:
            return (x * label[:, None]).sin() / (1 + c.reshape(-1, 1).to(x.dtype) ** 2)

        model = denoisers.EDM(net) if preconditioned else net
        if name == "consistency_sample" and preconditioned:
            model = denoisers.ConsistencyFunction(net)
        sampler = getattr(cmsolvers, name)
        sigmas = cmsolvers.karras_sigmas(5)
        x = 80 * noise.normal((4, 100), 3, device="cuda")
        label = torch.tensor([0.5, 1.0, 1.5, 2.0], device="cuda")
        captured = cmsolvers.capture(
            sampler, model, torch.zeros_like(x), sigmas, extra_args={"label": label + 1}
        )
        seeds = torch.tensor([5, 2, 9, 11], device="cuda")
        for seed in (7, seeds, noise.key(3, 4, offset=2)):
            expected = sampler(model, x, sigmas, seed=seed, extra_args={"label": label})
            got = captured(x, seed=seed, extra_args={"label": label})
            assert_same_bits(got, expected)
        assert captured.graph is not None

    @pytest.mark.parametrize("second", [None, "end", "length"])
    def test_captured_flow_maps_are_flow_maps(self, second):
        layer = torch.nn.Linear(100, 100).cuda()
        f = denoisers.TrigFlowMap(lambda x, *t: layer(x) * t[-1][:, None].cos(), second=second)
        x, times = 0.5 * noise.normal((4, 100), 3, device="cuda"), [1.5, 0.8, 0.2, 0.0]
        run = cmsolvers.capture(cmsolvers.flow_map_sample, f, torch.zeros_like(x), times, gamma=1.0)
        for seed in (7, torch.tensor([5, 2, 9, 11], device="cuda")):
            expected = cmsolvers.flow_map_sample(f, x, times, gamma=1.0, seed=seed)
            assert_same_bits(run(x, seed=seed), expected)
        assert run.graph is not None

    @pytest.mark.parametrize("name", ["euler_maruyama", "stochastic_heun", "sra1", "milstein"])
    def test_captured_solvers_in_time_are_the_solvers(self, name):
        process = cmsolvers.VP()
        sde = process.reverse(lambda x, t: -x / (1 + t.reshape(-1, 1)))
        solver, times = getattr(cmsolvers, name), torch.linspace(1.0, 0.1, 6)
        x = noise.normal((4, 100), 3, device="cuda")
        captured = cmsolvers.capture(solver, sde, torch.zeros_like(x), times)
        for seed in (7, torch.tensor([5, 2, 9, 11], device="cuda")):
            assert_same_bits(captured(x, seed=seed), solver(sde, x, times, seed=seed))

    def test_captured_runs_share_a_pool_and_follow_the_weights(self):
        layer = torch.nn.Linear(100, 100).cuda()
        model = denoisers.EDM(lambda x, c: layer(x))
        x = 80 * noise.normal((4, 100), 3, device="cuda")
        sigmas = cmsolvers.karras_sigmas(5)
        first = cmsolvers.capture(cmsolvers.heun_pf_ode, model, x, sigmas)
        second = cmsolvers.capture(cmsolvers.dpmpp_2m, model, x, sigmas, pool=first.pool)
        with torch.no_grad():
            layer.weight.mul_(0.5)
        one, two = first(x), second(x)
        assert_same_bits(one, cmsolvers.heun_pf_ode(model, x, sigmas))
        assert_same_bits(two, cmsolvers.dpmpp_2m(model, x, sigmas))

    def test_a_captured_static_buffer_is_copied(self):
        """A network that is a CUDA graph itself returns one buffer at every call."""
        buffer = torch.empty(4, 100, device="cuda")

        def static(x: Tensor, sigma: Tensor) -> Tensor:
            return torch.mul(x, 1 / (1 + sigma.reshape(-1, 1) ** 2), out=buffer)

        def fresh(x: Tensor, sigma: Tensor) -> Tensor:
            return static(x, sigma).clone()

        x = 80 * noise.normal((4, 100), 3, device="cuda")
        sigmas = cmsolvers.karras_sigmas(5)
        for sampler in (cmsolvers.heun_pf_ode, cmsolvers.lms, cmsolvers.dpmpp_2m):
            expected = sampler(fresh, x, sigmas)
            assert_same_bits(sampler(static, x, sigmas), expected)
            assert_same_bits(cmsolvers.capture(sampler, static, x, sigmas)(x), expected)

    @pytest.mark.parametrize("levels", ["numbers", "tensors", "one tensor"])
    @pytest.mark.parametrize(
        "name", ["heun", "pf_ode", "euler_maruyama", "consistency", "add_noise", "pair", "scaled"]
    )
    def test_is_one_kernel(self, name, levels):
        x, m = on_gpu(*make((4, 3, 8, 8), F32, F32))
        s: float | Tensor = 2.0
        t: float | Tensor = 1.5
        if levels != "numbers":
            count = 4 if levels == "tensors" else 1
            s, t = (torch.full((count,), v, device="cuda") for v in (s, t))
        step = {
            "heun": lambda: ops.heun_step(x, m[0], s, t, m[1]),
            "pf_ode": lambda: ops.pf_ode_step(x, m[0], s, t),
            "euler_maruyama": lambda: ops.euler_maruyama_step(x, m[0], s, t, seed=7),
            "consistency": lambda: ops.consistency_output(x, m[0], s),
            "add_noise": lambda: ops.add_noise(x, s, alpha=t, seed=7),
            "pair": lambda: ops.add_noise(x, s, sigma_next=t, seed=7),
            "scaled": lambda: ops.scale_input(x, s, dtype=F16),
        }[name]
        step()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            step()
            torch.cuda.synchronize()
        on_device = [
            e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA
        ]
        assert len(on_device) == 1, on_device


class TestSizes:
    @staticmethod
    def need(gigabytes: float) -> None:
        free, _ = torch.cuda.mem_get_info()
        if free < gigabytes * 2**30:
            pytest.skip(f"needs {gigabytes} GiB of free GPU memory")

    def test_more_than_two_to_the_31_elements(self):
        self.need(14)
        rows, columns = 2**31 // 1024 + 3, 1024
        x = torch.ones(rows, columns, dtype=F16, device="cuda")
        ops.weighted_step(x, (x,), (0.25, 0.25), w_z=0.5, seed=4, out=x)
        tail = ops.weighted_step(
            torch.ones(5, columns, dtype=F16),
            (torch.ones(5, columns, dtype=F16),),
            (0.25, 0.25),
            w_z=0.5,
            seed=4,
            offset=rows - 5,
        )
        assert_same_bits(x[-5:], tail)

    def test_one_sample_of_more_than_two_to_the_31_elements(self):
        self.need(10)
        count = 2**31 + 64
        z = noise.normal((1, count), 6, dtype=F16, device="cuda")
        group = torch.arange(count // 4 - 16, count // 4)
        zero = torch.zeros_like(group)
        r = reference.philox((group, zero, zero, zero), (zero + 6, zero))
        tail = torch.stack((*reference._box_muller(*r[:2]), *reference._box_muller(*r[2:])), dim=-1)
        assert_same_bits(z[0, -64:], tail.flatten().float().to(F16))


class TestDerivatives:
    def test_gradients_and_forward_mode(self):
        x, m = on_gpu(*make((2, 5), F64, F64))
        leaves = (x.requires_grad_(), m[0].requires_grad_())

        def step(x: Tensor, f: Tensor) -> Tensor:
            return ops.weighted_step(x, (f,), (0.9, 0.2), w_z=0.3, seed=1)

        assert torch.autograd.gradcheck(step, leaves, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(step, leaves)

    def test_compiles_whole(self):
        x, m = on_gpu(*make((4, 3, 8, 8), F32, F32))

        def step(x: Tensor, f: Tensor, g: Tensor) -> Tensor:
            return ops.heun_step(x * 2, f, 2.0, 1.5, g) + 1

        assert_same_bits(torch.compile(step, fullgraph=True)(x, *m[:2]), step(x, *m[:2]))


def test_mixed_devices_are_refused():
    x = torch.zeros(2, 3, device="cuda")
    with pytest.raises(ValueError, match=r"must be on the device of x, cuda:0; got cpu"):
        ops.weighted_step(x, (torch.zeros(2, 3),), (1.0, 1.0))


def test_build_info_names_the_gpu_build():
    info = ops.build_info()
    assert info["cuda"] and info["cuda_architectures"]
