# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tokenizer and text encoder of shapes, and the training that teaches the encoder which word belongs to which object.

Flow matching alone leaves a small encoder a bag of words: a linear reading of its output at "circle" in "a red circle
left of a blue square" told neither whether this is the first object (50 %) nor its colour (39 %, and 39 % the other
object's), and goes on unlearning it where it knew it. So the encoder is trained first, by itself, and then kept, as the
text encoders of large models are.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ..whole_file import whole_file
from .parallel import bar, descent
from .scenes import BACKGROUND_NAMES, COLOUR_NAMES, RELATIONS, SHAPES, SIZE_NAMES, WORDS, caption, draw_scenes
from .settings import Settings

WIDTH, TEXT_LENGTH = 128, 16
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# What a token tells about the phrase that it stands in: one choice of each row, or none of it.
WORD_FACTS = {
    "phrase": ("first object", "second object", "relation", "background", "lone attribute"),
    "size": SIZE_NAMES,
    "colour": COLOUR_NAMES,
    "shape": SHAPES,
    "lies": RELATIONS,  # where the phrase's object lies, seen from the other one
    "background": BACKGROUND_NAMES,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world and an end token after each text, so that no text is empty."""
    special = ("<pad>", "</s>", "<unk>")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*special, *WORDS))}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TEXT_LENGTH
    )


def build_text_encoder(words: int) -> T5EncoderModel:
    """An untrained encoder for a vocabulary of `words`."""
    return T5EncoderModel(
        T5Config(
            vocab_size=words, d_model=WIDTH, d_kv=32, num_heads=4, d_ff=2 * WIDTH, num_layers=2,
            feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def embed(tokenizer: PreTrainedTokenizerFast, encoder: T5EncoderModel, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Embeddings [N, T, C] and mask [N, T] of captions."""
    tokens = tokenizer(captions, padding="max_length", return_tensors="pt")
    return encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0], tokens.attention_mask


def word_facts(text: str) -> list[list[int]]:
    """For each word of a caption the choice in each row of `WORD_FACTS`; 0 = none, else 1 + its index.

    "a red circle left of a square": the words "a", "red", "circle" are of the first object, red, a circle, and lie left
    of the other; "left", "of" are of the relation; "a", "square" of the second object, which lies right of the other.
    """
    words = text.split()
    phrases: list[tuple[str, list[str]]] = []
    for word in words:
        if word == "on":
            phrases.append(("background", []))
        elif word in ("left", "right", "above", "below"):
            phrases.append(("relation", []))
        elif word in ("a", "an"):
            phrases.append(("second object" if phrases else "first object", []))
        elif not phrases:
            phrases.append(("lone attribute", []))
        phrases[-1][1].append(word)
    relation = next((" ".join(said) for kind, said in phrases if kind == "relation"), None)
    rows = []
    for kind, said in phrases:
        told = {name: next((word for word in said if word in choices), None) for name, choices in WORD_FACTS.items()}
        told |= {
            "phrase": kind,
            "lies": {"first object": relation, "second object": OPPOSITE.get(relation or "")}.get(kind),
        }
        told |= {"colour" if kind == "background" else "background": None}
        row = [1 + choices.index(told[name]) if told[name] else 0 for name, choices in WORD_FACTS.items()]
        rows += [row] * len(said)
    return rows


def train_text(settings: Settings, rank: int, folder: Path) -> None:
    """Write `text.safetensors`: the text encoder's weights in float32.

    loss = sum over WORD_FACTS of the cross entropy of a linear reading of each word's embedding
    """
    torch.manual_seed(settings.seed + 60 + rank)
    rng = np.random.default_rng(settings.seed + 60 + rank)
    tokenizer = build_tokenizer()
    encoder = build_text_encoder(len(tokenizer))
    widths = [1 + len(choices) for choices in WORD_FACTS.values()]
    reader = nn.Linear(WIDTH, sum(widths))
    down = descent([encoder, reader], settings.text_steps, settings.text_rate)
    steps = bar(range(settings.text_steps), "text encoder", rank)
    for step in steps:
        scenes = draw_scenes(settings.text_batch, rng, settings.flow_two_share)
        captions = [text for text in caption(scenes, rng, full_share=settings.full_share) if text]
        wanted = torch.tensor([row for text in captions for row in word_facts(text)])
        embeddings, mask = embed(tokenizer, encoder, captions)
        # Each text ends with an end token, which tells nothing.
        mask = mask.bool() & torch.cat([mask[:, 1:].bool(), torch.zeros(len(mask), 1, dtype=torch.bool)], 1)
        found = reader(embeddings[mask]).split(widths, -1)
        losses = [F.cross_entropy(each, wanted[:, k]) for k, each in enumerate(found)]
        loss = torch.stack(losses).sum()
        down.step(loss)
        if step % 50 == 0:
            right = torch.stack([each.argmax(-1) == wanted[:, k] for k, each in enumerate(found)], -1).all(-1)
            steps.set_postfix(loss=f"{float(loss.detach()):.4f}", right=f"{float(right.float().mean()):.3f}")
    if rank == 0:
        state = {name: value.clone().contiguous() for name, value in encoder.state_dict().items()}
        with whole_file(folder / "text.safetensors") as part:
            save_file(state, str(part))
