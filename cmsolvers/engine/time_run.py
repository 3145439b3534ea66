"""What a step of a t-space solver may ask for: evaluations, unit normals, fused launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from cmsolvers import noise
from cmsolvers.denoisers.pairing import alike
from cmsolvers.engine.launch import (
    BadOutputs,
    Launcher,
    derivative,
    per_level,
)
from cmsolvers.engine.time_fields import Field

Weight = float | Tensor
"""A number, [B] (one a sample), or the shape of x (elementwise)."""


class Draw:
    """One unit normal of a step: built-in, named by its number, or a user's tensor.

    Args:
        run: gives the built-in values.
        number: which draw of the stream.
        given: gives the user's values, which are asked for once; None where there are none.
    """

    __slots__ = ("_given", "_kept", "_run", "fused", "number")

    def __init__(self, run: TimeRun, number: int, given: Callable[[], Tensor] | None) -> None:
        self._run, self.number, self._given = run, number, given
        self.fused = given is None  # whether the step itself can make it
        self._kept: Tensor | None = None

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """The values: built-in ones in this dtype, a user's as they came."""
        if self._given is None:
            return self._run.normal(self.number, dtype)
        if self._kept is None:
            self._kept = self._given()
        return self._kept


class Method(Protocol):
    """What makes a t-space solver.

    Attributes:
        name: of the solver.
        nodes: where in a step, from 0 to 1, the drift or the diffusion is asked for.
        draws: unit normals a step.
    """

    @property
    def name(self) -> str:
        """See above."""

    @property
    def nodes(self) -> tuple[float, ...]:
        """See above."""

    @property
    def draws(self) -> int:
        """See above."""

    def step(self, run: TimeRun, x: Tensor) -> Tensor:
        """The state at run.t_next, from x at run.t."""


class TimeRun:
    """One run: where it is, and what a step may ask for.

    Attributes:
        field: the SDE.
        i: index of the step.
        t: its start.
        t_next: its end.
        dt: t_next - t, negative in reverse time.
        last: whether it is the last one.
        nfe: evaluations so far.
        user_noise: whether a noise_sampler replaces the built-in noise.
    """

    def __init__(
        self,
        method: Method,
        field: Field,
        x: Tensor,
        times: tuple[float, ...],
        launcher: Launcher,
        *,
        user_noise: bool,
        callback: Callable[[dict[str, Any]], Any] | None,
        check_nan: bool,
    ) -> None:
        self.field, self.launcher, self.user_noise, self.nfe = field, launcher, user_noise, 0
        self._method, self._times, self._callback = method, times, callback
        self._like = x
        self._bad = BadOutputs(x) if check_nan else None
        self._places: list[tuple[int, float]] = []
        self.begin(0)
        levels = []
        for i in range(len(times) - 1):
            self.begin(i)
            levels += [self.at(node) for node in method.nodes]
        self._rows = per_level(levels, x, x.dtype)

    def begin(self, i: int) -> None:
        """Go to step i."""
        self.i, self.t, self.t_next = i, self._times[i], self._times[i + 1]
        self.dt, self.last = self.t_next - self.t, i == len(self._times) - 2
        self._shown = False

    def at(self, node: float) -> float:
        """The time of a node."""
        if node == 0.0 or node == 1.0:
            return self.t_next if node else self.t
        return self.t + node * self.dt

    def time(self, node: float) -> Tensor:
        """The time of a node as a tensor [B]."""
        nodes = self._method.nodes
        return self._rows(self.i * len(nodes) + nodes.index(node))

    def evaluate(self, x: Tensor, node: float) -> Tensor | None:
        """The output of drift or score at a node, recorded and shown; None if there is none."""
        output = self.field.output(x, lambda: self.time(node))
        if output is not None:
            self.nfe += 1
            self.launcher.observe(output)
            if self._bad is not None:
                self._bad.add(len(self._places), output)
                self._places.append((self.i, self.at(node)))
        if self._callback is not None and not self._shown:
            self._shown = True
            entry = {"i": self.i, "x": x, "t": self.t, "t_next": self.t_next, "output": output}
            self._callback(entry)
        return output

    def terms(self, x: Tensor, node: float) -> tuple[float, float, Weight]:
        """The drift's factors of x and of the output, and the diffusion, at a node."""
        a, b, g = self.field.terms(self.at(node))
        return a, b, self.field.diffusion(x, self.time(node)) if g is None else g

    def draw(self, k: int = 0, span: tuple[float, float] | None = None) -> Draw:
        """The k-th unit normal of this step; a user's noise_sampler is asked for the span."""
        number = self.i * self._method.draws + k
        if not self.user_noise:
            return Draw(self, number, None)
        start, end = span or (self.t, self.t_next)
        return Draw(self, number, lambda: self._asked(start, end))

    def _asked(self, start: float, end: float) -> Tensor:
        z = self.launcher.unit(self._like, start, end)
        assert z is not None
        return z

    def normal(self, number: int, dtype: torch.dtype) -> Tensor:
        """Built-in unit normals in the shape of x."""
        x = self._like
        return noise.normal(
            x.shape,
            self.launcher.key,
            stream=noise.STEPS,
            draw=number,
            dtype=dtype,
            device=x.device,
        )

    def launch(
        self,
        x: Tensor,
        inputs: Sequence[Tensor | None],
        row: Sequence[Weight],
        normal: tuple[Weight, Draw] | None = None,
        *,
        keep: Sequence[Tensor] = (),
    ) -> Tensor:
        """X' = row . (x, inputs) + w z, one fused step; inputs that are None are left out.

        Buffers in `keep` are not written to.
        """
        inputs, row, own = self._gather(x, inputs, row, normal)
        result: Tensor = self.launcher.step(x, inputs, row, keep=keep, **own)
        return result

    def launch_pair(
        self,
        x: Tensor,
        inputs: Sequence[Tensor | None],
        row: Sequence[Weight],
        normal: tuple[Weight, Draw],
        other: tuple[Weight, Weight],
    ) -> tuple[Tensor, Tensor]:
        """The state of `launch`, and p x + q z of the same z for (p, q) = `other`."""
        p, q = other
        gathered, weights, own = self._gather(x, inputs, row, normal)
        if own and not elementwise(q):
            own["second"] = ("pair", p, q)
            both: tuple[Tensor, Tensor] = self.launcher.step(x, gathered, weights, **own)
            return both
        y: Tensor = self.launcher.step(x, gathered, weights, **own, keep=(x,))
        return y, self.launch(x, (), (p,), (q, normal[1]), keep=(x, y))

    def _gather(
        self,
        x: Tensor,
        inputs: Sequence[Tensor | None],
        row: Sequence[Weight],
        normal: tuple[Weight, Draw] | None,
    ) -> tuple[Sequence[Tensor], Sequence[Weight], dict[str, Any]]:
        """Inputs of one dtype, their weights, and the built-in noise as the launcher's options."""
        tensors = [m for m in inputs if m is not None]
        if len(tensors) == len(inputs):
            weights = tuple(row)
        else:
            kept = (w for m, w in zip(inputs, row[1:], strict=True) if m is not None)
            weights = (row[0], *kept)
        w, draw = normal or (0.0, None)
        if draw is None or not (isinstance(w, Tensor) or w):
            return alike(tensors, x.dtype), weights, {}
        if elementwise(w):
            product = w * draw.tensor(x.dtype)
            self.launcher.observe(product)
            return [m.to(x.dtype) for m in (*tensors, product)], (*weights, 1.0), {}
        if draw.fused:
            return alike(tensors, x.dtype), weights, {"w_z": w, "draw": draw.number}
        z = draw.tensor(x.dtype)
        self.launcher.observe(z)
        return alike([*tensors, z], x.dtype), (*weights, w), {}

    def raise_bad(self) -> None:
        """ValueError if an output was not finite; waits for the device if asked to look."""
        found = None if self._bad is None else self._bad.first()
        if found is not None:
            i, t = self._places[found[0]]
            raise ValueError(
                f"sde must give finite values; got NaN or infinity at step {i}, "
                f"t {t:g}, sample {found[1]}"
            )


def matched(spreads: Sequence[Weight], x: Tensor) -> list[Weight]:
    """Diffusions that can be added: all elementwise where one is."""
    if not any(map(elementwise, spreads)):
        return list(spreads)
    column = [-1] + [1] * (x.ndim - 1)
    return [
        g.reshape(column).expand(x.shape) if isinstance(g, Tensor) and not elementwise(g) else g
        for g in spreads
    ]


def elementwise(w: Weight) -> bool:
    """Whether this is no weight of a fused step: an entry an element, or one with a derivative."""
    return isinstance(w, Tensor) and (w.ndim > 1 or derivative(w))
