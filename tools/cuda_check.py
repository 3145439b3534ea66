"""Compile and link the CUDA part on a machine that has nvcc, with or without a GPU.

A separate virtual environment holds a CUDA build of torch. The extension is built there for one
architecture and PTX with warnings as errors; each kernel's registers, stack and spills are printed;
a spill is a failure. At last the built package is imported, which needs no GPU.

Environment: CUDA_VENV (folder of the virtual environment), CUDA_TORCH (requirement to install),
CUDA_CHECK_ARCHS (TORCH_CUDA_ARCH_LIST of the build), CUDA_HOME.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "cuda-check"
TOOLS = ("setuptools>=77", "wheel", "ninja")
TORCH = "torch>=2.11,<2.16"  # its newest build has CUDA; the bound keeps CI as it was seen

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Kernel:
    """What ptxas reports about one kernel for one architecture."""

    name: str
    arch: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


def parse_ptxas(log: str) -> list[Kernel]:
    """Return the kernels in the output of `nvcc -Xptxas -v`, in the order of the log."""
    kernels = []
    entry: tuple[str, str] | None = None
    frame = (0, 0, 0)
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            entry, frame = (match[1], match[2]), (0, 0, 0)
        elif entry and (match := _FRAME.search(line)):
            frame = (int(match[1]), int(match[2]), int(match[3]))
        elif entry and (match := _USED.search(line)):
            kernels.append(Kernel(*entry, int(match[1]), *frame))
            entry = None
    return kernels


def demangle(names: list[str]) -> list[str]:
    """Return readable names where c++filt is at hand, without arguments and namespaces."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    run = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    return [shorten(name) for name in run.stdout.splitlines()]


def shorten(name: str) -> str:
    """Drop return type, arguments and the library's own namespaces from a demangled name."""
    name = name.removeprefix("void ")
    if name.endswith(")"):
        depth = 0
        for i in range(len(name) - 1, -1, -1):
            depth += (name[i] == ")") - (name[i] == "(")
            if depth == 0:
                name = name[:i]
                break
    return re.sub(r"(cmsolvers::|\(anonymous namespace\)::|c10::)", "", name)


def table(kernels: list[Kernel]) -> str:
    """Return the kernels as text, one a line."""
    lines = [f"{'regs':>5} {'stack':>6} {'spill st':>9} {'spill ld':>9}  arch   kernel"]
    for kernel, name in zip(kernels, demangle([k.name for k in kernels]), strict=True):
        lines.append(
            f"{kernel.registers:5d} {kernel.stack:6d} {kernel.spill_stores:9d} "
            f"{kernel.spill_loads:9d}  {kernel.arch:6s} {name}"
        )
    return "\n".join(lines)


def find_cuda_home() -> Path | None:
    """Return the toolkit's folder: CUDA_HOME, the one around nvcc, or the usual place."""
    nvcc = shutil.which("nvcc")
    folders = [Path(os.environ[v]) for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    folders += [Path(nvcc).resolve().parent.parent] if nvcc else []
    folders += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    for folder in folders:
        if (folder / "bin/nvcc").exists() and (folder / "include/cuda_runtime.h").exists():
            return folder
    return None


def run(
    *command: str | Path,
    env: dict[str, str] | None = None,
    log: Path | None = None,
    cwd: Path = ROOT,
) -> None:
    """Run a command; where its output goes to a log, show the log's end if it fails."""
    with log.open("w") if log else open(os.devnull) as out:
        result = subprocess.run(
            [str(c) for c in command],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdout=out if log else None,
            stderr=subprocess.STDOUT if log else None,
            check=False,
        )
    if result.returncode != 0:
        if log:
            print(log.read_text()[-20_000:])
        sys.exit(f"cuda-check: failed: {' '.join(str(c) for c in command[:6])} ...")


def make_environment(folder: Path, requirement: str) -> Path:
    """Create the virtual environment unless its stamp says that it is there; return its python."""
    python = folder / "bin" / "python"
    stamp = folder / ".deps"
    wanted = requirement + "\n" + (ROOT / "pyproject.toml").read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"cuda-check: installing {requirement} in {folder.name} (several GB)", flush=True)
    if not python.exists():
        run(os.environ.get("PYTHON") or sys.executable, "-m", "venv", folder)
    pip = (python, "-m", "pip", "install", "-qq")
    run(*pip, requirement, *TOOLS)
    run(*pip, "--no-build-isolation", "-e", ".", env={"CMSOLVERS_SKIP_EXTENSION": "1"})
    stamp.write_text(wanted)
    return python


def wheel_includes(python: Path) -> str:
    """Return the include folders of the CUDA wheels: some toolkits lack the libraries' headers.

    They go to CPLUS_INCLUDE_PATH, which is searched after the toolkit's own headers.
    """
    code = (
        "import glob, os, sysconfig; "
        "print(os.pathsep.join(sorted(glob.glob(os.path.join("
        "sysconfig.get_path('purelib'), 'nvidia', '*', 'include')))))"
    )
    return subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def compile_alone(home: Path, source: str, *objects: Path) -> Path:
    """Compile one program that needs no torch, warnings being errors; return its path."""
    program = WORK / Path(source).stem
    host = "-Werror,-Wall,-Wextra,-Wno-unknown-pragmas,-ffp-contract=off,-fopenmp"
    flags = ("-std=c++17", "-O1", "--fmad=false", "-arch=sm_90", "-Werror", "all-warnings")
    run(home / "bin/nvcc", *flags, "-Xcompiler", host, "-o", program, source, *objects)
    return program


IMPORT_CHECK = """
import json, torch, cmsolvers
info = cmsolvers.build_info()
print(json.dumps(info, default=str))
assert torch.version.cuda, "this torch is a CPU build"
assert info["extension"] and info["cuda"], "the CUDA part is missing"
assert "build/cuda-check" in cmsolvers.__file__, cmsolvers.__file__
"""


def main() -> None:
    """Run the whole check; exits with a message on the first failure."""
    start = time.monotonic()
    home = find_cuda_home()
    if home is None:
        print("cuda-check: skipped, no nvcc on this machine")
        return
    folder = ROOT / (os.environ.get("CUDA_VENV") or ".venv-cuda")
    python = make_environment(folder, os.environ.get("CUDA_TORCH") or TORCH)
    WORK.mkdir(parents=True, exist_ok=True)
    for old in (WORK / "temp").rglob("*.o"):  # ptxas reports only what is compiled now
        if (ROOT / old.relative_to(WORK / "temp")).with_suffix(".cu").exists():
            old.unlink()
    env = {
        "USE_CUDA": "1",
        "CUDA_HOME": str(home),
        "TORCH_CUDA_ARCH_LIST": os.environ.get("CUDA_CHECK_ARCHS") or "9.0+PTX",
        "CMSOLVERS_WERROR": "1",
        "CMSOLVERS_PTXAS_VERBOSE": "1",
        "CPLUS_INCLUDE_PATH": wheel_includes(python),
    }
    log = WORK / "build.log"
    print(f"cuda-check: building for {env['TORCH_CUDA_ARCH_LIST']} with {home}", flush=True)
    lib = WORK / "lib"
    options = ("--build-lib", lib, "--build-temp", WORK / "temp")
    run(python, "setup.py", "build_py", "--build-lib", lib, env=env, log=WORK / "build_py.log")
    run(python, "setup.py", "build_ext", *options, env=env, log=log)
    compile_alone(home, "tools/planted_bug.cu")
    cpu_kernels = list((WORK / "temp/csrc/cpu").glob("kernels_*.o"))
    emulation = compile_alone(home, "tests/cuda/emulate_step.cu", *cpu_kernels)
    emulated_losses = compile_alone(home, "tests/cuda/emulate_losses.cu", *cpu_kernels)
    emulated_sums = compile_alone(home, "tests/cuda/emulate_noise_sum.cu")
    emulated_averages = compile_alone(home, "tests/cuda/emulate_ema.cu")

    kernels = parse_ptxas(log.read_text())
    print(table(kernels))
    (WORK / "kernels.json").write_text(json.dumps([vars(k) for k in kernels], indent=1))
    spilled = [k for k in kernels if k.spill_stores or k.spill_loads]
    if not kernels:
        sys.exit("cuda-check: failed: ptxas reported no kernel")
    if spilled:
        sys.exit(f"cuda-check: failed: {len(spilled)} of {len(kernels)} kernels spill registers")
    print("cuda-check: thread by thread on the host, and the CPU kernels: ", end="", flush=True)
    run(emulation)
    print("cuda-check: sums of noise, thread by thread: ", end="", flush=True)
    run(emulated_sums)
    print("cuda-check: moving averages, thread by thread: ", end="", flush=True)
    run(emulated_averages)
    print("cuda-check: losses, thread by thread: ", end="", flush=True)
    run(emulated_losses)
    env = {"PYTHONPATH": str(lib), "CMSOLVERS_REQUIRE_EXTENSION": "1"}
    run(python, "-c", IMPORT_CHECK, env=env, cwd=WORK)  # not where another build lies
    print(
        f"cuda-check: {len(kernels)} kernels built and linked, no spill, at most "
        f"{max(k.registers for k in kernels)} registers; {time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
