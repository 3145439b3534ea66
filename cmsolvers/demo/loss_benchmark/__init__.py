"""Losses of few-step models, measured on problems whose flow map is known exactly.

`benchmark_losses` trains the network of each `Entry` on each problem and measures what it samples
in 1, 2 and 4 steps. `ENTRIES` are the library's recipes; an `Entry` of a user's is run beside them.
"""

from cmsolvers.demo.loss_benchmark.benchmark import benchmark_losses
from cmsolvers.demo.loss_benchmark.entry import Entry
from cmsolvers.demo.loss_benchmark.results import Result
from cmsolvers.demo.loss_benchmark.rows_of_losses import ENTRIES
from cmsolvers.demo.loss_benchmark.setting import Setting

__all__ = ["ENTRIES", "Entry", "Result", "Setting", "benchmark_losses"]
