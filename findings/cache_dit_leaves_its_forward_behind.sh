#!/usr/bin/env bash
# One would guess: after cache_dit.disable_cache(pipe) a pipeline's transformer runs diffusers' own forward again.
# What really happens: the caching wrapper goes, but for models that cache-dit rewrites to fit its blocks (FLUX.1 among them) the
#   rewritten forward stays on the model, and its blocks keep theirs.
# Version: cache-dit 1.5.3 with diffusers 0.42.1 and torch 2.13.0 on a CPU.
# Output seen:
#   forward of the transformer before: diffusers.models.transformers.transformer_flux
#   enabled: cache_dit.caching.cache_adapters.cache_adapter
#   disabled: cache_dit.caching.patch_functors.functor_flux
# Why it matters here: a cache of steps must be recognised on a denoiser, and refused, while it is on. Who asks only whether a forward
#   of cache-dit's is there goes on refusing after it has been disabled.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 cache-dit==1.5.3 transformers==5.23.0 numpy==2.2.6
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import contextlib
import io
import sys

with contextlib.redirect_stdout(io.StringIO()):
    import cache_dit
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, transformer)

    def where():
        forward = transformer.__dict__.get("forward", type(transformer).forward)
        return getattr(getattr(forward, "__func__", forward), "__module__", None)

    seen = [where()]
    cache_dit.enable_cache(pipe)
    seen.append(where())
    cache_dit.disable_cache(pipe)
    seen.append(where())
for name, module in zip(("forward of the transformer before", "enabled", "disabled"), seen, strict=True):
    print(f"{name}: {module}")
sys.exit(not (seen[0].startswith("diffusers.") and seen[1] == "cache_dit.caching.cache_adapters.cache_adapter"
              and seen[2] == "cache_dit.caching.patch_functors.functor_flux"))
PY
