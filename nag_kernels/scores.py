# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of generated pictures by libraries that others keep: CLIP score, Fréchet distances, ImageReward, HPSv2.

A score without a value says why: "missing" where its package, weights or real pictures cannot be had, which is tried once, or
"failed" where it could not be computed for these pictures, which is tried again for others.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

RESAMPLES = 1000  # of the bootstrap
PATCH = 299  # pixels: what Inception sees


@dataclass(frozen=True)
class Drawn:
    """One picture on disk, and what it was asked to be."""

    path: Path
    prompt: str
    negative: str


@dataclass(frozen=True)
class Score:
    """One number for one method: `low` and `high` bound 95 % of bootstrap means; without a value, `note` is the reason."""

    metric: str
    samples: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


def mean_score(metric: str, values: Iterable[float], note: str = "") -> Score:
    """The mean of one value for each picture, with the bootstrap's 95 % interval (percentiles, fixed seed)."""
    values = np.asarray(list(values), dtype=np.float64)
    rng = np.random.default_rng(0)
    means = [rng.choice(values, len(values)).mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return Score(metric, len(values), float(values.mean()), float(low), float(high), note)


def pixels(path: Path) -> Tensor:
    """[3, H, W], uint8."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).movedim(-1, 0).contiguous()


def middle(path: Path, side: int = PATCH) -> Tensor:
    """The middle of a picture as it is, [3, side, side]. Raises ValueError for a smaller one."""
    picture = pixels(path)
    height, width = picture.shape[1:]
    if min(height, width) < side:
        raise ValueError(f"pictures must be at least {side} wide and high for patches, got {path} of {width}x{height}")
    top, left = (height - side) // 2, (width - side) // 2
    return picture[:, top : top + side, left : left + side]


class _Clip(nn.Module):
    """A CLIP model as torchmetrics calls it: its features are tensors (in transformers 5 they stand in an output)."""

    def __init__(self, name: str):
        super().__init__()
        from transformers import CLIPModel

        self.model = CLIPModel.from_pretrained(name).eval()
        self.config = self.model.config

    @torch.no_grad()
    def get_image_features(self, *args: Any) -> Tensor:
        return self._tensor(self.model.get_image_features(*args))

    @torch.no_grad()
    def get_text_features(self, *args: Any) -> Tensor:
        return self._tensor(self.model.get_text_features(*args))

    def _tensor(self, out: Any) -> Tensor:
        return out if isinstance(out, Tensor) else out.pooler_output


class _ClipFeatures(nn.Module):
    """Pictures [N, 3, H, W] uint8 to CLIP's embeddings [N, C], for the Fréchet distance."""

    def __init__(self, clip: _Clip, processor: Any):
        super().__init__()
        self.clip, self.processor = clip, processor
        self.num_features = clip.config.projection_dim

    def forward(self, pictures: Tensor) -> Tensor:
        device = next(self.clip.parameters()).device
        inputs = self.processor(images=list(pictures.cpu()), return_tensors="pt")["pixel_values"]
        return self.clip.get_image_features(inputs.to(device))


# What pip calls a package that a score imports, and how to install it.
INSTALL = {
    "ImageReward": "pip install image-reward, in an environment of its own (docs/evaluate.md)",
    "hpsv2": "pip install hpsv2, in an environment of its own (docs/evaluate.md)",
    "torchmetrics": "pip install torchmetrics",
}


class Missing(Exception):
    """What a score needs cannot be had; in the words of the first error, or with the command that installs it."""

    def __init__(self, error: Exception):
        package = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
        known = package in INSTALL
        super().__init__(f"the package {package} is not installed: {INSTALL[package]}" if known else _named(error))


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


class Judges:
    """All scores, each loaded once and used for every method.

    clip: a CLIP model's id or folder.  reference: a folder of real pictures, or None.  judge: reads shapes' pictures, or None.
    """

    def __init__(self, clip: str, reference: Path | None, device: str, hps_version: str = "v2.0",
                 judge: Callable | None = None):  # fmt: skip
        self.clip, self.reference, self.device = clip, reference, device
        self.hps_version, self.judge = hps_version, judge
        self._loaded: dict[str, Any] = {}
        self.real: list[Path] = []
        if reference is not None:
            self.real = sorted(
                x for x in reference.rglob("*") if x.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
            )

    def all(self, drawn: list[Drawn], bar: Any = None) -> list[Score]:
        """Every score of these pictures; one that cannot be computed has no value and says why. `bar` counts scores."""
        named = {
            "clip_score": self._clip_score,
            "fid": lambda drawn: self._frechet("fid", drawn),
            "pfid": lambda drawn: self._frechet("pfid", drawn),
            "frechet_clip": lambda drawn: self._frechet("frechet_clip", drawn),
            "image_reward": self._image_reward,
            "hpsv2": self._hpsv2,
        }
        scores = []
        for name, score in named.items():
            scores.append(self._guarded(name, score, drawn))
            if bar is not None:
                bar.update(1 / len(named))
        if self.judge is not None:
            shows, clean = self.judge([Image.open(x.path) for x in drawn])
            scores += [mean_score("shows_negative", shows), mean_score("clean_match", clean)]
        return scores

    def _guarded(self, name: str, score: Callable[[list[Drawn]], Score], drawn: list[Drawn]) -> Score:
        try:
            return score(drawn)
        except Missing as error:
            return Score(name, 0, note=f"missing: {error}")
        except Exception as error:  # other people's packages: a score that fails must not cost the others
            return Score(name, 0, note=f"failed: {_named(error)}")

    def _once(self, name: str, load: Callable[[], Any]) -> Any:
        """What `load` gives, or `Missing`: a package or a download that failed once is not tried for every method."""
        if name not in self._loaded:
            try:
                self._loaded[name] = load()
            except Missing as error:  # of a part, which has its own name
                self._loaded[name] = error
            except Exception as error:
                self._loaded[name] = Missing(error)
        if isinstance(self._loaded[name], Missing):
            raise self._loaded[name]
        return self._loaded[name]

    def _clip_and_processor(self) -> tuple[_Clip, Any]:
        def load() -> tuple[_Clip, Any]:
            from transformers import CLIPProcessor

            return _Clip(self.clip).to(self.device), CLIPProcessor.from_pretrained(self.clip)

        return self._once("clip", load)

    def _clip_score(self, drawn: list[Drawn]) -> Score:
        def load() -> nn.Module:
            from torchmetrics.multimodal.clip_score import CLIPScore

            return CLIPScore(self._clip_and_processor).to(self.device)

        metric = self._once("clip_score", load)
        values = []
        for each in drawn:
            metric.reset()
            metric.update(pixels(each.path).to(self.device), each.prompt)
            values.append(metric.score.item())
        return mean_score("clip_score", values, note=self.clip)

    def _frechet(self, name: str, drawn: list[Drawn]) -> Score:
        """To the reference, in the features of Inception ("fid", and "pfid" of 299 pixels in the middle) or of CLIP.

        Without an interval: it is biased by the number of pictures. Real pictures smaller than a patch are left out.
        """

        def picture(path: Path) -> Tensor:
            return (middle(path) if name == "pfid" else pixels(path))[None].to(self.device)

        def load() -> tuple[Any, int]:
            if not self.real:
                wanted = "no folder of real pictures was given (--reference)"
                raise ValueError(wanted if self.reference is None else f"{self.reference} holds no pictures")
            real = [x for x in self.real if name != "pfid" or min(Image.open(x).size) >= PATCH]
            if len(real) < 2:
                small = f", of which {len(real)} are large enough for a patch" if name == "pfid" else ""
                raise ValueError(f"a distance needs at least two real pictures, got {len(self.real)}{small}")
            from torchmetrics.image.fid import FrechetInceptionDistance

            feature = _ClipFeatures(*self._clip_and_processor()) if name == "frechet_clip" else 2048
            metric = FrechetInceptionDistance(feature=feature, reset_real_features=False).to(self.device)
            for path in real:
                metric.update(picture(path), real=True)
            return metric, len(real)

        metric, real = self._once(name, load)
        if len(drawn) < 2:
            raise ValueError(f"a distance needs at least two pictures, got {len(drawn)}")
        metric.reset()
        for each in drawn:
            metric.update(picture(each.path), real=False)
        return Score(name, len(drawn), float(metric.compute()), note=f"to {real} real pictures")

    def _image_reward(self, drawn: list[Drawn]) -> Score:
        def load() -> Any:
            import ImageReward  # pyright: ignore[reportMissingImports]  # by hand: it brings torch of its own

            return ImageReward.load("ImageReward-v1.0", device=self.device)

        model = self._once("image_reward", load)
        return mean_score(
            "image_reward", (float(model.score(x.prompt, str(x.path))) for x in drawn), "ImageReward-v1.0"
        )

    def _hpsv2(self, drawn: list[Drawn]) -> Score:
        """Times 100, as it is published."""

        def load() -> Any:
            import hpsv2  # pyright: ignore[reportMissingImports]  # by hand as well

            # The package loads its weights as it scores.
            hpsv2.score(Image.new("RGB", (PATCH, PATCH)), "", hps_version=self.hps_version)
            return hpsv2

        hpsv2 = self._once("hpsv2", load)
        values = (100 * float(hpsv2.score(str(x.path), x.prompt, hps_version=self.hps_version)[0]) for x in drawn)
        return mean_score("hpsv2", values, self.hps_version)
