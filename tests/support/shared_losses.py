"""Public losses in two processes, and what one process makes of the whole batch."""

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from cmsolvers import losses, noise
from support.loss_cases import evaluated, model_for
from support.shared_derivatives import gradients

NAMES = ("ict", "meanflow", "lsd", "tvm", "sct", "ayf_emd")
BATCH = 8
HALF = BATCH // 2
X0 = noise.normal((BATCH, 3), seed=1, dtype=torch.float64)
LABEL = torch.arange(BATCH) % 4 + 1


def alone(recipe):
    """The model of one process."""
    return model_for(recipe, around=lambda net: net.double())


def ddp_outside(recipe):
    return DistributedDataParallel(alone(recipe))


def ddp_inside(recipe):
    return model_for(recipe, around=lambda net: DistributedDataParallel(net.double()))


def fsdp2(recipe):
    from torch.distributed.fsdp import fully_shard

    return model_for(recipe, around=lambda net: fully_shard(net.double()))


WRAPS = (ddp_outside, ddp_inside, fsdp2)


def steps(name, make, part, key, count=2):
    """The gradients in the second step, as hooks and buckets change after the first."""
    loss = getattr(losses, name)
    model = make(loss.recipe)
    options = {"warmup": None} if name in ("sct", "ayf_emd") else {}
    for _ in range(count):
        model.zero_grad()
        evaluated(
            loss, X0[part], model=model, key=key, extra_args={"label": LABEL[part]}, **options
        ).loss.backward()
    return gradients(model)


def compare():
    """Differences of gradients to one process per case; the text of an error stands for one."""
    rank, found = distributed.get_rank(), {}
    part = slice(rank * HALF, (rank + 1) * HALF)
    own = noise.key(5, HALF, offset=rank * HALF)
    same = noise.key(5, HALF)  # the same noise in both processes, the mistake to be seen
    for name in NAMES:
        whole = steps(name, alone, slice(None), noise.key(5, BATCH), count=1)
        cases = {f"{name}, {make.__name__}": (make, own) for make in WRAPS}
        cases[f"{name}, same noise"] = (ddp_outside, same)
        for case, (make, key) in cases.items():
            try:
                shared = steps(name, make, part, key)
                pairs = zip(shared, whole, strict=True)
                found[case] = max(float((a - b).abs().max()) for a, b in pairs)
            except Exception as error:
                found[case] = f"{type(error).__name__}: {error}"
    return found
