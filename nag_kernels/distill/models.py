# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""How each kind of model is called with text: all that distillation must know about a denoiser."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .levels import Levels, levels_of

Text = dict[
    str, Tensor
]  # each [B, ...]; "embeds" [B, T, C] and, where the model has one, "mask" [B, T] with 1 for seen


@dataclass(frozen=True)
class Model:
    """A denoiser for distillation.

    module: the teacher.
    levels: its noise levels and prediction.
    call: `call(module, x, timestep, text, negative)` is the output for x [B, ...], timestep [B] and a text of B rows. With
        a `negative` text (None but in training with NASA) both go in as one, [text ; negative], to guided layers.
    encode: `encode(prompts)` is the text of a list of prompts.
    shape: of one picture, or latent.
    encoders: the modules that `encode` runs, for a run's record of what it came from; without them it cannot tell others.
    """

    module: Module
    levels: Levels
    call: Callable[[Module, Tensor, Tensor, Text, Text | None], Tensor]
    encode: Callable[[list[str]], Text]
    shape: tuple[int, ...]
    encoders: tuple[Module, ...] = ()

    def output(self, module: Module, x: Tensor, timestep: Tensor, text: Text, negative: Text | None = None) -> Tensor:
        """What `module` (the teacher or a student) gives, in x's dtype; x comes to it in its own."""
        own = next(module.parameters()).dtype
        text = {k: _to(v, x.device, own) for k, v in text.items()}
        negative = negative and {k: _to(v, x.device, own) for k, v in negative.items()}
        return self.call(module, x.to(own), timestep, text, negative).to(x.dtype)


def _to(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return x.to(device, dtype if x.is_floating_point() else None)


def digest(*modules: Module) -> str:
    """Of the names, dtypes, shapes and values of all weights and buffers, in 12 hex digits."""
    found = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:12]


def joined(*texts: Text) -> Text:
    """One batch of several."""
    return {name: torch.cat([text[name] for text in texts]) for name in texts[0]}


def rows(text: Text, count: int) -> Text:
    """A text of one row for `count`."""
    return {name: value.expand(count, *value.shape[1:]) for name, value in text.items()}


def where(chosen: Tensor, text: Text, other: Text) -> Text:
    """`text` in the rows that are `chosen` [B], `other` in the rest."""
    return {
        name: torch.where(chosen.reshape(-1, *[1] * (value.ndim - 1)), value, other[name])
        for name, value in text.items()
    }


def packed(text: Text, negative: Text | None) -> Text:
    """Both along the tokens."""
    if negative is None:
        return text
    return {name: torch.cat([value, negative[name]], dim=1) for name, value in text.items()}


def call_unet(module: Module, x: Tensor, timestep: Tensor, text: Text, negative: Text | None = None) -> Tensor:
    """A UNet2DConditionModel."""
    both = packed(text, negative)
    return module(
        x, timestep, encoder_hidden_states=both["embeds"], encoder_attention_mask=both.get("mask"), return_dict=False
    )[0]


def call_joint(module: Module, x: Tensor, timestep: Tensor, text: Text, negative: Text | None = None) -> Tensor:
    """An SD3Transformer2DModel of shapes: padding is zeros, the pooled text is the mean of the prompt's."""
    from nag_kernels.shapes.pipeline import denoiser_arguments

    arguments, *other = (
        denoiser_arguments(module, x, timestep, part["embeds"], part["mask"]) for part in (text, negative) if part
    )
    embeds = [each["encoder_hidden_states"] for each in (arguments, *other)]
    return module(**arguments | {"encoder_hidden_states": torch.cat(embeds, dim=1)}, return_dict=False)[0]


@contextlib.contextmanager
def steered(module: Module, text: Text, negative: Text, scale: Tensor) -> Iterator[None]:
    """Within the block the layers of `module` that see text do, by NASA (arXiv 2412.02687),

        out = Z+ - scale Z-

    for texts that come packed, [text ; negative]; scale [] or [B], float32. Differentiable, through the fused operation's
    gradient: backward may come after the block.
    """
    from nag_kernels.diffusers.attention.base import PackedText, put_processor
    from nag_kernels.diffusers.models.registry import guided_layers, spec_of

    spec = spec_of(module)
    one = torch.ones((), device=scale.device)
    masks = (text["mask"].bool(), negative["mask"].bool()) if "mask" in text and spec.masks else (None, None)
    packed = PackedText(
        text["embeds"].shape[1], negative["embeds"].shape[1], masks[0], masks[1], rule="nasa",
        nag_scale=scale, nag_tau=one, nag_alpha=one,
    )  # fmt: skip
    stock = [(site, site.processor) for site in guided_layers(module)]
    try:
        for site, processor in stock:
            put_processor(site, spec.guided_processor(processor, packed))
        yield
    finally:
        for site, processor in stock:
            put_processor(site, processor)


def model_of(pipe: Any) -> Model:
    """How to distil a pipeline's denoiser: `ShapesPipeline`, or a `StableDiffusionPipeline` (SD 1.5, 2.x and their like).

    Raises ValueError for any other, by name.
    """
    name = type(pipe).__name__
    if name == "ShapesPipeline":
        return _shapes(pipe)
    if name != "StableDiffusionPipeline":
        raise ValueError(
            f"model must be a StableDiffusionPipeline or a ShapesPipeline, got a {name}: how it is called with text is "
            "not known here (nag_kernels.distill.models.Model says it for another)"
        )
    unet = pipe.unet
    if unet.config.in_channels != unet.config.out_channels:
        raise ValueError(
            f"unet must draw from noise alone, got {unet.config.in_channels} channels in and "
            f"{unet.config.out_channels} out"
        )
    if unet.config.time_cond_proj_dim is not None or unet.config.addition_embed_type is not None:
        raise ValueError("unet must be conditioned on time and text alone, got one with further embeddings")

    @torch.no_grad()
    def encode(prompts: list[str]) -> Text:
        return {"embeds": pipe.encode_prompt(prompts, pipe._execution_device, 1, False)[0]}

    side = unet.config.sample_size
    side = (side, side) if isinstance(side, int) else tuple(side)
    shape = (unet.config.in_channels, *side)
    return Model(unet, levels_of(pipe.scheduler), call_unet, encode, shape, (pipe.text_encoder,))


def _shapes(pipe: Any) -> Model:
    @torch.no_grad()
    def encode(prompts: list[str]) -> Text:
        return dict(zip(("embeds", "mask"), pipe.encode_prompt(prompts)[:2], strict=True))

    config = pipe.denoiser.config
    pipe.denoiser.to(memory_format=torch.channels_last)
    call = call_unet if pipe.transformer is None else call_joint
    shape = (config.in_channels, config.sample_size, config.sample_size)
    return Model(pipe.denoiser, levels_of(pipe.scheduler), call, encode, shape, (pipe.text_encoder,))
