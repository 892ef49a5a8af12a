#!/usr/bin/env bash
# One would guess: model.set_attention_backend(...) of diffusers chooses the attention of that model alone.
# What really happens: it also becomes the backend of every other model in the process that has chosen none. And
#   reset_attention_backend() of the model takes it back from that model only: the others keep it.
# Version: diffusers 0.42.1 (models/modeling_utils.py, models/attention_dispatch.py), torch 2.13.0 on a CPU.
# Output seen:
#   before: native
#   after first.set_attention_backend('_native_math'), a model that chose nothing runs on: _native_math
#   after first.reset_attention_backend(): _native_math
# Why it matters here: "_native_math" runs under torch's sdpa_kernel, whose choice holds for the whole process, so that models in
#   two threads disturb each other; and processors that need the memory layout of torch's flash attention (SD3's IP-Adapter calls
#   view on it) fail in a model that nobody has touched.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 numpy==2.2.6
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import sys

from diffusers import FluxTransformer2DModel
from diffusers.models import attention_dispatch


def model():
    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )


def backend_of_who_chose_nothing():
    return attention_dispatch._AttentionBackendRegistry.get_active_backend()[0].value


first, second = model(), model()
seen = [backend_of_who_chose_nothing()]
first.set_attention_backend("_native_math")
seen.append(backend_of_who_chose_nothing())
assert second.transformer_blocks[0].attn.processor._attention_backend is None
first.reset_attention_backend()
seen.append(backend_of_who_chose_nothing())
print("before:", seen[0])
print("after first.set_attention_backend('_native_math'), a model that chose nothing runs on:", seen[1])
print("after first.reset_attention_backend():", seen[2])
sys.exit(seen != ["native", "_native_math", "_native_math"])
PY
