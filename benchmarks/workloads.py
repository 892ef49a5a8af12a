# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Named workloads: the attention layers of real models, with as many queries as a CPU does in a benchmark's time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """One guided attention: `length` image tokens, texts of `text` tokens, `shared` image keys (joint attention)."""

    name: str
    group: str  # "cross", "joint" or "small"; ratios are averaged by group
    batch: int
    length: int
    heads: int
    size: int
    text: int
    shared: int = 0

    def inputs(self) -> dict:
        """Arguments of `nag_kernels.testing.make_inputs`."""
        return {
            "batch": self.batch, "length": self.length, "heads": self.heads, "size": self.size,
            "positive": self.text, "negative": self.text, "shared": self.shared,
        }  # fmt: skip

    def flops(self) -> float:
        """4 B S H D (Tp + Tn + Ts): the arithmetic with shared keys attended once, for every provider."""
        return 4.0 * self.batch * self.length * self.heads * self.size * (2 * self.text + self.shared)


WORKLOADS = (
    Workload("sd15_8x8", "small", 2, 64, 8, 160, 77),
    Workload("sd15_16x16", "small", 2, 256, 8, 160, 77),
    Workload("sd15_32x32", "small", 2, 1024, 8, 80, 77),
    Workload("sd15_64x64", "small", 2, 4096, 8, 40, 77),
    Workload("sdxl_64x64", "cross", 1, 4096, 10, 64, 77),
    Workload("sdxl_32x32", "cross", 1, 1024, 20, 64, 77),
    Workload("sana_32x32", "cross", 1, 1024, 20, 112, 300),
    Workload("wan_1.3b_4096", "cross", 1, 4096, 12, 128, 512),
    Workload("flux_512px", "joint", 1, 1024, 24, 128, 512, 1024),
    Workload("sd35_512px", "joint", 1, 1024, 38, 64, 333, 1024),
)
