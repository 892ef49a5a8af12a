# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What tiny pipelines of several models are made of."""

import inspect
import types

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from tiny import POOLED, TEXT, seeded
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)


class Tokenizer:
    """Words to numbers, as CLIP's and T5's tokenizers are called by the pipelines."""

    def __init__(self, length, first=None, last=1, pad=0):
        self.model_max_length, self.first, self.last, self.pad = length, first, last, pad
        self.added_tokens_encoder = {}  # looked up for textual inversion

    def __call__(self, text, padding=False, max_length=None, truncation=False, **_):
        length = max_length or self.model_max_length
        texts = [text] if isinstance(text, str) else text
        rows = []
        for one in texts:
            words = [3 + sum(ord(c) * (i + 7) for i, c in enumerate(w)) % 60 for w in one.split()]
            rows.append(([] if self.first is None else [self.first]) + words)
        rows = [(row[: length - 1] if truncation else row) + [self.last] for row in rows]
        width = length if padding == "max_length" else max(map(len, rows))
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows])
        return types.SimpleNamespace(input_ids=ids, attention_mask=mask)

    def encode(self, text):
        return self(text).input_ids[0].tolist()

    def tokenize(self, text):
        return text.split()

    def batch_decode(self, ids):
        return [str(row.tolist()) for row in ids]


def clip(cls, **config):
    return seeded(lambda: cls(CLIPTextConfig(
        vocab_size=64, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, projection_dim=POOLED, bos_token_id=1, eos_token_id=2, pad_token_id=2, **config,
    )), seed=1)  # fmt: skip


def t5_encoder(width=TEXT):
    config = T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    return seeded(lambda: T5EncoderModel(config), seed=2)


def clip_tokenizer():
    return Tokenizer(16, first=1, last=2, pad=2)


def image_vae():
    config = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4, "layers_per_block": 1}
    return seeded(lambda: AutoencoderKL(**config, shift_factor=0.0), seed=3)


def ddim():
    return DDIMScheduler(steps_offset=1, clip_sample=False)


def no_text_encoders():
    """For pipelines whose text encoders are too large here."""
    return {"scheduler": FlowMatchEulerDiscreteScheduler(), "text_encoder": None, "tokenizer": None}


def four_steps(pipe, **call):
    """The pipeline and a call of four steps."""
    size = 4 * 2 * pipe.vae_scale_factor
    pipe.set_progress_bar_config(disable=True)
    return pipe, call | {"num_inference_steps": 4, "height": size, "width": size, "output_type": "latent"}


NEGATIVE = "a large blue dog on grass"


def t5():
    config = T5Config(vocab_size=64, d_model=TEXT, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    return {"text_encoder": seeded(lambda: T5EncoderModel(config), seed=2), "tokenizer": Tokenizer(16)}


def embeds(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_text(texts, **call):
    """The call with ready-made text for the prompt and for the unconditional text; the prompt's and the negative's own."""
    prompt, negative, unconditional = texts
    return call | {f"negative_{name}": x for name, x in unconditional.items()}, prompt, negative


def wan_vae(z_dim=16):
    config = {"base_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
    own = {} if z_dim == 16 else {"latents_mean": [0.0] * z_dim, "latents_std": [1.0] * z_dim}
    return seeded(lambda: diffusers.AutoencoderKLWan(z_dim=z_dim, **config, **own))


def image_encoder(width=8, size=8, patches=2):
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=size // patches,
    )
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8)
    return {"image_encoder": seeded(lambda: CLIPVisionModel(vision)), "image_processor": processor}


def siglip():
    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    processor = SiglipImageProcessor(size={"height": 8, "width": 8})
    return {"image_encoder": seeded(lambda: SiglipVisionModel(vision)), "feature_extractor": processor}


IMAGE = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32)


def unipc():
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def ready_made(
    name,
    tiny,
    *,
    masks="",
    pooled=0,
    length=None,
    layers=0,
    rows=2,
    scheduler=FlowMatchEulerDiscreteScheduler,
    more=dict,
    **call,
):
    """A pipeline (its class, or its name in diffusers) over a tiny model, with ready-made text; masks: the name of theirs in the
    call, pooled: the width of a pooled one, layers: how many of a text encoder's each text has."""

    def build():
        cls = getattr(diffusers, name) if isinstance(name, str) else name
        known = inspect.signature(cls.__init__).parameters
        absent = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "safety_checker")
        parts = {part: None for part in known if part in absent}
        parts |= {"vae": None, "scheduler": scheduler(), "transformer": seeded(tiny.build), **more()}
        pipe = cls(**parts)
        texts = []
        for n in (7, 5, 6):
            text = {"prompt_embeds": embeds(n, rows, length or n, *((layers,) if layers else ()), TEXT)}
            if pooled:
                text["pooled_prompt_embeds"] = embeds(n + 9, rows, pooled)
            if masks:
                text[masks] = torch.arange(length or n) < torch.tensor([[n], [n - 2]][:rows])
            texts.append(text)
        return pipe, *with_text(texts, **{"height": 64, "width": 64} | call)

    return build


SQUARE = {"height": 32, "width": 32}


def hunyuan_vae():
    return seeded(lambda: diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    ))  # fmt: skip


SMALL = IMAGE[:, :, ::4, ::4]  # as large as the latents of a VAE that shrinks nothing
FRAMES = [Image.fromarray((SMALL[0] * x).byte().permute(1, 2, 0).numpy()) for x in (80, 160, 255)]
LARGE = [x.resize((64, 64)) for x in FRAMES]
CAT = {"prompt": "a small red cat"}
PICTURE = Image.fromarray((IMAGE[0] * 255).byte().permute(1, 2, 0).numpy())


def llama():
    config = LlamaConfig(
        vocab_size=64, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    return seeded(lambda: LlamaModel(config), seed=2)


def two_encoders():
    """Prompt, negative and the pipeline's own negative as Hunyuan's two text encoders give them, of two rows, with masks."""
    texts = []
    for n in (7, 5, 6):
        text = {"prompt_embeds": embeds(n, 2, n, TEXT), "prompt_embeds_2": embeds(n + 9, 2, n - 1, TEXT)}
        text["prompt_embeds_mask"] = torch.arange(n) < torch.tensor([[n], [n - 2]])
        text["prompt_embeds_mask_2"] = torch.arange(n - 1) < torch.tensor([[2], [0]])
        texts.append(text)
    return texts


MASKED = {"masks": "prompt_attention_mask", "length": 7}
