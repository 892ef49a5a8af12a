# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Z-Image."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from pipeline_parts import embeds, with_text
from tiny import TEXT, Tiny, TinyPipeline, error, noise, seeded, times

from nag_kernels.diffusers import guide


def _z_image():
    return diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=TEXT,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip


def _z_image_arguments(rows, dtype):
    return {"x": list(noise(rows, 4, 1, 8, 8, seed=3, dtype=dtype)), "t": times(rows, dtype)}


def _z_image_text(x, mask):
    lengths = [x.shape[1]] * len(x) if mask is None else mask.sum(1).tolist()
    return {"cap_feats": [row[:length] for row, length in zip(x, lengths, strict=True)]}


TINY: dict[str, Tiny] = {
    # Padded to multiples of 32, which for the oracle must be the same in a row: the image's positions begin after them.
    "ZImageTransformer2DModel": Tiny(
        _z_image,
        _z_image_arguments,
        32,
        _z_image_text,
        text_first=False,
        lengths=(40, 36),
        seen=((40, 3, 5), (36, 4, 1)),
    ),
}


def z_image_pipeline():
    pipe = diffusers.ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(), None, None, None, seeded(TINY["ZImageTransformer2DModel"].build)
    )
    texts = [{"prompt_embeds": [embeds(n + i, n, TEXT) for i in range(2)]} for n in (7, 5, 3)]
    return pipe, *with_text(texts, height=64, width=64)


PIPELINES: dict[str, TinyPipeline] = {
    "z image": TinyPipeline(z_image_pipeline, scales=(0.0, 0.8), prompt_first=True),
}


@pytest.mark.usefixtures("no_grad", "one_thread")
def test_a_batch_with_the_unconditional_text_first():
    """Its texts lie in a list."""
    model = seeded(_z_image)
    images, prompt, empty, negative = (
        list(noise(1, 4, 1, 8, 8, seed=3, dtype=torch.float32)),
        *(embeds(n, n, TEXT) for n in (7, 5, 6)),
    )

    def run(*captions):
        times = torch.full((len(captions),), 0.4)
        outputs = model([*images] * len(captions), times, list(captions), return_dict=False)[0]
        return torch.stack(list(outputs))

    plain = run(empty)
    with guide(model, {"cap_feats": [negative]}, nag_scale=5.0):
        wanted = run(prompt)
    for order in ((prompt, empty), (empty, prompt)):
        with guide(model, {"cap_feats": [negative]}, nag_scale=5.0, unconditional={"cap_feats": [empty]}):
            got = run(*order)
        place = [x is prompt for x in order].index(True)
        assert error(got[place : place + 1], wanted) < 1e-6
        assert error(got[1 - place : 2 - place], plain) < 1e-6
