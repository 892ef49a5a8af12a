#!/usr/bin/env bash
# One would guess: each guider of diffusers' modular pipelines says by `is_conditional`, while a batch is prepared, whether the
#   denoiser is about to be called with the prompt.
# What really happens: TangentialClassifierFreeGuidance fails there: its property reads an attribute that nothing sets, where the
#   others read the count of batches that they have prepared; and the error then denies that there is such a property.
# Version: diffusers 0.42.1 with torch 2.13.0 on a CPU.
# Output seen:
#   ClassifierFreeGuidance: [True, False]
#   TangentialClassifierFreeGuidance: 'TangentialClassifierFreeGuidance' object has no attribute 'is_conditional'
# Why it matters here: who guides the prompt's call alone must know which call of a guider that is. It has to count the calls, or
#   read the label of each batch, and not ask the guider.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 numpy==2.2.6
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import sys

import torch
from diffusers.guiders import ClassifierFreeGuidance, TangentialClassifierFreeGuidance

denoiser, seen = torch.nn.Identity(), {}
for kind in (ClassifierFreeGuidance, TangentialClassifierFreeGuidance):
    guider = kind(guidance_scale=3.0)
    guider.set_state(step=0, num_inference_steps=2, timestep=torch.tensor(999))
    answers = []
    try:
        for _ in guider.prepare_inputs({"prompt_embeds": (torch.ones(1, 2, 4), torch.zeros(1, 2, 4))}):
            guider.prepare_models(denoiser)
            answers.append(guider.is_conditional)
            guider.cleanup_models(denoiser)
    except AttributeError as error:
        answers = str(error)
    seen[kind.__name__] = answers
    print(f"{kind.__name__}: {answers}")
sys.exit(not (seen["ClassifierFreeGuidance"] == [True, False]
              and "has no attribute" in str(seen["TangentialClassifierFreeGuidance"])))
PY
