#!/usr/bin/env bash
# One would guess: each guider of diffusers combines predictions of any shape, as a denoiser gives them: tokens [B, S, C] of a
#   transformer, latents [B, C, H, W] of a UNet, videos [B, C, F, H, W].
# What really happens: MagnitudeAwareGuidance combines tokens, and fails for latents and videos in a norm over all dimensions but
#   the first, which takes two at most. AdaptiveProjectedGuidance, written for the same place, takes all three.
# Version: diffusers 0.42.1 with torch 2.13.0 on a CPU.
# Output seen:
#   AdaptiveProjectedGuidance: tokens yes, latents yes, video yes
#   MagnitudeAwareGuidance: tokens yes, latents RuntimeError, video RuntimeError
# Why it matters here: whether guidance in attention and a guider of classifier-free guidance go together has to be tried with each
#   guider and each kind of denoiser; that one works in FLUX.1 says nothing of SDXL.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 numpy==2.2.6
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import sys

import torch
from diffusers.guiders import AdaptiveProjectedGuidance, MagnitudeAwareGuidance

SHAPES = {"tokens": (2, 16, 8), "latents": (2, 4, 8, 8), "video": (2, 4, 3, 8, 8)}
seen = {}
for kind in (AdaptiveProjectedGuidance, MagnitudeAwareGuidance):
    said = []
    for name, shape in SHAPES.items():
        guider = kind()
        guider.set_state(step=0, num_inference_steps=2, timestep=torch.tensor(999))
        try:
            guider.forward(torch.ones(shape), torch.zeros(shape) + 0.5)
            said.append(f"{name} yes")
        except RuntimeError as error:
            said.append(f"{name} RuntimeError")
            assert "matrix_norm" in str(error), error
    seen[kind.__name__] = ", ".join(said)
    print(f"{kind.__name__}: {seen[kind.__name__]}")
sys.exit(seen != {"AdaptiveProjectedGuidance": "tokens yes, latents yes, video yes",
                  "MagnitudeAwareGuidance": "tokens yes, latents RuntimeError, video RuntimeError"})
PY
