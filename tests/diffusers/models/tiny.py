# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the test file of a model says of its tiny models and pipelines, and what many of them are called with."""

from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
import torch.nn.functional as F

TEXT = 32  # width of all text embeddings
POOLED = 24


def error(got, wanted):
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


def seeded(build, dtype=torch.float32, seed=0):
    """A model from `build`, in eval mode: no weight is zero, and attention is far from a plain mean."""
    torch.manual_seed(seed)
    model = build().eval().to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.1)
            if name.endswith(("to_q.weight", "add_q_proj.weight", "norm_q.weight", "norm_added_q.weight")):
                parameter.mul_(40 if "Sana" in type(model).__name__ else 5)  # whose text has features alike
    return model


def noise(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def texts(rows, positive, negative, width, dtype):
    """text+ and text-, alike in the first row and not in the others: so the clip fires on a part of the tokens."""
    far, plus = noise(rows, negative, width, seed=1), noise(rows, positive, width, seed=2)
    share = torch.linspace(0.02, 0.9, rows).double()[:, None, None]
    longest = F.pad(plus, (0, 0, 0, max(0, negative - positive)))[:, :negative]
    return plus.to(dtype), ((1 - share) * longest + share * far).to(dtype)


ROWS = 3
SAME = torch.arange(9) < torch.tensor([[5], [3], [4]])
WHOLE = 1000  # more tokens than there are
SEEN = (7, 3, 5), (5, 4, 1)
UNSEEN = (7, 3, 5), (5, 0, 1)


@dataclass(frozen=True)
class Tiny:
    """How a model is built and called.

    build: the model.
    arguments: all arguments of forward but the text, for this many rows.
    text: the arguments that hold a text [B, T, C] and its mask [B, T] (or None).
    image: how many tokens of it a guided layer sees.
    layer: the layer after attention in a guided one, or None where it has none; its input is [text, image], [image, text] or
        the image alone.
    text_first: which of these, where it is not the image alone.
    lengths: of text+ and text-, in tokens.  seen: how many of them a mask shows in each row, or None where there are no masks.
    tau: with which the clip fires on a part of the tokens.
    double: whether the model runs in float64.
    alone: whether the oracle must run each row by itself, as the image's place in the sequence differs from row to row.
    beside: beside(stack, site) -> a function of no argument that gives what a guided layer adds to its attention to the text, and
        which is not guided, [B, S, C] or None.
    rows: how many images a call draws.
    whole: the model as it is, where `build` leaves out what the oracle cannot follow.
    """

    build: Callable
    arguments: Callable
    image: int
    text: Callable = lambda x, mask: {"encoder_hidden_states": x}
    layer: Callable = lambda site: getattr(site, "to_out", None)
    text_first: bool = True
    lengths: tuple[int, int] = (7, 5)
    seen: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    tau: float = 1.25
    double: bool = True
    alone: bool = False
    beside: Callable = lambda stack, site: lambda: None
    rows: int = ROWS
    whole: Callable | None = None


def token_ids(*shape):
    """Positions of an image's tokens, each with as many numbers as the shape has."""
    return torch.cartesian_prod(*map(torch.arange, shape)).float()


def times(rows, dtype=None):
    time = torch.linspace(300, 700, rows)
    return time.long() if dtype is None else (time / 1000).to(dtype)


def videos(rows, dtype):
    return {"hidden_states": noise(rows, 4, 2, 4, 8, seed=3, dtype=dtype), "timestep": times(rows)}


def masked_text(x, mask):
    mask = torch.ones(x.shape[:2], dtype=torch.long) if mask is None else mask.long()
    return {"encoder_hidden_states": x, "encoder_attention_mask": mask}


def images(rows, dtype):
    return {"hidden_states": noise(rows, 4, 8, 8, seed=3, dtype=dtype), "timestep": times(rows)}


def timed_images(rows, dtype):
    return images(rows, dtype) | {"timestep": times(rows, dtype)}


def unet_arguments(rows, dtype):
    return {"sample": noise(rows, 4, 8, 8, seed=3, dtype=dtype), "timestep": times(rows)}


def image_tokens(rows, dtype, width=16):
    """An image of 4 x 4 tokens at a time below 1."""
    return {"hidden_states": noise(rows, 16, width, seed=3, dtype=dtype), "timestep": (times(rows) / 1000).to(dtype)}


@dataclass(frozen=True)
class DropIn:
    """A model with drop-in processors, called without a pipeline: all arguments but the text, and the width of its text."""

    build: Callable
    arguments: Callable
    width: int = TEXT


@dataclass(frozen=True)
class TinyPipeline:
    """How a tiny pipeline is called, and what its classifier-free guidance does.

    build: () -> (pipeline, arguments of its call, the prompt's arguments, the negative).
    two_calls: whether classifier-free guidance calls the denoiser twice a step.
    runs: how often a video in parts runs through its steps.
    scale: the argument with the scale of classifier-free guidance.  scales: the ones without it and with it.
    cfg_rows: how many rows it makes of one image, or 0 where the pipeline has no unconditional ones.
    prompt_first: whether the first of them is the prompt's, instead of the last.
    """

    build: Callable
    two_calls: bool = False
    runs: int = 1
    scale: str = "guidance_scale"
    scales: tuple[float, float] = (1.0, 3.0)
    cfg_rows: int = 2
    prompt_first: bool = False

    def __call__(self):
        return self.build()


def flux_text(x, mask):
    return {"encoder_hidden_states": x, "txt_ids": torch.zeros(x.shape[1], 3)}


def flux_arguments(rows, dtype):
    return {"hidden_states": noise(rows, 16, 16, seed=3, dtype=dtype), "timestep": times(rows, dtype),
            "img_ids": token_ids(1, 4, 4)}  # fmt: skip


def videos_of_squares(rows, dtype):
    return videos(rows, dtype) | {"hidden_states": noise(rows, 4, 2, 8, 8, seed=3, dtype=dtype)}


def flux_like(name, **config):
    config = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
              "num_attention_heads": 2, "joint_attention_dim": TEXT, "axes_dims_rope": (4, 4, 8), **config}  # fmt: skip
    return Tiny(lambda: getattr(diffusers, name)(**config), flux_arguments, 16, flux_text)


def two_masked_texts(x, mask):
    first = masked_text(x, mask)
    seen = first["encoder_attention_mask"][:, 1:]
    return first | {"encoder_hidden_states_2": x[:, 1:].flip(-1), "encoder_attention_mask_2": seen}


def text_with_its_mask(x, mask):
    return {"encoder_hidden_states": x, "encoder_hidden_states_mask": mask}


def frames(rows, dtype):
    return {"sample": noise(rows, 4, 2, 8, 8, seed=3, dtype=dtype), "timestep": times(rows)}
