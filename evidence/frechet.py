# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The Frechet distance between two sets of pictures in the classifier's features: the FID and PFID of this world."""

import torch
from torch import Tensor, nn

from nag_kernels.shapes.classifier import Classifier

WIDTH = 64  # features
PATCHES = 4  # of one picture: its quadrants


def root(matrix: Tensor) -> Tensor:
    """The symmetric square root of symmetric, positive semidefinite matrices [..., D, D]."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT


def frechet(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    """The squared Frechet (2-Wasserstein) distance of two Gaussians, float64 [...].

        d = |m1 - m2|^2 + tr(S1 + S2 - 2 (S2^1/2 S1 S2^1/2)^1/2)         (Dowson and Landau 1982; FID, arXiv 1706.08500)

    mean [..., D], covariance [..., D, D]; the others [D], [D, D].
    """
    mean, covariance, other_mean, other_covariance = (
        each.double() for each in (mean, covariance, other_mean, other_covariance)
    )
    half = root(other_covariance)
    cross = torch.linalg.eigvalsh(half @ covariance @ half).clamp(min=0).sqrt().sum(-1)
    traces = covariance.diagonal(dim1=-2, dim2=-1).sum(-1) + other_covariance.diagonal().sum()
    return (mean - other_mean).square().sum(-1) + traces - 2 * cross


def moments(features: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean [..., D] and covariance [..., D, D] of features [N, D], float64; weights [..., N], by default 1 each.

    Raises ValueError for fewer than two features.
    """
    if len(features) < 2:
        raise ValueError(f"features must be at least 2 for a covariance, got {len(features)}")
    features = features.double()
    weights = torch.ones(len(features), dtype=torch.float64) if weights is None else weights.double()
    total = weights.sum(-1)[..., None]
    centre = features.mean(0)  # about which the sums are taken, so that nothing large cancels
    around = features - centre
    mean = weights @ around / total
    second = torch.stack([around.T @ (each[:, None] * around) for each in weights.reshape(-1, len(features))])
    second = second.reshape(*weights.shape[:-1], *second.shape[-2:])
    covariance = (second - total[..., None] * mean[..., :, None] * mean[..., None, :]) / (total[..., None] - 1)
    return mean + centre, covariance


class Features(nn.Module):
    """Pictures [N, 3, 32, 32] in [-1, 1] to features of the whole [N, 64] and of the quadrants [N, 4, 64].

    Both are the mean over places of the classifier's last map (96 channels), by a fixed random orthogonal projection to 64
    (no distance depends on which one, up to what it leaves out). A quadrant is read as a 16x16 picture by itself.
    """

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.body = classifier.body
        channels = classifier.there.in_channels
        drawn = torch.randn(channels, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.register_buffer("projection", torch.linalg.qr(drawn).Q.float())

    @torch.inference_mode()
    def forward(self, pictures: Tensor, batch: int = 128) -> tuple[Tensor, Tensor]:
        whole, quadrants = [], []
        for part in pictures.float().split(batch):
            side = part.shape[-1] // 2
            corners = part.unfold(2, side, side).unfold(3, side, side)  # [N, 3, 2, 2, side, side]
            corners = corners.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
            whole.append(self.body(part).mean((2, 3)) @ self.projection)
            quadrants.append((self.body(corners).mean((2, 3)) @ self.projection).unflatten(0, (-1, PATCHES)))
        return torch.cat(whole), torch.cat(quadrants)
