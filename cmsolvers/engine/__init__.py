"""What runs solvers: a formula becomes forms, forms become launches.

A sampler on noise levels is `@solver(...)` over `formula(step: Step) -> Form`, one in time
`@time_solver(...)` over `formula(step: TimeStep) -> Form`; docs/own_solver.md shows how. The way
of a run: solver (arguments), trace (the formula, once for all steps), lower (forms to launches),
run (the loop), machine (calls and launches). `capture` makes one CUDA graph of all that.
"""

from cmsolvers.engine.forms import Form
from cmsolvers.engine.options import Option
from cmsolvers.engine.solver import solver
from cmsolvers.engine.time_solver import time_solver
from cmsolvers.engine.time_steps import TimeStep
from cmsolvers.engine.trace import Step

__all__ = ["Form", "Option", "Step", "TimeStep", "solver", "time_solver"]
