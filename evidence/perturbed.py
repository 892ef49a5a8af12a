# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Perturbed-attention guidance (PAG, arXiv 2403.17377) for the pipeline of shapes, beside any other guidance."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from nag_kernels.shapes.pipeline import ShapesPipeline


class ValueAlone:
    """Self-attention whose map is the identity: every token attends to itself, so its value goes to the output projection."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return attn.to_out[1](attn.to_out[0](attn.to_v(hidden_states)))


class TextAndSelf:
    """Joint attention in which an image token sees the text and itself, but no other image token."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        def heads(x: Tensor, norm: nn.Module | None = None) -> Tensor:
            x = x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return x if norm is None else norm(x)

        text, length = encoder_hidden_states, hidden_states.shape[1]
        query = [heads(attn.to_q(hidden_states), attn.norm_q), heads(attn.add_q_proj(text), attn.norm_added_q)]
        key = [heads(attn.to_k(hidden_states), attn.norm_k), heads(attn.add_k_proj(text), attn.norm_added_k)]
        value = [heads(attn.to_v(hidden_states)), heads(attn.add_v_proj(text))]
        query, key, value = (torch.cat(parts, 2) for parts in (query, key, value))
        seen = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device)
        seen[:length, :length] = torch.eye(length, dtype=torch.bool, device=query.device)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2).flatten(2)
        image, text = out[:, :length], out[:, length:]
        return attn.to_out[1](attn.to_out[0](image)), text if attn.context_pre_only else attn.to_add_out(text)


def perturbed_layers(denoiser: nn.Module) -> list[nn.Module]:
    """The self-attention of a UNet's middle block, or of a transformer's second: diffusers' defaults for SD and SD3."""
    if isinstance(denoiser, UNet2DConditionModel):
        layers = [layer for name, layer in denoiser.mid_block.named_modules() if name.endswith("attn1")]
    else:
        layers = [denoiser.transformer_blocks[1].attn]
    if not layers:
        raise ValueError(f"{type(denoiser).__name__} must have self-attention in its middle block, got none")
    return layers


@contextlib.contextmanager
def perturbed(pipe: ShapesPipeline, prompts: list[str], latents: Tensor, scale: float) -> Iterator[dict[str, object]]:
    """Yields the arguments that turn a call of `pipe` with these prompts and latents into one with PAG.

        v = v' + scale (v(prompt) - v(prompt, self-attention replaced by the identity))

    where v' is what the call computes anyway (CFG or not) and v(prompt) its prediction for the prompt, steered or not. The
    second v(prompt, ...) is never steered: `guide` lets what a callback does alone. The
    call's Euler step has been taken when its callback adds the second term: x_next = x + (s_next - s) v is linear in v.
    """
    denoiser, scheduler = pipe.denoiser, pipe.scheduler
    layers = perturbed_layers(denoiser)
    standin = ValueAlone() if isinstance(denoiser, UNet2DConditionModel) else TextAndSelf()
    text, mask = pipe.encode_prompt(prompts)[:2]
    state, found, own = latents, [], [False]

    def keep(module: nn.Module, arguments: tuple, output: object) -> None:
        if not own[0]:
            found.append(output[0][-len(prompts) :])  # the prompt's half comes last

    def after_step(pipe: ShapesPipeline, step: int, timestep: Tensor, tensors: dict) -> dict:
        nonlocal state
        stock = [layer.processor for layer in layers]
        own[0] = True
        try:
            for layer in layers:
                layer.processor = standin
            without = pipe.predict(state, timestep, text, mask)
        finally:
            for layer, processor in zip(layers, stock, strict=True):
                layer.processor = processor
            own[0] = False
        stride = scheduler.sigmas[step + 1] - scheduler.sigmas[step]
        state = tensors["latents"] + stride * scale * (found.pop() - without)
        if found:
            raise RuntimeError("perturbed: the denoiser was called more than once in a step")
        return {"latents": state}

    hook = denoiser.register_forward_hook(keep)
    try:
        yield {"callback_on_step_end": after_step}
    finally:
        hook.remove()
