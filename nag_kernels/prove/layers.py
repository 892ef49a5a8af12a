# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The layers that plans are timed at, and which of them is nearest to a call."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from ..gpu_table import Call


@dataclass(frozen=True)
class Layer:
    length: int
    heads: int
    size: int
    positive: int
    negative: int
    shared: int = 0
    dtype: str = "bfloat16"

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def name(self) -> str:
        shared = f" + {self.shared} shared" if self.shared else ""
        return f"{self.length} x {self.heads} x {self.size}, texts {self.positive} and {self.negative}{shared}, {self.dtype}"


USUAL = (
    Layer(4096, 8, 40, 77, 77),  # SD1.5
    Layer(4096, 10, 64, 77, 77),  # SDXL
    Layer(1024, 20, 64, 77, 77),
    Layer(1024, 20, 112, 300, 300),  # SANA
    Layer(32760, 12, 128, 512, 512),  # Wan 2.1 1.3B
    Layer(4096, 24, 128, 512, 512, 4096),  # FLUX.1
    Layer(4096, 38, 64, 333, 333, 4096),  # SD3.5
    Layer(1024, 20, 64, 77, 77, dtype="float32"),
)


def layer_of(given: dict[str, Any]) -> Layer:
    """A layer from what a user wrote down, `{"length": 4096, "heads": 10, ...}`.

    Raises: ValueError that names what is missing, unknown or no whole number above 0.
    """
    known = {field.name for field in fields(Layer)}
    needed = known - {"shared", "dtype"}
    if not needed <= set(given) <= known:
        raise ValueError(
            f"a layer needs {', '.join(sorted(needed))} and takes shared and dtype, got {', '.join(given)}"
        )
    for name in known - {"dtype"} & set(given):
        if not isinstance(given[name], int) or given[name] < (1 if name in ("length", "heads", "size") else 0):
            raise ValueError(f"{name} of a layer must be a whole number above 0, got {given[name]!r}")
    if given.get("dtype", "bfloat16") not in ("bfloat16", "float16", "float32"):
        raise ValueError(f"dtype of a layer must be bfloat16, float16 or float32, got {given['dtype']!r}")
    return Layer(**given)


def nearest(layers: list[Layer], call: Call) -> Layer | None:
    """Of the same kind (with or without shared keys, 16 or 32 bits) the layer whose sizes are least many times off."""
    wide = call.dtype == torch.float32
    alike = [x for x in layers if bool(x.shared) == bool(call.shared) and (x.dtype == "float32") == wide]

    def distance(x: Layer) -> float:
        pairs = ((x.length, call.length), (x.heads, call.heads), (x.size, call.size), (x.shared, call.shared),
                 (max(x.positive, x.negative), max(call.positive, call.negative)))  # fmt: skip
        return sum(abs(math.log2((a + 1) / (b + 1))) for a, b in pairs)

    return min(alike, key=distance, default=None)
