#!/usr/bin/env bash
# One would guess: a guider of diffusers that acts in the first half of the steps alone (stop=0.5) does the same in every call of a
#   modular pipeline.
# What really happens: a guider keeps the step of the call before. The blocks that encode the text ask it how many conditions there
#   are before the next call has set a step, and after a first call it answers one, as for the last step: so from the second call
#   on the negative prompt is not encoded, and the steps that do use it have none. With start=0.5 it is the other way round.
# Version: diffusers 0.42.1 with torch 2.13.0 on a CPU.
# Output seen:
#   before the first call: 2 conditions; in its steps: 2 2 1 1
#   before the second call: 1 condition; in its steps: 2 2 1 1
# Why it matters here: guidance in attention needs the negative's text for whatever steps are guided, so a guider of ours must not
#   let the answer to that question depend on a step.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 numpy==2.2.6
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import pathlib
import sys

import diffusers
import torch
from diffusers.guiders import ClassifierFreeGuidance

# What the blocks that encode a prompt ask.
folder = pathlib.Path(diffusers.__file__).parent / "modular_pipelines"
for model in ("qwenimage", "wan", "flux2", "z_image"):
    assert "self.guider.num_conditions > 1" in (folder / model / "modular_pipeline.py").read_text(), model

guider, seen = ClassifierFreeGuidance(guidance_scale=5.0, stop=0.5), []
for call in ("first", "second"):
    before, steps = guider.num_conditions, []
    for i in range(4):
        guider.set_state(step=i, num_inference_steps=4, timestep=torch.tensor(999 - 250 * i))
        steps.append(guider.num_conditions)
    seen.append((before, steps))
    print(f"before the {call} call: {before} condition{'s' * (before > 1)}; in its steps:", *steps)
sys.exit(seen != [(2, [2, 2, 1, 1]), (1, [2, 2, 1, 1])])
PY
