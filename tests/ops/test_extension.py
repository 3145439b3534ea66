"""What the binary says of itself, and the library without it."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

import cmsolvers
from cmsolvers import noise, ops
from cmsolvers.ops import arguments as checks
from cmsolvers.ops import binary
from cmsolvers.ops.binary import C
from support import ROOT
from support.exact import SETS, instruction_set

pytestmark = pytest.mark.skipif(C is None, reason="needs the extension")

USE = """
import torch
from cmsolvers import noise, ops
x = noise.normal((4, 7), 1, dtype=torch.float64)
m = noise.normal((4, 7), 2, dtype=torch.float64)
z = noise.normal((4, 7), 3, stream=2, draw=5, offset=2**40)
ids = noise.normal((2, 5), torch.tensor([5, -1]), ids=torch.tensor([2**50, 3]))
y = ops.euler_maruyama_step(x, m, 0.5, 0.1, seed=4)
pair = ops.add_noise(x, torch.arange(4.0), sigma_next=2.0, seed=4)
half = {"second": "x0", "second_dtype": torch.float16}
c = ops.weighted_step(x, (m,), (0.5, 0.5), x0=(0.2, 0.8), clamp=(-1, 1), **half)
out = torch.empty_like(x)
ops.heun_step(x, m, 2.0, 1.0, m, out=out)
g = x.clone().requires_grad_()
(ops.consistency_output(g, m, 0.7) ** 2).sum().backward()
step = lambda x: ops.pf_ode_step(x, m, 2.0, 1.0)
compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(x)
torch.save([z, ids, y, *pair, *c, out, g.grad, compiled], PATH)
"""

WITHOUT = """
import sys, warnings
sys.modules["cmsolvers._C"] = None  # as if it had not been built
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import cmsolvers, cmsolvers.ops, cmsolvers.noise, cmsolvers.solvers
ours = [w for w in caught if "cmsolvers" in str(w.message)]
assert len(ours) == 1, [str(w.message) for w in ours]
assert ours[0].category is RuntimeWarning, ours[0].category
assert "pip install" in str(ours[0].message)
info = cmsolvers.build_info()
assert not info["extension"] and not info["cuda"], info
assert info["instruction_set"] == "reference", info
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("CMSOLVERS_")}
    env.update(environment, PYTHONPATH=str(ROOT) if (ROOT / "cmsolvers").exists() else "")
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


def test_build_info():
    info = ops.build_info()
    assert info == cmsolvers.build_info()
    expected = {
        "version": str, "extension": bool, "torch": str, "cuda": bool, "built_with_torch": str,
        "compiler": str, "flags": str, "cuda_version": str, "cuda_architectures": str,
        "csrc_hash": str, "instruction_set": str, "instruction_sets": list,
    }  # fmt: skip
    for key, kind in expected.items():
        assert isinstance(info[key], kind), key
    assert info["extension"] and info["torch"] == torch.__version__
    assert info["instruction_sets"][0] == "portable"
    assert info["instruction_set"] in info["instruction_sets"]
    assert bool(info["cuda_architectures"]) == info["cuda"]
    assert "-ffp-contract=off" in info["flags"] and "fast-math" not in info["flags"]
    assert len(info["csrc_hash"]) >= 12


def test_instruction_sets():
    for name in SETS:
        with instruction_set(name):
            assert ops.build_info()["instruction_set"] == name
    for wrong in ("sse9", "", "AVX2"):
        with pytest.raises(ValueError, match="instruction set must be one that build_info lists"):
            C.use_instruction_set(wrong)
    code = "from cmsolvers import ops; print(ops.build_info()['instruction_set'])"
    for name in SETS:
        done = python(code, CMSOLVERS_INSTRUCTION_SET=name)
        assert done.stdout.strip() == name, done.stderr


@pytest.mark.parametrize("value", ["sse9", "AVX2", "portable "])
def test_an_instruction_set_that_is_not_usable_is_an_error(value):
    done = python("import cmsolvers", CMSOLVERS_INSTRUCTION_SET=value)
    usable = ", ".join(ops.build_info()["instruction_sets"])
    text = (
        f"ValueError: CMSOLVERS_INSTRUCTION_SET must be unset or one that is usable here, {usable}"
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == f"{text}; got {value!r}"


def test_an_instruction_set_of_another_processor_is_an_error(monkeypatch):
    old = SimpleNamespace(build_info=lambda: {"instruction_sets": ["portable"]})
    monkeypatch.setenv("CMSOLVERS_INSTRUCTION_SET", "avx512")
    with pytest.raises(ValueError, match="usable here, portable; got 'avx512'"):
        binary._check_instruction_set(old)
    binary._check_instruction_set(None)  # nothing reads it
    for fine in ("portable", ""):
        monkeypatch.setenv("CMSOLVERS_INSTRUCTION_SET", fine)
        binary._check_instruction_set(old)


class Elsewhere(torch.Tensor):
    """Says that it lies on a CUDA device."""

    is_cpu, is_cuda = False, True


STEPS = {
    "pf_ode_step": lambda x: ops.pf_ode_step(x, x, 2.0, 1.0),
    "heun_step": lambda x: ops.heun_step(x, x, 2.0, 1.0, x),
    "euler_maruyama_step": lambda x: ops.euler_maruyama_step(x, x, 0.5, 0.1, seed=1),
    "consistency_output": lambda x: ops.consistency_output(x, x, 0.7),
    "add_noise": lambda x: ops.add_noise(x, 0.5, seed=1),
    "edm_input": lambda x: ops.edm_input(x, 0.7),
    "edm_output": lambda x: ops.edm_output(x, x, 0.7),
    "scale_input": lambda x: ops.scale_input(x, 0.5),
    "weighted_step": lambda x: ops.weighted_step(x, (x,), (0.5, 0.5), clamp=(-1.0, 1.0)),
}


@pytest.mark.parametrize("name", STEPS)
def test_cuda_tensors_need_a_build_with_cuda(name, monkeypatch):
    x, step = torch.ones(2, 3), STEPS[name]
    monkeypatch.setattr(checks, "CPU_ONLY", True)
    with pytest.raises(RuntimeError, match="this build of cmsolvers has no CUDA part; got"):
        step(x.as_subclass(Elsewhere))
    step(x)
    assert step(x.to("meta")).shape == (2, 3)
    with FakeTensorMode():
        assert step(torch.ones(2, 3, device="cuda")).device.type == "cuda"
    monkeypatch.setattr(checks, "CPU_ONLY", False)
    step(x.as_subclass(Elsewhere))


def test_cpu_only_says_what_was_built():
    assert binary.CPU_ONLY is not ops.build_info()["cuda"]


def test_without_the_binary(tmp_path):
    """One warning, and the same numbers: the noise to the bit, the steps to rounding."""
    results = []
    for name, before in (("with", ""), ("without", WITHOUT)):
        path = tmp_path / name
        done = python(before + USE.replace("PATH", repr(str(path))))
        assert done.returncode == 0, done.stderr
        results.append(torch.load(path))
    for k, (ours, plain) in enumerate(zip(*results, strict=True)):
        assert ours.dtype == plain.dtype
        if k < 2:
            assert torch.equal(ours, plain)
        torch.testing.assert_close(ours, plain)
    assert torch.equal(results[0][0], noise.normal((4, 7), 3, stream=2, draw=5, offset=2**40))


def test_warns_only_without_it():
    done = python(
        "import warnings; warnings.simplefilter('error', RuntimeWarning); import cmsolvers.ops"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("value", "fails"), [("1", True), ("0", False), ("", False)])
def test_required(value, fails):
    code = "import sys; sys.modules['cmsolvers._C'] = None; import cmsolvers.ops"
    done = python(code, CMSOLVERS_REQUIRE_EXTENSION=value)
    assert (done.returncode != 0) is fails
    if fails:
        assert "ImportError: CMSOLVERS_REQUIRE_EXTENSION is set" in done.stderr
