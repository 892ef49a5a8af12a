# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The generator: flow matching on latents, then distillation to four steps; of the UNet, and of its relatives."""

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from ..descent import Average
from ..whole_file import whole_file
from .autoencoder import build_autoencoder
from .classifier import load_classifier
from .evaluate import evaluate
from .parallel import bar, descent
from .pipeline import ShapesPipeline, velocity
from .scenes import ACROSS, GAP, MARGIN, SIZE, Scenes, caption, draw_scenes, render
from .settings import Settings
from .text_encoder import WIDTH, build_text_encoder, build_tokenizer, embed


def build_pipeline(shift: float, joint: bool = False) -> ShapesPipeline:
    """The untrained pipeline, with the joint-attention denoiser or the other: every component, random weights."""
    tokenizer = build_tokenizer()
    text_encoder = build_text_encoder(len(tokenizer))
    vae, scheduler = build_autoencoder(), FlowMatchEulerDiscreteScheduler(shift=shift)
    denoiser: dict[str, Any] = {"transformer": build_transformer()} if joint else {"unet": build_unet()}
    return ShapesPipeline(tokenizer, text_encoder, vae, scheduler, **denoiser)


def build_unet() -> UNet2DConditionModel:
    """Cross-attention: convolutions at 8x8 and 4x4, which learn to draw from few samples (docs/shapes.md)."""
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=8, out_channels=8, block_out_channels=(WIDTH // 2, WIDTH // 2), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=2, cross_attention_dim=WIDTH, norm_num_groups=16,
    )  # fmt: skip
    nn.init.zeros_(unet.conv_out.weight)
    return unet


def build_transformer(layers: int = 5) -> Any:
    """Joint attention over 64 places and 16 words, as in SD3.5; the modulations start at zero, as in a DiT."""
    model: Any = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=8, out_channels=8, num_layers=layers, num_attention_heads=4,
        attention_head_dim=WIDTH // 4, joint_attention_dim=WIDTH, caption_projection_dim=WIDTH,
        pooled_projection_dim=WIDTH, pos_embed_max_size=8, qk_norm="rms_norm",
    )  # fmt: skip
    modulations = [norm.linear for block in model.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    for linear in (*modulations, model.norm_out.linear, model.proj_out):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return model


def place_by_noise(scenes: Scenes, noise: Tensor) -> Scenes:
    """The scenes with their objects moved to where the noise [N, C, 8, 8] is highest: object k to where channel k is.

    Of all placements on whole pixels that `draw_scenes` allows, it takes the one with the largest sum over its objects
    of the noise around the object's centre (weights: a Gaussian of 4 pixels). Attributes do not depend on the noise, so
    whatever the caption says, the noise is standard normal; but what is left open, the places, is settled by it, and
    paths from noise to picture hardly cross: the coupling of multisample flow matching (arXiv 2304.14772).
    """
    side, at = noise.shape[-1], torch.arange(SIZE + 1)
    cells = (torch.arange(side) + 0.5) * (SIZE / side)
    near = torch.exp(-0.5 * ((cells[:, None] - at) / 4) ** 2)  # [cell, pixel]
    near = near / near.norm(dim=0)
    high = torch.einsum("nkyx,ya,xb->nkab", noise[:, :2], near, near)
    radius = torch.from_numpy(scenes.radius)[:, :, None]
    inside = (at >= radius + MARGIN) & (at <= SIZE - MARGIN - radius)
    high = high.masked_fill(~(inside[:, :, :, None] & inside[:, :, None]), -torch.inf)
    centre = torch.from_numpy(scenes.centre).clone()
    centre[:, 0] = _highest(high[:, 0])

    rows = torch.from_numpy(np.flatnonzero(scenes.two))
    if len(rows) == 0:
        return replace(scenes, centre=centre.numpy())
    relation, apart = torch.from_numpy(scenes.relation)[rows], radius[rows].sum((1, 2))[:, None, None] + GAP
    # Turned so that the pair lies along x, and in its order along x.
    upright, swapped = (relation // 2 == 1)[:, None, None], (relation % 2 == 1)[:, None, None]
    pair = torch.where(upright[..., None], high[rows].mT, high[rows])
    left, right = torch.where(swapped[..., None], pair.flip(1), pair).unbind(1)
    beyond = torch.full_like(right, -torch.inf)  # the best that the right one finds, for every place of the left one
    for step in range(int(apart.min()), SIZE):
        reach = int(ACROSS * step)
        best = F.max_pool2d(right[:, None, :, step:], (2 * reach + 1, 1), 1, (reach, 0))[:, 0]
        best = best.masked_fill(step < apart, -torch.inf)
        beyond[:, :, : SIZE + 1 - step] = torch.maximum(beyond[:, :, : SIZE + 1 - step], best)
    first = _highest(left + beyond)
    along, across = at - first[:, :1], (at - first[:, 1:]).abs()
    fits = (along[:, None] >= apart) & (across[:, :, None] <= ACROSS * along[:, None])
    found = torch.stack([first, _highest(right.masked_fill(~fits, -torch.inf))], 1)
    found = torch.where(swapped, found.flip(1), found)
    centre[rows] = torch.where(upright, found.flip(2), found)
    return replace(scenes, centre=centre.numpy())


def _highest(table: Tensor) -> Tensor:
    """Where tables [N, H, W] are highest: [N, 2], x then y."""
    place = table.flatten(1).argmax(1)
    return torch.stack([place % table.shape[-1], place // table.shape[-1]], -1).double()


class Pairs:
    """A process's endless supply of noise, the latents that it should become, and captions."""

    def __init__(self, settings: Settings, rank: int, vae: Any, two_share: float):
        self.rng, self.settings, self.vae = np.random.default_rng(settings.seed + 30 + rank), settings, vae
        self.two_share = two_share
        self.ready: list[tuple[Tensor, Tensor, list[str]]] = []

    @torch.no_grad()
    def draw(self) -> tuple[Tensor, Tensor, list[str]]:
        """Noise [B, 8, 8, 8], latents [B, 8, 8, 8] and B captions, B = `settings.flow_batch`."""
        if not self.ready:  # eight batches at once, which is cheaper
            batch, config = self.settings.flow_batch, self.vae.config
            noise = torch.randn(8 * batch, config.latent_channels, SIZE // 4, SIZE // 4)
            scenes = place_by_noise(draw_scenes(len(noise), self.rng, self.two_share), noise)
            latents = self.vae.encode(render(scenes)).latent * config.scaling_factor
            captions = caption(scenes, self.rng, full_share=self.settings.full_share)
            parts = [slice(start, start + batch) for start in range(0, len(noise), batch)]
            self.ready = [(noise[part], latents[part], captions[part]) for part in parts]
        return self.ready.pop()


def shifted(sigma: Tensor, shift: float) -> Tensor:
    return shift * sigma / (1 + (shift - 1) * sigma)


def _load(module: nn.Module, path: Path) -> None:
    module.load_state_dict({name: value.float() for name, value in load_file(str(path)).items()})


def _save(pipe: ShapesPipeline, path: Path) -> None:
    parts = {"text_encoder": pipe.text_encoder, "denoiser": pipe.denoiser}
    state = {f"{part}.{name}": value for part, model in parts.items() for name, value in model.state_dict().items()}
    with whole_file(path) as part:
        save_file({name: value.clone().contiguous() for name, value in state.items()}, str(part))


def load_generator(pipe: ShapesPipeline, path: Path) -> None:
    """Weights that training wrote into the pipeline's text encoder and denoiser (which older files call "unet")."""
    state = {re.sub(r"^unet\.", "denoiser.", name): value for name, value in load_file(str(path)).items()}
    for part in ("text_encoder", "denoiser"):
        own = {name.removeprefix(part + "."): value for name, value in state.items() if name.startswith(part + ".")}
        getattr(pipe, part).load_state_dict(own)


class _Watch:
    """Every so many steps: save the averaged weights and say how well they draw in 4 steps."""

    def __init__(self, settings: Settings, pipe: ShapesPipeline, average: Average, rank: int, judge: Path, path: Path):
        self.settings, self.pipe, self.average, self.rank, self.path = settings, pipe, average, rank, path
        self.classifier: Any = load_classifier(judge) if rank == 0 else None

    def __call__(self, step: int, steps: int, loss: Tensor) -> None:
        last = step == steps - 1
        if self.rank == 0 and (last or (step + 1) % self.settings.watch_every == 0):
            self.average.swap()
            _save(self.pipe, self.path)
            for count in (4, 12):
                found = evaluate(self.pipe, self.classifier, self.settings.judged // 8, seed=1, steps=count)
                said = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
                tqdm.write(f"step {step + 1}, loss {float(loss.detach()):.4f}, {count} sampling steps: {said}")
            if not last:
                self.average.swap()
        dist.barrier()


def train_flow(settings: Settings, rank: int, folder: Path) -> None:
    """Write `flow.safetensors`: the UNet trained by flow matching, beside the text encoder, which stays as it was."""
    torch.manual_seed(settings.seed + 40 + rank)
    pipe = build_pipeline(settings.shift)
    _load(pipe.vae, folder / "vae.safetensors")
    _load(pipe.text_encoder, folder / "text.safetensors")
    match_flow(settings, rank, pipe, folder / "classifier.safetensors", folder / "flow.safetensors")


def match_flow(settings: Settings, rank: int, pipe: ShapesPipeline, judge: Path, path: Path) -> None:
    """Train the pipeline's denoiser by flow matching and write it to `path`.

        loss = |v(x_s, s, text) - (e - x)|^2,    x_s = (1 - s) x + s e,    e ~ N(0, 1)

    with s in the share `flow_visited` of the batch one of the four noise levels that sampling visits, otherwise any, for
    longer schedules. Noise and picture come in pairs: `place_by_noise`.
    """
    pairs = Pairs(settings, rank, pipe.vae, settings.flow_two_share)
    pipe.text_encoder.requires_grad_(False)
    trained = [pipe.denoiser.to(memory_format=torch.channels_last)]
    down = descent(trained, settings.flow_steps, settings.flow_rate, warmup=200)
    average = Average(trained)
    watch = _Watch(settings, pipe, average, rank, judge, path)
    denoiser = torch.compile(pipe.denoiser) if settings.compiled else pipe.denoiser
    visited = shifted(torch.tensor([1.0, 0.75, 0.5, 0.25]), settings.shift)
    for step in bar(range(settings.flow_steps), "flow matching", rank):
        noise, x, captions = pairs.draw()
        sigma = shifted(torch.rand(len(x)), settings.shift)
        chosen = torch.rand(len(x)) < settings.flow_visited
        sigma = torch.where(chosen, visited[torch.randint(4, (len(x),))], sigma)
        state = torch.lerp(x, noise, sigma[:, None, None, None])
        found = velocity(denoiser, state, sigma * 1000, *embed(pipe.tokenizer, pipe.text_encoder, captions))
        loss = (found - (noise - x)).square().mean()
        down.step(loss)
        average.update()
        watch(step, settings.flow_steps, loss)


def train_few_steps(settings: Settings, rank: int, folder: Path) -> None:
    """Write `few.safetensors`: the UNet distilled to the four steps of the scheduler."""
    torch.manual_seed(settings.seed + 50 + rank)
    pipe = build_pipeline(settings.shift)
    _load(pipe.vae, folder / "vae.safetensors")
    load_generator(pipe, folder / "flow.safetensors")
    straighten(settings, rank, pipe, folder / "classifier.safetensors", folder / "few.safetensors")


def straighten(settings: Settings, rank: int, pipe: ShapesPipeline, judge: Path, path: Path) -> None:
    """Distil the pipeline's denoiser to the four steps of the scheduler and write it to `path`.

    The four steps cut the path from noise to picture into windows. In each, the flow-matching model (with
    classifier-free guidance) walks `few_substeps` small steps from a noised latent; the student learns the straight
    line to where it arrives: piecewise rectified flow (PeRFlow, arXiv 2405.07510, section 3).
    """
    pipe.text_encoder.requires_grad_(False)
    pipe.denoiser.to(memory_format=torch.channels_last)
    teacher = copy.deepcopy(pipe.denoiser).requires_grad_(False)
    pairs = Pairs(settings, rank, pipe.vae, settings.few_two_share)
    down = descent([pipe.denoiser], settings.few_steps, settings.few_rate, warmup=50)
    average = Average([pipe.denoiser], decay=0.99)
    watch = _Watch(settings, pipe, average, rank, judge, path)
    edges = shifted(torch.from_numpy(np.linspace(1, 0, 5)), settings.shift).float()
    for step in bar(range(settings.few_steps), "four steps", rank):
        noise, x, captions = pairs.draw()
        window = torch.randint(4, (len(x),))
        high, low = edges[window][:, None, None, None], edges[window + 1][:, None, None, None]
        start = torch.lerp(x, noise, high)
        with torch.no_grad():
            text, mask = embed(pipe.tokenizer, pipe.text_encoder, ["" for _ in captions] + captions)
            end, stride = start, (high - low) / settings.few_substeps
            for part in range(settings.few_substeps):
                sigma = (high - part * stride).flatten().repeat(2)
                without, with_text = velocity(teacher, end.repeat(2, 1, 1, 1), sigma * 1000, text, mask).chunk(2)
                end = end - stride * torch.lerp(without, with_text, settings.few_guidance)
        line = (start - end) / (high - low)
        # Mostly from the window's start, all that four steps visit; sometimes from within, for longer schedules.
        along = torch.rand_like(high) * (torch.rand_like(high) < 0.25)
        sigma = high - along * (high - low)
        count = len(captions)
        found = pipe.predict(start - (high - sigma) * line, sigma.flatten() * 1000, text[count:], mask[count:])
        loss = (found - line).square().mean()
        down.step(loss)
        average.update()
        watch(step, settings.few_steps, loss)
