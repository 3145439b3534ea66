"""Builds `cmsolvers._C`: the CPU part always, the CUDA part when torch and a toolkit allow it.

Environment:
    USE_CUDA               1: fail if the CUDA part cannot be built; 0: leave it out; unset: decide.
    TORCH_CUDA_ARCH_LIST   CUDA architectures, e.g. "9.0+PTX". No GPU needs to be visible.
    MAX_JOBS               compilers run side by side.
    CMSOLVERS_WERROR       1: warnings are errors.
    CMSOLVERS_PTXAS_VERBOSE 1: ptxas reports the registers and spills of each kernel.
    CMSOLVERS_SKIP_EXTENSION 1: install the Python part alone.
"""

from __future__ import annotations

import copy
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from csrc_hash import csrc_hash  # noqa: E402

DEFAULT_ARCHS = ("8.0", "8.6", "8.9", "9.0")

# IEEE arithmetic only: contraction and fast-math would change the noise (csrc/contract/math.h).
CXX_FLAGS = [
    "-O3",
    "-g0",
    "-Wall",
    "-Wextra",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    # at::parallel_for is an OpenMP loop in a header. Nothing is linked for it: the symbols come
    # from the runtime that torch has loaded, so there is one pool of threads.
    "-fopenmp",
]
NVCC_FLAGS = ["-O3", "--fmad=false", "-lineinfo", "--expt-relaxed-constexpr"]

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", *AVX2]


def instruction_set_flags(source: str) -> tuple[str, ...]:
    """Return the flags that one C++ source needs beyond the common ones."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ()
    if source.endswith("_avx512.cpp"):
        return tuple(AVX512)
    if source.endswith("_avx2.cpp"):
        return tuple(AVX2)
    return ()


def env_flag(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def toolkit_version(nvcc: Path) -> str | None:
    """Return the version of a CUDA toolkit, such as "12.8"; None where its nvcc does not tell."""
    try:
        run = subprocess.run([str(nvcc), "--version"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release (\d+\.\d+)", run.stdout)
    return found[1] if found else None


def cuda_missing(torch_cuda: str | None, cuda_home: str | None) -> list[str]:
    """Return what keeps the CUDA part from being built, in words; empty where nothing does."""
    missing = []
    if torch_cuda is None:
        missing.append("this torch is a CPU build (torch.version.cuda is None)")
    nvcc = Path(cuda_home or "") / "bin" / "nvcc"
    if cuda_home is None or not nvcc.exists():
        missing.append("no CUDA toolkit was found (set CUDA_HOME to the folder that has bin/nvcc)")
        return missing
    version = toolkit_version(nvcc)
    if version is None:
        missing.append(f"{nvcc} --version does not run or names no release")
    elif torch_cuda is not None and version.split(".")[0] != torch_cuda.split(".")[0]:
        # torch.utils.cpp_extension would refuse it too, and end the build of the CPU part with it.
        missing.append(
            f"the CUDA toolkit in {cuda_home} is {version} and this torch was built with CUDA "
            f"{torch_cuda}: the major versions must be the same (set CUDA_HOME to one that fits)"
        )
    return missing


def cuda_wanted(torch_cuda: str | None, cuda_home: str | None) -> bool:
    """Decide on the CUDA part; USE_CUDA=1 turns "cannot" into an error that says why."""
    setting = os.environ.get("USE_CUDA", "")
    if setting not in ("", "0", "1"):
        sys.exit(f"USE_CUDA must be 0, 1 or unset; got {setting!r}")
    if setting == "0":
        return False
    missing = cuda_missing(torch_cuda, cuda_home)
    if missing and setting == "1":
        sys.exit("USE_CUDA=1, but the CUDA part cannot be built: " + "; ".join(missing))
    if missing and torch_cuda is not None:  # with a CPU torch nobody expects the CUDA part
        print(
            f"cmsolvers: WARNING: the CUDA part is left out, CUDA tensors will be refused: "
            f"{'; '.join(missing)}. USE_CUDA=1 makes this an error, USE_CUDA=0 silences it",
            file=sys.stderr,
            flush=True,
        )
    return not missing


def default_archs(nvcc: Path) -> str:
    """Return those of DEFAULT_ARCHS that this nvcc knows, the last with PTX for newer chips."""
    run = subprocess.run([str(nvcc), "--list-gpu-arch"], check=True, capture_output=True, text=True)
    known = set(run.stdout.split())
    archs = [a for a in DEFAULT_ARCHS if "compute_" + a.replace(".", "") in known]
    if not archs:
        sys.exit(f"{nvcc} supports none of {DEFAULT_ARCHS}; set TORCH_CUDA_ARCH_LIST")
    return ";".join(archs) + "+PTX"


def sources(*patterns: str) -> list[str]:
    return [str(p.relative_to(ROOT)) for pattern in patterns for p in sorted(ROOT.glob(pattern))]


def find_toolkit() -> None:
    """Set CUDA_HOME where it is unset: the nvcc on PATH may be a link or a script elsewhere."""
    nvcc = shutil.which("nvcc")
    if os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    folders = [Path(nvcc).resolve().parent.parent] if nvcc else []
    folders += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    for folder in folders:
        if (folder / "bin/nvcc").exists() and (folder / "include/cuda_runtime.h").exists():
            os.environ["CUDA_HOME"] = str(folder)
            return


def extension_setup() -> dict[str, object]:
    """Return the setup() arguments that describe the extension."""
    find_toolkit()
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        sys.exit(
            f"cmsolvers builds against the torch that is installed, and importing it failed "
            f"({error}); install torch first, then use pip install --no-build-isolation"
        )

    use_cuda = cuda_wanted(torch.version.cuda, cpp_extension.CUDA_HOME)
    files = sources("csrc/**/*.cpp")
    cxx = list(CXX_FLAGS)
    nvcc = list(NVCC_FLAGS)
    # Warnings are for our code: torch's headers count as system headers.
    for path in cpp_extension.include_paths("cuda" if use_cuda else "cpu"):
        cxx += ["-isystem", path]
        nvcc += ["-isystem", path]
    if env_flag("CMSOLVERS_WERROR"):
        cxx.append("-Werror")
        nvcc += ["-Werror", "all-warnings", "-Xcompiler", "-Werror"]
    if env_flag("CMSOLVERS_PTXAS_VERBOSE"):
        nvcc += ["-Xptxas", "-v"]
    # The host pass of nvcc meets `#pragma unroll`, which is for the device pass.
    host = "-Wall,-Wextra,-Wno-unknown-pragmas,-ffp-contract=off,-fvisibility=hidden"
    nvcc += ["-Xcompiler", host]
    macros: list[tuple[str, str | None]] = []
    archs = ""
    extension = cpp_extension.CppExtension
    if use_cuda:
        assert cpp_extension.CUDA_HOME is not None
        archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or default_archs(
            Path(cpp_extension.CUDA_HOME) / "bin" / "nvcc"
        )
        os.environ["TORCH_CUDA_ARCH_LIST"] = archs
        files += sources("csrc/**/*.cu")
        macros.append(("CMSOLVERS_WITH_CUDA", None))
        extension = cpp_extension.CUDAExtension
    print(f"cmsolvers: CUDA part {'for ' + archs if use_cuda else 'left out'}", flush=True)

    # Facts that change with every edit go to one tiny source, so that nothing else is rebuilt.
    facts = (
        f'-DCMSOLVERS_BUILD_CUDA_ARCHS="{archs}"',
        f'-DCMSOLVERS_BUILD_CUDA_VERSION="{torch.version.cuda if use_cuda else ""}"',
        f'-DCMSOLVERS_BUILD_TORCH_VERSION="{torch.__version__}"',
        f'-DCMSOLVERS_BUILD_FLAGS="{" ".join(CXX_FLAGS)}"',
        f'-DCMSOLVERS_CSRC_HASH="{csrc_hash(ROOT / "csrc")}"',
    )

    def own_flags(source: str) -> tuple[str, ...]:
        return facts if source.endswith("build_facts.cpp") else instruction_set_flags(source)

    class GroupedBuild(cpp_extension.BuildExtension):  # type: ignore[misc, name-defined]
        """BuildExtension with flags per source: one compile call for each set of flags.

        The group without flags is linked first. Where an inline function was emitted in several
        groups the linker keeps the first copy, which must be the one that every processor runs.
        """

        def build_extension(self, ext):  # type: ignore[no-untyped-def]
            compile_all = self.compiler.compile

            def compile_grouped(srcs, *args, extra_postargs=None, **kwargs):  # type: ignore[no-untyped-def]
                groups: dict[tuple[str, ...], list[str]] = {(): []}
                for source in srcs:
                    groups.setdefault(own_flags(source), []).append(source)
                objects = []
                for flags in sorted(groups, key=len):
                    post = copy.deepcopy(extra_postargs)
                    post["cxx"] = [*post["cxx"], *flags]
                    if groups[flags]:
                        objects += compile_all(groups[flags], *args, extra_postargs=post, **kwargs)
                return objects

            self.compiler.compile = compile_grouped
            try:
                super().build_extension(ext)
            finally:
                self.compiler.compile = compile_all

        def finalize_options(self) -> None:
            super().finalize_options()
            self.force = True  # ninja knows what is out of date, headers and flags included

    # Our includes are relative: with -I csrc/contract its math.h would answer for <math.h>.
    module = extension(
        "cmsolvers._C",
        files,
        define_macros=macros,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": GroupedBuild}}


setup(**({} if env_flag("CMSOLVERS_SKIP_EXTENSION") else extension_setup()))
