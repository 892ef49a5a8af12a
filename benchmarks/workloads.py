# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Named workloads: the attention layers of real models, at their real size, or as large as a CPU does in a benchmark's time."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """One guided attention: `length` image tokens, texts of `text` tokens, `shared` image keys (joint attention)."""

    name: str
    group: str  # "small", "cross" or "joint", whose ratios are averaged; "growth" and "call" have no rivals
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
        """4 B S H D (Tp + Tn + Ts): the arithmetic of one guided attention with shared keys attended once."""
        return 4.0 * self.batch * self.length * self.heads * self.size * (2 * self.text + self.shared)

    def numbers(self) -> float:
        """Elements of query, keys, values and output, each read or written once."""
        return 2.0 * self.batch * self.heads * self.size * (self.length + 2 * self.text + self.shared)

    def shrunk(self, by: int) -> "Workload":
        """With fewer image tokens."""
        return dataclasses.replace(self, length=max(1, self.length // by), shared=self.shared // by)


WORKLOADS = (
    Workload("sd15_8x8", "small", 2, 64, 8, 160, 77),
    Workload("sd15_16x16", "small", 2, 256, 8, 160, 77),
    Workload("sd15_32x32", "small", 2, 1024, 8, 80, 77),
    Workload("sd15_64x64", "small", 2, 4096, 8, 40, 77),
    Workload("sdxl_64x64", "cross", 1, 4096, 10, 64, 77),
    Workload("sdxl_32x32", "cross", 1, 1024, 20, 64, 77),
    Workload("sana_32x32", "cross", 1, 1024, 20, 112, 300),
    Workload("pixart_1024px", "cross", 1, 4096, 16, 72, 300),
    Workload("wan_1.3b_4096", "cross", 1, 4096, 12, 128, 512),
    Workload("wan_1.3b_480p", "cross", 1, 32760, 12, 128, 512),
    Workload("wan_14b_480p", "cross", 1, 32760, 40, 128, 512),
    Workload("flux_512px", "joint", 1, 1024, 24, 128, 512, 1024),
    Workload("flux_1024px", "joint", 1, 4096, 24, 128, 512, 4096),
    Workload("sd35_512px", "joint", 1, 1024, 38, 64, 333, 1024),
    Workload("sd35_1024px", "joint", 1, 4096, 38, 64, 333, 4096),
    Workload("hunyuan_video", "joint", 1, 27280, 24, 128, 256, 27280),
)
# What a benchmark of minutes can hold: on a GPU everything, on a CPU what takes at most about a second.
GPU = WORKLOADS
CPU = tuple(w for w in WORKLOADS if w.flops() < 4e10)

# Two layers with more and more queries, and in larger and larger batches: the cost of one of them must stay the same.
GROWTH = tuple(
    dataclasses.replace(w, name=f"{w.name} {kind} x{times}", group="growth", **{field: getattr(w, field) * times})
    for w in WORKLOADS if w.name in ("sdxl_32x32", "flux_512px")
    for kind, field in (("tokens", "length"), ("batch", "batch")) for times in (1, 2, 4)
)  # fmt: skip
ONE_TOKEN = Workload("one token", "call", 1, 1, 1, 8, 1)  # what a call costs beside its arithmetic
GRADIENT = {w.name: w for w in (*WORKLOADS, ONE_TOKEN)
            if w.name in ("sd15_64x64", "sdxl_64x64", "flux_512px", "flux_1024px", ONE_TOKEN.name)}  # fmt: skip
# What a forward and its backward may take of eager's time and memory.
GRADIENT_TARGETS = {name: (1.5, None) if name == ONE_TOKEN.name else (0.9, 0.9) for name in GRADIENT}
