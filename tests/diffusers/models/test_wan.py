# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Wan and Wan-VACE, and single layers of them."""

import functools
import threading
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from oracles import guided
from pipeline_parts import (
    FRAMES,
    IMAGE,
    SQUARE,
    Tokenizer,
    embeds,
    image_encoder,
    ready_made,
    unipc,
    wan_vae,
    with_text,
)
from single_layers import ALPHA, SCALE
from tiny import TEXT, DropIn, Tiny, TinyPipeline, error, noise, seeded, texts, videos, videos_of_squares
from transformers import UMT5Config, UMT5EncoderModel

from nag_kernels.diffusers import NAGWanAttnProcessor2_0, PackedText

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

WAN = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": TEXT,
       "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32}  # fmt: skip


def wan(**config):
    return WanTransformer3DModel(**WAN | config)


def wan_vace():
    return WanVACETransformer3DModel(**WAN, vace_layers=[0], vace_in_channels=6)


def wan_pipeline(**denoisers):
    vae = seeded(lambda: AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
    ), seed=3)  # fmt: skip
    config = UMT5Config(vocab_size=64, d_model=TEXT, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    return WanPipeline(
        tokenizer=Tokenizer(16), text_encoder=seeded(lambda: UMT5EncoderModel(config), seed=2), vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(), transformer=seeded(wan), **denoisers,
    )  # fmt: skip


def wan22_pipeline():
    """One denoiser for the first steps, another for the others."""
    return wan_pipeline(transformer_2=seeded(wan, seed=5), boundary_ratio=0.7)


def from_an_image(name):
    """Wan and the like with a first frame, of which the model takes all tokens but the last 512."""
    config = {"image_dim": 8, "added_kv_proj_dim": 24}

    def arguments(rows, dtype):
        return videos(rows, dtype) | {"encoder_hidden_states_image": noise(rows, 6, 8, seed=4, dtype=dtype)}

    return Tiny(wan_like(name, **config), arguments, 16, lengths=(512, 512), beside=attention_to_first_frame)


def wan_like(name, **config):
    config = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": TEXT,
              "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32, **config}  # fmt: skip
    config = {name: x for name, x in config.items() if x is not None}
    return lambda: getattr(diffusers, name)(**config)


def attention_to_first_frame(stack, site):
    caught = threading.local()

    def keep(layer, inputs, out, name):
        setattr(caught, name, out)

    for name in ("norm_q", "norm_added_k", "add_v_proj"):
        layer = getattr(site, name)
        stack.callback(layer.register_forward_hook(functools.partial(keep, name=name)).remove)

    def attention():
        query, key, value = (
            x.unflatten(-1, (site.heads, -1)).transpose(1, 2)
            for x in (caught.norm_q, caught.norm_added_k, caught.add_v_proj)
        )
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2)

    return attention


def _vace_arguments(rows, dtype):
    return videos_of_squares(rows, dtype) | {"control_hidden_states": noise(rows, 6, 2, 8, 8, seed=4, dtype=dtype)}


TINY: dict[str, Tiny] = {
    "WanTransformer3DModel from an image": from_an_image("WanTransformer3DModel"),
}
FROM_AN_IMAGE = {"image_dim": 8, "added_kv_proj_dim": 24, "in_channels": 36, "out_channels": 16}
FIVE = [x.resize((32, 32)) for x in (*FRAMES, *FRAMES[:2])]


def wan_with(name, build, scheduler=FlowMatchEulerDiscreteScheduler, **call):
    def more():
        return {"vae": wan_vae(4), "transformer": seeded(build)}

    return ready_made(
        name, TINY["WanTransformer3DModel from an image"], more=more, scheduler=scheduler, **SQUARE | call
    )


def wan_vace_of_videos():
    return diffusers.WanVACETransformer3DModel(**WAN, vace_layers=[0], vace_in_channels=72)


def wan_from_an_image():
    parts = wan_pipeline().components | image_encoder() | {"vae": wan_vae()}
    parts["transformer"] = seeded(lambda: wan(**FROM_AN_IMAGE))
    texts = [{"prompt_embeds": embeds(n, 1, 512, TEXT)} for n in (7, 5, 6)]  # the only length that this model knows
    call = {"image": IMAGE, "height": 32, "width": 32, "num_frames": 5}
    return diffusers.WanImageToVideoPipeline(**parts), *with_text(texts, **call)


def wan_relative(name, model, **call):
    """From an image; `model` is one with a first frame's tokens."""

    def build():
        parts = image_encoder() | {"vae": wan_vae(), "scheduler": unipc(), "text_encoder": None, "tokenizer": None}
        pipe = getattr(diffusers, name)(**parts, transformer=seeded(wan_like(model, **FROM_AN_IMAGE)))
        texts = [{"prompt_embeds": embeds(n, 1, 512, TEXT)} for n in (7, 5, 6)]
        return pipe, *with_text(texts, image=IMAGE, height=32, width=32, num_frames=9, **call)

    return build


DROP_IN: dict[str, DropIn] = {
    "wan": DropIn(wan, videos_of_squares),
    "wan vace": DropIn(wan_vace, _vace_arguments),
}


FULL_PIPELINES: dict[str, Callable] = {
    "wan": wan_pipeline,
    "wan 2.2": wan22_pipeline,
}


PIPELINES: dict[str, TinyPipeline] = {
    "lucy": TinyPipeline(
        wan_with("LucyEditPipeline", lambda: wan(in_channels=8), video=FIVE, num_frames=5, rows=1), two_calls=True
    ),
    "wan from a video": TinyPipeline(
        wan_with("WanVideoToVideoPipeline", wan, scheduler=unipc, video=FIVE, strength=0.99, rows=1), two_calls=True
    ),
    "wan vace": TinyPipeline(wan_with("WanVACEPipeline", wan_vace_of_videos, num_frames=5, rows=1), two_calls=True),
    "wan from an image": TinyPipeline(wan_from_an_image, two_calls=True),
}


def wan_layer(first_frame=False):
    added = {"added_kv_proj_dim": 32} if first_frame else {}
    attn = WanAttention(
        32, heads=4, dim_head=8, cross_attention_dim_head=8, processor=NAGWanAttnProcessor2_0(), **added
    )
    return seeded(lambda: attn, torch.float64)


@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
def test_wan_layer_keeps_its_attention_to_the_first_frame(fused):
    attn, x = wan_layer(first_frame=True), noise(3, 9, 32, seed=7)
    positive, negative = texts(3, 512, 512, 32, torch.float64)
    frame = noise(3, 6, 32, seed=4)
    if fused:
        attn.fuse_projections()
    caught = []
    hook = attn.to_out[0].register_forward_pre_hook(lambda layer, inputs: caught.append(inputs[0]))
    attn.set_processor(WanAttnProcessor())
    plain = attn(x, torch.cat([frame, positive], dim=1))
    attn(x, torch.cat([frame, negative], dim=1))
    image_layer = attn.to_added_kv if fused else attn.add_v_proj  # without it Z_image is zero
    saved = [parameter.clone() for parameter in image_layer.parameters()]
    for parameter in image_layer.parameters():
        parameter[-32:] = 0
    attn(x, torch.cat([frame, positive], dim=1))
    attn(x, torch.cat([frame, negative], dim=1))
    for parameter, before in zip(image_layer.parameters(), saved, strict=True):
        parameter.copy_(before)
    hook.remove()
    with_frame, _, text_positive, text_negative = caught
    steered, share = guided(text_positive, text_negative, SCALE, tau := 5.0, ALPHA)
    assert 0 < share < 1, share
    wanted = attn.to_out[0](steered + (with_frame - text_positive))
    attn.set_processor(NAGWanAttnProcessor2_0(SCALE, tau, ALPHA, text=PackedText(512, 512)))
    got = attn(x, torch.cat([frame, positive, negative], dim=1))
    assert error(got, wanted) < 1e-12
    assert error(got, plain) > 1e-4
    attn.set_processor(NAGWanAttnProcessor2_0(SCALE, tau, ALPHA))  # the published doubled batch
    both = torch.cat([torch.cat([frame, text], dim=1) for text in (positive, negative)])
    assert error(attn(x, both), wanted) < 1e-12


def test_wan_layer_without_a_negative_is_the_stock_processor():
    attn, x, text = wan_layer(), noise(3, 9, 32, seed=7), noise(3, 7, 32, seed=1)
    ours = attn(x, text), attn(x)
    attn.set_processor(WanAttnProcessor())
    for got, wanted in zip(ours, (attn(x, text), attn(x)), strict=True):
        assert torch.equal(got, wanted)


def test_wan_misfits_are_refused():
    attn, x = wan_layer(), noise(2, 9, 32, seed=7)
    with pytest.raises(ValueError, match=r"NAGWanAttnProcessor2_0: .*batch 2 .*4 .*3 .*got 5"):
        attn(x, noise(5, 7, 32, seed=1))
    attn.set_processor(NAGWanAttnProcessor2_0(SCALE, text=PackedText(7, 5)))
    with pytest.raises(ValueError, match=r"7 \+ 5 tokens .*got 14"):
        attn(x, noise(2, 14, 32, seed=1))
    for name in ("attention_mask", "rotary_emb"):
        with pytest.raises(ValueError, match="attention_mask and rotary_emb must be None"):
            attn(x, noise(2, 12, 32, seed=1), **{name: torch.zeros(2, 1, 12)})
    framed = wan_layer(first_frame=True)
    framed.set_processor(NAGWanAttnProcessor2_0(SCALE, text=PackedText(7, 5)))
    with pytest.raises(ValueError, match="first frame's tokens and then 12 of text, got 9 in all"):
        framed(x, noise(2, 9, 32, seed=1))
