# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which backend serves a call, forced backends, refusals with a reason, the report, and a missing extension."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nag_kernels
from nag_kernels import availability, backends, info, testing

CPU = availability.refusal("cpu", "cpu") is None


def python(code: str, **environment: str) -> str:
    """Run a snippet in a fresh interpreter; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


HIDE_THE_EXTENSION = "import sys; sys.modules['nag_kernels._C'] = None; "
CALL = (
    "import torch, nag_kernels; from nag_kernels import availability, testing; "
    "nag_kernels.fused_guided_attention(**testing.make_inputs(length=3), nag_scale=5.0); print(availability.counts())"
)


def test_the_call_is_served_by_the_first_backend_that_can():
    first = nag_kernels.available_backends()[0]
    before = availability.counts()[first]
    nag_kernels.fused_guided_attention(**testing.make_inputs(length=3), nag_scale=5.0)
    assert availability.counts()[first] == before + 1
    assert backends.choose("guidance", "cpu") == first
    assert {backends.choose(op, "mps") for op in availability.OPERATIONS} == {"sdpa"}


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"tpu cannot run nag::guidance: there is no backend of that name; .*reference"
    ):
        nag_kernels.guidance(torch.ones(2, 4), torch.ones(2, 4), 5.0, backend="tpu")


def test_a_backend_that_cannot_run_says_why():
    with pytest.raises(ValueError, match="cpu cannot run nag::guidance: "):
        nag_kernels.guidance(torch.ones(2, 4, device="meta"), torch.ones(2, 4, device="meta"), 5.0, backend="cpu")


def test_explain_names_every_backend_once():
    for op in availability.OPERATIONS:
        lines = nag_kernels.explain(op).splitlines()
        assert [line.split()[0] for line in lines] == list(availability.BACKENDS)
        assert sum(" serves " in line for line in lines) == 1
    assert "cpu does not serve nag::guidance on cuda" in nag_kernels.explain("guidance", "cuda")
    with pytest.raises(ValueError, match="op must be one of"):
        nag_kernels.explain("softmax")


@pytest.mark.slow
def test_forced_by_the_environment():
    assert "'cpu': 0, 'sdpa': 0, 'reference': 1" in python(CALL, NAG_BACKEND="reference")
    assert "'cpu': 0, 'sdpa': 1, 'reference': 0" in python(CALL, NAG_BACKEND="sdpa")


def test_the_environment_is_read_once():
    """What `explain` says is what serves: a change after the import changes neither."""
    change = "import os, nag_kernels; os.environ['NAG_BACKEND'] = 'reference'; "
    said = python(change + CALL + "; print(nag_kernels.explain())", NAG_BACKEND="")
    first = nag_kernels.available_backends()[0]
    assert f"'{first}': 1" in said
    assert f"{first} serves nag::fused_guided_attention on cpu" in said


def test_the_environment_cannot_force_what_is_not_there():
    done = subprocess.run([sys.executable, "-c", CALL], env={**os.environ, "NAG_BACKEND": "tpu"}, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode != 0
    assert "tpu cannot run nag::fused_guided_attention" in done.stderr


def test_without_the_extension_the_reference_serves_and_says_so():
    out = python(HIDE_THE_EXTENSION + CALL + "; from nag_kernels import info; print(info.report())", NAG_LOG="debug")
    assert "'cpu': 0, 'sdpa': 1, 'reference': 0" in out
    assert (
        "cpu kernels     not here: it was not built (in this folder of sources, which comes before an installed package"
        in out
    )
    assert "sdpa serves nag::fused_guided_attention on cpu" in out
    assert "DEBUG:nag_kernels:cpu is not available" in out


def test_a_broken_extension_is_told_from_a_missing_one():
    code = (
        "import importlib, sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'nag_kernels._C': raise ImportError('undefined symbol: x')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "from nag_kernels import availability; print(availability.refusal('cpu', 'cpu'))\n"
    )
    assert "its library did not load: undefined symbol: x" in python(code)


def test_import_needs_torch_only():
    """diffusers, transformers, Triton, NumPy and Pillow stay out of `import nag_kernels`."""
    code = (
        "import sys, torch; before = set(sys.modules); import nag_kernels; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    assert python(code).strip() == "['nag_kernels']"


def test_the_report_says_what_runs():
    report = info.report()
    assert f"torch           {torch.__version__}" in report
    assert ("runs its" in report) == CPU
    assert f"{nag_kernels.available_backends()[0]} serves nag::guidance on cpu" in report


@pytest.mark.slow
def test_the_report_as_a_command():
    done = subprocess.run([sys.executable, "-m", "nag_kernels.info"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "nag_kernels" in done.stdout
    assert (
        "usage: python -m nag_kernels.info"
        in subprocess.run([sys.executable, "-m", "nag_kernels.info", "--help"], capture_output=True, text=True).stdout
    )


@pytest.mark.skipif(not CPU, reason="cpu is not here")
def test_out_of_memory_says_so():
    """In torch's words where it hands them over (from 2.13 on), in ours before; of a GPU with its own type."""
    query, key = torch.zeros(1, 1, 4, 8).expand(1, 1 << 36, 4, 8), torch.zeros(1, 3, 4, 8)
    with pytest.raises(
        RuntimeError, match=r"torch could not make a tensor \(1, 68719476736, 4, 8\) in float32 on cpu: .*memory"
    ):
        nag_kernels.fused_guided_attention(query, key, key, key, key, 5.0, backend="cpu")


def test_out_of_memory_on_a_gpu_has_its_type(monkeypatch):
    def full(*arguments):
        raise RuntimeError(
            "nag: torch could not make a tensor (1, 2) in float16 on cuda:0: CUDA out of memory. Tried ..."
        )

    monkeypatch.setattr(torch.ops.nag.guidance, "default", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"make a tensor \(1, 2\)"):
        nag_kernels.guidance(torch.zeros(1, 2), torch.zeros(1, 2), 5.0)


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_the_library_is_hardened():
    """Its stack frames are guarded, and the loader's tables are read-only: setup.py asks for both."""
    library = next((Path(nag_kernels.__file__).parent).glob("_C.*so"), None)
    if library is None or shutil.which("readelf") is None:
        pytest.skip("no compiled library, or no readelf")
    shown = subprocess.run(
        ["readelf", "-dlW", "--dyn-syms", library], capture_output=True, text=True, check=True
    ).stdout
    assert "GNU_RELRO" in shown
    assert "BIND_NOW" in shown
    assert "__stack_chk_fail" in shown
    assert "RWE" not in shown.partition("GNU_STACK")[2].partition("\n")[0]
