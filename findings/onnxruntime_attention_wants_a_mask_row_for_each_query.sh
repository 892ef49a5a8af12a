#!/usr/bin/env bash
# One would guess: the mask of ONNX's Attention (opset 23) may have one row for all queries, as its text says that it broadcasts to
#   [batch, heads, queries, keys], and as scaled_dot_product_attention of torch takes it.
# What really happens: onnx's own reference evaluator broadcasts such a mask. onnxruntime's CPU kernel broadcasts it over batch and
#   heads, but refuses it where its dimension of queries is 1 ("inconsistent q_sequence_length").
# Version: onnxruntime 1.32.0 with onnx 1.23.2, on a CPU.
# Output seen:
#   mask [1, 1, 5, 7]: right
#   mask [5, 7]: right
#   mask [1, 1, 1, 7]: refused
#   mask [1, 2, 1, 7]: refused
# Why it matters here: a text's padding is one row for all queries. A model whose attention is exported whole, with its mask as
#   diffusers makes it, loads and then fails at its first call; the mask must be expanded to the queries in the graph.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

random = np.random.default_rng(0)
tensors = {name: random.standard_normal((1, 2, 5 if name == "query" else 7, 8)).astype("f") for name in ("query", "key", "value")}


def said(shape):
    mask = np.zeros(shape, "f")
    mask[..., 5:] = -1e4
    inputs = tensors | {"mask": mask}
    described = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name, x in inputs.items()]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 2, 5, 8])
    graph = helper.make_graph([helper.make_node("Attention", list(inputs), ["out"])], "attention", described, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    exact = ReferenceEvaluator(model).run(None, inputs)[0]
    session = onnxruntime.InferenceSession(model.SerializeToString())
    try:
        found = session.run(None, inputs)[0]
    except Exception:
        return "refused"
    return "right" if abs(found - exact).max() < 1e-5 else "wrong"


found = {shape: said(shape) for shape in ((1, 1, 5, 7), (5, 7), (1, 1, 1, 7), (1, 2, 1, 7))}
for shape, what in found.items():
    print(f"mask {list(shape)}: {what}")
sys.exit(list(found.values()) != ["right", "right", "refused", "refused"])
PY
