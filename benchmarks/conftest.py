"""Options and the closing table of the benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from comparison import ROWS, table


def pytest_addoption(parser: Any) -> None:
    parser.addoption(
        "--check-ratios",
        action="store_true",
        help="fail where a ratio is below what is asked of it",
    )


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: Any) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return str(request.param)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if ROWS:
        terminalreporter.section("medians, interleaved")
        terminalreporter.write_line(table())


def pytest_sessionfinish(session: Any) -> None:
    if session.config.getoption("--check-ratios"):
        short = [text for row in ROWS for text in row.shortfalls()]
        for text in short:
            print(f"\n{text}")
        if short and session.exitstatus == 0:
            session.exitstatus = 1
