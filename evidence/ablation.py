# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""NAG without one of its parts: other row factors in the place of `nag_kernels.reference.row_factors`, for a while.

Every formula is out = alpha f G + (1 - alpha) Z+ with G = scale Z+ - (scale - 1) Z-, and differs in f or alpha:

    full                               f = min(1, tau |Z+|_1 / |G|_1), norms over all heads of a token
    no normalisation                   f = 1: G as long as it comes out
    no clip                            f = |Z+|_1 / |G|_1: every token brought to the length of Z+, not only those beyond tau
    no refinement                      alpha = 1
    no normalisation, no refinement    f = 1, alpha = 1: out = G
    L2 norm                            f = min(1, tau |Z+|_2 / |G|_2)
    per-head norm                      f = min(1, tau |Z+|_1 / |G|_1), norms over each head by itself

f = 1 where |G| = 0.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from nag_kernels import availability, reference


def _norm(x: Tensor, power: int, heads: int) -> Tensor:
    """|x| over each of the heads in the last dimension, at every place of the head: [..., C]."""
    each = x.unflatten(-1, (heads, -1))
    norm = torch.linalg.vector_norm(each, power, dim=-1, keepdim=True)
    return norm.expand_as(each).flatten(-2)


def _row_factors(
    positive: Tensor, negative: Tensor, scale: Tensor, tau: Tensor, alpha: Tensor, rule: str, total: object = None, *,
    normalise: bool = True, clip: bool = True, refine: bool = True, power: int = 1, heads: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(a, b) of out = a Z+ - b Z-, as in `reference.row_factors`."""
    if rule != "nag":
        raise ValueError(f"rule must be 'nag', whose parts these are, got {rule!r}")
    whole = _norm(positive, power, heads)
    extrapolated = _norm(scale * positive - (scale - 1) * negative, power, heads)
    ratio = torch.where(extrapolated > 0, whole / extrapolated.clamp(min=torch.finfo(whole.dtype).tiny), 1.0)
    factor = torch.ones_like(ratio)
    if normalise:
        factor = (tau * ratio).clamp(max=1.0) if clip else ratio
        factor = torch.where(extrapolated > 0, factor, 1.0)
    if not refine:
        alpha = torch.ones_like(alpha)
    return alpha * factor * scale + 1 - alpha, alpha * factor * (scale - 1)


FORMULAS: dict[str, dict[str, object]] = {
    "full": {},
    "no normalisation": {"normalise": False},
    "no clip": {"clip": False},
    "no refinement": {"refine": False},
    "no normalisation, no refinement": {"normalise": False, "refine": False},
    "L2 norm": {"power": 2},
    "per-head norm": {"heads": None},  # as many as the model has
}


def heads_of(denoiser: nn.Module) -> int:
    """Of the layers in which the image attends to text. Raises ValueError where they differ."""
    from nag_kernels.diffusers.models.registry import guided_layers

    counts = {site.heads for site in guided_layers(denoiser)}
    if len(counts) != 1:
        raise ValueError(f"the guided layers must have the same number of heads, got {sorted(counts)}")
    return counts.pop()


@contextlib.contextmanager
def formula(name: str, heads: int = 1) -> Iterator[None]:
    """Within the block NAG is the formula `name`, run by the reference backend; "full" changes nothing.

    heads: of the attention layers, for "per-head norm". Raises ValueError for an unknown name.
    """
    if name not in FORMULAS:
        raise ValueError(f"formula must be one of {', '.join(FORMULAS)}, got {name!r}")
    if name == "full":
        yield
        return
    options = {key: heads if value is None else value for key, value in FORMULAS[name].items()}
    changed: Callable = functools.partial(_row_factors, **options)
    before = reference.row_factors, availability.FORCED
    reference.row_factors, availability.FORCED = changed, "reference"
    try:
        yield
    finally:
        reference.row_factors, availability.FORCED = before
