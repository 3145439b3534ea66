"""Losses with derivatives in two processes, and what one process makes of the whole batch."""

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from cmsolvers.losses.derivatives.inner_modules import inner
from cmsolvers.losses.derivatives.total_derivative import total_derivative
from support.derivative_nets import Net, point

BATCH = 8


def network():
    torch.manual_seed(0)
    return Net(nn.LayerNorm(16)).double()


def mean_flow(student, by, data, **options):
    """|u - sg(v - (t - s) du/dt)|^2; the student's pass comes before or after the derivative's."""
    x, t, s, v = data
    student_first = options.pop("student_first", False)
    u = student(x, t, s) if student_first else None
    found = total_derivative(by, (x, t, s), (v, 1.0, None), **options)
    u = student(x, t, s) if u is None else u
    target = v - (t - s)[:, None] * found.derivative
    return (u - target.detach()).square().sum(1).mean()


def terminal(student, by, data, **options):
    """A loss whose only pass is that of the derivative, with gradient through it."""
    x, t, s, v = data
    found = total_derivative(by, (x, t, s), (v, 1.0, None), through=True, **options)
    return (found.value + (t - s)[:, None] * found.derivative - v).square().sum(1).mean()


def mean_flow_through(student, by, data, **options):
    """A student's pass and a derivative with gradient in one loss."""
    x, t, s, v = data
    u = student(x, t, s)
    found = total_derivative(by, (x, t, s), (v, 1.0, None), through=True, **options)
    return (u - v + (t - s)[:, None] * found.derivative).square().sum(1).mean()


def ddp(net):
    return DistributedDataParallel(net)


def fsdp2(net):
    from torch.distributed.fsdp import fully_shard

    for block in net.blocks:
        fully_shard(block)
    return fully_shard(net)


def itself(net):
    return net


def gradients(net):
    """All gradients as whole tensors."""
    found = [p.grad for p in net.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in found]


def steps(loss, net, wrap, student, by, data, options, count=2):
    """The gradients of a loss in its second call, as hooks and buckets change after the first."""
    model = wrap(net)
    for _ in range(count):
        net.zero_grad()
        loss(student(model), by(model), data, **options).backward()
    return gradients(net)


def distance(mine, theirs):
    """The largest difference of gradients, of those that one process has."""
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if b is not None]
    assert len(pairs) > 5
    return max(float((a - b).abs().max()) for a, b in pairs)


def compare():
    """Differences to one process per case (loss, wrap, student's pass by, derivative by, options).

    The text of an error stands for a difference.
    """
    whole, rank = point(BATCH), distributed.get_rank()
    half = BATCH // 2
    part = [value[rank * half : (rank + 1) * half] for value in whole]
    found = {}
    for name, (loss, wrap, student, by, options) in all_cases().items():
        one = steps(loss, network(), itself, itself, itself, whole, options, count=1)
        try:
            two = steps(loss, network(), wrap, student, by, part, options)
            found[name] = distance(two, one)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def all_cases():
    """Losses, wrappers and methods that must agree with one process, and two that must not."""
    cases = {}
    for wrap in (ddp, fsdp2):
        for method, first in (("jvp", False), ("jvp", True), ("finite_difference", False)):
            name = f"{wrap.__name__}, {method}, {'student first' if first else 'student last'}"
            options = {"method": method, "student_first": first}
            cases[name] = (mean_flow, wrap, itself, inner, options)
        for loss in (terminal, mean_flow_through):
            for method in ("jvp", "finite_difference"):
                name = f"{wrap.__name__}, {loss.__name__}, {method}"
                cases[name] = (loss, wrap, itself, itself, {"method": method})
    cases["the student's pass beside the wrapper"] = (mean_flow, ddp, inner, inner, {})
    cases["the derivative's pass beside the wrapper"] = (terminal, ddp, inner, inner, {})
    return cases
