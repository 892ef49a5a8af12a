#!/usr/bin/env bash
# One would guess: num_inference_steps=8 makes eight denoising steps, in each window of a long video, as in all other pipelines of
#   LTX-Video, and callback_on_step_end is called for the last of the scheduler's timesteps.
# What really happens: LTXI2VLongMultiPromptPipeline goes through scheduler.timesteps without the last one. Eight steps are seven calls
#   of the denoiser; one step is none, without a word.
# Version: diffusers 0.42.1 with torch 2.13.0 and transformers 5.23.0.
# Output seen:
#   8 steps: 7 calls of the denoiser; 2 steps: 1; 1 step: 0
# Why it matters here: whoever places something by the share of the steps (guidance that ends halfway, a scale for each step), or counts
#   the denoiser's calls to know the step, is one step off, and believes that a run which was finished has ended early.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 numpy==2.2.6 transformers==5.23.0
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import sys
from types import SimpleNamespace

import diffusers
import torch
from transformers import T5Config, T5EncoderModel


class Tokenizer:
    model_max_length = 12

    def __call__(self, text, max_length=12, **options):
        ids = torch.ones(1 if isinstance(text, str) else len(text), max_length, dtype=torch.long)
        return SimpleNamespace(input_ids=ids, attention_mask=ids)

    def batch_decode(self, ids):
        return [""] * len(ids)


torch.manual_seed(0)
transformer = diffusers.LTXVideoTransformer3DModel(
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=1, caption_channels=16,
)
vae = diffusers.AutoencoderKLLTXVideo(
    latent_channels=4, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8), patch_size=1,
    layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1), decoder_inject_noise=(False,) * 5,
    decoder_spatio_temporal_scaling=(True, True, True, False),
)
text_encoder = T5EncoderModel(T5Config(d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=1, vocab_size=8))
pipe = diffusers.LTXI2VLongMultiPromptPipeline(
    scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=text_encoder, tokenizer=Tokenizer(),
    transformer=transformer,
)
pipe.set_progress_bar_config(disable=True)
calls = []
transformer.register_forward_pre_hook(lambda *call: calls.append(call))
found = []
for steps in (8, 2, 1):
    calls.clear()
    pipe(
        prompt="a cat", height=64, width=64, num_frames=9, temporal_tile_size=16, temporal_overlap=8, max_sequence_length=12,
        guidance_scale=1.0, num_inference_steps=steps, output_type="latent", generator=torch.Generator().manual_seed(0),
    )
    found.append(len(calls))
print(f"8 steps: {found[0]} calls of the denoiser; 2 steps: {found[1]}; 1 step: {found[2]}")
sys.exit(found != [7, 1, 0])
PY
