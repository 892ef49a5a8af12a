# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the classifier learns from: renders, renders spoiled in the ways a generator fails, and the truth about both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..whole_file import whole_file
from .classifier import HEADS, YES_NO, Classifier, read
from .parallel import average_buffers, bar, descent
from .scenes import COLOURS, SHAPES, Scenes, draw_scenes, render
from .settings import Settings


def labels(scenes: Scenes) -> dict[str, Tensor]:
    """The truth for every head but "clean": float [N, C] for the yes/no heads, int64 [N] for the others."""
    count, rows = len(scenes), np.arange(len(scenes))
    cell = scenes.colour * len(SHAPES) + scenes.shape
    truth = {name: np.zeros((count, HEADS[name]), dtype=np.float32) for name in ("cells", "colours", "shapes")}
    for slot, drawn in ((0, rows), (1, np.flatnonzero(scenes.two))):
        truth["cells"][drawn, cell[drawn, slot]] = 1
        truth["colours"][drawn, scenes.colour[drawn, slot]] = 1
        truth["shapes"][drawn, scenes.shape[drawn, slot]] = 1
    truth["two"] = scenes.two[:, None].astype(np.float32)
    truth["size"], truth["background"] = scenes.size[:, 0], scenes.background
    truth["relation"] = np.where(cell[:, 0] < cell[:, 1], scenes.relation, scenes.relation ^ 1)
    return {name: torch.from_numpy(value) for name, value in truth.items()}


def _blur(pictures: Tensor, sigma: Tensor) -> Tensor:
    reach = torch.arange(-4, 5, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (reach / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(-1, keepdim=True)
    count, channels, height, width = pictures.shape
    each = kernel.repeat_interleave(channels, 0)
    flat = F.pad(pictures.reshape(1, -1, height, width), (4, 4, 4, 4), mode="replicate")
    flat = F.conv2d(flat, each[:, None, :, None], groups=count * channels)
    return F.conv2d(flat, each[:, None, None, :], groups=count * channels).reshape(pictures.shape)


def _displace(pictures: Tensor, shift: Tensor) -> Tensor:
    """Pictures sampled at pixels moved by `shift` [N, 2, H, W] (pixels)."""
    count, _, height, width = pictures.shape
    home = F.affine_grid(torch.eye(2, 3).repeat(count, 1, 1), [count, 1, height, width], align_corners=False)
    grid = home + shift.movedim(1, -1) * (2 / width)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


SPOILS = ("noise", "blur", "ragged", "warp", "mix", "ghost", "splice", "colour", "hole")
LESSONS = (*SPOILS, "splice", "splice", "warp", "hole")  # what it trains on: the hard ones more often
KEEPS_FACTS = 1  # the first so many of SPOILS leave the attributes readable


def spoil(scenes: Scenes, rng: np.random.Generator, kinds: tuple[str, ...] = SPOILS) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures spoiled as a generator might fail: [N, 3, 32, 32], which of SPOILS [N], and whether it shows [N].

    `kinds` come equally often.

    A spoil that changes next to nothing (a warp of empty ground, say) is neither clean nor not, and does not count.
    """
    torch.manual_seed(int(rng.integers(2**62)))
    count = len(scenes)
    if count < len(SPOILS):
        raise ValueError(f"scenes must be at least {len(SPOILS)}, one for each spoil, got {count}")
    index = np.array([SPOILS.index(name) for name in kinds])
    clean, kind = render(scenes), torch.from_numpy(rng.permutation(index[np.arange(count) % len(index)]))
    other = scenes[rng.permutation(count)]
    wide, pictures = torch.rand(count), clean.clone()
    at = {name: torch.nonzero(kind == index)[:, 0] for index, name in enumerate(SPOILS)}
    amount = wide[:, None, None, None]

    rows = at["blur"]
    pictures[rows] = _blur(clean[rows], 0.9 + 1.3 * wide[rows])
    rows = at["noise"]
    pictures[rows] += (0.08 + 0.3 * amount[rows]) * torch.randn_like(clean[rows])
    rows = at["ragged"]
    pictures[rows] = _displace(clean[rows], (0.5 + 1.3 * amount[rows]) * torch.randn(len(rows), 2, 32, 32))
    rows = at["warp"]
    field = F.interpolate(torch.randn(len(rows), 2, 8, 8), size=(32, 32), mode="bicubic")
    pictures[rows] = _displace(clean[rows], (0.8 + 2.0 * amount[rows]) * field)
    rows = at["mix"]
    pictures[rows] = torch.lerp(clean[rows], render(other[rows.numpy()]), 0.2 + 0.6 * amount[rows])
    rows = at["ghost"]
    ghost = replace(scenes[rows.numpy()], centre=other.centre[rows.numpy()], background=scenes.background[rows.numpy()])
    pictures[rows] = torch.lerp(clean[rows], render(ghost), 0.2 + 0.6 * amount[rows])
    rows = at["splice"]
    spliced = render(replace(scenes[rows.numpy()], shape=other.shape[rows.numpy()]))
    grid = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="xy")) + 0.5
    angle = 2 * torch.pi * torch.rand(len(rows))
    away = grid[None] - torch.from_numpy(scenes.centre[rows.numpy(), 0].astype(np.float32))[:, :, None, None]
    side = (away * torch.stack([angle.cos(), angle.sin()], -1)[:, :, None, None]).sum(1, keepdim=True)
    pictures[rows] = torch.lerp(clean[rows], spliced, (side + 0.5).clamp(0, 1))
    rows = at["colour"]
    palette = np.array([*COLOURS.values(), (128, 128, 128)], dtype=np.float32)
    share = 0.3 + 0.4 * rng.random((len(rows), 2, 1), dtype=np.float32)
    drawn = palette[scenes.colour[rows.numpy()]]
    muddy = drawn + share * (palette[rng.integers(0, len(palette), (len(rows), 2))] - drawn)
    pictures[rows] = render(scenes[rows.numpy()], muddy)
    rows = at["hole"]
    empty = torch.from_numpy(scenes.centre[rows.numpy(), 0].astype(np.float32))[:, :, None, None] + 12 * (
        torch.rand(len(rows), 2, 1, 1) - 0.5
    )
    hole = ((grid[None] - empty).abs().amax(1, keepdim=True) < 2 + 2 * amount[rows]).float()
    pictures[rows] = torch.lerp(clean[rows], render(other[rows.numpy()])[:, :, :1, :1].expand(-1, -1, 32, 32), hole)
    return pictures, kind, (pictures - clean).square().mean((1, 2, 3)) > 0.004


def benign(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Clean pictures with changes that nobody sees: a trace of noise, of blur and of colour."""
    torch.manual_seed(int(rng.integers(2**62)))
    softened = _blur(pictures, 0.15 + 0.3 * torch.rand(len(pictures)))
    tint = 1 + 0.06 * (torch.rand(len(pictures), 3, 1, 1) - 0.5)
    return softened * tint + 0.03 * torch.rand(len(pictures), 1, 1, 1) * torch.randn_like(pictures)


def train_classifier(settings: Settings, rank: int, folder: Path) -> None:
    """Write `classifier.safetensors`: trained on renders drawn for each batch, half of them spoiled; float16."""
    torch.manual_seed(settings.seed + 20 + rank)
    rng = np.random.default_rng(settings.seed + 20 + rank)
    model: Any = Classifier()
    model = model.to(memory_format=torch.channels_last)
    down = descent([model], settings.classifier_steps, settings.classifier_rate)
    half = settings.classifier_batch // 2
    for _ in bar(range(settings.classifier_steps), "classifier", rank):
        scenes = draw_scenes(2 * half, rng, two_share=0.4)
        spoiled, kind, told = spoil(scenes[half:], rng, LESSONS)
        pictures = torch.cat([benign(render(scenes[:half]), rng), spoiled])
        logits = model(pictures.contiguous(memory_format=torch.channels_last))
        truth = labels(scenes)
        truth["clean"] = (torch.arange(2 * half) < half).float()[:, None]
        readable = torch.cat([torch.ones(half, dtype=torch.bool), kind < KEEPS_FACTS])
        counted = torch.cat([torch.ones(half, dtype=torch.bool), told])
        two = truth["two"][:, 0] > 0
        use = {"clean": counted, "size": readable & ~two, "relation": readable & two}
        losses = []
        for name in HEADS:
            rows = use.get(name, readable)
            if not rows.any():
                continue
            loss = F.binary_cross_entropy_with_logits if name in YES_NO else F.cross_entropy
            # The mean over many yes/no questions, most of them easily no, would drown in the other losses; "clean" is
            # the hardest to learn.
            weight = 3 if name == "clean" else HEADS[name] if name in YES_NO else 1
            losses.append(weight * loss(logits[name][rows], truth[name][rows]))
        down.step(sum(losses[1:], losses[0]))
    average_buffers(model)
    if rank == 0:
        state = {
            name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()
        }
        with whole_file(folder / "classifier.safetensors") as part:
            save_file({name: value.contiguous() for name, value in state.items()}, str(part))


def accuracy(model: Classifier, count: int, seed: int) -> dict[str, float]:
    """Share of fresh renders read rightly, per attribute; "clean" over as many spoiled pictures as clean ones."""
    rng = np.random.default_rng(seed)
    scenes = draw_scenes(count, rng, two_share=0.5)
    truth, reading = labels(scenes), read(model, render(scenes))
    two = torch.from_numpy(scenes.two)
    cell = torch.from_numpy(np.sort(scenes.colour * len(SHAPES) + scenes.shape, axis=1))
    one = torch.from_numpy(scenes.colour[:, 0] * len(SHAPES) + scenes.shape[:, 0])
    spoiled, _, told = spoil(draw_scenes(count, rng, two_share=0.5), rng)
    found = torch.cat([reading.clean, ~read(model, spoiled[told]).clean])
    shares = {
        "colour": reading.cells[~two, 0] // len(SHAPES) == one[~two] // len(SHAPES),
        "shape": reading.cells[~two, 0] % len(SHAPES) == one[~two] % len(SHAPES),
        "both objects": (reading.cells[two] == cell[two]).all(-1),
        "any colour": (reading.colours == (truth["colours"] > 0)).all(-1),
        "any shape": (reading.shapes == (truth["shapes"] > 0)).all(-1),
        "size": (reading.size == truth["size"])[~two],
        "background": reading.background == truth["background"],
        "relation": (reading.relation == truth["relation"])[two],
        "number": reading.two == two,
        "clean": found,
        "clean renders": reading.clean,
    }
    return {name: float(right.float().mean()) for name, right in shares.items()}
