# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Loading a model by name for the commands, and what reads the pictures of the shipped one."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..hub import go_offline_if_need_be
from ..user_errors import named
from .whole_weights import DIFFUSERS, refuse_missing_tensors


def load_model(name: str, device: str, dtype: torch.dtype | None = None) -> Any:
    """The pipeline `name`: "shapes" (always in float32), or whatever diffusers can load; dtype None: float32 on a CPU, else
    bfloat16. Raises UserError for what does not load, weights that lack a tensor included."""
    if name == "shapes":
        from .pipeline import load

        with named("the shipped model cannot be loaded", Exception):
            pipe: Any = load(device=device)
    else:
        from diffusers import DiffusionPipeline

        dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
        go_offline_if_need_be(name)
        with named(f"model {name} cannot be loaded", Exception):
            with refuse_missing_tensors(name, DIFFUSERS):
                pipe = DiffusionPipeline.from_pretrained(str(Path(name).expanduser()), torch_dtype=dtype)
            pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def try_guidance(pipe: Any, negative: Any, **settings: Any) -> None:
    """Raises what `guide` would for this pipeline and these settings; draws nothing."""
    from ..diffusers import disable_guidance, enable_guidance

    enable_guidance(pipe, negative, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing was guided
        disable_guidance(pipe)


def shapes_judge() -> Callable:
    """Reads shapes' pictures: (picture shows the negative, picture cleanly matches the prompt) for each of them."""
    import numpy as np

    from .classifier import load_classifier, matches, read, shows

    model = load_classifier()

    def judge(pictures: list[Image.Image], prompt: str, negative: str) -> tuple[list[bool], list[bool]]:
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).movedim(-1, 1) / 127.5 - 1
        reading = read(model, pixels)
        return shows(reading, negative).tolist(), (matches(reading, prompt) & reading.clean).tolist()

    return judge
