"""Two passes of a network that count as one: the same dropout mask, and statistics of the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from cmsolvers.losses.evaluation.norm_layers import norm_layers
from cmsolvers.ops.generator import PUT_STATE, STATE

_NOTHING = nullcontext()


class SameRandomness:
    """Remembers torch's generators now, so that a later pass draws the same numbers again.

    Restoring only the CPU generator is the classic mistake: dropout of a CUDA tensor draws from
    the generator of its device. Both are kept, and after `replay` both stand where they stood
    before it.

    A function that torch.compile traces cannot read a generator. There the numbers that the block
    of `record` draws are kept and used again in that of `replay`: dropout (also 1d, 2d, 3d), rand,
    randn, randint, randperm, bernoulli_(p), uniform_ and normal_. Other random functions of torch
    raise; `rand_like`, `randn_like`, `randint_like` and custom ops are not seen, and draw anew.

    Args:
        device: where the passes run.

    Example:
        >>> same = SameRandomness(x.device)
        >>> with same.record():
        ...     student = f(x, sigma)
        >>> with same.replay():
        ...     target = f(y, sigma_next)
    """

    def __init__(self, device: torch.device | str) -> None:
        self._drawn: _Drawn | None = None
        if torch.compiler.is_compiling():
            self._drawn = _Drawn()
            return
        self._where = device if isinstance(device, torch.device) else torch.device(device)
        self.begin()

    def begin(self) -> None:
        """Let `replay` start from where the generators stand now."""
        if self._drawn is not None:
            return
        device = self._where
        self._cpu = STATE()
        self._type = device.type
        self._device: tuple[int, torch.Tensor] | None = None
        if device.type not in ("cpu", "meta"):
            module = torch.get_device_module(device)
            # None is the current device, which torch's types deny.
            given = cast("int | None", device.index)
            index = module.current_device() if given is None else given
            self._device = index, module.get_rng_state(index)

    def record(self) -> AbstractContextManager[object]:
        """The block of the first pass; only needed where torch.compile traces."""
        return _NOTHING if self._drawn is None else self._drawn.drawing()

    def repeated(self, model: object, gradient: bool) -> AbstractContextManager[object]:
        """The block of a later pass of a model: `replay`, `same_statistics`, maybe no gradient."""
        if self._drawn is not None:
            return self._traced(model, gradient)
        return _Repeated(self, model, gradient)

    @contextmanager
    def _traced(self, model: object, gradient: bool) -> Iterator[None]:
        keeps = nullcontext() if gradient else torch.no_grad()
        with keeps, self.replay(), same_statistics(model):
            yield

    @contextmanager
    def replay(self) -> Iterator[None]:
        """A block in which the generators start where they stood when this object was made.

        Raises:
            RuntimeError: under torch.compile, a random function that cannot be replayed, or one
                that the first pass did not call at this place.
        """
        if self._drawn is not None:
            with self._drawn.again():
                yield
            return
        now = self.rewind()
        try:
            yield
        finally:
            self.put(now)

    def rewind(self) -> tuple[object, Tensor | None]:
        """Let the generators start where they stood; where they are now, for `put`."""
        # By hand: `torch.random.fork_rng` takes several times as long.
        now = STATE()
        there = None if self._device is None else self._of_device()
        PUT_STATE(self._cpu)
        if self._device is not None:
            self._to_device(self._device[1])
        return now, there

    def put(self, states: tuple[object, Tensor | None]) -> None:
        """Set the generators."""
        PUT_STATE(states[0])
        if states[1] is not None:
            self._to_device(states[1])

    def _of_device(self) -> Tensor:
        """The state of the device's generator."""
        assert self._device is not None
        state: Tensor = torch.get_device_module(self._type).get_rng_state(self._device[0])
        return state

    def _to_device(self, state: Tensor) -> None:
        assert self._device is not None
        torch.get_device_module(self._type).set_rng_state(state, self._device[0])


_DROPOUT = ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout")
_MAKERS = ("rand", "randn", "randint", "randperm")
_IN_PLACE = ("bernoulli_", "uniform_", "normal_")
# Where the argument stands that is 0 without dropout, and `training`, which is False by default.
_TRAINING = {"alpha_dropout": 2, "feature_alpha_dropout": 2, "rrelu": 3}
_WITH_DROPOUT = {"scaled_dot_product_attention": 4, "multi_head_attention_forward": 10}
_REFUSED = (
    *("gumbel_softmax", "multinomial", "bernoulli", "poisson", "binomial", "normal"),
    *("random_", "exponential_", "geometric_", "cauchy_", "log_normal_"),
)


class _Drawn(TorchFunctionMode):
    """Keeps what random functions give, and gives it again; functions are told by their names."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[tuple[str, Tensor]] = []
        self._next: int | None = None

    def drawing(self) -> _Drawn:
        """From here on new numbers, also after a teacher's pass, which was to repeat some."""
        self._next = None
        return self

    def again(self) -> _Drawn:
        """From here on, what was kept, in its order."""
        self._next = 0
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, more = getattr(func, "__name__", ""), kwargs or {}
        if name in _DROPOUT:
            return self._dropout(name, func, args, more)
        if name in _MAKERS:
            # What is kept must not be what the network may write to.
            return self._same(name, lambda: func(*args, **more)).clone()
        if name in _IN_PLACE and not any(isinstance(value, Tensor) for value in args[1:]):
            return args[0].copy_(self._same(name, lambda: func(args[0], *args[1:], **more).clone()))
        if self._refused(name, args, more):
            raise RuntimeError(
                f"{name} of a network in training cannot draw the same numbers for student and "
                "target under torch.compile; compile the network, not the loss, or leave it out"
            )
        return func(*args, **more)

    def _refused(self, name: str, args: Any, more: dict[str, Any]) -> bool:
        """Whether a call draws what cannot be given again."""
        if name in _WITH_DROPOUT:
            place = _WITH_DROPOUT[name]
            p = args[place] if len(args) > place else more.get("dropout_p", 0.0)
            return bool(more.get("training", True) and p > 0)
        if name in _TRAINING:
            place = _TRAINING[name]
            return bool(args[place] if len(args) > place else more.get("training", False))
        return name in _REFUSED or name in _IN_PLACE

    def _same(self, name: str, draw: Callable[[], Tensor]) -> Tensor:
        """What was drawn at this place, or in a first pass what is drawn now."""
        if self._next is None:
            value = draw()
            self._kept.append((name, value))
            return value
        if self._next >= len(self._kept) or self._kept[self._next][0] != name:
            raise RuntimeError(
                f"student and target must call the same random functions under torch.compile; "
                f"the target calls {name} as number {self._next} and the student did not"
            )
        self._next += 1
        return self._kept[self._next - 1][1]

    def _dropout(self, name: str, func: Any, args: Any, more: dict[str, Any]) -> Tensor:
        """Dropout as a product with what it makes of ones."""
        given = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | more
        x: Tensor = given["input"]
        p, training = given.get("p", 0.5), given.get("training", given.get("train", True))
        if not training or p == 0:
            return x
        factor = self._same(name, lambda: func(torch.ones_like(x), p, True))
        if factor.shape != x.shape:
            raise RuntimeError(
                f"student and target must call {name} with the same shapes under torch.compile; "
                f"got {list(factor.shape)} and {list(x.shape)}"
            )
        return x.mul_(factor) if given.get("inplace", False) else x * factor


def couples_samples(model: object) -> bool:
    """Whether batch norms in training mode make each sample's output one of all samples."""
    layers = norm_layers(model) if isinstance(model, nn.Module) else ()
    return any(isinstance(layer, _BatchNorm) and layer.training for layer in layers)


@contextmanager
def same_statistics(model: object) -> Iterator[None]:
    """A block whose passes leave the running statistics of normalisation layers as they were.

    In training mode every pass of a network with `BatchNorm` moves its running statistics. Those of
    the target's pass, at another level, would be mixed with the student's.

    Args:
        model: a module; of another callable nothing is known.
    """
    kept = _statistics(model)
    try:
        yield
    finally:
        _restore(kept)


def _statistics(model: object) -> list[tuple[Tensor, Tensor]]:
    """The running statistics that a pass would move, each with a copy."""
    kept: list[tuple[Tensor, Tensor]] = []
    for layer in norm_layers(model) if isinstance(model, nn.Module) else ():
        if layer.training and layer.track_running_stats:
            statistics = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
            kept += [(now, now.clone()) for now in statistics if now is not None]
    return kept


def _restore(kept: list[tuple[Tensor, Tensor]]) -> None:
    for now, before in kept:
        now.data.copy_(before)  # past the version that the student's backward pass checks


class _Repeated:
    """The block of `SameRandomness.repeated`, entered by hand: generators are several times slower.

    Args:
        same: whose numbers are drawn again.
        model: whose running statistics are kept.
        gradient: whether its outputs have one.
    """

    __slots__ = ("_gradient", "_kept", "_model", "_now", "_same", "_was")

    def __init__(self, same: SameRandomness, model: object, gradient: bool) -> None:
        self._same, self._model, self._gradient = same, model, gradient

    def __enter__(self) -> None:
        self._was = torch.is_grad_enabled()
        self._kept = _statistics(self._model)
        self._now = self._same.rewind()
        if not self._gradient:
            torch._C._set_grad_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch._C._set_grad_enabled(self._was)
        self._same.put(self._now)
        if self._kept:
            _restore(self._kept)
