# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What cannot be packed, or does not fit, is refused."""

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock
from every_model import TINY
from stand_in import filled
from tiny import ROWS, noise, seeded

from nag_kernels.diffusers import NAGHunyuanVideoAttnProcessor2_0, NAGZSingleStreamAttnProcessor, PackedText, guide
from nag_kernels.diffusers.models.registry import spec_of

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")


def test_what_drop_in_processors_refuse():
    attn = seeded(lambda: ZImageTransformerBlock(0, 32, 2, 2, 1e-5, True).attention, torch.float64)
    x, text = noise(2, 20, 32, seed=7), PackedText(7, 5)
    attn.set_processor(NAGZSingleStreamAttnProcessor(text=text))
    with pytest.raises(ValueError, match="the masks of both texts must be given in PackedText"):
        attn(x, attention_mask=torch.ones(2, 20, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"7 \+ 5 tokens .*got 9"):
        attn(x[:, :9])
    pipe = filled(TINY["HunyuanVideoTransformer3DModel"])
    layer = pipe.transformer.transformer_blocks[0].attn
    layer.set_processor(NAGHunyuanVideoAttnProcessor2_0(text=text))
    x = noise(2, 9, 24, seed=7, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"7 \+ 5 tokens .*got 8"):
        layer(x, x[:, :8])
    with pytest.raises(ValueError, match=r"batch 2 .*got 4: pack"):
        layer(x, torch.cat([x, x]))
    with pytest.raises(ValueError, match="the masks of both texts"):
        layer(x, torch.cat([x, x], dim=1)[:, :12], torch.ones(2, 1, 1, 21, dtype=torch.bool))


def test_texts_and_masks_that_do_not_fit():
    pipe = filled(TINY["LTX2VideoTransformer3DModel"], masked=True)
    pipe.texts["positive"]["audio_encoder_attention_mask"] = torch.ones(ROWS, 7)
    with (
        pytest.raises(ValueError, match="must be the very mask that encoder_attention_mask is"),
        guide(pipe, "negative"),
    ):
        pipe(pipe.prompt)
    pipe = filled(TINY["ZImageTransformer2DModel"])
    with pytest.raises(ValueError, match="pad is not possible for this model"), guide(pipe, "negative", pad=True):
        pipe(pipe.prompt)
    pipe.texts["negative"]["cap_feats"] = pipe.texts["negative"]["cap_feats"][:2]
    with (
        pytest.raises(ValueError, match="cap_feats must have 3 texts for the negative, got 2"),
        guide(pipe, "negative"),
    ):
        pipe(pipe.prompt)
    pipe.texts["positive"]["cap_feats"] = [torch.zeros(3)] * ROWS
    with pytest.raises(ValueError, match=r"must be a list of tensors \[T, C\]"), guide(pipe, "negative"):
        pipe(pipe.prompt)
    pipe = filled(TINY["HunyuanVideo15Transformer3DModel from an image"])
    with (
        pytest.raises(ValueError, match="image_embeds puts an image among them, from which it would turn away"),
        guide(pipe, "negative", rule="vsf", nag_scale=2.0),
    ):
        pipe(pipe.prompt)
    pipe = filled(TINY["HunyuanDiT2DModel"])
    for name in ("encoder_hidden_states", "text_embedding_mask"):
        pipe.texts["negative"][name] = pipe.texts["negative"][name][:, :5]
    with pytest.raises(ValueError, match=r"must have 7 tokens for the negative .*got 5"), guide(pipe, "negative"):
        pipe(pipe.prompt)
    pipe = filled(TINY["BriaFiboTransformer2DModel"])
    for options, message in (
        ({"pad": True}, "a text for each layer"),
        ({}, "must have 2 texts for the negative, got 1"),
    ):
        pipe.texts["negative"]["text_encoder_layers"] = pipe.texts["negative"]["text_encoder_layers"][
            : 2 - (not options)
        ]
        with pytest.raises(ValueError, match=message), guide(pipe, "negative", **options):
            pipe(pipe.prompt)
    pipe = filled(TINY["HunyuanImageTransformer2DModel of two texts"])
    with pytest.raises(ValueError, match="puts several texts one after another"), guide(pipe, "negative", pad=True):
        pipe(pipe.prompt)
    pipe.texts["positive"] = pipe.texts["positive"] | dict.fromkeys(
        ("encoder_hidden_states_2", "encoder_attention_mask_2")
    )
    with (
        pytest.raises(ValueError, match="encoder_hidden_states_2 for the negative and none for"),
        guide(pipe, "negative"),
    ):
        pipe(pipe.prompt)


@pytest.mark.parametrize(("kind", "name"), [
    ("CogView4Transformer2DModel", "attention_mask"),
    ("AnyFlowTransformer3DModel", "encoder_hidden_states_image"),
])  # fmt: skip
def test_arguments_that_must_be_none(kind, name):
    if kind not in TINY:
        pytest.skip(f"this diffusers has no {kind}")
    pipe = filled(TINY[kind])
    pipe.arguments[name] = torch.ones(ROWS, 7)
    with (
        pytest.raises(ValueError, match=f"{name} must be None in the denoiser's calls"),
        guide(pipe, "negative"),
    ):
        pipe(pipe.prompt)


def test_a_text_that_is_converted_anew_in_each_step():
    """Its values say whose it is."""
    pipe = filled(TINY["Kandinsky5Transformer3DModel"])
    plain_class, once = type(pipe), type(pipe).__call__

    def three_steps(self, prompt):
        for _ in range(3):
            text = self.texts[prompt[0]]
            self.texts[prompt[0]] = text | {"encoder_hidden_states": text["encoder_hidden_states"].clone()}
            out = once(self, prompt)
        return out

    pipe.__class__ = type("InPlace", (type(pipe),), {"__call__": three_steps})
    plain = pipe(pipe.prompt)
    with guide(pipe, "negative"):
        got = pipe(pipe.prompt)
    pipe.__class__ = plain_class
    with guide(pipe, "negative"):
        assert torch.equal(got, pipe(pipe.prompt))
    assert not torch.equal(got, plain)


@pytest.mark.parametrize("kind", TINY)
def test_a_loop_that_forgets_a_mask_of_the_negative_raises(kind):
    """Its padding would be seen."""
    pipe = filled(TINY[kind], masked=TINY[kind].seen is not None)
    call, negative = pipe.arguments | pipe.texts["positive"], pipe.texts["negative"]
    spec = spec_of(pipe.transformer)
    dual = spec.dual_forward.text if spec.dual_forward else ()
    masks = [*spec.masks, *(mask for _, mask in spec.concatenated if mask)]
    belong = {name.partition(".")[0] for name in (*spec.text, *masks, *dual)} - {next(iter(spec.text))}
    for name in [name for name in negative if name in belong and negative[name] is not None]:
        rest = {key: x for key, x in negative.items() if key != name}
        with pytest.raises(ValueError, match=f"negative_prompt has no {name}"), guide(pipe.transformer, rest):
            pipe.transformer(**call)
