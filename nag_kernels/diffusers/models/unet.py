# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion 1.5, 2 and XL, Kolors (UNet2DConditionModel) and AnimateDiff (UNetMotionModel)."""

from collections.abc import Callable, Mapping
from typing import Any

from diffusers.models.attention_processor import (
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
)
from torch import Tensor

from nag_kernels import published
from nag_kernels.published import Settings

from ..attention.base import Layer, PackedText
from ..attention.cross import NAGAttnProcessor2_0
from ..attention.ip_adapter import attention_to_images
from ..denoiser_calls import Denoiser
from .layers import cross_attentions
from .spec import ModelSpec


class NAGIPAdapterAttnProcessor2_0(NAGAttnProcessor2_0):
    """Guided cross-attention of a UNet with an IP-Adapter, instead of `IPAdapterAttnProcessor2_0`.

        out = to_out(guidance(Z+, Z-) + sum_i scale_i Z_image_i)

    Args:
        nag_scale, nag_tau, nag_alpha, text: as in `NAGAttnProcessor2_0`.
        adapter: the processor that it stands for, which holds the adapter's weights and scales.
    Raises: as there; ValueError for encoder_hidden_states that are no tuple (text, image prompts), and for masks and scales that
    do not fit the image prompts.
    """

    adapter: Any  # diffusers' processor

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.5,
                 text: PackedText | None = None, adapter: IPAdapterAttnProcessor2_0 | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self.adapter = adapter

    def takes_over(self, stock: IPAdapterAttnProcessor2_0) -> None:
        self.adapter, self.fused = stock, False  # which knows no fused projections

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, ip_adapter_masks: Any = None,
    ) -> Tensor:  # fmt: skip
        where = type(self).__name__
        if self.adapter is None or not isinstance(encoder_hidden_states, tuple):
            raise ValueError(f"{where}: needs an adapter, and encoder_hidden_states as (text, image prompts)")
        text, images = encoder_hidden_states
        if self.text is None and text.shape[0] == hidden_states.shape[0]:
            return self.adapter(attn, hidden_states, encoder_hidden_states, attention_mask, temb,
                                ip_adapter_masks=ip_adapter_masks)  # fmt: skip

        def beside(query: Tensor) -> Tensor:
            return attention_to_images(where, attn, self.adapter, query, images, ip_adapter_masks)

        return self._run(attn, hidden_states, text, attention_mask, temb, beside)


def unet_settings(unet: Denoiser) -> Settings:
    if unet.config.addition_embed_type == "text_time":
        return published.SDXL
    return published.SD2 if unet.config.cross_attention_dim == 1024 else published.SD15


def _count(unet: Denoiser) -> int:
    parts = [
        x for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks) for x in getattr(block, "attentions", ())
    ]
    parts = [x for part in parts for x in getattr(part, "transformers", [part])]  # two side by side
    blocks = [x for part in parts for x in getattr(part, "transformer_blocks", ())]
    return sum(not x.double_self_attention for x in blocks) + sum(bool(x.only_cross_attention) for x in blocks)


def _refuse(unet: Denoiser) -> str | None:
    if unet.config.addition_embed_type not in (None, "text_time"):
        return f"addition_embed_type '{unet.config.addition_embed_type}' reads the text outside attention"
    if unet.config.encoder_hid_dim_type not in (None, "text_proj", "ip_image_proj"):
        return f"encoder_hid_dim_type '{unet.config.encoder_hid_dim_type}' changes the text before attention"
    return None


def _refuse_motion(unet: Denoiser) -> str | None:
    if any(type(x).__name__ == "SplitInferenceModule" for x in unet.modules()):
        return "its layers see a part of the frames at a time (enable_free_noise_split_inference)"
    return _refuse(unet)


class AnimateDiff(ModelSpec):
    def rows_per_image(self, arguments: Mapping[str, Any]) -> int:
        return arguments["sample"].shape[2]  # the text is repeated for each frame


def _unet(spec: type[ModelSpec], refuse: Callable[[Denoiser], str | None], **more: Any) -> ModelSpec:
    return spec(
        text={"encoder_hidden_states": 1},
        layers=cross_attentions,  # AnimateDiff's between frames have no text
        layer_count=_count,
        processors={
            AttnProcessor2_0: NAGAttnProcessor2_0,
            FusedAttnProcessor2_0: NAGAttnProcessor2_0,
            IPAdapterAttnProcessor2_0: NAGIPAdapterAttnProcessor2_0,
        },
        settings=unet_settings,
        refuse=refuse,
        keeps_text=True,
        **more,
    )


MODELS: dict[str, ModelSpec] = {
    "UNet2DConditionModel": _unet(ModelSpec, _refuse, masks=("encoder_attention_mask",)),
    "UNetMotionModel": _unet(AnimateDiff, _refuse_motion, must_be_none=("attention_mask",)),
}
