#!/usr/bin/env bash
# One would guess: torch's attention with grouped queries (enable_gqa=True, two heads of keys for four of queries) converts to
#   OpenVINO like any other attention, as OpenVINO has an operation of its own for attention.
# What really happens: the converter leaves the argument out, and the model that it makes has shapes that do not go together: it is
#   refused. With one head of keys it goes through, since that is broadcast; with keys repeated by hand, too.
# Version: openvino 2026.4.1 with torch 2.13.0 on a CPU.
# Output seen:
#   4 heads of keys: converted
#   1 head of keys: converted
#   2 heads of keys: refused
#   2 heads of keys, repeated: converted
# Why it matters here: models with grouped queries (Lumina 2, SANA-like text models, Krea 2) have to have their keys repeated before
#   the conversion, which our decomposition for OpenVINO does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 openvino==2026.4.1 numpy==2.2.6 packaging==26.4
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import sys

import openvino
import torch


class Attend(torch.nn.Module):
    def __init__(self, repeat):
        super().__init__()
        self.repeat = repeat

    def forward(self, query, key, value):
        if self.repeat:
            key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=key.shape[1] != query.shape[1])


seen = {}
for heads, repeat in ((4, False), (1, False), (2, False), (2, True)):
    inputs = torch.randn(1, 4, 9, 64), torch.randn(1, heads, 7, 64), torch.randn(1, heads, 7, 64)
    name = f"{heads} head{'s' * (heads > 1)} of keys{', repeated' * repeat}"
    try:
        model = openvino.convert_model(torch.export.export(Attend(repeat), inputs))
        run = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        got = torch.from_numpy(run([x.numpy() for x in inputs])[0])
        seen[name] = "converted" if (got - Attend(repeat)(*inputs)).abs().max() < 1e-5 else "wrong"
    except Exception:
        seen[name] = "refused"
    print(f"{name}: {seen[name]}")
sys.exit(list(seen.values()) != ["converted", "converted", "refused", "converted"])
PY
