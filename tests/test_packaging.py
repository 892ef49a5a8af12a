# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What installs: wheel names, no top-level triton_kernels, no compiler, only stable symbols in the library."""

import os
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

from nag_kernels import backends

ROOT = pathlib.Path(__file__).parents[1]
LIBRARY = pathlib.Path(backends.__file__).parent / "_C.abi3.so"
needs_library = pytest.mark.skipif(backends.refusal("cpu", "cpu") is not None, reason="cpu is not here: not built")


def build(tmp_path, **environment):
    """`pip wheel` of a copy of the tracked and new files: the tree itself stays as it is."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    copy = tmp_path / "copy"
    for name in listed.stdout.split("\n"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", tmp_path, copy],
        env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    return done, list(tmp_path.glob("*.whl"))


def test_nothing_that_git_ignores_is_in_the_repository():
    """An environment or a build, committed by force or before it was ignored."""
    listed = subprocess.run(["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"git: {listed.stderr}")
    assert not listed.stdout.split("\n")[:-1]


def test_pure_python_wheel(tmp_path):
    done, wheels = build(tmp_path, NAG_BUILD_EXT="0")
    assert done.returncode == 0, done.stderr
    assert [re.sub(r"-[\d.]+-", "-", w.name) for w in wheels] == ["nag_kernels-py3-none-any.whl"]
    names = zipfile.ZipFile(wheels[0]).namelist()
    assert {n.split("/")[0] for n in names if "dist-info" not in n} == {"nag_kernels"}
    assert "nag_kernels/triton_kernels/__init__.py" in names
    packages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nag_kernels").rglob("__init__.py")}
    assert packages <= set(names), packages - set(names)
    assert any(n.startswith("nag_kernels/shapes/weights/") and n.endswith(".safetensors") for n in names)
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheels[0]], check=True
    )
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in str(f)]; "
        "import nag_kernels, nag_kernels.triton_kernels; from nag_kernels import testing; "
        "assert sys.argv[1] in nag_kernels.__file__; print(nag_kernels.available_backends()); "
        "print(nag_kernels.fused_guided_attention(**testing.make_inputs(length=3), nag_scale=5.0).isfinite().all())"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(target)], cwd=tmp_path, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(target)})  # fmt: skip
    assert ran.stdout.split("\n")[:2] == ["('sdpa', 'reference')", "tensor(True)"], ran.stderr


def test_without_a_compiler_the_install_is_pure_python_and_says_so(tmp_path):
    done, wheels = build(tmp_path, CXX="no-such-compiler")
    assert done.returncode == 0
    assert wheels[0].name.endswith("py3-none-any.whl")
    output = done.stdout + done.stderr
    assert "WARNING: no C++ compiler (no-such-compiler); installing pure Python" in output


def test_a_compiler_that_is_too_old_is_no_compiler(tmp_path):
    compiler = tmp_path / "old-c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    done, wheels = build(tmp_path, CXX=str(compiler))
    assert done.returncode == 0
    assert wheels[0].name.endswith("py3-none-any.whl")
    assert "no C++ compiler that is new enough (GCC 12 or Clang" in done.stdout + done.stderr


def test_without_a_compiler_a_demanded_extension_is_an_error(tmp_path):
    done, wheels = build(tmp_path, CXX="no-such-compiler", NAG_BUILD_EXT="1")
    assert done.returncode != 0
    assert not wheels
    assert "NAG_BUILD_EXT=1, but there is no C++ compiler (no-such-compiler)" in done.stdout + done.stderr


def test_the_folder_is_no_top_level_package():
    ran = subprocess.run([sys.executable, "-c", "import triton_kernels"], cwd=ROOT, capture_output=True, text=True)
    assert "import nag_kernels.triton_kernels" in ran.stderr
    assert subprocess.run([sys.executable, "-c", "import triton_kernels"], cwd=ROOT / "tests").returncode != 0


@needs_library
def test_the_library_holds_only_stable_symbols():
    """No C++ symbol of torch (at::, c10::, torch::) is needed: what is left is the C shim that torch keeps stable."""
    text = subprocess.run(["nm", "-DC", "--undefined-only", LIBRARY], capture_output=True, text=True, check=True).stdout
    needed = [line.split(maxsplit=1)[1] for line in text.splitlines()]
    assert any("aoti_torch" in name or "torch_" in name for name in needed)
    assert not [name for name in needed if re.search(r"\b(at|c10|torch)::", name)]


@needs_library
def test_a_public_auditor_agrees():
    auditor = pathlib.Path(sys.executable).with_name("torch-abi-audit")
    audit = subprocess.run([auditor, "--check", "both", LIBRARY], capture_output=True, text=True)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert re.search(r"Torch ABI:\s+STABLE\s+Min torch:\s+2\.10\.", audit.stdout)
    assert re.search(r"CPython ABI:\s+abi3", audit.stdout)


@needs_library
def test_the_library_exports_nothing_but_its_init():
    assert LIBRARY.exists()
    text = subprocess.run(["nm", "-D", LIBRARY], capture_output=True, text=True, check=True).stdout
    exported = [line.split()[-1] for line in text.splitlines() if " T " in line]
    assert exported == ["PyInit__C"]
