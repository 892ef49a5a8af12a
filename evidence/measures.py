# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is measured on a cell's samples, with bootstrap replicates that are paired from cell to cell."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nag_kernels.shapes.classifier import Classifier, matches, read, shows

from .cells import PAIRS, Size
from .frechet import Features, frechet, moments
from .renders import real

MEASURES = {
    "shows": "share of samples that show the negative, of the pairs that leave it open",
    "match": "share that match the prompt",
    "clean": "share that are clean",
    "clean_match": "share that match the prompt and are clean",
    "frechet": "Frechet distance of whole pictures to renders of the prompt without the negative",
    "patches": "the same of their quadrants",
    "diversity": "mean distance in features between two samples of one pair",
}
OPEN = np.array([bool(pair.open) for pair in PAIRS])


@dataclass
class Samples:
    """What is kept of a cell's pictures; N = pairs * n, pair by pair."""

    flags: dict[str, np.ndarray]  # "shows", "match", "clean", "clean_match": [N] bool
    whole: np.ndarray  # [N, 64]
    quadrants: np.ndarray  # [N, 4, 64]


@dataclass
class Replicates:
    """What is kept of a cell's measures."""

    samples: int
    values: dict[str, np.ndarray]  # as `measure` gives them


@dataclass
class Reference:
    """Moments of real renders, of whole pictures and of their quadrants."""

    whole: tuple[Tensor, Tensor]
    quadrants: tuple[Tensor, Tensor]


def judge(classifier: Classifier, features: Features, pictures: Tensor) -> Samples:
    """Read pictures [N, 3, 32, 32] in [-1, 1], the same number for each of PAIRS, pair by pair."""
    each = len(pictures) // len(PAIRS)
    if each * len(PAIRS) != len(pictures):
        raise ValueError(f"pictures must be the same number for each of {len(PAIRS)} pairs, got {len(pictures)}")
    flags: dict[str, list[Tensor]] = {"shows": [], "match": [], "clean": []}
    for pair, part in zip(PAIRS, pictures.split(each), strict=True):
        reading = read(classifier, part)
        flags["shows"].append(shows(reading, pair.negative))
        flags["match"].append(matches(reading, pair.prompt))
        flags["clean"].append(reading.clean)
    joined = {name: torch.cat(parts).numpy() for name, parts in flags.items()}
    joined["clean_match"] = joined["match"] & joined["clean"]
    whole, quadrants = features(pictures)
    return Samples(joined, whole.numpy(), quadrants.numpy())


def reference(features: Features, size: Size) -> Reference:
    """Real renders, `size.reference` of each pair, never those of `real_samples`."""
    parts = [features(real(pair, size.reference, (1, index))) for index, pair in enumerate(PAIRS)]
    whole, quadrants = (torch.cat([part[kind] for part in parts]) for kind in (0, 1))
    return Reference(moments(whole), moments(quadrants.flatten(0, 1)))


@functools.cache
def draws(pairs: int, each: int, replicates: int) -> np.ndarray:
    """How often each sample is drawn, [replicates + 1, pairs, each]; the first row has every sample once.

    A bootstrap stratified by pair: each replicate draws `each` of the samples of every pair, with replacement. The numbers
    depend on the arguments alone, so replicate r draws the same seeds in every cell of one size: differences of replicates
    are paired.
    """
    rng = np.random.default_rng((pairs, each, replicates))
    drawn = rng.multinomial(each, np.full(each, 1 / each), (replicates, pairs))
    return np.concatenate([np.ones((1, pairs, each), dtype=np.int64), drawn]).astype(np.float64)


def measure(samples: Samples, against: Reference, replicates: int) -> dict[str, np.ndarray]:
    """Every measure, [replicates + 1]: the value, then its bootstrap replicates."""
    each = len(samples.whole) // len(PAIRS)
    counts = draws(len(PAIRS), each, replicates)
    found = {}
    for name, flags in samples.flags.items():
        kept = OPEN if name == "shows" else np.ones(len(PAIRS), dtype=bool)
        shares = (counts * flags.reshape(len(PAIRS), each)).sum(-1) / each
        found[name] = shares[:, kept].mean(1)
    weights = torch.from_numpy(counts.reshape(len(counts), -1))
    found["frechet"] = frechet(*moments(torch.from_numpy(samples.whole), weights), *against.whole).numpy()
    repeated = weights.repeat_interleave(samples.quadrants.shape[1], -1)
    quadrants = torch.from_numpy(samples.quadrants).flatten(0, 1)
    found["patches"] = frechet(*moments(quadrants, repeated), *against.quadrants).numpy()
    found["diversity"] = _diversity(samples.whole.reshape(len(PAIRS), each, -1), counts)
    return found


def _diversity(features: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean distance between two different samples of a pair, then over pairs: [R] for counts [R, pairs, n]; nan for n = 1."""
    each = features.shape[1]
    if each == 1:
        return np.full(len(counts), np.nan)
    features = torch.from_numpy(features).double()
    apart = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    total = np.einsum("rpn,pnm,rpm->rp", counts, apart, counts, optimize=True)
    different = each**2 - (counts**2).sum(-1)  # a sample drawn twice is not compared with itself
    return (total / np.maximum(different, 1)).mean(1)


def interval(values: np.ndarray, name: str) -> tuple[float, float, float]:
    """(value, low, high) of values [replicates + 1] of the measure `name`: 95 % between the percentiles of the replicates.

    Replicates of distances are first moved so that their mean is the value: resampled sets lie too far off, all by much
    the same.
    """
    value, replicates = values[0], values[1:]
    if name in ("frechet", "patches"):
        replicates = replicates - replicates.mean() + value
    low, high = np.quantile(replicates, (0.025, 0.975))
    return float(value), float(low), float(high)


def contrast(terms: list[tuple[float, Replicates]], name: str) -> tuple[float, float, float]:
    """(value, low, high) of a weighted sum of one measure over cells of one size; the replicates are paired.

    Raises ValueError where the cells are not of one size: `draws` of another number of samples or replicates are other draws.
    """
    values = [weight * cell.values[name] for weight, cell in terms]
    samples, replicates = [cell.samples for _, cell in terms], [len(each) for each in values]
    for what, counts in (("samples", samples), ("replicates", replicates)):
        if len(set(counts)) != 1:
            raise ValueError(f"cells must have the same number of {what} to be paired, got {counts}")
    return interval(sum(values), name)
