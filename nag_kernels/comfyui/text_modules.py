# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a denoiser does to its text before the guided layers, done to each prompt by itself during one guided call."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .packing import TITLE, Packed

Change = Callable[[Module, Packed], contextlib.AbstractContextManager[None]]  # of a denoiser


def each_text(modules: Callable[[Module], list[Module]], split: Mapping[int, int]) -> Change:
    """Modules that mix the tokens of a prompt run once for each prompt. split: the dimension of the tokens by the position of
    the argument; an argument that is None stays so."""

    @contextlib.contextmanager
    def change(denoiser: Module, packed: Packed) -> Iterator[None]:
        def replace(module: Module) -> None:
            forward = module.forward

            def of_each(*args: Any, **kwargs: Any) -> Tensor:
                outs, sizes = [], packed.parts[packed.main]
                for first, size in ((0, sizes[0]), (sizes[0], sizes[1])):
                    one = [
                        x.narrow(split[i], first, size) if i in split and x is not None else x
                        for i, x in enumerate(args)
                    ]
                    outs.append(forward(*one, **kwargs))
                return torch.cat(outs, dim=1)

            own = vars(module).get("forward")  # another node's, or None
            module.forward = of_each
            stack.callback(lambda: setattr(module, "forward", own) if own else delattr(module, "forward"))

        with contextlib.ExitStack() as stack:
            for module in modules(denoiser):
                replace(module)
            yield

    return change


@contextlib.contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def positions_begin_anew(embedder: str, image_follows: bool = False) -> Change:
    """The position ids of text- are those of a text that stands alone.

    embedder: the module that turns ids [B, text+ and text- and image, axes] into angles; where the image follows, a newer core
        calls it for the texts, and then for the image.
    image_follows: the first axis of the image counts on from the text: from text+, as beside a prompt alone. Where it is 0,
        it is no image.
    """

    def change(denoiser: Module, packed: Packed) -> contextlib.AbstractContextManager[None]:
        texts_came = False  # by themselves

        def renumber(module: Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal texts_came
            ids, (positive, negative) = args[0].clone(), packed.lengths
            image = 0 if texts_came else positive + negative
            if not texts_came:
                texts_came = image_follows and ids.ndim == 3 and ids.shape[1] == image
                if ids.ndim != 3 or (ids.shape[1] <= image and not texts_came):
                    raise ValueError(
                        f"{TITLE}: {embedder} of {type(denoiser).__name__} got positions {list(ids.shape)}, expected those of "
                        f"{positive} + {negative} tokens of text and of the image. This version of ComfyUI is not supported for "
                        "this model: do without this node"
                    )
                ids[:, positive:image] = args[0][:, :negative]
            if image_follows:
                axis = ids[:, image:, 0]
                axis[axis > 0] -= negative
            return (ids, *args[1:])

        return _hook(denoiser.get_submodule(embedder).register_forward_pre_hook(renumber))

    return change


def _each_longer(projection: str, lengthened: Callable[[Module, Tensor, bool], Tensor]) -> Change:
    """The projection of the text gives each prompt further tokens: lengthened(denoiser, prompt, whether it is the negative)."""

    def change(denoiser: Module, packed: Packed) -> contextlib.AbstractContextManager[None]:
        def lengthen(module: Module, args: Any, out: Tensor) -> Tensor:
            texts = [lengthened(denoiser, x, bool(i)) for i, x in enumerate(out.split(packed.parts[0], dim=1))]
            packed.parts[0] = (texts[0].shape[1], texts[1].shape[1])
            return torch.cat(texts, dim=1)

        return _hook(getattr(denoiser, projection).register_forward_hook(lengthen))

    return change


def _padded(denoiser: Any, text: Tensor, negative: bool) -> Tensor:
    if denoiser.pad_tokens_multiple is None:
        return text
    missing = -text.shape[1] % denoiser.pad_tokens_multiple
    return torch.cat([text, denoiser.cap_pad_token.to(text)[None].expand(text.shape[0], missing, -1)], dim=1)


def _with_registers(denoiser: Any, text: Tensor, negative: bool) -> Tensor:
    """The model itself puts the registers before text+."""
    if not negative:
        return text
    return torch.cat([denoiser.register_tokens.to(text).expand(text.shape[0], -1, -1), text], dim=1)


pad_each = _each_longer("cap_embedder", _padded)  # Z-Image, to a multiple of 32 tokens


@contextlib.contextmanager
def registers_for_each(denoiser: Any, packed: Packed) -> Iterator[None]:
    """AuraFlow's register tokens, which stand before the text."""
    with _each_longer("cond_seq_linear", _with_registers)(denoiser, packed):
        own = denoiser.register_tokens.shape[1]

        def count(module: Module, args: Any, out: Tensor) -> None:
            packed.parts[0] = (packed.parts[0][0] + own, packed.parts[0][1])

        with _hook(denoiser.cond_seq_linear.register_forward_hook(count)):
            yield
