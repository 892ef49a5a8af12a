# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""HunyuanImage."""

from ..attention.generic import Layout
from .hunyuan_video import hunyuan_image
from .layers import layers_named, sum_of
from .spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    "HunyuanImageTransformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1, "encoder_hidden_states_2": 1},
        concatenated=(
            ("encoder_hidden_states_2", "encoder_attention_mask_2"),
            ("encoder_hidden_states", "encoder_attention_mask"),
        ),
        hard_masks=True,
        layers=layers_named("attn"),
        layer_count=sum_of("num_layers", "num_single_layers"),
        layout=Layout("last", ("HunyuanImageAttnProcessor",), masks=True),
        text_modules=lambda transformer: [(transformer.context_embedder, "forward", hunyuan_image)],
        two_calls=True,
    ),
}
