# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""MiniMax-H3."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..attention.dual_forward import DualForward
from ..denoiser_calls import Denoiser
from .layers import layers_named, sum_of
from .spec import ModelSpec

# What says where text, video and sound lie in the sequence, beside the times. It is the same in all steps.
_LAYOUT = ("text_indices", "video_indices", "audio_indices", "position_ids", "token_tags")


def _behind_the_text(denoiser: Denoiser, arguments: Mapping[str, Any], length: int) -> slice:
    """Video and sound, also those that are given."""
    return slice(len(arguments["text_indices"]), length)


def _sequence(running: Mapping[str, Any], negative: Mapping[str, Any]) -> dict[str, Any]:
    """The negative's own layout of the sequence, with the times of the running step.

    The recorded times are those of the first step. The rows of a text have the time of the video, whatever its length.
    """
    missing = [name for name in _LAYOUT if not isinstance(negative.get(name), Tensor)]
    if missing:
        raise ValueError(
            f"guide: the negative of MiniMax-H3 needs {', '.join(_LAYOUT)} of its own, as its text has a length of its own; "
            f"missing: {', '.join(missing)}"
        )
    text, times = len(running["text_indices"]), running["timestep_indices"]
    if not torch.compiler.is_exporting():
        for call in (running, negative):
            places = call["text_indices"]
            if not torch.equal(places, torch.arange(len(places)).to(places)):
                raise ValueError("guide: text_indices must be 0, 1, 2, ...: the text must come first in the sequence")
        if not (times[:text] == times[:1]).all():
            raise ValueError("guide: timestep_indices must be the same for all rows of the text")
    own = {name: negative[name].to(running[name].device) for name in _LAYOUT}
    of_text = times[:1].expand(len(own["text_indices"]))
    return own | {"timestep_indices": torch.cat([of_text, times[text:]])}


class MiniMaxH3(ModelSpec):
    def time(self, arguments: Mapping[str, Any]) -> Any:
        """That of the text and the video: sound has times of its own, and what is given has one that stays."""
        return arguments["timestep"][arguments["timestep_indices"][0]]


MODELS: dict[str, ModelSpec] = {
    "MiniMaxH3Transformer3DModel": MiniMaxH3(
        text={"encoder_hidden_states": 1},
        layers=layers_named("attn"),  # not those of the text refiner
        layer_count=sum_of("num_layers"),
        dual_forward=DualForward(text=("encoder_hidden_states",), image=_behind_the_text, made=_sequence),
        since="0.42",
    ),
}
