# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a negative prompt costs one denoising step of a whole model, or one attention layer of it.

Unguided, with CFG, with NAG as published (`benchmarks/published.py`) and with ours. The models are diffusers' own classes
with random weights, which time does not depend on, at the settings of Table 4 of the NAG paper (arXiv 2505.21179).

`--scale f` divides the width (fewer heads of the same size) and the tokens of image and texts by f; the arithmetic of
attention and of linear layers then both fall by f cubed, so attention keeps its share. That share is counted at both sizes
and printed, and a difference above 3 points is refused. On a GPU the default is the real size in bfloat16.

What passes over memory without arithmetic (norms, gates, the eager formula) falls by f squared only, so at reduced scale it
weighs f times as much as it should: in every column, and most in "NAG as published", whose formula is a dozen such passes.

NAG as published and ours are compared with each other before they are timed; the four take turns call by call.
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import Module
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.bench_attention import DTYPES, Clock, measure, spread
from benchmarks.machine import Rows, describe, sentence
from benchmarks.published import PublishedCross, PublishedJoint, image_repeated
from benchmarks.report import ARITHMETIC, OVERHEAD_HEAD, OVERHEADS, overhead_cells
from nag_kernels import testing

ATTENTION_SLACK = 0.03  # the largest difference of attention's share of the arithmetic between the two sizes
SAME = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # largest relative difference of two such steps
PROVIDERS = ("unguided", "cfg", "published", "ours", "ours_kept")


@dataclass(frozen=True)
class Model:
    """One row of the paper's Table 4, or one beside it, of which the paper says nothing.

    build: (scale, share of the layers) to the denoiser. inputs: (scale) to its arguments for one image, the text among them.
    cfg, published: overheads over the unguided model in the paper, %, or None.
    scale: that brings a step to about a second on two cores.
    """

    build: Callable[[float, float], Module]
    inputs: Callable[[float], dict[str, Tensor]]
    cfg: int | None
    published: int | None
    scale: float
    settings: tuple[float, float, float]


def _layers(count: int, share: float) -> int:
    return max(2, round(count * share))


def _flux(scale: float, share: float) -> Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        num_attention_heads=round(24 / scale), attention_head_dim=128, joint_attention_dim=round(4096 / scale),
        pooled_projection_dim=768, num_layers=_layers(19, share), num_single_layers=_layers(38, share),
    )  # fmt: skip


def _flux_inputs(scale: float, words: int = 512) -> dict[str, Tensor]:
    tokens, text = round(4096 / scale), round(words / scale)
    ids = torch.stack([torch.zeros(tokens), torch.arange(tokens) // 64, torch.arange(tokens) % 64], -1)
    return {
        "hidden_states": torch.randn(1, tokens, 64), "encoder_hidden_states": torch.randn(1, text, round(4096 / scale)),
        "pooled_projections": torch.randn(1, 768), "timestep": torch.full((1,), 0.5), "img_ids": ids,
        "txt_ids": torch.zeros(text, 3),
    }  # fmt: skip


def _sd35(scale: float, share: float) -> Module:
    from diffusers import SD3Transformer2DModel

    heads = round(38 / scale)
    return SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=_layers(38, share),
        attention_head_dim=64, num_attention_heads=heads, joint_attention_dim=round(4096 / scale),
        caption_projection_dim=64 * heads, pooled_projection_dim=2048, pos_embed_max_size=192, qk_norm="rms_norm",
    )  # fmt: skip


def _sd35_inputs(scale: float) -> dict[str, Tensor]:
    side = 2 * round(64 / math.sqrt(scale))
    return {
        "hidden_states": torch.randn(1, 16, side, side), "timestep": torch.full((1,), 500.0),
        "encoder_hidden_states": torch.randn(1, round(333 / scale), round(4096 / scale)),
        "pooled_projections": torch.randn(1, 2048),
    }  # fmt: skip


def _sana(scale: float, share: float) -> Module:
    from diffusers import SanaTransformer2DModel

    heads = round(20 / scale)
    return SanaTransformer2DModel(
        in_channels=32, out_channels=32, num_attention_heads=heads * 112 // 32, attention_head_dim=32,
        num_layers=_layers(20, share), num_cross_attention_heads=heads, cross_attention_head_dim=112,
        cross_attention_dim=112 * heads, caption_channels=round(2304 / scale), mlp_ratio=2.5, sample_size=32,
        patch_size=1,
    )  # fmt: skip


def _sana_inputs(scale: float) -> dict[str, Tensor]:
    side = round(32 / math.sqrt(scale))
    return {
        "hidden_states": torch.randn(1, 32, side, side), "timestep": torch.full((1,), 500.0),
        "encoder_hidden_states": torch.randn(1, round(300 / scale), round(2304 / scale)),
    }  # fmt: skip


def _sdxl(scale: float, share: float) -> Module:
    from diffusers import UNet2DConditionModel

    heads = [round(n / scale) for n in (5, 10, 20)]
    deep = (1, _layers(2, 1.0), _layers(10, share))
    return UNet2DConditionModel(
        sample_size=128, block_out_channels=tuple(64 * n for n in heads), layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=deep,
        attention_head_dim=tuple(heads), cross_attention_dim=round(2048 / scale), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip


def _sdxl_inputs(scale: float) -> dict:
    side = 4 * round(32 / math.sqrt(scale))
    return {
        "sample": torch.randn(1, 4, side, side), "timestep": torch.full((1,), 500.0),
        "encoder_hidden_states": torch.randn(1, round(77 / scale), round(2048 / scale)),
        "added_cond_kwargs": {"text_embeds": torch.randn(1, 1280), "time_ids": torch.ones(1, 6)},
    }  # fmt: skip


def _wan(scale: float, share: float) -> Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=round(40 / scale), attention_head_dim=128, in_channels=16, out_channels=16,
        text_dim=round(4096 / scale), freq_dim=256, ffn_dim=round(13824 / scale), num_layers=_layers(40, share),
        cross_attn_norm=True, qk_norm="rms_norm_across_heads",
    )  # fmt: skip


def _wan_inputs(scale: float) -> dict[str, Tensor]:
    height, width = (2 * round(n / math.sqrt(scale)) for n in (30, 52))
    return {
        "hidden_states": torch.randn(1, 16, 21, height, width), "timestep": torch.full((1,), 500.0),
        "encoder_hidden_states": torch.randn(1, round(512 / scale), round(4096 / scale)),
    }  # fmt: skip


MODELS = {
    "FLUX.1": Model(_flux, _flux_inputs, 100, 87, 6, (5.0, 2.5, 0.25)),
    "FLUX.1-schnell": Model(_flux, functools.partial(_flux_inputs, words=256), None, None, 6, (5.0, 2.5, 0.25)),
    "SD3.5-Large": Model(_sd35, _sd35_inputs, 95, 43, 4.75, (5.0, 2.5, 0.125)),
    "SANA-1.6B": Model(_sana, _sana_inputs, 90, 13, 2.5, (5.0, 2.5, 0.375)),
    "SDXL": Model(_sdxl, _sdxl_inputs, 34, 22, 2.5, (3.0, 2.5, 0.5)),
    "Wan2.1-14B": Model(_wan, _wan_inputs, 100, 12, 40 / 3, (5.0, 2.5, 0.25)),
}


# --- arithmetic -------------------------------------------------------------------------------------------------------


def attention_share(model: Model, scale: float, share: float) -> float:
    """Attention's share of the arithmetic of one unguided step."""
    counts = _count(Step(model, scale, share, "meta", torch.float32), "unguided")
    return sum(n for op, n in counts.items() if "bmm" in op) / sum(counts.values())


def _count(step: "Step", provider: str) -> dict[str, int]:
    """FLOP of one step on the meta device, where nothing is computed, by operation."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        step.run(provider)
    return {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}


def arithmetic(model: Model, scale: float, share: float) -> dict[str, int]:
    """FLOP of one step by provider; of ours with kept keys and values, of a step after the first."""
    step = Step(model, scale, share, "meta", torch.float32)
    step.run("ours_kept")
    return {provider: sum(_count(step, provider).values()) for provider in PROVIDERS}


# --- providers --------------------------------------------------------------------------------------------------------


def _to(x: object, device: str, dtype: torch.dtype) -> object:
    if isinstance(x, dict):
        return {name: _to(value, device, dtype) for name, value in x.items()}
    return x.to(device, dtype)


def _repeated(x: object) -> object:
    if isinstance(x, dict):
        return {name: _repeated(value) for name, value in x.items()}
    return torch.cat([x, x])


class Step:
    """One denoising step of one model, or its first guided layer, by each provider."""

    def __init__(self, model: Model, scale: float, share: float, device: str, dtype: torch.dtype):
        from nag_kernels.diffusers.attention.base import PackedText
        from nag_kernels.diffusers.attention.kept import KeptKeysAndValues
        from nag_kernels.diffusers.models.registry import guided_layers, spec_of

        torch.manual_seed(0)
        with torch.device(device):
            self.denoiser = model.build(scale, share).to(dtype).eval()
        spec, self.layers = spec_of(self.denoiser), guided_layers(self.denoiser)
        inputs = _to(model.inputs(scale), device, dtype)
        name = next(iter(spec.text))
        negative = torch.randn_like(inputs[name])
        length = negative.shape[1]
        packed = inputs | {other: torch.cat([inputs[other]] * 2, at) for other, at in spec.text.items()}
        packed[name] = torch.cat([inputs[name], negative], 1)
        both = torch.cat([inputs[name], negative])
        for_all = {
            other: inputs[other] for other in ("img_ids", "txt_ids") if other in inputs
        }  # positions have no batch
        self.inputs = {
            "unguided": inputs, "cfg": _repeated(inputs) | {name: both} | for_all, "published": inputs | {name: both},
            "ours": packed, "ours_kept": packed,
        }  # fmt: skip
        stock = [site.processor for site in self.layers]
        # The first step of an image, and those after it, where keys and values of the texts stay.
        texts = KeptKeysAndValues([packed[name]]) if spec.keeps_text else None
        text, kept = PackedText(length, length), PackedText(length, length, kept=texts)
        ours, ours_kept = (
            [spec.processors[type(each)](*model.settings, text=x) for each in stock] for x in (text, kept)
        )
        joint = getattr(self.layers[0], "added_kv_proj_dim", None) is not None
        theirs = PublishedJoint(model.settings, length) if joint else PublishedCross(model.settings)
        self.processors = {
            "unguided": stock, "cfg": stock, "published": [theirs] * len(stock), "ours": ours, "ours_kept": ours_kept,
        }  # fmt: skip

    def run(self, provider: str) -> Tensor:
        with image_repeated(self.denoiser if provider == "published" else None):
            for layer, processor in zip(self.layers, self.processors[provider], strict=True):
                layer.processor = processor
            return self.denoiser(**self.inputs[provider], return_dict=False)[0]

    def layer(self) -> Callable[[str], Tensor]:
        """The first attention layer that sees the text, alone, with what each provider gives it."""
        layer, calls = self.layers[0], {}

        def note(provider: str, _: Module, args: tuple, kwargs: dict) -> None:
            calls[provider] = args, kwargs

        for provider in PROVIDERS:
            hook = layer.register_forward_pre_hook(functools.partial(note, provider), with_kwargs=True)
            self.run(provider)
            hook.remove()

        def run(provider: str) -> Tensor:
            args, kwargs = calls[provider]
            layer.processor = self.processors[provider][0]
            return layer(*args, **kwargs)

        return run

    def check(self) -> None:
        """Raises RuntimeError where NAG as published and ours are not the same, or where neither guides."""
        out = {provider: self.run(provider) for provider in PROVIDERS}
        if not torch.equal(self.run("ours_kept"), out["ours"]):  # now from what the first call kept
            raise RuntimeError("kept keys and values do not give the same as new ones")
        apart = testing.error(out["ours"], out["published"])
        guided = testing.error(out["ours"], out["unguided"])
        # Through all layers roundings grow, more so of the published form, which rounds between its passes.
        if not apart < SAME[out["ours"].dtype] or not guided > 3 * apart:
            raise RuntimeError(f"NAG as published and ours are {apart:.2g} apart, where guidance changes {guided:.2g}")


def _without_inputs(run: Callable[[str], Tensor], provider: str) -> Callable[[dict], Tensor]:
    return lambda _: run(provider)


# --- report -----------------------------------------------------------------------------------------------------------


def help_text() -> str:
    return f"models: {', '.join(MODELS)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", nargs="+", choices=MODELS, metavar="NAME", help="default: all")
    parser.add_argument("--scale", type=float, help="divides width and tokens; default: 1 on a GPU, else for two cores")
    parser.add_argument("--layers", type=float, help="share of the layers; default: all at --scale 1, else a quarter")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--seconds", type=float, help="time per model (default: 8 for a layer, 32 for a model)")


def one(name: str, options: argparse.Namespace) -> list[dict]:
    """The rows of one model. Raises RuntimeError where it is not timed."""
    model, on_gpu = MODELS[name], torch.device(options.device).type == "cuda"
    scale = options.scale or (1.0 if on_gpu else model.scale)
    share = options.layers or (1.0 if scale == 1 else 0.25)
    dtype = options.dtype or ("bfloat16" if on_gpu else "float32")
    real, here = (attention_share(model, *size) for size in ((1, 1.0), (scale, share)))
    if abs(real - here) > ATTENTION_SLACK:
        raise RuntimeError(f"at scale {scale:g} attention has {here:.1%} of the arithmetic, at real size {real:.1%}")
    flops = arithmetic(model, scale, share)
    with torch.inference_mode():
        step = Step(model, scale, share, options.device, DTYPES[dtype])
        step.check()
        run = step.run if options.kind == "model" else step.layer()
        runs = {provider: _without_inputs(run, provider) for provider in PROVIDERS}
        seconds = options.seconds or (8.0 if options.kind == "layer" else 32.0)
        times = measure(runs, [{}], seconds, Clock(options.device))
    found = {provider: spread(each) for provider, each in times.items()}
    paper = {"cfg": model.cfg, "published": model.published} if options.kind == "model" else {}
    paper = {provider: percent / 100 for provider, percent in paper.items() if percent is not None}
    return [
        {
            "model": name, "provider": provider, "scale": f"{scale:.4g}", "layers": share, "attention_share": f"{here:.4f}",
            "attention_share_real_size": f"{real:.4f}", "dtype": dtype,
            "calls": len(times[provider]), "p20_ms": f"{p20:.3f}", "p50_ms": f"{p50:.3f}", "p80_ms": f"{p80:.3f}",
            "overhead_in_paper": paper.get(provider, ""),
            **({"gflop": f"{flops[provider] / 1e9:.2f}", "arithmetic": f"{flops[provider] / flops['unguided'] - 1:.4f}"}
               if options.kind == "model" else {}),
        } for provider, (p20, p50, p80) in found.items()
    ]  # fmt: skip


def main(options: argparse.Namespace) -> None:
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it says of every model that its dtype is changed after it was made
    about = describe(options.device, options.threads)
    print(sentence(about))
    whole = options.model is None and options.scale is None and options.layers is None and options.dtype is None
    rows = Rows(options.kind, about, options.csv and whole)
    title = (
        "one attention layer" if options.kind == "layer" else "one denoising step (in brackets the paper's, on an A100)"
    )
    table = Table(title=f"{title}: overhead over unguided", title_justify="left")
    table.add_column("model")
    for column in (*OVERHEAD_HEAD, *OVERHEADS.values(), *([] if options.kind == "layer" else [ARITHMETIC])):
        table.add_column(column, justify="right")
    failed = []
    try:
        for name in tqdm(options.model or MODELS, desc=options.kind):
            try:
                found = one(name, options)
            except (RuntimeError, torch.OutOfMemoryError) as error:
                failed.append(f"{name} is not timed: {str(error).splitlines()[0][:200]}")
                tqdm.write(failed[-1])
                continue
            for each in found:
                rows.add(**each)
            table.add_row(*overhead_cells({each["provider"]: each for each in found}))
    finally:
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    rows.close()
    if not whole:
        print("no CSV, which holds whole runs: every model at the default scale and dtype")
    if failed:
        sys.exit("; ".join(failed))
