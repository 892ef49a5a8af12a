# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Kandinsky 5 and 6."""

import types

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from oracles import two_runs_oracle
from pipeline_parts import IMAGE, LARGE, SQUARE, embeds, hunyuan_vae, with_text
from stand_in import filled, firm
from tiny import TEXT, UNSEEN, WHOLE, Tiny, TinyPipeline, error, noise, seeded, times

from nag_kernels.diffusers import guide
from nag_kernels.diffusers.models.registry import guided_layers

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")


def kandinsky5(**config):
    config = {"in_visual_dim": 4, **config}
    return diffusers.Kandinsky5Transformer3DModel(
        in_text_dim=TEXT, in_text_dim2=8, time_dim=16, out_visual_dim=4, patch_size=(1, 2, 2),
        model_dim=32, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 4, 8), **config,
    )  # fmt: skip


def _kandinsky_arguments(rows, dtype):
    return {"hidden_states": noise(rows, 2, 4, 8, 4, seed=3, dtype=dtype), "timestep": times(rows).float(),
            "pooled_projections": noise(rows, 8, seed=4, dtype=dtype),
            "visual_rope_pos": [torch.arange(n) for n in (2, 2, 4)]}  # fmt: skip


def kandinsky6():
    """It numbers the tokens of a text, and has no more numbers than the longer text needs."""
    model = diffusers.Kandinsky6Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=TEXT, in_text_dim2=8, time_dim=16, model_dim=32, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 4, 8), in_audio_dim=4, out_audio_dim=4, model_dim_a=48,
        ca_rope=True, cross_gates=True, fix_modulation=True, visual_token_type_num_embeddings=2,
    )  # fmt: skip
    for rope in (model.video_text_rope_embeddings, model.audio_text_rope_embeddings):
        rope.angles = rope.angles[:7]
    return model


def _kandinsky6_arguments(rows, dtype):
    return {"hidden_states": noise(rows, 2, 4, 8, 9, seed=3, dtype=dtype), "timestep": times(rows).float(),
            "pooled_projections": noise(rows, 8, seed=4, dtype=dtype),
            "audio_hidden_states": noise(rows, 5, 4, seed=5, dtype=dtype)}  # fmt: skip


def _bool_masked_text(x, mask):
    return {"encoder_hidden_states": x, "encoder_attention_mask": mask}


TINY: dict[str, Tiny] = {
    "Kandinsky5Transformer3DModel": Tiny(
        kandinsky5,
        _kandinsky_arguments,
        16,
        lambda x, mask: {"encoder_hidden_states": x, "text_rope_pos": torch.arange(x.shape[1])},
        layer=lambda site: site.out_layer,
        tau=4.0,
        double=False,
    ),
    "Kandinsky6Transformer3DModel": Tiny(
        kandinsky6,
        _kandinsky6_arguments,
        WHOLE,
        _bool_masked_text,
        layer=lambda site: site.out_layer,
        seen=UNSEEN,
        tau=4.0,
        double=False,
    ),
}


def still_vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, latent_channels=4, layers_per_block=1, shift_factor=0.0,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def kandinsky5_pipeline(name, **call):
    """From text, or from an image, which the model sees beside its noise."""

    def build():
        parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        seen = {"in_visual_dim": 4, "visual_cond": True} if "image" in call else {}
        vae = seeded(still_vae) if "2I" in name else hunyuan_vae()
        transformer = seeded(lambda: kandinsky5(**seen))
        pipe = getattr(diffusers, name)(
            **parts, vae=vae, transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler()
        )
        if hasattr(pipe, "resolutions"):
            pipe.resolutions = [(32, 32)]
        texts = [
            {"prompt_embeds_qwen": embeds(n, 1, n, TEXT), "prompt_embeds_clip": embeds(n + 9, 1, 8),
             "prompt_cu_seqlens": torch.tensor([0, n])} for n in (7, 5, 6)
        ]  # fmt: skip
        return pipe, *with_text(texts, **SQUARE, **call)

    return build


def kandinsky6_pipeline(image=None):
    """With sound, or from an image and without."""

    def build():
        vae = seeded(lambda: diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
        ))  # fmt: skip
        parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        parts |= {"transformer": seeded(kandinsky6), "vae": vae, "scheduler": FlowMatchEulerDiscreteScheduler()}
        pipe = diffusers.Kandinsky6TI2VAPipeline(**parts)
        pipe.audio_vae = pipe.vocoder = types.SimpleNamespace()
        texts = [
            {"prompt_embeds": embeds(n, 2, n, TEXT), "pooled_prompt_embeds": embeds(n + 9, 2, 8)} for n in (7, 5, 6)
        ]
        call = {"num_frames": 5, "height": 32, "width": 32, "image": image, "sample_audio": image is None}
        return pipe, *with_text(texts, **call)

    return build


PIPELINES: dict[str, TinyPipeline] = {
    "kandinsky 5": TinyPipeline(kandinsky5_pipeline("Kandinsky5T2VPipeline", num_frames=5), two_calls=True),
    "kandinsky 5 from an image": TinyPipeline(
        kandinsky5_pipeline("Kandinsky5I2VPipeline", num_frames=25, image=LARGE[0].resize((32, 32))), two_calls=True
    ),
    "kandinsky 5 still": TinyPipeline(kandinsky5_pipeline("Kandinsky5T2IPipeline"), two_calls=True),
    "kandinsky 5 still from an image": TinyPipeline(
        kandinsky5_pipeline("Kandinsky5I2IPipeline", image=LARGE[0].resize((32, 32))), two_calls=True
    ),
    "kandinsky 6": TinyPipeline(kandinsky6_pipeline(), two_calls=True),
    "kandinsky 6 from an image": TinyPipeline(kandinsky6_pipeline(IMAGE.expand(2, -1, -1, -1)), two_calls=True),
}
if not hasattr(diffusers, "Kandinsky6TI2VAPipeline"):  # an older library has fewer
    del PIPELINES["kandinsky 6"], PIPELINES["kandinsky 6 from an image"]


def test_a_video_without_sound():
    """Whose layers then have nothing to do."""
    kind = "Kandinsky6Transformer3DModel"
    if not hasattr(diffusers, kind):
        pytest.skip("this diffusers has no Kandinsky 6")
    pipe = filled(TINY[kind], masked=True)
    pipe.arguments["audio_hidden_states"] = None
    model = pipe.transformer
    wanted, clipped = two_runs_oracle(TINY[kind], model, guided_layers(model), pipe.arguments, pipe.texts["positive"],
                                      pipe.texts["negative"], *firm(TINY[kind]).values())  # fmt: skip
    assert len(clipped) == len(guided_layers(model)) / 2
    with guide(pipe, "negative", **firm(TINY[kind])):
        assert error(pipe(pipe.prompt), wanted) < 1e-5
    model.visual_transformer_blocks[1].video_dec_block.cross_attention.forward = lambda x, **_: x
    with (
        pytest.raises(RuntimeError, match=r"1 did not see it .*_blocks.1.video_dec_block.cross_attention"),
        guide(pipe, "negative"),
    ):
        pipe(pipe.prompt)
