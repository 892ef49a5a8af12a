# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The namespace of the operations: one constant, with which another build can be loaded beside this one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nag_kernels
from nag_kernels.namespace import NAMESPACE

ROOT = Path(__file__).parents[2]
PACKAGE = Path(nag_kernels.__file__).parent
BESIDE = """
import torch, nag_kernels, from_a_hub
from nag_kernels import testing
inputs = testing.make_inputs(length=9, heads=2, size=8, positive=3, negative=4)
settings = testing.with_settings(inputs, (5.0, 2.5, 0.25))
ours, theirs = (x.fused_guided_attention(**settings, backend="reference") for x in (nag_kernels, from_a_hub))
assert torch.equal(ours, theirs)
assert torch.allclose(torch.ops.nag_from_a_hub.fused_guided_attention(*settings.values()), ours, atol=1e-5)
assert torch.ops.nag.fused_guided_attention is not torch.ops.nag_from_a_hub.fused_guided_attention
compiled = torch.compile(from_a_hub.fused_guided_attention, fullgraph=True, backend="aot_eager")
assert torch.allclose(compiled(**settings), ours, atol=1e-5)
"""


@pytest.mark.slow
def test_another_build_beside_this_one(tmp_path):
    """The operation alone: nag_kernels.diffusers and the commands import it by its name."""
    copy = tmp_path / "from_a_hub"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__", "weights"))
    file = copy / "namespace.py"
    file.write_text(file.read_text().replace(f'NAMESPACE = "{NAMESPACE}"', 'NAMESPACE = "nag_from_a_hub"'))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])}
    environment.pop("NAG_BACKEND", None)
    done = subprocess.run([sys.executable, "-c", BESIDE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What names the operations. Comments, docstrings and messages speak of torch.ops.nag.
IN_PYTHON = re.compile(r"torch\.ops\.nag(_\w+)?\b|Library\(\"nag|register_fake\(f?\"nag")
IN_CPP = re.compile(r"LIBRARY\w*\(nag\w*,|\"nag_\w+::")


@pytest.mark.parametrize("folder", ["nag_kernels", "triton_kernels", "csrc"])
def test_the_namespace_is_written_once(folder):
    found = []
    for path in sorted((ROOT / folder).rglob("*")):
        if path.suffix == ".py":
            text = re.sub(r'"""[\s\S]*?"""|`[^`\n]*`|^\s*# .*$', "", path.read_text(), flags=re.M)
            found += [f"{path.relative_to(ROOT)}: {x[0]}" for x in IN_PYTHON.finditer(text)]
        elif path.suffix in (".cpp", ".h", ".cu", ".cuh"):
            found += [f"{path.relative_to(ROOT)}: {x[0]}" for x in IN_CPP.finditer(path.read_text())]
    assert not found
