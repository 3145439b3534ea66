"""Every loss at an exact map: how near to stationary it should be, and faults that end it."""

from __future__ import annotations

from support.stationary_laws import Case
from support.stationary_pairs import PAIRS
from support.stationary_rates import RATES

CASES: list[Case] = [*PAIRS, *RATES]
