"""What the tests of the kernels share: bits, a step in extended precision, bounds in ULP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from cmsolvers import ops
from cmsolvers.ops import distance, noising, pair_rows, registration
from cmsolvers.ops.binary import C

SETS = tuple(ops.build_info().get("instruction_sets", ()))
"""Instruction sets that this build and processor can run."""

Weight = float | Tensor
Wide = np.ndarray


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Run the CPU kernels with one instruction set."""
    assert C is not None
    before = C.build_info()["instruction_set"]
    C.use_instruction_set(name)
    try:
        assert C.build_info()["instruction_set"] == name
        yield
    finally:
        C.use_instruction_set(before)


class reference_kernels:  # noqa: N801
    """Run the operators in plain torch, as without the binary."""

    def __enter__(self) -> None:
        self.library = torch.library.Library("cmsolvers", "IMPL")
        with_warning = (
            ("weighted_step", registration._one),
            ("weighted_step_two", registration._two),
            ("noise_forms", noising._plain),
            ("form_distance", distance.plain_distance),
            ("form_distance_backward", distance.plain_backward),
            ("consistency_rows", pair_rows._plain),
        )
        for name, kernel in with_warning:
            self.library.impl(name, kernel, "CPU", allow_override=True)
        modules = (ops.named, ops.step, noising, distance, pair_rows)
        self.fast = [m for m in modules if getattr(m, "FAST", None) is not None]
        self.kept = [m.FAST for m in self.fast]
        for m in self.fast:
            m.FAST = None

    def __exit__(self, *exception: object) -> None:
        self.library._destroy()
        for m, kept in zip(self.fast, self.kept, strict=True):
            m.FAST = kept


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bits(t: Tensor) -> Tensor:
    """The tensor's bits as integers: NaN equals itself and -0 differs from 0."""
    kind = {8: torch.int64, 4: torch.int32, 2: torch.int16}[t.element_size()]
    return t.detach().contiguous().view(kind)


def assert_same_bits(
    a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor], what: str = ""
) -> None:
    """Equal to the bit, in shape and in dtype."""
    a, b = ((v,) if isinstance(v, Tensor) else v for v in (a, b))
    for left, right in zip(a, b, strict=True):
        assert left.dtype == right.dtype and left.shape == right.shape, what
        differ = bits(left) != bits(right)
        assert not differ.any(), (
            f"{what}: {int(differ.sum())} of {differ.numel()} differ, first at "
            f"{differ.nonzero()[0].tolist()}: {left[differ][0]} and {right[differ][0]}"
        )


def wide(value: Weight, like: Tensor | None = None) -> Wide | np.longdouble:
    """In extended precision; a vector of weights is spread over the samples of `like`."""
    if not isinstance(value, Tensor):
        return np.longdouble(value)
    array = value.detach().double().numpy().astype(np.longdouble)
    if like is not None and value.dim() == 1:
        array = array.reshape(-1, *[1] * (like.dim() - 1))
    return array


class Exact:
    """A value, and the sum of the sizes of the terms that it was made of."""

    def __init__(self, value: Wide, size: Wide):
        self.value, self.size = value, size

    @classmethod
    def of(cls, like: Tensor, *terms: tuple[Weight, Tensor | Exact | None]) -> Exact:
        """Sum of the terms, without those of weight zero."""
        value = np.zeros(tuple(like.shape), dtype=np.longdouble)
        size = np.zeros_like(value)
        for weight, given in terms:
            if given is None or (not isinstance(weight, Tensor) and weight == 0.0):
                continue
            w = wide(weight, like)
            v = given.value if isinstance(given, Exact) else wide(given)
            s = given.size if isinstance(given, Exact) else np.abs(v)
            value = np.where(w == 0, value, value + w * v)
            size = np.where(w == 0, size, size + np.abs(w) * s)
        return cls(value, size)

    def clamped(self, low: float, high: float) -> Exact:
        return Exact(np.clip(self.value, low, high), self.size)


def exact_step(
    x: Tensor,
    inputs: Sequence[Tensor],
    weights: Sequence[Weight] | Tensor,
    *,
    w_z: Weight = 0.0,
    z: Tensor | None = None,
    x0: tuple[Weight, Weight] | None = None,
    clamp: tuple[float, float] | None = None,
    second: object = None,
) -> tuple[Exact, Exact | None]:
    """The step of `ops.weighted_step` in extended precision, on the noise z."""
    if isinstance(weights, Tensor):
        weights = list(weights.unbind(1))
    basis: list[Tensor | Exact] = list(inputs)
    if x0 is not None:
        basis[0] = Exact.of(x, (x0[0], x), (x0[1], inputs[0]))
    if clamp is not None:
        first = basis[0] if isinstance(basis[0], Exact) else Exact.of(x, (1.0, basis[0]))
        basis[0] = first.clamped(*clamp)
    total = Exact.of(x, (weights[0], x), *zip(weights[1:], basis, strict=True), (w_z, z))
    if second is None:
        return total, None
    if isinstance(second, str):
        return total, Exact.of(x, (1.0, basis[0]))
    if isinstance(second, tuple):
        return total, Exact.of(x, (second[1], x), (second[2], z))
    return total, Exact.of(x, (second, total))


def spacing(size: Wide, dtype: torch.dtype) -> Wide:
    """One unit in the last place at `size`."""
    info = torch.finfo(dtype)
    exponent = np.floor(np.log2(np.maximum(np.abs(size), info.tiny).astype(np.float64)))
    return info.eps * np.exp2(exponent)


def errors(actual: Tensor, exact: Exact, arithmetic: torch.dtype) -> Wide:
    """Errors over what is allowed: above 1 is too much.

    4 ULP of sum |terms| in the arithmetic's type; narrower results also may be 1 ULP beside the
    correctly rounded one.
    """
    got = wide(actual)
    if actual.dtype in (arithmetic, torch.float64):
        return np.abs(got - exact.value) / (4 * spacing(exact.size, arithmetic))
    rounded = wide(torch.from_numpy(exact.value.astype(np.float64)).to(actual.dtype))
    allowed = spacing(rounded, actual.dtype) + 4 * spacing(exact.size, arithmetic)
    return np.abs(got - rounded) / allowed


def assert_accurate(
    actual: Tensor, exact: Exact | None, state: torch.dtype, what: str = ""
) -> None:
    """Within the bounds of DESIGN section 8; `state` is the dtype of x."""
    assert exact is not None
    assert tuple(actual.shape) == exact.value.shape, what
    if actual.numel() == 0:
        return
    arithmetic = torch.float64 if state == torch.float64 else torch.float32
    worst = np.max(errors(actual, exact, arithmetic))
    assert worst <= 1.0, f"{what}: error is {worst:.3g} times what is allowed"
