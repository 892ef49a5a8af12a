# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What guidance costs a pipeline's call outside of its denoiser: the negative's text, checks, packing, changing processors.

The denoisers have their real depth, which the cost of guidance follows, and a tiny width; the text encoders have their real size,
with random weights, but for FLUX.1's T5, which is the one of 24 layers and a width of 1024 (the real one is 14 times as large).
So the unguided call is text encoding first of all, and two guided steps of four.

Five calls take turns. With the prompt as text: unguided, guided with the negative as text, and guided with a negative that
`encode_negative` has given. With the prompt ready-made: unguided, and guided with that negative. Guided is a `guided(...)` that
has been called before. Before they are timed, all guided calls must give the same picture to the bit, twice each, and another one
than the unguided ones.
"""

import argparse
import contextlib
import functools
import random
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import Module
from tqdm import tqdm

from benchmarks.bench_attention import spread
from benchmarks.machine import Rows, describe, sentence

PROMPT, NEGATIVE = "a small red cat", "a large blue dog"
STEPS, END = 4, 0.5
CALLS = ("unguided", "guided", "negative ready-made", "prompt ready-made", "both ready-made")


class Tokenizer:
    """Ids for any text: an encoder takes as long for one as for another."""

    def __init__(self, words: int, length: int):
        self.words, self.model_max_length = words, length

    def __call__(self, text: str | list[str], max_length: int | None = None, **options: Any) -> SimpleNamespace:
        length = max_length or self.model_max_length
        texts = [text] if isinstance(text, str) else text
        ids = torch.tensor([random.Random(x).choices(range(3, self.words), k=length) for x in texts])
        return SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        return {}


def _clip(kind: Any, width: int, layers: int, heads: int) -> Module:
    from transformers import CLIPTextConfig

    return kind(CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
        projection_dim=width, bos_token_id=0, eos_token_id=2,
    ))  # fmt: skip


def _vae() -> Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, scaling_factor=0.5,
                         shift_factor=0.0)  # fmt: skip


def sdxl(part: float) -> tuple[Any, dict[str, Any]]:
    """The pipeline, and the arguments of its call. part: of the text encoders' layers."""
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 32), layers_per_block=2, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(1, 2, 4), cross_attention_dim=2048, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=1280 + 6 * 8,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=_vae(), unet=unet, scheduler=diffusers.EulerDiscreteScheduler(),
        text_encoder=_clip(CLIPTextModel, 768, max(2, round(12 * part)), 12), tokenizer=Tokenizer(49408, 77),
        text_encoder_2=_clip(CLIPTextModelWithProjection, 1280, max(2, round(32 * part)), 20), tokenizer_2=Tokenizer(49408, 77),
        add_watermarker=False,
    )  # fmt: skip
    return pipe, {"guidance_scale": 1.0, "height": 8, "width": 8}


def flux(part: float) -> tuple[Any, dict[str, Any]]:
    """As `sdxl`."""
    import diffusers
    from transformers import CLIPTextModel, T5Config, T5EncoderModel

    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=19, num_single_layers=38, num_attention_heads=2, attention_head_dim=16,
        joint_attention_dim=1024, pooled_projection_dim=768, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    t5 = T5EncoderModel(T5Config(
        d_model=1024, d_ff=2816, d_kv=64, num_heads=16, num_layers=max(2, round(24 * part)), feed_forward_proj="gated-gelu",
    ))  # fmt: skip
    pipe = diffusers.FluxPipeline(
        vae=_vae(), transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=_clip(CLIPTextModel, 768, max(2, round(12 * part)), 12), tokenizer=Tokenizer(49408, 77),
        text_encoder_2=t5, tokenizer_2=Tokenizer(32128, 512),
    )  # fmt: skip
    return pipe, {"guidance_scale": 1.0, "height": 8, "width": 8}


PIPELINES = {"SDXL": sdxl, "FLUX.1": flux}


def made(name: str, part: float, device: str) -> tuple[Any, dict[str, Any], Module]:
    """A pipeline, the arguments of its call, and its denoiser. part: of the text encoders' layers."""
    torch.manual_seed(0)
    pipe, arguments = PIPELINES[name](part)
    pipe.to(device).set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, Module):
            component.eval()  # a T5 as it is made has dropout
    return pipe, arguments, getattr(pipe, "unet", None) or pipe.transformer


@contextlib.contextmanager
def timed_forward(model: Module) -> Iterator[list[tuple[float, float]]]:
    """A list of the beginning and the end, in seconds, of each forward of the model's class, within the block."""
    cls, taken = type(model), list[tuple[float, float]]()
    forward = cls.forward

    @functools.wraps(forward)
    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return forward(*arguments, **named)
        finally:
            taken.append((start, time.perf_counter()))

    cls.forward = timed
    try:
        yield taken
    finally:
        cls.forward = forward


def outside(call: Callable[[], torch.Tensor], taken: list[tuple[float, float]]) -> float:
    """The milliseconds of a call outside of the denoiser's forward."""
    taken.clear()
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start - sum(end - begin for begin, end in taken))


def calls_of(pipe: Any, options: dict[str, Any]) -> dict[str, Callable[[], torch.Tensor]]:
    from nag_kernels.diffusers import encode_negative, guided

    def draw(function: Callable[..., Any], **prompt: Any) -> torch.Tensor:
        picture = function(num_inference_steps=STEPS, output_type="latent", generator=torch.Generator().manual_seed(0),
                           **prompt, **options).images  # fmt: skip
        assert isinstance(picture, torch.Tensor)
        return picture

    ready_made, ready_made_negative = (encode_negative(pipe, text, **options) for text in (PROMPT, NEGATIVE))
    steered = guided(pipe, NEGATIVE, nag_scale=5.0, end=END)
    steered_at_once = guided(pipe, ready_made_negative, nag_scale=5.0, end=END)
    calls: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: draw(pipe, prompt=PROMPT), lambda: draw(steered, prompt=PROMPT), lambda: draw(steered_at_once, prompt=PROMPT),
        lambda: draw(pipe, **ready_made), lambda: draw(steered_at_once, **ready_made),
    )  # fmt: skip
    return dict(zip(CALLS, calls, strict=True))


def help_text() -> str:
    return "pipelines:  " + " ".join(PIPELINES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pipeline", nargs="+", choices=PIPELINES, metavar="NAME", help="default: all")
    parser.add_argument("--rounds", type=int, default=12, help="calls of each kind (default: 12)")
    parser.add_argument("--part", type=float, default=1.0, help="of the text encoders' layers (default: all)")


def main(options: argparse.Namespace) -> None:
    about = describe(options.device, options.threads)
    print(sentence(about))
    rows = Rows("pipeline", about, options.csv and not options.pipeline and options.part == 1)
    table = Table(title="a call outside of its denoiser, milliseconds", title_justify="left")
    for column in ("pipeline", *CALLS, "both less prompt ready-made"):
        table.add_column(column, justify="left" if column == "pipeline" else "right")
    try:
        for name in options.pipeline or PIPELINES:
            pipe, arguments, denoiser = made(name, options.part, options.device)
            times: dict[str, list[float]] = {x: [] for x in CALLS}
            with timed_forward(denoiser) as taken:
                calls = calls_of(pipe, arguments)
                pictures = {x: call() for x, call in calls.items()}
                for which in CALLS:
                    same_as = "unguided" if which in ("unguided", "prompt ready-made") else "guided"
                    if not all(torch.equal(pictures[same_as], x) for x in (pictures[which], calls[which]())):
                        raise SystemExit(f"{name}: {which} draws another picture than {same_as}; nothing is timed")
                if torch.equal(pictures["guided"], pictures["unguided"]):
                    raise SystemExit(f"{name}: guidance changed nothing; nothing is timed")
                for turn in tqdm(range(options.rounds), desc=name):
                    for place in range(len(CALLS)):
                        which = CALLS[(turn + place) % len(CALLS)]
                        times[which].append(outside(calls[which], taken))
            middle = {}
            for which, each in times.items():
                p20, p50, p80 = spread(each)
                middle[which] = p50
                rows.add(pipeline=name, provider=which, steps=STEPS, end=END, calls=len(each), p20_ms=f"{p20:.2f}",
                         p50_ms=f"{p50:.2f}", p80_ms=f"{p80:.2f}")  # fmt: skip
            fixed = middle["both ready-made"] - middle["prompt ready-made"]
            table.add_row(name, *(f"{middle[x]:.1f}" for x in CALLS), f"{fixed:.1f}")
    finally:
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    rows.close()
