"""Networks of a state and two levels, whose derivatives the tests of losses take."""

import math

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

D = 3


class Block(nn.Module):
    """A residual layer, which may be checkpointed."""

    def __init__(self, width, use_reentrant=None):
        super().__init__()
        self.linear, self.use_reentrant = nn.Linear(width, width), use_reentrant

    def _forward(self, h):
        return h + torch.tanh(self.linear(h))

    def forward(self, h):
        if self.use_reentrant is None:
            return self._forward(h)
        return checkpoint(self._forward, h, use_reentrant=self.use_reentrant)


class Net(nn.Module):
    """F(x, t, s) of x [B, 3] and levels [B]; `middle` is a layer between its two blocks."""

    def __init__(self, middle=None, use_reentrant=None, width=16):
        super().__init__()
        self.first = nn.Linear(D + 2, width)
        self.blocks = nn.ModuleList(Block(width, use_reentrant) for _ in range(2))
        self.middle = middle if middle is not None else nn.Identity()
        self.last = nn.Linear(width, D)

    def forward(self, x, t, s):
        levels = torch.stack((t, s), 1).to(x.dtype)
        h = torch.tanh(self.first(torch.cat((x, levels), 1)))
        return self.last(self.blocks[1](self.middle(self.blocks[0](h))))


class Embedding(nn.Module):
    """Sines of a level; `spoil` is what a careless author does to it first."""

    def __init__(self, width, spoil):
        super().__init__()
        self.linear, self.spoil = nn.Linear(8, width), spoil

    def forward(self, t):
        angle = self.spoil(t)[:, None].float() * torch.exp(torch.linspace(0, math.log(30), 4))
        return self.linear(torch.cat((angle.sin(), angle.cos()), 1))


class Embedded(nn.Module):
    """F(x, t) with dropout, running statistics and a time embedding in float32."""

    def __init__(self, spoil=lambda t: t, width=16):
        super().__init__()
        self.time, self.first = Embedding(width, spoil), nn.Linear(D, width)
        self.norm, self.drop = nn.BatchNorm1d(width), nn.Dropout(0.2)
        self.last = nn.Linear(width, D)

    def forward(self, x, t):
        h = torch.tanh(self.first(x) + self.time(t.float()))
        return self.last(self.drop(self.norm(h)))


class Attention(nn.Module):
    """F(x, t) over tokens x [B, 3, 4] with torch's attention layer."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x, t):
        return self.attention(x + torch.sin(t)[:, None, None].to(x.dtype))


def point(batch=6, dtype=torch.float64):
    """x, t, s and dx/dt; levels 0 < s < t < 1 in float64."""
    generator = torch.Generator().manual_seed(7)
    x, v = (torch.randn(batch, D, generator=generator, dtype=dtype) for _ in range(2))
    t = 0.1 + 0.8 * torch.rand(batch, generator=generator, dtype=torch.float64)
    return x, t, 0.5 * t, v


def reference(function, primals, tangents):
    """The directional derivative in reverse mode, twice: d/du <J^T u, tangents>."""
    primals = [p.detach().requires_grad_() for p in primals]
    value = function(*primals)
    u = torch.zeros_like(value, requires_grad=True)
    pulled = torch.autograd.grad(value, primals, u, create_graph=True, allow_unused=True)
    total = sum((p * t).sum() for p, t in zip(pulled, tangents, strict=True) if p is not None)
    return torch.autograd.grad(total, u)[0]
