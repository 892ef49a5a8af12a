# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Stable Diffusion 3 and 3.5, and single layers of joint attention."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from pipeline_parts import Tokenizer, clip, clip_tokenizer, image_vae, t5_encoder
from single_layers import ALPHA, LAYER_TAU, PARTS, SCALE, published_batch, two_pass_oracle
from tiny import POOLED, TEXT, DropIn, error, images, noise, seeded, texts
from transformers import CLIPTextModelWithProjection

from nag_kernels.diffusers import NAGJointAttnProcessor2_0, PackedText

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")


def sd3(dual_attention_layers=(), qk_norm=None):
    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=2 * TEXT, caption_projection_dim=32,
        pooled_projection_dim=2 * POOLED, pos_embed_max_size=8,
        dual_attention_layers=dual_attention_layers, qk_norm=qk_norm,
    )  # fmt: skip


def sd35():
    return sd3(dual_attention_layers=(0, 1), qk_norm="rms_norm")


def sd3_pipeline(build=sd3):
    clips = [clip(CLIPTextModelWithProjection) for _ in range(2)]
    return StableDiffusion3Pipeline(
        transformer=seeded(build), scheduler=FlowMatchEulerDiscreteScheduler(), vae=image_vae(),
        text_encoder=clips[0], tokenizer=clip_tokenizer(), text_encoder_2=clips[1], tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(2 * TEXT), tokenizer_3=Tokenizer(16),
    )  # fmt: skip


def _arguments(rows, dtype):
    return images(rows, dtype) | {"pooled_projections": noise(rows, 2 * POOLED, seed=4, dtype=dtype)}


DROP_IN: dict[str, DropIn] = {
    "sd3": DropIn(sd3, _arguments, 2 * TEXT),
    "sd35": DropIn(sd35, _arguments, 2 * TEXT),
}


FULL_PIPELINES: dict[str, Callable] = {
    "sd3": sd3_pipeline,
    "sd35": lambda: sd3_pipeline(sd35),
}


def joint_layer(last=False, **options):
    options |= {"context_pre_only": last, "out_dim": 32, "bias": True, "processor": JointAttnProcessor2_0()}
    return seeded(lambda: Attention(32, added_kv_proj_dim=32, heads=4, dim_head=8, **options), torch.float64)


@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
@pytest.mark.parametrize("last", [False, True], ids=["inner", "context_pre_only"])
@pytest.mark.parametrize("qk_norm", [None, "rms_norm"])
def test_joint_attention_layer(qk_norm, last, fused):
    attn, x = joint_layer(last, qk_norm=qk_norm), noise(3, 9, 32, seed=7)
    positive, negative = texts(3, 7, 5, 32, torch.float64)
    (wanted, _), (plain, own_positive), (_, own_negative) = two_pass_oracle(attn, x, positive, negative)
    if fused:  # diffusers' own processor for this leaves out the norms
        attn.fuse_projections()
        attn.to_q = attn.to_k = attn.to_v = attn.add_q_proj = attn.add_k_proj = attn.add_v_proj = (
            None  # must not be used
        )
        attn.set_processor(NAGJointAttnProcessor2_0())
        if qk_norm is None:
            assert error(attn(x, positive)[0], plain) < 1e-12
        else:
            with pytest.raises(ValueError, match="leaves out the norms of query and key"):
                attn(x, positive)
    attn.set_processor(NAGJointAttnProcessor2_0(SCALE, LAYER_TAU, ALPHA, text=PackedText(7, 5)))
    got, text = attn(x, torch.cat([positive, negative], dim=1))
    assert error(got, wanted) < 1e-12
    assert error(got, plain) > 1e-3
    assert error(text, torch.cat([own_positive, own_negative], dim=1)) < 1e-12  # each stream keeps its own output


def test_joint_attention_without_a_negative_is_the_stock_processor():
    attn, x = joint_layer(), noise(3, 9, 32, seed=7)
    positive, _ = texts(3, 7, 7, 32, torch.float64)
    stock, alone = attn(x, positive), attn(x)
    attn.set_processor(NAGJointAttnProcessor2_0(SCALE, LAYER_TAU, ALPHA))
    for got, wanted in zip((*attn(x, positive), attn(x)), (*stock, alone), strict=True):
        assert torch.equal(got, wanted)


@PARTS
def test_joint_layer_takes_the_published_batch(parts):
    each = 2
    attn = joint_layer()
    texts_, x = published_batch(parts)
    at = 0 if parts == 2 else each  # where the rows with a negative begin
    plain, own = attn(x, torch.cat(texts_[:-1]))
    (wanted, _), _, (_, own_negative) = two_pass_oracle(attn, x[at : at + each], texts_[at // each], texts_[-1])
    attn.set_processor(NAGJointAttnProcessor2_0(SCALE, LAYER_TAU, ALPHA))
    got, text = attn(x, torch.cat(texts_))
    assert error(got[at : at + each], wanted) < 1e-12
    assert error(text, torch.cat([own, own_negative])) < 1e-12
    others = [i for i in range(len(x)) if not at <= i < at + each]
    assert not others or error(got[others], plain[others]) < 1e-12


def test_joint_misfits_are_refused():
    attn, x = joint_layer(), noise(2, 9, 32, seed=7)
    attn.set_processor(NAGJointAttnProcessor2_0(SCALE))
    with pytest.raises(ValueError, match=r"batch 2 .*4 .*3 .*2 .*got 5"):
        attn(x, noise(5, 7, 32, seed=1))
    attn.set_processor(NAGJointAttnProcessor2_0(SCALE, text=PackedText(7, 5)))
    with pytest.raises(ValueError, match=r"7 \+ 5 tokens .*got 14"):
        attn(x, noise(2, 14, 32, seed=1))
    with pytest.raises(ValueError, match="attention_mask must be None"):
        attn(x, noise(2, 12, 32, seed=1), attention_mask=torch.zeros(2, 1, 12))
    attn.processor.text = PackedText(7, 5, mask_positive=torch.ones(2, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="there are no masks"):
        attn(x, noise(2, 12, 32, seed=1))
