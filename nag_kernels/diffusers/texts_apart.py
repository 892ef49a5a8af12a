# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What mixes the tokens of a text (token refiners, attention within the text, positions) works on each text by itself while
two texts are packed as [text+ ; text-].

An entry of the table of families names such parts of its model, each with the function that calls it once for each text.
"""

import inspect
import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import pad_sequence

from .guided_processor import PackedText, counted
from .restore import Replaced

# The owner of a method, the method's name, and function(method, text, *args, **kwargs) to be called instead of it.
Part = tuple[Any, str, Callable]


class _Apart:
    """In the place of a method: whatever stood there before (a hook of an offloading library, say) is called inside.

    One for each method, as long as its owner lives: a compiled model is compiled for the very object that it finds there.
    """

    method: Callable | None = None
    text: PackedText | None = None
    function: Callable | None = None

    def __call__(self, *args, **kwargs):
        return self.function(self.method, self.text, *args, **kwargs)


_known: weakref.WeakKeyDictionary[Any, dict[str, _Apart]] = weakref.WeakKeyDictionary()


def texts_apart(replaced: Replaced, parts: Iterable[Part], text: PackedText) -> None:
    """Until `replaced` is put back, `parts` see the texts one at a time. Only attributes of instances are set."""
    for owner, name, function in parts:
        ours = _known.setdefault(owner, {}).setdefault(name, _Apart())
        replaced.later(ours.__dict__.clear)
        ours.method, ours.text, ours.function = getattr(owner, name), text, function
        replaced.attribute(owner, name, ours)


def of_each(x: Tensor, text: PackedText, dim: int = 1) -> tuple[Tensor, Tensor]:
    """What of x [.., T+ + T-, ..] belongs to text+ and to text-."""
    return x.split((text.length_positive, text.length_negative), dim=dim)


def token_refiner(forward: Callable, text: PackedText, hidden_states: Tensor, timestep: Tensor,
                  attention_mask: Tensor | None = None) -> Tensor:  # fmt: skip
    """HunyuanVideo: attention within the text and a mean over its tokens."""
    masks = (None, None) if attention_mask is None else of_each(attention_mask, text)
    texts = zip(of_each(hidden_states, text), masks, strict=True)
    return torch.cat([forward(x, timestep, mask) for x, mask in texts], dim=1)


def z_image(model: Module) -> list[Part]:
    """Captions come as a list with one tensor for each image, and then one for each image's negative.

    Up to the end of their refiner the model treats them as so many captions. Its own padding (to multiples of 32, of tokens
    that are seen) is part of each. Then each image's pair is packed: [image, text+, text-], in which the image has the
    positions that it has beside text+.
    """

    def patchify(method, text, images, captions, *patch):
        rows = len(images)
        positive = list(method(images, captions[:rows], *patch))
        negative = method(images, captions[rows:], *patch)
        for place in (1, 4, 6):  # captions, their positions and their padding
            positive[place] = [*positive[place], *negative[place]]
        return tuple(positive)

    def unify(method, text, x, x_freqs, x_lengths, x_noise, captions, freqs, lengths, noise, *rest):
        if len(set(x_lengths)) > 1:
            raise ValueError(f"guide: images must be of one size while texts are packed, got {x_lengths} tokens")
        rows = len(x_lengths)
        each = slice(0, rows), slice(rows, None)
        longest = [max(lengths[part]) for part in each]
        captions, freqs = (
            torch.cat([_padded(y[part], lengths[part]) for part in each], dim=1) for y in (captions, freqs)
        )
        text.length_positive, text.length_negative = longest
        text.mask_positive, text.mask_negative = (
            None if len(set(lengths[part])) == 1 else
            torch.arange(length, device=captions.device) < torch.tensor(lengths[part], device=captions.device)[:, None]
            for part, length in zip(each, longest, strict=True)
        )  # fmt: skip
        return method(x, x_freqs, x_lengths, x_noise, captions, freqs, [sum(longest)] * rows, noise, *rest)

    return [(model, "patchify_and_embed", patchify), (model, "_build_unified_sequence", unify)]


def _padded(x: Tensor, lengths: list[int]) -> Tensor:
    return pad_sequence([row[:length] for row, length in zip(x, lengths, strict=True)], batch_first=True)


def cogvideox(forward: Callable, text: PackedText, texts: Tensor, video: Tensor) -> Tensor:
    """Text and video leave their embedding as one sequence, with positions that know one text."""
    positive, negative = of_each(texts, text)
    first, second = forward(positive, video), forward(negative, video)
    return torch.cat(
        [first[:, : positive.shape[1]], second[:, : negative.shape[1]], first[:, positive.shape[1] :]], dim=1
    )


def auraflow(model: Module) -> Callable:
    """The model puts tokens of its own before the text: text- gets them too."""

    def apart(forward, text, texts):
        positive, negative = of_each(forward(texts), text)
        return torch.cat([positive, model.register_tokens.to(positive).expand(len(positive), -1, -1), negative], dim=1)

    return apart


def krea2(model: Module) -> list[Part]:
    """Attention within the text, and positions, of which each text has the same (zero)."""

    def fuse(forward, text, hidden_states, attention_mask=None):
        masks = (None, None) if attention_mask is None else of_each(attention_mask, text, dim=-1)
        texts = zip(of_each(hidden_states, text), masks, strict=True)
        return torch.cat([forward(x, attention_mask=mask) for x, mask in texts], dim=1)

    def turn(forward, text, position_ids):
        positive = position_ids[: text.length_positive]
        negative = positive[:1].expand(text.length_negative, -1)
        return forward(torch.cat([positive, negative, position_ids[text.length_positive :]]))

    return [(model.text_fusion, "forward", fuse), (model.rotary_emb, "forward", turn)]


def ernie_image(forward: Callable, text: PackedText, positions: Tensor) -> Tensor:
    """The text's numbers, after the image's positions [B, S + T+ + T-, 3], begin anew for text-."""
    numbers = positions.narrow(1, positions.shape[1] - text.length_negative, text.length_negative).clone()
    numbers[..., 0] -= text.length_positive
    return forward(torch.cat([positions[:, : -text.length_negative], numbers], dim=1))


def numbered_anew(method: Callable, text: PackedText, *call: Any, **options: Any) -> tuple[Tensor, Any]:
    """Positions of the image and of a text whose tokens are numbered: those of text- begin where those of text+ do.

    The text's are a tensor [T, C], several of them, or None where it has none.
    """
    image, turns = method(*call, **options)
    if turns is None:
        return image, None
    if isinstance(turns, tuple):
        return image, tuple(_begun_anew(x, text) for x in turns)
    return image, _begun_anew(turns, text)


def _begun_anew(x: Tensor, text: PackedText) -> Tensor:
    return torch.cat([x[: text.length_positive], x[: text.length_negative]])


def joy_image_plus(model: Module) -> list[Part]:
    """With masks of the texts the model hides what fills up the images of a row as well; guided attention would see it."""
    order = _argument_names(model)

    def enter(forward, text, *args, **named):
        arguments = dict(zip(order, args, strict=False)) | named
        sizes = {sum(math.prod(image) for image in row) for row in arguments["shape_list"]}
        length = arguments["hidden_states"].shape[1]
        if arguments.get("encoder_hidden_states_mask") is not None and sizes != {length}:
            raise ValueError(
                f"guide: the images of all prompts must fill {length} tokens while texts have masks, got {sorted(sizes)}"
            )
        return forward(*args, **named)

    return [(model, "forward", enter)]


def _argument_names(model: Module) -> list[str]:
    """Of its forward, in order. Looked up before the call: torch.compile cannot do it within."""
    return list(inspect.signature(type(model).forward).parameters)[1:]


def kandinsky(
    forward: Callable, text: PackedText, texts: Tensor, time: Tensor, rope: Tensor, *mask: Tensor | None
) -> Tensor:
    """Attention within the text; `rope` holds the positions of both."""
    masks = (of_each(x, text) if isinstance(x, Tensor) else (x, x) for x in mask)
    each = zip(of_each(texts, text), of_each(rope, text, dim=-5), *masks, strict=True)
    return torch.cat([forward(x, time, *more) for x, *more in each], dim=1)


def kandinsky6(model: Module) -> list[Part]:
    """As `kandinsky`, for the video and for its sound; the model numbers the tokens of both texts in a row."""

    def turn(forward, text, positions):
        return forward(_begun_anew(positions, text))

    turns = [(x, "forward", turn) for x in (model.video_text_rope_embeddings, model.audio_text_rope_embeddings)]
    layers = [*model.video_text_transformer_blocks, *model.audio_text_transformer_blocks]
    return turns + [(layer, "forward", kandinsky) for layer in layers]


def masks_of_part(text: PackedText, place: int) -> tuple[Tensor, Tensor]:
    """Of one of several texts that lie one after another: what of text+ and of text- is seen."""
    pairs = zip((text.mask_positive, text.mask_negative), zip(*text.parts, strict=True), strict=True)
    return tuple(mask.split(list(lengths), dim=1)[place] for mask, lengths in pairs)


def hunyuan_image(forward: Callable, text: PackedText, hidden_states: Tensor, timestep: Tensor, _: Tensor) -> Tensor:
    """As `token_refiner`, of the last text of several; its mask is not the model's, in which all is seen."""
    place = max(i for i, (_, n) in enumerate(text.parts) if n)  # an image may follow
    texts = zip(hidden_states.split(text.parts[place], dim=1), masks_of_part(text, place), strict=True)
    return torch.cat([forward(x, timestep, mask) for x, mask in texts], dim=1)


def framepack(forward: Callable, text: PackedText, *call: Tensor) -> Tensor:
    """As `hunyuan_image`; after it the model takes no more of a mask than how many tokens are seen."""
    refined = hunyuan_image(forward, text, *call)
    text.mask_positive, text.mask_negative = counted(text.mask_positive), counted(text.mask_negative)
    return refined


def lumina2(model: Module) -> list[Part]:
    """Attention within the text, and positions and lengths that are read from its mask.

    The image has the positions that it has after text+.
    """

    def positions(forward, text, image, mask):
        first, second = of_each(mask, text)
        image_tokens, of_first, turns, *_ = forward(image, first)
        both = torch.cat([of_first, forward(image, second)[1]], dim=1)
        rows, length = mask.shape
        whole = length + turns.shape[1]
        return image_tokens, both, turns, torch.cat([both, turns], dim=1), [length] * rows, [whole] * rows

    def refine(forward, text, hidden_states, mask, turns):
        texts = zip(*(of_each(x, text) for x in (hidden_states, mask, turns)), strict=True)
        return torch.cat([forward(*each) for each in texts], dim=1)

    layers = [(layer, "forward", refine) for layer in model.context_refiner]
    return [(model.rope_embedder, "forward", positions), *layers]


def mochi(model: Module) -> Callable:
    """The time is embedded together with a mean of the text: of text+."""

    def embed(forward, text, timestep, texts, mask, hidden_dtype=None):
        conditioning, _ = forward(timestep, of_each(texts, text)[0], of_each(mask, text)[0], hidden_dtype=hidden_dtype)
        return conditioning, model.time_embed.caption_proj(texts)

    return embed


def lumina_next(forward: Callable, text: PackedText, timestep: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
    """As `mochi`: the time is embedded together with a mean of text+."""
    return forward(timestep, of_each(texts, text)[0], of_each(mask, text)[0])


def kandinsky3(forward: Callable, text: PackedText, time: Tensor, texts: Tensor, bias: Tensor) -> Tensor:
    """As `mochi`: a mean of text+, and attention of it to text+, are a part of the time."""
    return forward(time, of_each(texts, text)[0], of_each(bias, text, dim=-1)[0])


def prompt_alone(forward: Callable, text: PackedText, hidden_states: Tensor, encoder_hidden_states: Tensor, **options: Any
                 ) -> Tensor:  # fmt: skip
    """Attention that is not guided: to text+."""
    return forward(hidden_states, of_each(encoder_hidden_states, text)[0], **options)


def longcat_audio(model: Module) -> list[Part]:
    """Convolutions along the text, its numbers, and a mean of it that is a part of the time: of text+."""
    known: dict[str, Tensor] = {}

    def keep_time(forward, text, *call):
        known["time"] = forward(*call)
        return known["time"]

    def embed(forward, text, x, mask):
        known["mask"] = of_each(mask, text)[0]
        known["text"] = forward(x, mask)
        return known["text"]

    def convolve(forward, text, x):
        known["text"] = torch.cat([forward(each) for each in of_each(x, text)], dim=1)
        return known["text"]

    def with_mean(forward, text, *call):
        seen = known["mask"][..., None]
        mean = (of_each(known["text"], text)[0] * seen).sum(1) / seen.sum(1).clamp(min=1)
        return forward(*call[:-1], known["time"] + mean)

    def attend(forward, text, *, prompt_rotary_emb, **options):
        return forward(prompt_rotary_emb=tuple(_begun_anew(x, text) for x in prompt_rotary_emb), **options)

    local = model.config.adaln_type == "local"
    of_time = [block.adaln_mlp for block in model.blocks] if local else [model.adaln_global_mlp, model.norm_out]
    parts = [(model.time_embed, "forward", keep_time), (model.text_embed, "forward", embed)]
    parts += [(block.cross_attn, "forward", attend) for block in model.blocks]
    if model.config.text_conv:
        parts.append((model.text_conv_layer, "forward", convolve))
    if model.config.adaln_use_text_cond:
        parts += [(layer, "forward", with_mean) for layer in of_time]
    return parts


def audioldm2(layers: Iterable[tuple[Module, int]]) -> list[Part]:
    """Two texts, of which each layer sees one, here beside it by its place. Where there is no second text the layers for it see
    the first, and all of it: so the model has it."""

    def of_part(place):
        def attend(forward, text, *call, **options):
            whole = dict(vars(text))
            there = place < len(text.parts)
            text.mask_positive, text.mask_negative = masks_of_part(text, place) if there else (None, None)
            text.length_positive, text.length_negative = text.parts[place if there else 0]
            try:
                return forward(*call, **options)
            finally:
                for name in ("mask_positive", "mask_negative", "length_positive", "length_negative"):
                    setattr(text, name, whole[name])

        return attend

    return [(layer, "forward", of_part(place)) for layer, place in layers]


def hunyuan_dit(model: Module) -> list[Part]:
    """A text of one length alone, which the model fills up with embeddings of its own and makes a part of its time of.

    So the texts go through it as a batch, [text+ of all rows, text- of all rows], up to the blocks, where they lie along the
    sequence again. The time is that of text+.
    """
    names = (("encoder_hidden_states", "text_embedding_mask"), ("encoder_hidden_states_t5", "text_embedding_mask_t5"))

    order = _argument_names(model)

    def enter(forward, text, *args, **named):
        arguments = dict(zip(order, args, strict=False)) | named
        for of_part, (positive, negative) in zip(names, text.parts, strict=True):
            if positive != negative:
                raise ValueError(
                    f"guide: {of_part[0]} must have {positive} tokens for the negative as for the prompt, got {negative}: this "
                    "model knows texts of one length alone"
                )
            arguments |= {name: torch.cat(arguments[name].chunk(2, dim=1)) for name in of_part}
        by_place = order[: len(args)]
        return forward(*(arguments[name] for name in by_place),
                       **{name: x for name, x in arguments.items() if name not in by_place})  # fmt: skip

    def embed(forward, text, timestep, both, *sizes, **options):
        return forward(timestep, both.chunk(2)[0], *sizes, **options)

    def attend(forward, text, hidden_states, encoder_hidden_states=None, **options):
        packed = torch.cat(encoder_hidden_states.chunk(2), dim=1)
        return forward(hidden_states, encoder_hidden_states=packed, **options)

    blocks = [(block, "forward", attend) for block in model.blocks]
    return [(model, "forward", enter), (model.time_extra_emb, "forward", embed), *blocks]
