# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""HunyuanImage."""

from ..attention.generic import Layout
from .hunyuan_video import hunyuan_image
from .layers import layers_named, sum_of
from .spec import Family

MODELS: dict[str, Family] = {
    "HunyuanImageTransformer2DModel": Family(
        text={"encoder_hidden_states": 1, "encoder_hidden_states_2": 1},
        parts=(
            ("encoder_hidden_states_2", "encoder_attention_mask_2"),
            ("encoder_hidden_states", "encoder_attention_mask"),
        ),
        hard_masks=True,
        sites=layers_named("attn"),
        site_count=sum_of("num_layers", "num_single_layers"),
        layout=Layout("last", ("HunyuanImageAttnProcessor",), masks=True),
        apart=lambda transformer, text: [(transformer.context_embedder, "forward", hunyuan_image)],
        two_calls=True,
    ),
}
