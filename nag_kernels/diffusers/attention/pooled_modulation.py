# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Modulating text- by the negative's own pooled text, in models whose layers scale and shift all tokens by pooled text.

SD3 and FLUX.1 make one vector of timestep and pooled text, and of it each block's shifts, scales and gates, one for all tokens
of a stream. Packed text is one stream, so text- would get the prompt's. Here the blocks stay as they are: hooks let their
norms compute both modulations, give each token its own, and put the gates, which the block applies to the whole stream, where
the block's own (made neutral) would act. The image and text+ keep the prompt's, as in the paper's formula.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..denoiser_calls import Denoiser
from ..restore import Replaced
from .base import Layer, PackedText

Arguments = tuple[Any, ...]  # of a call of a layer, by position
Named = dict[str, Any]  # and by name


def negative_modulation(
    replaced: Replaced, model: Denoiser, sites: Sequence[Layer], text: PackedText, pooled: Tensor
) -> Callable[[], None]:
    """Until `replaced` is put back, text- of `text` is modulated in every block of `sites` by the pooled text [B, C] of the
    negative.

    Returns: check(), for after the call of the model, which raises RuntimeError where a block was not modulated.
    Raises: ValueError for a block that is neither of SD3 nor of FLUX.1.
    """
    blocks = [x for x in model.modules() if any(getattr(x, "attn", None) is site for site in sites)]
    kinds = [
        _two_streams if hasattr(x, "norm1_context") else _one_stream if hasattr(x, "proj_out") else None for x in blocks
    ]
    known = [kind for kind in kinds if kind is not None]
    if len(blocks) != len(sites) or len(known) != len(kinds):
        raise ValueError(
            f"guide: negative_pooled knows the blocks of SD3 and FLUX.1, got others in {type(model).__name__}"
        )
    both = _Both(text, pooled)
    replaced.hook(model.time_text_embed.register_forward_hook, both.embed)
    for kind, block in zip(known, blocks, strict=True):
        kind(replaced, block, both)

    def check() -> None:
        if both.norms != len(blocks):
            raise RuntimeError(
                f"guide: negative_pooled must act in {len(blocks)} blocks once each, but acted {both.norms} times"
            )

    return check


class _Both:
    """The vectors that modulate, of the prompt's and of the negative's pooled text, in one call of the model."""

    def __init__(self, text: PackedText, pooled: Tensor):
        self.text, self.pooled = text, pooled
        self.negative: Tensor | None = None
        self.norms = 0

    def embed(self, module: Layer, args: tuple[Any, ...], output: Tensor) -> None:
        """Timestep and, in some models, guidance come first, pooled text last."""
        self.negative = module.forward(*args[:-1], self.pooled.to(args[-1]))

    def normed(self, module: Layer, part: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a norm makes of text-: its arguments are the tokens and one vector."""
        if len(args) + len(kwargs) != 2 or self.negative is None:
            raise RuntimeError(f"guide: negative_pooled does not know how {type(module).__name__} is called here")
        self.norms += 1
        return module.forward(part, *[self.negative] * (len(args) - 1), **dict.fromkeys(kwargs, self.negative))

    def rows(self, positive: Tensor, negative: Tensor, image: int = 0) -> Tensor:
        """[B, C] of each to one row for each token of [text+ ; text- ; image]."""
        counts = ((positive, self.text.length_positive), (negative, self.text.length_negative), (positive, image))
        return torch.cat([x[:, None].expand(-1, n, -1) for x, n in counts], dim=1)


def _two_streams(replaced: Replaced, block: Layer, both: _Both) -> None:
    now: dict[str, Tensor] = {}

    def norm(module: Layer, args: Arguments, kwargs: Named, output: Any) -> Any:
        length = both.text.length_positive
        negative = both.normed(module, args[0][:, length:], args, kwargs)
        if isinstance(output, Tensor):  # the last block of SD3, after which the text ends
            return torch.cat([output[:, :length], negative], dim=1)
        pairs = zip(output[1:], negative[1:], strict=True)
        now.update(zip(("gate", "shift", "scale", "gate_ff"), (both.rows(*pair) for pair in pairs), strict=True))
        one, zero = torch.ones_like(output[1]), torch.zeros_like(output[1])
        return torch.cat([output[0][:, :length], negative[0]], dim=1), one, zero, zero, one

    def attention(module: Layer, args: Arguments, output: Any) -> Any:
        return (output[0], output[1] * now["gate"], *output[2:]) if now else output

    def before(module: Layer, args: Arguments) -> Arguments:
        return (args[0] * (1 + now["scale"]) + now["shift"],) if now else args

    def after(module: Layer, args: Arguments, output: Tensor) -> Tensor:
        return output * now["gate_ff"] if now else output

    replaced.hook(block.norm1_context.register_forward_hook, norm, with_kwargs=True)
    replaced.hook(block.attn.register_forward_hook, attention)
    if getattr(block, "ff_context", None) is not None:
        replaced.hook(block.ff_context.register_forward_pre_hook, before)
        replaced.hook(block.ff_context.register_forward_hook, after)


def _one_stream(replaced: Replaced, block: Layer, both: _Both) -> None:
    now: dict[str, Tensor] = {}

    def norm(module: Layer, args: Arguments, kwargs: Named, output: Any) -> Any:
        start, end = both.text.length_positive, both.text.length_positive + both.text.length_negative
        negative, gate = both.normed(module, args[0][:, start:end], args, kwargs)
        now["gate"] = both.rows(output[1], gate, args[0].shape[1] - end)
        whole = torch.cat([output[0][:, :start], negative, output[0][:, end:]], dim=1)
        return whole, torch.ones_like(output[1])

    def after(module: Layer, args: Arguments, output: Tensor) -> Tensor:
        return output * now["gate"] if now else output

    replaced.hook(block.norm.register_forward_hook, norm, with_kwargs=True)
    replaced.hook(block.proj_out.register_forward_hook, after)
