# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""DreamLite."""

import math

from ..attention.generic import Layout
from ..denoiser_calls import Denoiser
from .layers import layers_named, modules_of_type
from .spec import ModelSpec


def _refuse(unet: Denoiser) -> str | None:
    """What is refused of `UNet2DConditionModel`, which it derives from."""
    known = {"addition_embed_type": (None, "time"), "encoder_hid_dim_type": (None, "text_proj", "text_proj_rms")}
    unknown = [f"{name} '{unet.config[name]}'" for name, values in known.items() if unet.config[name] not in values]
    return f"{' and '.join(unknown)} may read the text outside attention" if unknown else None


class DreamLite(ModelSpec):
    cfg_rows = 3  # [without text and image; with the image; with both]


MODELS: dict[str, ModelSpec] = {
    "DreamLiteUNetModel": DreamLite(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        layers=layers_named("attn2"),
        layer_count=lambda unet: len(modules_of_type(unet, "BasicTransformerBlockDreamLite")),
        layout=Layout("cross", ("DreamLiteAttnProcessor2_0",), masks=True),
        refuse=_refuse,
        cfg_above=-math.inf,  # whatever guidance_scale is
    ),
}
