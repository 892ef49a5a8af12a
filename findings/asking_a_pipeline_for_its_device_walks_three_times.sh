#!/usr/bin/env bash
# One would guess: a pipeline knows the device on which it runs, and asking for it (`pipe._execution_device`, which each call does
#   before anything else, some several times) costs nothing.
# What really happens: it looks at every module of every part for hooks of group offloading, and where there are none it looks at
#   them again for the device of the first parameter: three visits of each module for one question. With a UNet as deep as SDXL's
#   that is some 10 to 15 milliseconds of Python, more than the rest of what the call does before its first step.
# Version: diffusers 0.42.1 with torch 2.13.0 on a CPU; a UNet of SDXL's depth and tiny width.
# Output seen: 2020 modules, 5970 visits of a module for one question about the device
# Why it matters here: whoever runs the beginning of a pipeline's call once more (to have a second text encoded, say) pays this
#   again, unless the question is asked once. Hosts that draw small pictures in few steps pay it in each call.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 numpy==2.2.6 transformers==5.23.0
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import sys

import diffusers
import torch

unet = diffusers.UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 16, 32), layers_per_block=2, norm_num_groups=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(1, 2, 4), cross_attention_dim=32, use_linear_projection=True, addition_embed_type="text_time",
    addition_time_embed_dim=8, projection_class_embeddings_input_dim=16 + 6 * 8,
)
vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
pipe = diffusers.StableDiffusionXLPipeline(
    vae=vae, unet=unet, scheduler=diffusers.EulerDiscreteScheduler(), text_encoder=None, text_encoder_2=None, tokenizer=None,
    tokenizer_2=None, add_watermarker=False,
)
modules = sum(len(list(x.modules())) for x in (unet, vae))
visits, plain = 0, torch.nn.Module.modules


def counted(self):
    global visits
    for module in plain(self):
        visits += 1
        yield module


torch.nn.Module.modules = counted
assert pipe._execution_device == torch.device("cpu")
print(f"{modules} modules, {visits} visits of a module for one question about the device")
sys.exit(not visits > 1.5 * modules)
PY
