# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a prompt are attended to."""

import torch
from torch import Tensor

MASKED = -9000.0  # diffusers writes "not seen" as a bias of -10000, others as the lowest number or -inf


def seen_tokens(where: str, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(seen, plain): which tokens a mask lets through, bool [B, T], and whether it is plain yes or no, bool [].

    mask: diffusers' additive bias [B, 1, T] or [B, T] (0 = seen, -9000 or less = not seen), or the same as bool
        (True = seen).
    Raises ValueError for any other shape.
    """
    if mask.ndim == 3 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim != 2:
        raise ValueError(f"{where}: attention_mask must be [B, 1, T] (one for all queries), got {tuple(mask.shape)}")
    if mask.dtype == torch.bool:
        return mask, torch.ones((), dtype=torch.bool, device=mask.device)
    seen = mask == 0
    return seen, (seen | (mask <= MASKED)).all()


def whole_if_unseen(seen: Tensor) -> Tensor:
    """A text of which no token is seen is seen whole, [B, T]: a bias that is alike everywhere changes nothing."""
    return seen | ~seen.any(dim=1, keepdim=True)


def counted(seen: Tensor) -> Tensor:
    """As many tokens as are seen in each row, from the first, [B, T]."""
    return torch.arange(seen.shape[1], device=seen.device) < seen.sum(dim=1, keepdim=True)


def not_plain(where: str, name: str) -> str:
    return (
        f"{where}: {name} must be plain yes or no (0 and {MASKED:g} or less as a bias, 1 and 0 or bool as a mask): "
        "guided attention masks tokens, it does not weigh them"
    )
