# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""ModelScope's text-to-video (UNet3DConditionModel) and I2VGen-XL."""

from diffusers import Transformer2DModel

from ..attention.generic import Layout
from .spec import ModelSpec


def _unet_of_frames(layout: str) -> ModelSpec:
    """Its layers between frames see no text, and those within a frame see it once for each."""

    def sites(modules):
        for name, module in modules.items():
            if name.endswith(".attn2") and hasattr(module, "processor") and module.is_cross_attention:
                yield name, module

    def count(unet):
        return sum(len(x.transformer_blocks) for x in unet.modules() if isinstance(x, Transformer2DModel))

    return ModelSpec(
        text={"encoder_hidden_states": 1},
        layers=sites,
        layer_count=count,
        layout=Layout(layout, ("AttnProcessor2_0",), by_frame=True),
        must_be_none=("attention_mask",),
    )


MODELS: dict[str, ModelSpec] = {
    "UNet3DConditionModel": _unet_of_frames("cross"),
    "I2VGenXLUNet": _unet_of_frames("keys"),  # the image's tokens follow the text
}
