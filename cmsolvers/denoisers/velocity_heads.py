"""Average velocities whose network predicts the instantaneous velocity with a second head."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers.flow_maps import AverageVelocity


class VelocityHeads(AverageVelocity):
    """f = x + (s - t) u of a network with two heads, `net(x, c_noise(t), c_noise(s)) -> (u, v)`.

    Both heads have the shape of x. v helps in training alone: improved MeanFlow takes the tangent
    of its derivative from v at s = t, and trains v beside u. Sampling uses u, so a network may
    leave the second head out then and return u only.

    Args:
        net: `net(x, c_noise(t), c_noise(s), **extra_args) -> (u, v)`; u alone where no loss asks v.
        coordinates: "flow", x_t = (1 - t) x_0 + t z, or others whose dx/dlevel it averages.
        c_noise: what the network gets for a level, a callable; None is the level itself.
        second: "end": the network gets s; "length": t - s; a callable: what it makes of (t, s).
        dtype: dtype of the network's input; None is that of x.

    Raises:
        TypeError: net cannot be called, or takes no two times.
        ValueError: an unknown name.

    Source: Geng et al., "Improved Mean Flows: On the Challenges of Fastforward Generative Models"
        (2025), section 4.
    """

    def network(self, x_in: Tensor, t: Tensor, s: Tensor | None, **extra_args: Any) -> Tensor:
        """u for a scaled input and float64 levels [B]."""
        made: object = super().network(x_in, t, s, **extra_args)
        return cast(Tensor, made[0] if isinstance(made, tuple) else made)

    def heads(
        self, x: Tensor, t: Tensor, s: Tensor | None, **extra_args: Any
    ) -> tuple[Tensor, Tensor]:
        """(u, v), both [B, ...], for a state and float64 levels [B].

        Raises:
            TypeError: the network returned no two tensors.
            ValueError: one of another shape.
        """
        both: object = super().network(x.to(self.dtype or x.dtype), t, s, **extra_args)
        if not isinstance(both, tuple) or len(both) != 2:
            raise TypeError(
                f"net must return two tensors (u, v) for this loss; it returned "
                f"{check.describe(both)}"
            )
        u, v = (check.model_output("net", made, x) for made in both)
        return u, v

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        t: float | Tensor,
        s: float | Tensor = 0.0,
        *,
        output: str = "map",
        **extra_args: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The state at level s, as `FlowMap.forward`; (u, v) with output "heads"."""
        if output != "heads":
            return super().forward(x, t, s, output=output, **extra_args)
        start, end = self._levels("t", t, x), self._levels("s", s, x)
        return self.heads(x, start, end, **extra_args)
