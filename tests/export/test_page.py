# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/export.md: the shipped UNet, guided, in OpenVINO and in onnxruntime. They have assertions of their own."""

import pathlib
import re

import pytest
import torch

for package in ("diffusers", "openvino", "onnxruntime", "onnxscript"):
    pytest.importorskip(package)

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_examples_run_one_after_another(tmp_path, monkeypatch, capsys):
    """In names of their own, which have nothing of this file; a process of their own would import everything again."""
    assert len(EXAMPLES) == 3
    assert all("assert " in example for example in EXAMPLES)
    monkeypatch.chdir(tmp_path)
    with torch.no_grad():  # gradients are as they were afterwards
        exec(compile("\n".join(EXAMPLES), "docs/export.md", "exec"), {"__name__": "__main__"})
    assert "negative_encoder_hidden_states" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["guided.onnx"]
