# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/export.md: the shipped UNet, guided, in OpenVINO and in onnxruntime. They have assertions of their own."""

import pathlib
import re
import subprocess
import sys

import pytest

for package in ("diffusers", "openvino", "onnxruntime", "onnxscript"):
    pytest.importorskip(package)

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_examples_run_one_after_another(tmp_path):
    assert len(EXAMPLES) == 3
    assert all("assert " in example for example in EXAMPLES)
    done = subprocess.run([sys.executable, "-c", "\n".join(EXAMPLES)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "negative_encoder_hidden_states" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["guided.onnx"]
