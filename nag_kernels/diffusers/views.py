# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Overlapping views of one image, of which a pipeline gives its denoiser several in one batch (panoramas).

The batch has the rows of the first view, then those of the second, each with the same texts: under classifier-free guidance the
unconditional rows and those of the prompt take turns. A guided call is made for each view by itself, as the pipeline makes them
with views in batches of one.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, cat

AT_ONCE = "view_batch_size"  # the argument of the pipeline's call that says how many views come in one batch


def views_apart(arguments: Mapping[str, Any], rows: int, each: int) -> list[dict[str, Any]]:
    """The arguments of a denoiser's call with so many rows, once for each view, which has `each` of them."""
    return [{name: _rows(x, rows, at, each) for name, x in arguments.items()} for at in range(0, rows, each)]


def _rows(x: Any, rows: int, at: int, each: int) -> Any:
    """Of what has a row for each row of the batch."""
    if isinstance(x, Mapping):
        return {name: _rows(y, rows, at, each) for name, y in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(_rows(y, rows, at, each) for y in x)
    return x[at : at + each] if isinstance(x, Tensor) and x.ndim and len(x) == rows else x


def together(outputs: list[Any]) -> Any:
    """What the denoiser gave for each view, as it gives it for all of them."""
    first: Any = outputs[0]
    if isinstance(first, Tensor):
        return cat(outputs)
    if isinstance(first, Mapping):  # an output of diffusers
        return type(first)(**{name: together([x[name] for x in outputs]) for name in first})
    return tuple(together(list(x)) for x in zip(*outputs, strict=True)) if isinstance(first, tuple) else first
