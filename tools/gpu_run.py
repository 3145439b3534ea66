"""Everything that needs a GPU, in one run, on a machine that has one: `make gpu`.

Uses the python3 and torch of that machine and no network: builds in place, runs the tests that need
a GPU, runs some of them under compute-sanitizer (which must also find a planted bug), measures, and
writes one JSON file, `benchmarks/results/<device>-<date>.json`. The exit status is 0 only if every
part passed; the file is written either way and says which did not.

Such machines are often lent for minutes: what is left of `--seconds` is the limit of each command,
each file of benchmarks runs in a process of its own, and the JSON is written after each part.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from csrc_hash import csrc_hash  # noqa: E402
from cuda_check import find_cuda_home  # noqa: E402

WORK = ROOT / "build" / "gpu"
SANITIZER_ERROR = 99
TIMED_OUT = 124
CUDA_TESTS = "tests/house/test_cuda.py"
# Rivals and helpers of the benchmarks, whose versions belong beside the numbers.
PACKAGES = ("triton", "diffusers", "k-diffusion", "torchsde", "pytest-benchmark")
# Whole networks come last and first have to be compiled: nothing else may wait for them.
LAST_BENCHMARKS = "test_networks_cuda"
# Small, and together they reach every kernel, of steps, sums of noise, uniforms, losses and
# averages: both vector paths, tails, layouts, dtypes. No graph is among them: there is no capture
# without the caching allocator, which hides overruns.
SANITIZED_FILES = (CUDA_TESTS, "tests/ops/test_ema_update.py")
SANITIZED_TESTS = (
    "same_bits or layouts or misaligned or untouched or forms or distances or is_the_cpu"
)
QUANTILES = ("min", "q1", "median", "q3", "max")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of a run."""
    parser = argparse.ArgumentParser(prog="gpu_run", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks" / "results",
        help="folder of the JSON file (default: benchmarks/results)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("tests", "sanitizer", "benchmarks"),
        default=["tests", "sanitizer", "benchmarks"],
        help="parts to run after the build (default: all)",
    )
    parser.add_argument(
        "--all-tests",
        action="store_true",
        help="run the whole suite, not the tests marked cuda alone",
    )
    parser.add_argument("--slow", action="store_true", help="run the tests marked slow, too")
    parser.add_argument(
        "--seconds",
        type=float,
        default=540.0,
        help="limit of the whole run; a command that would exceed it is stopped (default: 540)",
    )
    parser.add_argument("--workers", type=int, default=4, help="test processes (with pytest-xdist)")
    options = parser.parse_args(argv)
    if options.workers < 1:
        parser.error(f"--workers must be at least 1; got {options.workers}")
    if not options.seconds > 0:
        parser.error(f"--seconds must be positive; got {options.seconds:g}")
    return options


def slug(text: str) -> str:
    """Return a name as part of a file name: `NVIDIA H200` becomes `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def count_tests(junit_xml: str) -> dict[str, int]:
    """Return passed, failed and skipped tests of a JUnit file as pytest writes it."""
    suites = ET.fromstring(junit_xml).iter("testsuite")
    total = failed = skipped = 0
    for suite in suites:
        total += int(suite.get("tests", "0"))
        failed += int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
        skipped += int(suite.get("skipped", "0"))
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def benchmark_rows(report: Mapping[str, Any], bandwidth: float) -> list[dict[str, Any]]:
    """Return one row a benchmark from pytest-benchmark's report.

    A benchmark says in `extra_info` how many calls one round made (`calls`) and how many bytes a
    call must move (`bytes`): quantiles become seconds a call, and the bound is the time of a plain
    copy of those bytes at the measured bandwidth (bytes read and written a second).
    """
    rows = []
    for entry in report.get("benchmarks", []):
        info = dict(entry.get("extra_info", {}))
        calls = info.pop("calls", 1)
        size = info.pop("bytes", None)
        seconds = {name: entry["stats"][name] / calls for name in QUANTILES}
        row = {"name": entry["name"], "group": entry.get("group"), "seconds": seconds}
        row["rounds"] = entry["stats"]["rounds"]
        if size is not None and bandwidth > 0:
            row["bytes"] = size
            row["bound_seconds"] = size / bandwidth
            row["times_bound"] = seconds["median"] / row["bound_seconds"]
        rows.append({**row, **info})
    return rows


def sanitizer_verdict(clean: tuple[int, str], planted: tuple[int, str]) -> dict[str, Any]:
    """Judge two runs (exit status, output): ours must be clean, the planted bug must be found."""
    summary = re.findall(r"ERROR SUMMARY: (\d+) error", clean[1])
    found = planted[0] == SANITIZER_ERROR and "Invalid __global__ write" in planted[1]
    return {
        "memcheck_errors": int(summary[-1]) if summary else None,
        "memcheck_exit_status": clean[0],
        "planted_bug_found": found,
        "passed": clean[0] == 0 and bool(summary) and int(summary[-1]) == 0 and found,
    }


def assemble(
    machine: Mapping[str, Any],
    *,
    tests: Mapping[str, int] | None,
    sanitizer: Mapping[str, Any] | None,
    bandwidth: Mapping[str, float] | None,
    rows: Sequence[Mapping[str, Any]] | None,
    problems: Sequence[str],
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return the content of the result file; a part that was not run is None."""
    return {
        **machine,
        "csrc_hash": csrc_hash(ROOT / "csrc"),
        "passed": not problems,
        "problems": list(problems),
        "seconds": dict(seconds or {}),
        "tests": tests,
        "sanitizer": sanitizer,
        "copy_bandwidth": bandwidth,
        "benchmarks": rows,
    }


def write_result(result: Mapping[str, Any], folder: Path) -> Path:
    """Write the result as `<device>-<date>.json` and return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug(result['device'])}-{result['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


class Clock:
    """How much of the time of a run is left.

    Args:
        seconds: limit of the run.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until the end; 0 after it."""
        return max(self._end - time.monotonic(), 0.0)


def execute(command: Sequence[str | Path], log: str, limit: float, **env: str) -> tuple[int, str]:
    """Run a command in the repository, its output shown and kept in a log.

    Returns:
        Its exit status, TIMED_OUT where it was stopped after `limit` seconds, and its output.
    """
    print(f"\n$ {' '.join(str(c) for c in command)}", flush=True)
    path = WORK / log
    stopped = threading.Event()
    with path.open("w") as file:
        process = subprocess.Popen(
            [str(c) for c in command],
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

        def stop() -> None:
            stopped.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers and compilers, too

        timer = threading.Timer(limit, stop)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if not log.startswith("build"):
                print(line, end="", flush=True)
        status = process.wait()
        timer.cancel()
        if stopped.is_set():
            status = TIMED_OUT
            print(f"gpu_run: stopped after {limit:.0f} s", file=file)
            print(f"gpu_run: stopped after {limit:.0f} s", flush=True)
    return status, path.read_text()


def output_of(*command: str) -> str:
    """Return what a command prints, or "" where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def version_of(package: str) -> str | None:
    """Return the version of an installed package, None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_machine(cuda_home: Path) -> dict[str, Any]:
    """Return device, versions and date."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    release = re.search(r"release ([\d.]+)", output_of(str(cuda_home / "bin/nvcc"), "--version"))
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    return {
        "device": torch.cuda.get_device_name(0),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": output_of("git", "rev-parse", "HEAD"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "nvcc": release[1] if release else None,
            "driver": output_of(*query),
            **{name: version_of(name) for name in PACKAGES},
        },
    }


def copy_bandwidth(size: int = 1 << 30, repeats: int = 30) -> dict[str, float]:
    """Measure a device-to-device copy: bytes read plus bytes written a second."""
    import torch

    source = torch.randn(size // 4, device="cuda")
    target = torch.empty_like(source)
    times = []
    for i in range(repeats + 5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        if i >= 5:
            times.append(start.elapsed_time(end) / 1e3)
    times.sort()
    rates = {
        "q1": times[3 * repeats // 4],
        "median": times[repeats // 2],
        "q3": times[repeats // 4],
    }
    return {name: 2 * size / seconds for name, seconds in rates.items()}


def build(cuda_home: Path, capability: str, clock: Clock) -> bool:
    """Build the extension in place for this machine's GPU."""
    status, log = execute(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        "build.log",
        clock.left(),
        USE_CUDA="1",
        CUDA_HOME=str(cuda_home),
        TORCH_CUDA_ARCH_LIST=os.environ.get("TORCH_CUDA_ARCH_LIST", capability),
    )
    if status != 0:
        print(log[-8000:])
    return status == 0


def run_tests(options: argparse.Namespace, clock: Clock) -> dict[str, int]:
    """Run the tests of the CUDA part, or the whole suite; those on the GPU may not be skipped."""
    report = WORK / "tests.xml"
    report.unlink(missing_ok=True)
    tests = ["tests"] if options.all_tests else cuda_tests()
    command: list[str | Path] = [sys.executable, "-m", "pytest", *tests, f"--junitxml={report}"]
    chosen = ["not faults"] if options.all_tests else ["cuda"]
    chosen += [] if options.slow else ["not slow"]
    command += ["-m", " and ".join(chosen)]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(options.workers), "--dist", "worksteal"]
    if importlib.util.find_spec("pytest_benchmark"):
        command += ["--benchmark-disable"]
    env = {"CMSOLVERS_REQUIRE_EXTENSION": "1", "CMSOLVERS_REQUIRE_CUDA": "1"}
    status, _ = execute(command, "tests.log", clock.left(), **env)
    if not report.exists():
        return {"passed": 0, "failed": 1, "skipped": 0}
    counts = count_tests(report.read_text())
    if status != 0 and not counts["failed"]:  # pytest itself broke off
        counts["failed"] = 1
    return counts


def run_sanitizer(cuda_home: Path, capability: str, clock: Clock) -> dict[str, Any]:
    """Run memcheck over SANITIZED_TESTS and over the planted bug."""
    tool = shutil.which("compute-sanitizer") or str(cuda_home / "bin/compute-sanitizer")
    planted = WORK / "planted_bug"
    arch = "-arch=sm_" + capability.replace(".", "")
    status, log = execute(
        [cuda_home / "bin/nvcc", arch, "-lineinfo", "-o", planted, "tools/planted_bug.cu"],
        "build_planted.log",
        clock.left(),
    )
    if status != 0:
        print(log)
    memcheck = [tool, "--tool", "memcheck", "--error-exitcode", str(SANITIZER_ERROR)]
    found = execute([*memcheck, planted], "planted.log", clock.left())
    tests = [*SANITIZED_FILES, "-k", SANITIZED_TESTS, "-m", "cuda and not slow"]
    clean = execute(
        [*memcheck, "--target-processes", "all", sys.executable, "-m", "pytest", "-q", *tests],
        "memcheck.log",
        clock.left(),
        CMSOLVERS_REQUIRE_EXTENSION="1",
        CMSOLVERS_REQUIRE_CUDA="1",
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",  # one allocation a tensor, or the overrun goes unseen
    )
    return sanitizer_verdict(clean, found)


def cuda_tests() -> list[str]:
    """Return the modules with tests that need a GPU; those of kernels come first."""
    marked = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.cuda" in path.read_text()
    ]
    return sorted(marked, key=lambda path: path != CUDA_TESTS)


def benchmark_files() -> list[Path]:
    """Return the modules of benchmarks in the order in which they run."""
    found = sorted((ROOT / "benchmarks").glob("test_*.py"))
    return sorted(found, key=lambda path: path.stem == LAST_BENCHMARKS)


def run_benchmarks(clock: Clock) -> Mapping[str, Any]:
    """Run the CUDA benchmarks, a process for each file.

    Returns:
        "benchmarks": the entries of pytest-benchmark's reports, which leave out a benchmark that
        failed; "failed": the files with another exit status than 0 and what that was.
    """
    entries: list[Any] = []
    failed: dict[str, int] = {}
    for file in benchmark_files():
        report = WORK / f"{file.stem}.json"
        report.unlink(missing_ok=True)
        status, _ = execute(
            [
                *(sys.executable, "-m", "pytest", file.relative_to(ROOT), "-m", "cuda"),
                *("--benchmark-only", f"--benchmark-json={report}"),
            ],
            f"{file.stem}.log",
            clock.left(),
            CMSOLVERS_BENCHMARK_SECONDS=f"{clock.left() / 2:.0f}",
        )
        if status not in (0, 5):  # 5: the file has nothing for a GPU
            failed[file.name] = status
        try:
            entries += json.loads(report.read_text())["benchmarks"]
        except (OSError, ValueError):  # stopped before, or while, it was written
            continue
    return {"benchmarks": entries, "failed": failed}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts asked for, write the result file, and return the exit status."""
    options = parse_arguments(argv)
    try:
        import torch
    except ImportError as error:
        sys.exit(f"gpu_run: {sys.executable} has no torch ({error})")
    if not torch.cuda.is_available():
        sys.exit(f"gpu_run: torch {torch.__version__} sees no CUDA device")
    cuda_home = find_cuda_home()
    if cuda_home is None:
        sys.exit("gpu_run: no CUDA toolkit was found; set CUDA_HOME")

    clock, start = Clock(options.seconds), time.monotonic()
    WORK.mkdir(parents=True, exist_ok=True)
    machine = describe_machine(cuda_home)
    problems: list[str] = []
    seconds: dict[str, float] = {}
    tests = sanitizer = bandwidth = rows = None

    def finished(part: str, passed: bool) -> Path:
        """Note how a part ended and write what there is, should the machine be taken away."""
        seconds[part] = round(time.monotonic() - start - sum(seconds.values()), 1)
        if not passed:
            problems.append(part)
        result = assemble(
            machine,
            tests=tests,
            sanitizer=sanitizer,
            bandwidth=bandwidth,
            rows=rows,
            problems=problems,
            seconds=seconds,
        )
        return write_result(result, options.out)

    built = build(cuda_home, machine["capability"], clock)
    path = finished("build", built)
    if built and "tests" in options.only:
        tests = run_tests(options, clock)
        path = finished("tests", bool(tests["passed"] and not tests["failed"]))
    if built and "sanitizer" in options.only:
        sanitizer = run_sanitizer(cuda_home, machine["capability"], clock)
        path = finished("sanitizer", sanitizer["passed"])
    if built and "benchmarks" in options.only:
        bandwidth = copy_bandwidth()
        measured = run_benchmarks(clock)
        rows = benchmark_rows(measured, bandwidth["median"])
        path = finished("benchmarks", bool(rows and not measured.get("failed")))
    print(f"\ngpu_run: {time.monotonic() - start:.0f} s, wrote {path}")
    print(f"gpu_run: {'failed: ' + ', '.join(problems) if problems else 'everything passed'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
