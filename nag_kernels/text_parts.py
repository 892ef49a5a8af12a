# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The order of two packed prompts whose texts have several parts: [text+ of part 1 ; text- of part 1 ; text+ of part 2 ; ...].

`parts` holds the tokens (of text+, of text-) of each part.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Parts = Sequence[tuple[int, int]]


def of_each_text(x: Tensor, parts: Parts, dim: int = 1) -> tuple[Tensor, Tensor]:
    """All that is of text+, and all that is of text-, of the tokens of x along `dim`."""
    pieces = x.split([tokens for pair in parts for tokens in pair], dim=dim)
    if len(parts) == 1:
        return pieces[0], pieces[1]
    return torch.cat(pieces[::2], dim=dim), torch.cat(pieces[1::2], dim=dim)


def in_parts(positive: Tensor, negative: Tensor, parts: Parts, dim: int = 1) -> list[Tensor]:
    """The inverse of `of_each_text`: the pieces in their order."""
    of_positive = positive.split([tokens for tokens, _ in parts], dim=dim)
    of_negative = negative.split([tokens for _, tokens in parts], dim=dim)
    return [piece for pair in zip(of_positive, of_negative, strict=True) for piece in pair]
