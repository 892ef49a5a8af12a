# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""JoyImage-Edit and JoyImage-Edit Plus."""

import math

from ..attention.generic import Layout
from ..attention.text_modules import TextModule, numbered_anew
from ..denoiser_calls import Denoiser, forward_parameters
from .layers import layers_named, sum_of
from .spec import ModelSpec


def joy_image_plus(model: Denoiser) -> list[TextModule]:
    """With masks of the texts the model hides what fills up the images of a row as well; guided attention would see it."""
    order = forward_parameters(model)  # now: torch.compile cannot look them up within the call

    def enter(forward, text, *args, **named):
        arguments = dict(zip(order, args, strict=False)) | named
        sizes = {sum(math.prod(image) for image in row) for row in arguments["shape_list"]}
        length = arguments["hidden_states"].shape[1]
        if arguments.get("encoder_hidden_states_mask") is not None and sizes != {length}:
            raise ValueError(
                f"guide: the images of all prompts must fill {length} tokens while texts have masks, got {sorted(sizes)}"
            )
        return forward(*args, **named)

    return [(model, "forward", enter)]


MODELS: dict[str, ModelSpec] = {
    "JoyImageEditTransformer3DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        layers=layers_named("attn"),
        layer_count=sum_of("num_layers"),
        layout=Layout("last", ("JoyImageAttnProcessor",)),
        text_modules=lambda transformer: [(transformer, "get_rotary_pos_embed", numbered_anew)],
        two_calls=True,
    ),
    "JoyImageEditPlusTransformer3DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=("encoder_hidden_states_mask",),
        hard_masks=True,
        layers=layers_named("attn"),
        layer_count=sum_of("num_layers"),
        layout=Layout("last", ("JoyImageEditPlusAttnProcessor",), masks=True),
        text_modules=lambda transformer: joy_image_plus(transformer),
    ),
}
