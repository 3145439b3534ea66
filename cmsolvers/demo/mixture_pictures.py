"""The two classic pictures, on a 1-D mixture whose score and density are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import FancyArrowPatch
from torch import Tensor

from cmsolvers import noise
from cmsolvers.demo import picture_style as style
from cmsolvers.denoisers.oracles import GaussianMixture
from cmsolvers.processes import VP
from cmsolvers.processes.sde import SDELike
from cmsolvers.schedules import karras_sigmas
from cmsolvers.solvers import euler_maruyama, heun_pf_ode

REACH = 2.8
END = 1e-3
MEANS, STD, WEIGHTS = (-1.5, -0.1, 1.35), 0.14, (0.3, 0.25, 0.45)


@dataclass(frozen=True)
class Paths:
    """Times [K] and states [K, n] of n paths."""

    times: Tensor
    states: Tensor


@dataclass(frozen=True)
class Toy:
    """The mixture and the VP process that turns it into noise."""

    process: VP
    oracle: GaussianMixture
    seed: int

    @staticmethod
    def make(seed: int) -> Toy:
        """The mixture of the report, with three modes."""
        means = torch.tensor(MEANS, dtype=torch.float64)[:, None]
        # + 12: with seed 0 every path stays inside the picture.
        return Toy(VP(0.1, 8.0), GaussianMixture(means, STD, list(WEIGHTS)), seed + 12)

    def density(self, times: Tensor, x: Tensor) -> Tensor:
        """The density p_t(x) of the noised data, [len(x), len(times)]."""
        columns = []
        for t in times.tolist():
            alpha, level = self.process.alpha(t), self.process.sigma_hat(t)
            logs = self.oracle.log_density(x[:, None] / alpha, level)
            columns.append(logs.exp() / alpha)
        return torch.stack(columns, dim=1)

    def forward(self, n: int, steps: int) -> Paths:
        """Paths of the forward SDE from the mixture."""
        means = torch.tensor(MEANS, dtype=torch.float64)
        which = torch.bucketize((torch.arange(n) + 0.5) / n, torch.tensor(WEIGHTS).cumsum(0)[:-1])
        z = noise.normal((n, 1), self.seed, dtype=torch.float64)
        start = means[which][:, None] + STD * z
        times = torch.linspace(END, 1, steps + 1, dtype=torch.float64)
        return self._record(self.process, start, times)

    def reverse(self, n: int, steps: int) -> Paths:
        """Paths of the reverse SDE from the prior."""
        start = self.process.prior((n, 1), self.seed + 1, dtype=torch.float64)
        times = torch.linspace(1, END, steps + 1, dtype=torch.float64)
        return self._record(self.process.reverse(self.process.score_of(self.oracle)), start, times)

    def _record(self, sde: SDELike, start: Tensor, times: Tensor) -> Paths:
        states: list[Tensor] = []
        end = euler_maruyama(
            sde, start, times, seed=self.seed + 2, callback=lambda s: states.append(s["x"].clone())
        )
        return Paths(times, torch.stack([*states, end])[:, :, 0])

    def flow(self, starts: Tensor, steps: int) -> Paths:
        """Trajectories of the probability-flow ODE from given points at t = 1."""
        times = torch.linspace(1, END, steps + 1, dtype=torch.float64)
        levels, alphas = self.process.sigma_hat(times), self.process.alpha(times)
        states: list[Tensor] = []
        end = heun_pf_ode(
            self.oracle,
            starts[:, None] / alphas[0],
            levels,
            callback=lambda s: states.append(s["x"].clone()),
        )
        return Paths(times, torch.stack([*states, end])[:, :, 0] * alphas[:, None])

    def consistency(self, times: Tensor, x: Tensor) -> Tensor:
        """f(x, t), where the trajectory through (t, x) ends; [len(x), len(times)]."""
        low = float(self.process.sigma_hat(END))
        columns = []
        for t in times.tolist():
            level = self.process.sigma_hat(t)
            grid = karras_sigmas(24, low, max(level, low * 1.001), append_zero=False)
            start = x[:, None] / self.process.alpha(t)
            columns.append(heun_pf_ode(self.oracle, start, grid)[:, 0])
        return torch.stack(columns, dim=1)


def _background(ax: Axes, toy: Toy) -> None:
    times = torch.linspace(END, 1, 160, dtype=torch.float64)
    x = torch.linspace(-REACH, REACH, 260, dtype=torch.float64)
    p = toy.density(times, x)
    shade = (p / p.amax(0)).pow(0.75).numpy()
    ax.imshow(
        shade,
        origin="lower",
        extent=(0, 1, -REACH, REACH),
        aspect="auto",
        cmap=style.DENSITY,
        interpolation="bilinear",
    )


def _panel(ax: Axes, backward: bool) -> None:
    ax.set_ylim(-REACH, REACH)
    ax.set_xlim((1, 0) if backward else (0, 1))
    ax.set_xticks([0, 1], ["0\ndata", "1\nnoise"])
    ax.set_yticks([-2, 0, 2])
    ax.set_ylabel("x", labelpad=0)
    ax.set_xlabel("time t", labelpad=-8)
    data, noise_ = ax.get_xticklabels()
    data.set_horizontalalignment("right" if backward else "left")
    noise_.set_horizontalalignment("left" if backward else "right")
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)


def draw_forward(ax: Axes, toy: Toy) -> None:
    """Draw paths of the forward SDE."""
    _draw(ax, toy, toy.forward(10, 300), style.SDE, False)


def draw_reverse(ax: Axes, toy: Toy) -> None:
    """Draw paths of the reverse SDE."""
    _draw(ax, toy, toy.reverse(10, 300), style.SDE, True)


def draw_ode(ax: Axes, toy: Toy) -> None:
    """Draw trajectories of the probability-flow ODE."""
    starts = torch.linspace(-1.9, 1.9, 14, dtype=torch.float64)
    _draw(ax, toy, toy.flow(starts, 120), style.ODE, True)


def _draw(ax: Axes, toy: Toy, paths: Paths, color: str, backward: bool) -> None:
    _background(ax, toy)
    width = 1.1 if color == style.ODE else 0.9
    ax.plot(paths.times.numpy(), paths.states.numpy(), color=color, linewidth=width, alpha=0.85)
    _panel(ax, backward)


def draw_consistency(ax: Axes, toy: Toy, bend: float = 0.24) -> None:
    """Draw the consistency function: colour shows where a point ends, arrows show the jumps."""
    times = torch.linspace(END, 1, 56, dtype=torch.float64)
    x = torch.linspace(-REACH, REACH, 220, dtype=torch.float64)
    ends = toy.consistency(times, x).numpy()
    soft = LinearSegmentedColormap.from_list(
        "ends", ["#bfe3d7", "#dcefe8", "#f3f1f6", "#e6dcf1", "#cdb6e4"]
    )
    ax.imshow(
        ends,
        origin="lower",
        extent=(0, 1, -REACH, REACH),
        aspect="auto",
        cmap=soft,
        vmin=-1.7,
        vmax=1.7,
        interpolation="bilinear",
    )
    flow = toy.flow(
        torch.tensor([-1.5, -1.0, -0.68, -0.45, -0.2, 0.15, 0.55, 1.0, 1.5]).double(), 120
    )
    when, states = flow.times.numpy(), flow.states.numpy()
    ax.plot(when, states, color=style.MUTED, linewidth=0.7, alpha=0.6)
    for which, color, curve in (
        (1, style.COLORS["cd"], bend),
        (7, style.COLORS["ct"], -bend),
    ):
        path = states[:, which]
        ax.plot(when, path, color=color, linewidth=1.8)
        ax.scatter([0], path[-1:], s=46, color=color, zorder=5, clip_on=False)
        for t in (1.0, 0.82, 0.64, 0.46, 0.28):
            at = int(np.argmin(np.abs(when - t)))
            ax.scatter([when[at]], [path[at]], s=16, color=color, zorder=4, clip_on=False)
            ax.add_patch(
                FancyArrowPatch(
                    (when[at], path[at]),
                    (0.012, path[-1]),
                    connectionstyle=f"arc3,rad={curve}",
                    arrowstyle="-|>",
                    mutation_scale=8,
                    color=color,
                    linewidth=0.8,
                    alpha=0.75,
                    shrinkA=3,
                    shrinkB=3,
                )
            )
    _panel(ax, True)


PANELS: dict[str, Callable[[Axes, Toy], None]] = {
    "forward": draw_forward,
    "reverse": draw_reverse,
    "ode": draw_ode,
    "consistency": draw_consistency,
}
"""What draws each panel, by its name in `equations.EQUATIONS`."""


def pictures(path_of: Callable[[str], Path], seed: int) -> dict[str, Path]:
    """Write SDE paths, ODE trajectories and the consistency function, each as one PNG.

    Args:
        path_of: name -> its file.
        seed: of the paths.
    """
    toy, made = Toy.make(seed), {}
    for name, draw in PANELS.items():
        fig = style.figure(5.4, 2.9)
        with style.styled():
            draw(fig.subplots(), toy)
        made[name] = style.save(fig, path_of(f"mixture-{name}"))
    return made
