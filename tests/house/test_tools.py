"""What the tools for GPU machines do that needs no GPU."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time

import pytest

from support import ROOT

TOOLS = ROOT / "tools"


@pytest.fixture
def tools(monkeypatch):
    if not TOOLS.is_dir():
        pytest.skip("needs a checkout: an installed package has no tools")
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.fixture
def gpu_run(tools):
    import gpu_run

    return gpu_run


@pytest.fixture
def cuda_check(tools):
    import cuda_check

    return cuda_check


MACHINE = {"device": "NVIDIA H200 (SXM)", "date": "2026-01-31T12:00:00+00:00", "versions": {}}


class TestHash:
    def test_depends_on_names_and_contents_of_sources_only(self, tools, tmp_path):
        from csrc_hash import csrc_hash

        (tmp_path / "cuda").mkdir()
        (tmp_path / "a.h").write_text("one")
        (tmp_path / "cuda" / "b.cu").write_text("two")
        first = csrc_hash(tmp_path)
        (tmp_path / "notes.txt").write_text("ignored")
        assert csrc_hash(tmp_path) == first and len(first) == 16
        (tmp_path / "a.h").write_text("one more")
        changed = csrc_hash(tmp_path)
        (tmp_path / "a.h").write_text("one")
        (tmp_path / "a.h").rename(tmp_path / "c.h")
        assert len({first, changed, csrc_hash(tmp_path)}) == 3

    def test_content_cannot_move_between_files(self, tools, tmp_path):
        from csrc_hash import csrc_hash

        hashes = set()
        for i, (left, right) in enumerate([("ab", "c"), ("a", "bc")]):
            folder = tmp_path / str(i)
            folder.mkdir()
            (folder / "x.h").write_text(left)
            (folder / "y.h").write_text(right)
            hashes.add(csrc_hash(folder))
        assert len(hashes) == 2

    def test_command_line_prints_the_hash_of_csrc(self, tools):
        from csrc_hash import csrc_hash

        command = [sys.executable, TOOLS / "csrc_hash.py"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        assert printed == csrc_hash(ROOT / "csrc")


class TestPtxas:
    LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN9cmsolvers4stepIfEEvPT_' for 'sm_90'
ptxas info    : Function properties for _ZN9cmsolvers4stepIfEEvPT_
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 8 bytes cumulative stack size
ptxas info    : Compile time = 1.0 ms
ptxas info    : Compiling entry function '_Z4nextv' for 'sm_80'
ptxas info    : Function properties for _Z4nextv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 7 registers
"""

    def test_reads_each_kernel(self, cuda_check):
        first, second = cuda_check.parse_ptxas(self.LOG)
        assert first == cuda_check.Kernel("_ZN9cmsolvers4stepIfEEvPT_", "sm_90", 32, 8, 4, 12)
        assert second == cuda_check.Kernel("_Z4nextv", "sm_80", 7, 0, 0, 0)

    def test_no_kernel_in_an_empty_log(self, cuda_check):
        assert cuda_check.parse_ptxas("nothing to do") == []

    def test_table_has_one_line_a_kernel(self, cuda_check):
        text = cuda_check.table(cuda_check.parse_ptxas(self.LOG))
        assert len(text.splitlines()) == 3
        assert "sm_90" in text and "step" in text

    @pytest.mark.parametrize(
        ("name", "short"),
        [
            ("void cmsolvers::(anonymous namespace)::step<float, 2>(float*, int (*)(int))", None),
            ("step<float, 2>", None),
        ],
    )
    def test_shortens_names(self, cuda_check, name, short):
        assert cuda_check.shorten(name) == (short or "step<float, 2>")

    def test_skips_clearly_without_a_compiler(self, cuda_check, monkeypatch, capsys):
        monkeypatch.setattr(cuda_check, "find_cuda_home", lambda: None)
        cuda_check.main()
        assert capsys.readouterr().out == "cuda-check: skipped, no nvcc on this machine\n"


class TestGpuRun:
    def test_runs_everything_by_default(self, gpu_run):
        options = gpu_run.parse_arguments([])
        assert options.only == ["tests", "sanitizer", "benchmarks"]
        assert options.out == ROOT / "benchmarks" / "results"
        assert not options.slow and not options.all_tests
        assert 0 < options.seconds < 600

    @pytest.mark.parametrize(
        "argv",
        [["--workers", "0"], ["--seconds", "0"], ["--only", "dancing"], ["--nonsense"]],
    )
    def test_refuses_bad_arguments(self, gpu_run, argv, capsys):
        with pytest.raises(SystemExit) as error:
            gpu_run.parse_arguments(argv)
        assert error.value.code == 2
        assert "error" in capsys.readouterr().err

    def test_counts_tests(self, gpu_run):
        xml = (
            '<testsuites><testsuite name="pytest" tests="10" failures="1" errors="2" skipped="3"/>'
            "</testsuites>"
        )
        assert gpu_run.count_tests(xml) == {"passed": 4, "failed": 3, "skipped": 3}

    def test_rows_are_per_call_with_the_copy_bound_beside(self, gpu_run):
        stats = {"min": 1.0, "q1": 2.0, "median": 3.0, "q3": 4.0, "max": 5.0, "rounds": 7}
        info = {"calls": 10, "bytes": 4e9, "implementation": "fused"}
        report = {"benchmarks": [{"name": "a", "group": "g", "stats": stats, "extra_info": info}]}
        (row,) = gpu_run.benchmark_rows(report, bandwidth=4e10)
        assert row["seconds"] == {"min": 0.1, "q1": 0.2, "median": 0.3, "q3": 0.4, "max": 0.5}
        assert row["bound_seconds"] == pytest.approx(0.1)
        assert row["times_bound"] == pytest.approx(3.0)
        assert row["implementation"] == "fused" and row["rounds"] == 7

    def test_rows_without_bytes_have_no_bound(self, gpu_run):
        stats = dict.fromkeys(gpu_run.QUANTILES, 1.0) | {"rounds": 1}
        (row,) = gpu_run.benchmark_rows({"benchmarks": [{"name": "a", "stats": stats}]}, 1.0)
        assert "bound_seconds" not in row and row["seconds"]["median"] == 1.0

    CLEAN = (0, "========= ERROR SUMMARY: 0 errors")
    FOUND = (99, "========= Invalid __global__ write of size 4 bytes\nERROR SUMMARY: 1 error")

    @pytest.mark.parametrize(
        ("clean", "planted", "passed"),
        [
            (CLEAN, FOUND, True),
            ((99, "========= ERROR SUMMARY: 2 errors"), FOUND, False),
            ((1, "ERROR SUMMARY: 0 errors"), FOUND, False),
            ((0, "no such device"), FOUND, False),  # the checker itself did not run
            (CLEAN, (0, "ERROR SUMMARY: 0 errors"), False),  # it is blind
            (CLEAN, (99, "Device not supported"), False),
        ],
    )
    def test_sanitizer_must_be_clean_and_see_the_planted_bug(self, gpu_run, clean, planted, passed):
        assert gpu_run.sanitizer_verdict(clean, planted)["passed"] is passed

    def test_writes_one_file_named_after_device_and_date(self, gpu_run, tmp_path):
        result = gpu_run.assemble(
            MACHINE,
            tests={"passed": 1, "failed": 0, "skipped": 0},
            sanitizer=None,
            bandwidth={"median": 4e12},
            rows=[],
            problems=["benchmarks"],
        )
        path = gpu_run.write_result(result, tmp_path / "new")
        assert path.name == "nvidia-h200-sxm-2026-01-31.json"
        read = json.loads(path.read_text())
        assert read == result
        assert read["passed"] is False and read["problems"] == ["benchmarks"]
        assert len(read["csrc_hash"]) == 16

    def test_needs_a_device(self, gpu_run, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        with pytest.raises(SystemExit, match="sees no CUDA device"):
            gpu_run.main([])


@pytest.fixture
def mock_machine(gpu_run, monkeypatch, tmp_path):
    """A machine with a GPU on which every part does as told."""
    stats = dict.fromkeys(gpu_run.QUANTILES, 2.0) | {"rounds": 3}
    answers = {
        "find_cuda_home": tmp_path,
        "describe_machine": {**MACHINE, "capability": "9.0"},
        "build": True,
        "run_tests": {"passed": 5, "failed": 0, "skipped": 1},
        "run_sanitizer": {"passed": True},
        "copy_bandwidth": {"median": 4e12},
        "run_benchmarks": {"benchmarks": [{"name": "a", "stats": stats}]},
    }
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu_run, "WORK", tmp_path / "work")
    for name in answers:
        monkeypatch.setattr(gpu_run, name, lambda *_, name=name: answers[name])
    return answers


class TestWholeRun:
    @staticmethod
    def result(gpu_run, folder, *argv):
        status = gpu_run.main(["--out", str(folder), *argv])
        (path,) = folder.glob("*.json")
        return status, json.loads(path.read_text())

    def test_all_parts(self, gpu_run, mock_machine, tmp_path, capsys):
        status, result = self.result(gpu_run, tmp_path / "out")
        assert status == 0 and result["passed"] and result["problems"] == []
        assert result["tests"]["passed"] == 5
        assert result["benchmarks"][0]["seconds"]["median"] == 2.0
        assert "everything passed" in capsys.readouterr().out

    def test_parts_left_out_are_null(self, gpu_run, mock_machine, tmp_path):
        status, result = self.result(gpu_run, tmp_path / "out", "--only", "tests")
        assert status == 0
        assert result["sanitizer"] is None and result["benchmarks"] is None

    @pytest.mark.parametrize(
        ("part", "answer", "problem"),
        [
            ("build", False, "build"),
            ("run_tests", {"passed": 5, "failed": 1, "skipped": 0}, "tests"),
            ("run_tests", {"passed": 0, "failed": 0, "skipped": 9}, "tests"),
            ("run_sanitizer", {"passed": False}, "sanitizer"),
            ("run_benchmarks", {}, "benchmarks"),
            ("run_benchmarks", {"benchmarks": []}, "benchmarks"),
            ("run_benchmarks", {"failed": {"test_steps.py": 1}}, "benchmarks"),
        ],
    )
    def test_a_failure_is_written_and_returned(
        self, gpu_run, mock_machine, tmp_path, part, answer, problem
    ):
        both_dicts = isinstance(answer, dict) and "failed" in answer and part == "run_benchmarks"
        mock_machine[part] = {**mock_machine[part], **answer} if both_dicts else answer
        status, result = self.result(gpu_run, tmp_path / "out")
        assert status == 1 and not result["passed"] and result["problems"] == [problem]

    def test_what_there_is_was_written_when_the_machine_goes(
        self, gpu_run, mock_machine, monkeypatch, tmp_path
    ):
        def gone(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(gpu_run, "run_benchmarks", gone)
        with pytest.raises(KeyboardInterrupt):
            gpu_run.main(["--out", str(tmp_path / "out")])
        (path,) = (tmp_path / "out").glob("*.json")
        read = json.loads(path.read_text())
        assert read["tests"]["passed"] == 5 and read["sanitizer"] == {"passed": True}
        assert read["benchmarks"] is None
        assert list(read["seconds"]) == ["build", "tests", "sanitizer"]


@pytest.fixture
def executed(gpu_run, monkeypatch, tmp_path):
    """Commands as they are given to `execute`, which answers `status` and writes clean reports."""
    monkeypatch.setattr(gpu_run, "WORK", tmp_path)

    class Executed(list):
        status = 0

    made = Executed()

    def execute(command, log, limit, **env):
        made.append([str(word) for word in command])
        assert limit >= 0
        (tmp_path / "tests.xml").write_text('<testsuite tests="3" failures="0" errors="0"/>')
        for word in made[-1]:
            if word.startswith("--benchmark-json="):
                name = word.removeprefix("--benchmark-json=")
                (tmp_path / name).write_text('{"benchmarks": [{"name": "a"}]}')
        return made.status, ""

    monkeypatch.setattr(gpu_run, "execute", execute)
    return made


class TestCommands:
    @pytest.mark.parametrize("status", [0, 1, 3, 124])
    def test_the_exit_status_of_pytest_counts(self, gpu_run, executed, status):
        """A report can look clean where a benchmark failed, or where pytest broke off."""
        executed.status = status
        clock = gpu_run.Clock(100.0)
        tests = gpu_run.run_tests(gpu_run.parse_arguments([]), clock)
        assert tests["failed"] == (status != 0)
        assert set(gpu_run.run_benchmarks(clock)["failed"].values()) == ({status} - {0})

    def test_a_file_without_benchmarks_for_a_gpu_is_no_failure(self, gpu_run, executed):
        executed.status = 5
        assert gpu_run.run_benchmarks(gpu_run.Clock(100.0))["failed"] == {}

    def test_every_file_of_benchmarks_runs_once_and_networks_last(self, gpu_run, executed):
        measured = gpu_run.run_benchmarks(gpu_run.Clock(100.0))
        files = [word for command in executed for word in command if word.endswith(".py")]
        there = {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("test_*.py")}
        assert len(files) == len(there) == len(measured["benchmarks"]) and set(files) == there
        assert files[-1] == "benchmarks/test_networks_cuda.py"

    def test_every_module_with_tests_of_a_gpu_is_run(self, gpu_run):
        found = gpu_run.cuda_tests()
        assert found[0] == gpu_run.CUDA_TESTS
        assert {"tests/ops/test_ema_update.py", "tests/training/test_capture_step.py"} <= set(found)

    @pytest.mark.parametrize(
        ("argv", "tests"), [([], "tests/house/test_cuda.py"), (["--all-tests"], "tests")]
    )
    def test_which_tests_run(self, gpu_run, executed, argv, tests):
        gpu_run.run_tests(gpu_run.parse_arguments(argv), gpu_run.Clock(100.0))
        assert tests in executed[0]

    def test_memcheck_selects_tests_that_there_are(self, gpu_run):
        texts = [(ROOT / name).read_text() for name in gpu_run.SANITIZED_FILES]
        names = re.findall(r"def (test_\w+)", "".join(texts))
        for word in gpu_run.SANITIZED_TESTS.split(" or "):
            assert any(word in name for name in names), word

    def test_a_command_is_stopped_with_all_that_it_started(self, gpu_run, monkeypatch, tmp_path):
        monkeypatch.setattr(gpu_run, "WORK", tmp_path)
        start = time.monotonic()
        status, log = gpu_run.execute(["sh", "-c", "echo begun; sleep 60"], "a.log", 0.5)
        assert status == gpu_run.TIMED_OUT and time.monotonic() - start < 30
        assert "begun" in log and "stopped" in log

    def test_a_command_in_time(self, gpu_run, monkeypatch, tmp_path):
        monkeypatch.setattr(gpu_run, "WORK", tmp_path)
        command = ["sh", "-c", "echo $ANSWER; exit 3"]
        assert gpu_run.execute(command, "a.log", 30.0, ANSWER="42") == (3, "42\n")


class TestSetup:
    @staticmethod
    def setup(**env):
        command = [sys.executable, "setup.py", "--version"]
        environment = {**os.environ, **env}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    def test_use_cuda_fails_loudly_where_it_cannot_be_built(self, tools):
        import torch

        if torch.version.cuda is not None:
            pytest.skip("this torch has CUDA")
        run = self.setup(USE_CUDA="1")
        assert run.returncode != 0
        assert "USE_CUDA=1, but the CUDA part cannot be built: this torch is a CPU" in run.stderr

    def test_use_cuda_takes_0_and_1_only(self, tools):
        run = self.setup(USE_CUDA="yes")
        assert run.returncode != 0
        assert "USE_CUDA must be 0, 1 or unset; got 'yes'" in run.stderr


@pytest.fixture
def setup_py(tools, monkeypatch):
    """setup.py as a module; it builds nothing."""
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    monkeypatch.setenv("CMSOLVERS_SKIP_EXTENSION", "1")
    monkeypatch.delenv("USE_CUDA", raising=False)
    spec = importlib.util.spec_from_file_location("setup_of_cmsolvers", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toolkit(tmp_path):
    """Make a folder that looks like a CUDA toolkit of some version, to a caller of its nvcc."""

    def make(answer):
        nvcc = tmp_path / "bin" / "nvcc"
        nvcc.parent.mkdir()
        nvcc.write_text(f"#!/bin/sh\n{answer}\n")
        nvcc.chmod(0o755)
        return str(tmp_path)

    return make


def release(version):
    return f"echo 'Cuda compilation tools, release {version}, V{version}.93'"


class TestCudaPart:
    @pytest.mark.parametrize("setting", ["", "1"])
    @pytest.mark.parametrize("version", ["12.8", "12.0"])
    def test_is_built_where_the_major_versions_agree(
        self, setup_py, toolkit, monkeypatch, capsys, setting, version
    ):
        monkeypatch.setenv("USE_CUDA", setting)
        assert setup_py.cuda_wanted("12.8", toolkit(release(version)))
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize(
        ("answer", "why"),
        [
            (release("13.0"), r"toolkit in \S+ is 13\.0 and this torch was built with CUDA 12\.8"),
            (release("11.8"), r"toolkit in \S+ is 11\.8 and this torch was built with CUDA 12\.8"),
            ("exit 1", "nvcc --version does not run or names no release"),
            ("echo hello", "nvcc --version does not run or names no release"),
            (None, "no CUDA toolkit was found"),
        ],
    )
    def test_is_left_out_with_one_message_that_says_why(
        self, setup_py, toolkit, monkeypatch, capsys, answer, why
    ):
        home = None if answer is None else toolkit(answer)
        assert not setup_py.cuda_wanted("12.8", home)
        error = capsys.readouterr().err
        assert error.startswith("cmsolvers: WARNING: the CUDA part is left out")
        assert error.count("\n") == 1
        assert re.search(why, error)
        monkeypatch.setenv("USE_CUDA", "1")
        with pytest.raises(SystemExit, match=why):
            setup_py.cuda_wanted("12.8", home)
        monkeypatch.setenv("USE_CUDA", "0")
        assert not setup_py.cuda_wanted("12.8", home)
        assert capsys.readouterr().err == ""

    def test_is_left_out_quietly_with_a_torch_for_the_cpu(self, setup_py, toolkit, capsys):
        assert not setup_py.cuda_wanted(None, toolkit(release("12.8")))
        assert not setup_py.cuda_wanted(None, None)
        assert capsys.readouterr().err == ""


def test_planted_bug_really_is_one():
    """The thread after the last element writes: `<=` where `<` would be right."""
    assert "if (i <= size)" in (TOOLS / "planted_bug.cu").read_text()
