# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""How well a pipeline draws: the classifier's reading of its samples, as shares."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .classifier import Classifier, matches, read, shows
from .classifier_training import labels
from .pipeline import ShapesPipeline
from .scenes import SHAPES, caption, draw_scenes


def sample(pipe: ShapesPipeline, prompts: list[str], seed: int, batch: int = 128, **call: Any) -> Tensor:
    """One picture [3, 32, 32] in [-1, 1] per prompt; the noise depends on `seed` and the place in the list alone."""
    pictures = []
    shape = (pipe.denoiser.config.in_channels, *[pipe.denoiser.config.sample_size] * 2)
    noise = torch.randn((len(prompts), *shape), generator=torch.Generator().manual_seed(seed))
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        pictures.append(pipe(prompts[part], latents=noise[part], output_type="pt", **call).images.cpu())
    return torch.cat(pictures) * 2 - 1


def evaluate(pipe: ShapesPipeline, classifier: Classifier, count: int, seed: int, steps: int = 4) -> dict[str, float]:
    """Shares over `count` samples each of one-object prompts, two-object prompts, and "a large circle".

    The prompts name everything that a caption can name. "objects" counts samples with the right number of objects, each
    of the right colour and shape; "all" asks for background and size (of one object) or relation (of two) as well.
    """
    shares = {}
    for name, two in (("one", 0.0), ("two", 1.0)):
        rng = np.random.default_rng(seed)
        scenes = draw_scenes(count, rng, two_share=two)
        truth = labels(scenes)
        reading = read(classifier, sample(pipe, caption(scenes, rng, full_share=1.0), seed, num_inference_steps=steps))
        cells = torch.from_numpy(np.sort(scenes.colour * len(SHAPES) + scenes.shape, axis=1))
        if not two:
            first = scenes.colour[:, 0] * len(SHAPES) + scenes.shape[:, 0]
            cells = torch.from_numpy(np.stack([first, -np.ones(count)], 1))
        objects = (reading.two == bool(two)) & (reading.cells == cells).all(-1)
        last = reading.relation == truth["relation"] if two else reading.size == truth["size"]
        everything = objects & last & (reading.background == truth["background"])
        shares[f"{name}: clean"] = share(reading.clean)
        shares[f"{name}: objects"] = share(objects)
        shares[f"{name}: objects and clean"] = share(objects & reading.clean)
        shares[f"{name}: all and clean"] = share(everything & reading.clean)
    reading = read(classifier, sample(pipe, ["a large circle"] * count, seed, num_inference_steps=steps))
    shares["a large circle: right and clean"] = share(matches(reading, "a large circle") & reading.clean)
    shares["a large circle: red"] = share(shows(reading, "red"))
    return shares


def share(yes: Tensor) -> float:
    return round(float(yes.float().mean()), 4)
