"""What holds for every loss: draws, dropout, layouts, checkpoints, autocast, derivatives."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cmsolvers import noise
from cmsolvers.losses.derivatives import derivative_check
from cmsolvers.losses.evaluation.labels import LabelDropout
from cmsolvers.losses.evaluation.randomness import SameRandomness
from cmsolvers.losses.evaluation.recipe import Loss
from support.loss_cases import SmallNet, evaluated, losses, model_for, teacher_for

B = 8
X0 = noise.normal((B, 3), seed=1, dtype=torch.float64)
IMAGES = noise.normal((B, 3, 4, 4), seed=2, dtype=torch.float64)
LABEL = torch.tensor([1, 2, 3, 4, 1, 2, 3, 4])

every = pytest.mark.parametrize("recipe", losses(), ids=lambda r: r.__name__)


@pytest.fixture(autouse=True)
def no_looks(monkeypatch: Any) -> None:
    """No derivative is looked at, for speed."""
    monkeypatch.setattr(derivative_check, "CALLS", ())


def some(take: Any) -> Any:
    return pytest.mark.parametrize("recipe", [*filter(take, losses())], ids=lambda r: r.__name__)


def differentiates(recipe: Loss) -> bool:
    return "derivative" in inspect.signature(recipe).parameters


def has_one_pass(recipe: Loss) -> bool:
    """Whether the student is called once and nobody else is."""
    return recipe.__name__ in ("dsm", "flow_matching", "reflow", "progressive_distillation")


def model_like(recipe: Loss, x0: Tensor, **options: Any) -> Any:
    return model_for(recipe.recipe, size=x0[0].numel(), **options).to(x0.dtype)


def gradients(recipe: Loss, model: Any, x0: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """The loss of each sample, and the gradients of the parameters that the network uses."""
    model.zero_grad()
    if "warmup" in inspect.signature(recipe).parameters:
        options = {"warmup": None, **options}
    found = evaluated(recipe, x0, model=model, **options)
    found.loss.backward()
    used = [p.grad for name, p in model.named_parameters() if "labels" not in name]
    assert all(g is not None for g in used)
    return found.per_sample, used


def apart(some: list[Tensor], others: list[Tensor]) -> float:
    """The relative distance of all gradients together."""
    a, b = (torch.cat([g.flatten().double() for g in one]) for one in (some, others))
    return float((a - b).norm() / b.norm())


# --- what is random ------------------------------------------------------------------------------


@every
def test_a_step_in_a_tensor_is_the_step(recipe: Loss) -> None:
    """The same draws; levels may be other by rounding, where they are made from the step."""
    number = evaluated(recipe, X0, step=3)
    tensor = evaluated(recipe, X0, step=torch.tensor([3]))
    for a, b in zip(tensor.levels, number.levels, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-15, atol=0)
    torch.testing.assert_close(tensor.per_sample, number.per_sample, rtol=1e-12, atol=0)
    other = evaluated(recipe, X0, step=torch.tensor([4]))
    assert not torch.isclose(other.per_sample, number.per_sample, rtol=1e-3).all()


@every
def test_an_evaluation_is_a_function_of_key_and_step(recipe: Loss) -> None:
    model = model_like(recipe, X0)
    first, again = (gradients(recipe, model, X0, key=7, step=3) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    for other in ({"key": 7, "step": 4}, {"key": 8, "step": 3}):
        assert not torch.equal(gradients(recipe, model, X0, **other)[0], first[0])


class Fixed(nn.Module):
    """Dropout whose mask never changes."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, h: Tensor) -> Tensor:
        return h * self.mask


def with_dropout(recipe: Loss) -> tuple[list[Tensor], list[Tensor], bool]:
    """Gradients with dropout, those with the student's mask in all passes; one draw was made."""
    model = model_like(recipe, X0, dropout=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        mask = functional.dropout(torch.ones(B, 24, dtype=torch.float64), 0.5)
        after = torch.get_rng_state()
        torch.manual_seed(5)
        found = gradients(recipe, model, X0)
        one_draw = torch.equal(torch.get_rng_state(), after)
    fixed = model_like(recipe, X0)
    fixed.net.drop = Fixed(mask)
    wanted = gradients(recipe, fixed, X0)
    return [found[0], *found[1]], [wanted[0], *wanted[1]], one_draw


@every
def test_all_passes_have_the_dropout_mask_of_the_student(recipe: Loss) -> None:
    found, wanted, one_draw = with_dropout(recipe)
    assert one_draw
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@some(lambda recipe: not has_one_pass(recipe))
def test_without_a_replay_the_masks_differ(recipe: Loss, monkeypatch: Any) -> None:
    """The control."""
    monkeypatch.setattr(SameRandomness, "rewind", lambda self: None)
    monkeypatch.setattr(SameRandomness, "put", lambda self, states: None)
    found, wanted, one_draw = with_dropout(recipe)
    assert not one_draw
    assert apart(found, wanted) > 1e-3


@every
def test_running_statistics_move_once(recipe: Loss, monkeypatch: Any) -> None:
    model = model_like(recipe, X0)
    norm = model.net.drop = nn.BatchNorm1d(24).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of the look at the derivative
        monkeypatch.setattr(derivative_check, "CALLS", (1,))
        derivative_check.SELF_CHECK.reset()
        gradients(recipe, model, X0)
    assert int(norm.num_batches_tracked) == 1
    assert bool((norm.running_mean != 0).any())


# --- the data ------------------------------------------------------------------------------------

LAYOUTS = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every second sample": lambda x: x.repeat_interleave(2, 0)[::2],
    "expanded": lambda x: x[:1].expand(x.shape),
}


@every
def test_images_of_any_layout(recipe: Loss) -> None:
    model = model_like(recipe, IMAGES)
    for name, lay in LAYOUTS.items():
        data = lay(IMAGES)
        assert not data.is_contiguous(), name
        found = gradients(recipe, model, data)
        wanted = gradients(recipe, model, data.contiguous())
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-13)


@every
def test_reductions(recipe: Loss) -> None:
    none, total, mean = (
        evaluated(recipe, X0, reduction=how).loss for how in ("none", "sum", "mean")
    )
    assert none.shape == (B,) and none.requires_grad
    torch.testing.assert_close(none.sum(), total)
    torch.testing.assert_close(none.mean(), mean)


@every
def test_nothing_that_is_given_changes(recipe: Loss) -> None:
    given: dict[str, Any] = {"x0": X0.clone(), "label": LABEL.clone()}
    extra = {"label": given["label"]}
    levels = {"levels": tuple(torch.full((B,), v, dtype=torch.float64) for v in (0.7, 0.4))}
    drop = LabelDropout("label", 0.5, 0)
    for more in ({}, levels):
        evaluated(recipe, given["x0"], extra_args=extra, label_dropout=drop, **more).loss.backward()
    assert torch.equal(given["x0"], X0) and torch.equal(given["label"], LABEL)
    assert list(extra) == ["label"] and extra["label"] is given["label"]
    assert bool((levels["levels"][0] == 0.7).all() and (levels["levels"][1] == 0.4).all())
    assert not given["x0"].requires_grad


# --- who learns ----------------------------------------------------------------------------------


@every
def test_the_model_learns_and_nobody_else(recipe: Loss) -> None:
    """All parameters of the model get a gradient, those of target and teacher none."""
    model, target = (model_like(recipe, X0, seed=k) for k in (0, 3))
    teacher = teacher_for(recipe.recipe)
    if recipe.recipe.teacher == "optional" and recipe.__name__ != "reflow":
        teacher = teacher_for(losses_by_name()["cd"].recipe)
    others = [target] if teacher is None else [target, teacher.double()]
    evaluated(
        recipe, X0, model=model, target=target, teacher=teacher, extra_args={"label": LABEL}
    ).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name
    assert all(p.requires_grad and p.grad is None for one in others for p in one.parameters())


def losses_by_name() -> dict[str, Loss]:
    return {recipe.__name__: recipe for recipe in losses()}


# --- how the network runs ------------------------------------------------------------------------


class Checkpointed(SmallNet):
    """A network that is computed again in the backward pass."""

    def forward(self, x: Tensor, *times: Tensor, label: Tensor | None = None) -> Tensor:
        made: Tensor = checkpoint(super().forward, x, *times, label=label, use_reentrant=False)
        return made


@every
def test_activation_checkpoints_change_nothing(recipe: Loss) -> None:
    found = []
    for kind in (SmallNet, Checkpointed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model = model_like(recipe, X0, kind=kind, dropout=0.5)
            found.append(gradients(recipe, model, X0))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


class Watched(SmallNet):
    """Remembers the dtypes of its times and of what its first layer returned."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: set[tuple[torch.dtype, torch.dtype]] = set()

    def forward(self, x: Tensor, *times: Tensor, label: Tensor | None = None) -> Tensor:
        made = super().forward(x, *times, label=label)
        self.seen |= {(t.dtype, made.dtype) for t in times}
        return made


@every
def test_autocast(recipe: Loss) -> None:
    """Half precision in the network, not in its times; gradients are right to its rounding."""
    x0 = noise.normal((64, 3), seed=1)
    model = model_like(recipe, x0, kind=Watched)
    _, exact = gradients(recipe, model, x0)
    model.net.seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        _, found = gradients(recipe, model, x0)
    times, made = (set(kinds) for kinds in zip(*model.net.seen, strict=True))
    assert times <= {torch.float32, torch.float64} and torch.bfloat16 in made
    assert all(g.dtype is torch.float32 for g in found)
    # The rounding of a small difference of two passes is large beside it.
    most = 0.5 if recipe.__name__ in ("ect", "soflow", "tcm") else 0.1
    assert 1e-6 < apart(found, exact) < most


# --- derivatives ---------------------------------------------------------------------------------


@some(differentiates)
def test_finite_differences_are_near_the_exact_derivative(recipe: Loss) -> None:
    model = model_like(recipe, X0)
    exact, near = (
        gradients(recipe, model, X0, derivative=how) for how in ("jvp", "finite_difference")
    )
    assert 0 < apart(near[1], exact[1]) < 1e-5


class Identity(torch.autograd.Function):
    """Without forward mode."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Kernel(nn.Module):
    """A layer with a kernel of its own."""

    def forward(self, h: Tensor) -> Tensor:
        made: Tensor = Identity.apply(h)
        return made


@some(differentiates)
def test_networks_without_forward_mode(recipe: Loss) -> None:
    """The error names the layer and what to do, and that does it."""
    model, plain = (model_like(recipe, X0) for _ in range(2))
    model.net.drop = Kernel()
    text = r"in Kernel '(net\.)?drop' of .* has no forward mode.*derivative=\"finite_difference\""
    with pytest.raises(NotImplementedError, match=text):
        evaluated(recipe, X0, model=model)
    by = {"derivative": "finite_difference"}
    found, wanted = (gradients(recipe, one, X0, **by) for one in (model, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@every
def test_models_can_be_copied_and_evaluated_without_gradient(recipe: Loss) -> None:
    """A validation loss has the same value, and nothing of the pass is kept on the model."""
    model = model_like(recipe, X0)
    wanted = evaluated(recipe, X0, model=model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        found = evaluated(recipe, X0, model=other)
    assert not found.loss.requires_grad
    torch.testing.assert_close(found.loss, wanted.loss.detach(), rtol=1e-12, atol=0)
