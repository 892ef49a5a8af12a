# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny JoyImage-Edit and JoyImage-Edit-Plus."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from pipeline_parts import NEGATIVE, PICTURE, embeds, wan_vae, with_text
from stand_in import filled
from tiny import TEXT, UNSEEN, Tiny, TinyPipeline, noise, seeded, text_with_its_mask, times

from nag_kernels.diffusers import guide

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")


def _joy(name, **config):
    return lambda: getattr(diffusers, name)(
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=TEXT,
        num_layers=2,
        rope_dim_list=[4, 6, 6],
        **config,
    )


def _joy_layer(site):
    return site.img_attn_proj


def _joy_arguments(rows, dtype):
    """The image to be drawn after one that is given."""
    return {"hidden_states": noise(rows, 2, 4, 1, 8, 8, seed=3, dtype=dtype), "timestep": times(rows)}


def _joy_plus_arguments(rows, dtype):
    """In patches: the image to be drawn and one that is given."""
    image = noise(rows, 22, 4, 1, 2, 2, seed=3, dtype=dtype)
    return {"hidden_states": image, "timestep": times(rows), "shape_list": [[(1, 4, 4), (1, 2, 3)]] * rows}


TINY: dict[str, Tiny] = {
    "JoyImageEditTransformer3DModel": Tiny(
        _joy("JoyImageEditTransformer3DModel", rope_type="mrope"),
        _joy_arguments,
        32,
        text_first=False,
        layer=_joy_layer,
    ),
    "JoyImageEditTransformer3DModel unnumbered": Tiny(
        _joy("JoyImageEditTransformer3DModel"), _joy_arguments, 32, text_first=False, layer=_joy_layer
    ),
    "JoyImageEditPlusTransformer3DModel": Tiny(
        _joy("JoyImageEditPlusTransformer3DModel"),
        _joy_plus_arguments,
        22,
        text_with_its_mask,
        text_first=False,
        layer=_joy_layer,
        seen=UNSEEN,
    ),
}


def joy_image_edit():
    """From an image; the pipeline would draw one of a megapixel."""
    pipe = diffusers.JoyImageEditPipeline(
        FlowMatchEulerDiscreteScheduler(),
        wan_vae(4),
        None,
        None,
        seeded(TINY["JoyImageEditTransformer3DModel"].build),
        None,
    )
    pipe.vae_image_processor.get_default_height_width = lambda image, height, width: (height, width)
    texts = [{"prompt_embeds": embeds(n, 2, n, TEXT), "prompt_embeds_mask": torch.ones(2, n)} for n in (7, 5, 6)]
    return pipe, *with_text(texts, image=PICTURE, height=32, width=32)


def joy_image_edit_plus():
    """From two images. It takes no ready-made text, so its encoder is a stand-in."""
    pipe = diffusers.JoyImageEditPlusPipeline(
        FlowMatchEulerDiscreteScheduler(),
        wan_vae(4),
        None,
        None,
        seeded(TINY["JoyImageEditPlusTransformer3DModel"].build),
        None,
    )
    pipe.image_processor.get_default_height_width = lambda *image: (32, 16)

    def encode(prompt, **_):
        n = max(map(len, prompt)) // 8
        return embeds(sum(map(ord, prompt[0])), len(prompt), n, TEXT), torch.arange(n) < torch.tensor([[n], [n - 2]])

    pipe.encode_prompt_multiple_images = encode
    call = {"images": [[PICTURE, PICTURE]] * 2, "height": 32, "width": 32, "negative_prompt": [""] * 2}
    return pipe, call, {"prompt": ["a small red cat"] * 2}, NEGATIVE


PIPELINES: dict[str, TinyPipeline] = {
    "joy image edit": TinyPipeline(joy_image_edit, two_calls=True),
    "joy image edit plus": TinyPipeline(joy_image_edit_plus),
}
if not hasattr(diffusers, "JoyImageEditPlusPipeline"):  # an older library has fewer
    del PIPELINES["joy image edit plus"]


@pytest.mark.skipif(
    not hasattr(diffusers, "JoyImageEditPlusTransformer3DModel"), reason="this diffusers has no JoyImage-Edit-Plus"
)
def test_images_that_are_filled_up():
    pipe = filled(TINY["JoyImageEditPlusTransformer3DModel"], masked=True)
    pipe.arguments["shape_list"] = [[(1, 4, 4)], *pipe.arguments["shape_list"][1:]]
    with pytest.raises(ValueError, match=r"must fill 22 tokens .*got \[16, 22\]"), guide(pipe, "negative"):
        pipe(pipe.prompt)
