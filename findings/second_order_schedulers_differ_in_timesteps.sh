#!/usr/bin/env bash
# One would guess: a scheduler of second order calls the denoiser twice for one timestep, so that a step is known by its timestep.
# What really happens: diffusers' Heun does so. KDPM2 and its ancestral form give the second call a timestep of its own, between
#   two steps, and say it in the same attribute: 4 steps have 4 different timesteps with the one and 7 with the others.
# Version: diffusers 0.42.1 with torch 2.13.0 on a CPU.
# Output seen:
#   HeunDiscreteScheduler: 7 calls of the denoiser, 4 different timesteps
#   KDPM2DiscreteScheduler: 7 calls of the denoiser, 7 different timesteps
#   KDPM2AncestralDiscreteScheduler: 7 calls of the denoiser, 7 different timesteps
# Why it matters here: guidance for a part of the steps, or with a scale for each step, must know which call belongs to which step.
#   By timesteps it can with Heun; with the others each call counts as a step.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 numpy==2.2.6
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import sys

import diffusers

seen = []
for name in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"):
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(4)
    calls = scheduler.timesteps.tolist()
    seen.append((len(calls), len(set(calls))))
    print(f"{name}: {len(calls)} calls of the denoiser, {len(set(calls))} different timesteps")
sys.exit(seen != [(7, 4), (7, 7), (7, 7)])
PY
