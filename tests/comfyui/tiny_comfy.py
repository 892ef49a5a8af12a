# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a tiny model with random weights is, for a denoiser of ComfyUI's core."""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

# What newer cores want to be told of a denoiser, and what they assume of most.
NEWER = {
    "txt_ids_dims": [],
    "vec_in_dim": None,
    "meanflow_sum": False,
    "use_x0": False,
    "use_sequential_txt_ids": False,
}


def config(**unet):
    """The configuration of a denoiser, as the core reads it from a checkpoint."""
    return unet


@dataclass(frozen=True)
class Site:
    """Where attention has ended: the input of a layer.

    layer: a pattern for its name.
    tokens: "all" where it is image alone, "last" or "first" where the image's tokens are; "newer last" in HunyuanVideo, which
        put them first up to core 0.3.75.
    width: of the channels that attention has written; None for all.
    beside: what else is in the input and is not guided, given the module above and its inputs.
    gate: what attention was multiplied by, given the same.
    """

    layer: str
    tokens: str = "all"
    width: int | None = None
    beside: Callable[..., Any] | None = None
    gate: Callable[..., Any] | None = None


@dataclass(frozen=True)
class TinyModel:
    """config: the name in `comfy.supported_models`. sites: in any order. image: tokens of the image, where they are needed.
    noise, sound: the shapes of what is drawn.
    text: what a conditioning with n tokens is besides the embeddings. common: what all conditionings have.
    weights: those that are not in the denoiser. without: large modules that are not called. newer: of `NEWER`, what differs.
    beside_prompt: makes a model that runs with n tokens of the negative place the image as beside the n of the prompt."""

    config: str
    unet: dict[str, Any]
    noise: tuple[int, ...]
    sites: tuple[Site, ...]
    width: int = 32
    sound: tuple[int, ...] = ()
    image: int = 16
    text: Callable[[int], dict[str, Any]] = lambda n: {}
    common: Callable[[], dict[str, Any]] = dict
    weights: Callable[[], dict[str, Any]] = dict
    without: tuple[str, ...] = ()
    newer: dict[str, Any] = field(default_factory=dict)
    beside_prompt: Callable[[Any, int, int], None] = lambda model, positive, negative: None

    def model(self):
        """A BaseModel with weights of a fixed seed."""
        model = self._made(dict(self.unet))
        for name in self.without:
            setattr(model.diffusion_model, name, torch.nn.Identity())
        for name, x in model.named_parameters():
            if name.startswith("diffusion_model."):
                wide = torch.randn(x.shape) * (0.5 if x.ndim == 1 else 1.3 * (x.shape[0] / max(x.numel(), 1)) ** 0.5)
                x.data = 1 + 0.1 * wide if name.endswith(("norm.weight", "scale")) else wide
                x.requires_grad = False
        for name, x in model.diffusion_model.named_buffers():
            if "pos_embed" in name:
                x.copy_(torch.randn(x.shape) * 0.3)
            elif name.endswith("inv_freq"):  # which a new core leaves to the checkpoint
                x.copy_(100.0 ** -torch.linspace(0, 1, len(x)))
        return model.eval()

    def _made(self, unet):
        torch.manual_seed(1)
        supported = importlib.import_module("comfy.supported_models")
        config = getattr(supported, self.config)(unet)
        config.set_inference_dtype(torch.float32, None)
        try:
            return config.get_model(self.weights(), "", device="cpu")
        except TypeError as error:
            wanted = re.findall(r"'(\w+)'", str(error))
            if "missing" not in str(error) or not wanted or not set(wanted) <= set(NEWER):
                raise
        return self._made(unet | {name: (NEWER | self.newer)[name] for name in wanted})

    def patcher(self, model=None):
        patcher = importlib.import_module("comfy.model_patcher")
        return patcher.ModelPatcher(self.model() if model is None else model, torch.device("cpu"), torch.device("cpu"))

    def conditioning(self, seed, length, common=True):
        """As a text encode node gives it: [[embeddings, dictionary]]; with `common` also what other nodes have added."""
        generator = torch.Generator().manual_seed(seed)
        state = torch.get_rng_state()
        torch.manual_seed(seed + 1000)
        described = self.text(length)
        torch.manual_seed(7)
        described |= {k: x for k, x in self.common().items() if common or k == "pooled_output"}
        torch.set_rng_state(state)
        return [[torch.randn(1, length, self.width, generator=generator), described]]

    def start(self, rows=1):
        """A tensor, or two in a list where there is a sound."""
        generator = torch.Generator().manual_seed(5)
        start = [torch.randn(rows, *shape[1:], generator=generator) for shape in (self.noise, self.sound) if shape]
        return start if self.sound else start[0]


def image_features(site, inputs):
    """Wan's attention to the image beside that to the text, in float64: the model adds both."""
    layer = site
    x, context = inputs
    q = layer.norm_q(layer.q(x))
    image = context[:, : layer.image_tokens]
    k, v = layer.norm_k_img(layer.k_img(image)), layer.v_img(image)
    q, k, v = (y.double().unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for y in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2).float()


def image_beside(multiple):
    """Lumina 2 and Z-Image place the image behind the text, whose length is a multiple of a number of tokens."""

    def change(model, positive, negative):
        places = [-(-n // multiple) * multiple + 1 for n in (positive, negative)]

        def move(embedder, inputs):
            ids = inputs[0].clone()
            ids[..., 0][ids[..., 0] == places[1]] = places[0]  # the image alone is so far away
            return (ids,)

        model.diffusion_model.rope_embedder.register_forward_pre_hook(move)

    return change


def mask(n):
    seen = torch.ones(1, n, dtype=torch.long)
    seen[:, n - 2 :] = 0
    return {"attention_mask": seen}


def quoted(n):
    """ByT5's embeddings of the words in quotes."""
    return {"conditioning_byt5small": torch.randn(1, n // 2, 1472)}


def pooled(width):
    return lambda: {"pooled_output": torch.randn(1, width)}


def clip_vision(width):
    return lambda: {"clip_vision_output": SimpleNamespace(penultimate_hidden_states=torch.randn(1, 9, width))}


def seconds():
    """The weights of Stable Audio's embeddings of a time."""
    embedder = importlib.import_module("comfy.ldm.audio.embedders").NumberConditioner(768, min_val=0, max_val=512)
    weights = {k: torch.randn(x.shape) * 0.2 for k, x in embedder.state_dict().items()}
    return {f"conditioner.conditioners.seconds_{x}.{k}": v for x in ("start", "total") for k, v in weights.items()}


def omnigen2_image_beside(model, positive, negative):
    """OmniGen2 counts its images on from the text."""

    def move(embedder, inputs):
        ids = inputs[0].clone()
        ids[:, negative:, 0] += positive - negative
        return (ids,)

    model.diffusion_model.rope_embedder.rope_embedder.register_forward_pre_hook(move)
