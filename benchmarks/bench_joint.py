# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Times the attention of a whole joint layer, guided, beside one joint attention without guidance.

A guided layer makes three calls: the guided attention of the image, and the attention of each text to itself and to the image.
"unguided" is one attention of [text+ ; image], by torch and by this package's kernel. "arithmetic" is how many times more
multiply-adds the guided layer has than the unguided one: what one operation for all three calls could come to at best, beside
the kernel. The layer is first compared with float64, and is not timed if it is wrong.
"""

import argparse
import math
import sys

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

from benchmarks.bench_attention import DTYPES, Clock, layer_table, measure, measured, rotated, spread
from benchmarks.machine import Rows, describe, sentence
from benchmarks.providers import SETTINGS
from benchmarks.workloads import CPU, GPU, Workload
from nag_kernels import reference, testing
from nag_kernels.diffusers import NAGFluxAttnProcessor2_0, PackedText
from nag_kernels.diffusers.attention.joint import plain_attention

NAMES = ("ours", "unguided", "unguided, our kernel")
SEGMENTS = ("image", "positive", "negative")


def arithmetic(workload: Workload) -> float:
    """Multiply-adds of the guided layer over those of the unguided one."""
    image, text = workload.length, workload.text
    return (image * (image + 2 * text) + 2 * text * (image + text)) / (image + text) ** 2


def make_layer(workload: Workload, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Query, key and value [B, tokens, H, D] of the image and of both texts."""
    tokens = dict(zip(SEGMENTS, (workload.length, workload.text, workload.text), strict=True))
    random = torch.Generator().manual_seed(0)
    return {
        f"{kind}_{name}": torch.randn(
            workload.batch, tokens[name], workload.heads, workload.size, generator=random
        ).to(device, dtype)
        for name in SEGMENTS for kind in ("query", "key", "value")
    }  # fmt: skip


def _of(layer: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor, Tensor]:
    return layer[f"query_{name}"], layer[f"key_{name}"], layer[f"value_{name}"]


def _joined(layer: dict[str, Tensor], *names: str) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (torch.cat(x, dim=1) for x in zip(*(_of(layer, name) for name in names), strict=True))
    return query, key, value


def guided(layer: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Attention [B, tokens, H * D] of text+, of text- and, guided, of the image, as the drop-in processors call it."""
    lengths = layer["query_positive"].shape[1], layer["query_negative"].shape[1]
    processor = NAGFluxAttnProcessor2_0(*SETTINGS, text=PackedText(*lengths))
    return processor._attend(_of(layer, "image"), _joined(layer, "positive", "negative"))


def unguided(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))


def wrong(layer: dict[str, Tensor]) -> str:
    """What speaks against timing this; "" where the layer is that of float64, within rounding."""
    part = layer | {"query_image": layer["query_image"][:, :64]}
    wide = {name: x.double() for name, x in part.items()}
    image = {"key_shared": wide["key_image"], "value_shared": wide["value_image"]}
    texts = wide["key_positive"], wide["value_positive"], wide["key_negative"], wide["value_negative"]
    exact = [reference.fused_guided_attention(wide["query_image"], *texts, *SETTINGS, **image)]
    for name in ("positive", "negative"):
        query, key, value = _of(wide, name)
        exact.append(
            reference.fused_guided_attention(query, key, value, key[:, :0], value[:, :0], 1.0, math.inf, 1.0, **image)
        )
    positive, negative, of_image = guided(part)
    found = max(testing.error(x, y.flatten(2)) for x, y in zip((of_image, positive, negative), exact, strict=True))
    allowed = 20 * torch.finfo(layer["query_image"].dtype).eps
    return "" if found <= allowed else f"error {found:.3g} against float64, allowed {allowed:.3g}"


def help_text() -> str:
    return "workloads:  " + " ".join(w.name for w in GPU if w.group == "joint")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [w.name for w in GPU if w.group == "joint"]
    parser.add_argument(
        "--workload", nargs="+", choices=names, metavar="NAME", help="default: all that a CPU does in seconds"
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["float32", "bfloat16"], help="default: float32 bfloat16"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="time per workload and dtype (default: 8)")
    parser.add_argument("--shrink", type=int, default=1, help="divide the image tokens by this (default: 1)")


def main(options: argparse.Namespace) -> None:
    whole = not options.workload and options.shrink == 1 and options.dtype == ["float32", "bfloat16"]
    usual = CPU if torch.device(options.device).type == "cpu" else GPU
    chosen = [w for w in GPU if (w.name in options.workload if options.workload else w in usual) and w.group == "joint"]
    about = describe(options.device, options.threads)
    print(sentence(about))
    rows = Rows("joint", about, options.csv and whole)
    table = layer_table("milliseconds, and the guided layer over each", *NAMES, "arithmetic")
    clock = Clock(options.device)
    try:
        for workload, dtype in tqdm([(w, x) for w in chosen for x in options.dtype], desc="joint"):
            small = workload.shrunk(options.shrink)
            layer = make_layer(small, DTYPES[dtype], options.device)
            if why := wrong(layer):
                tqdm.write(f"{workload.name} {dtype} is not timed: {why}")
                continue
            joined = dict(zip(("query", "key", "value"), _joined(layer, "positive", "image"), strict=True))
            runs = {
                "ours": guided,
                "unguided": lambda x: unguided(x["query"], x["key"], x["value"]),
                "unguided, our kernel": lambda x: plain_attention(x["query"], x["key"], x["value"]),
            }
            times = measure(runs, rotated(layer | joined, options.device), options.seconds, clock)
            for provider, each in times.items():
                rows.add(**measured(small, dtype, provider, each, None), arithmetic=f"{arithmetic(small):.4f}")
            medians = {x: spread(each)[1] for x, each in times.items()}
            shown = [f"{medians[x]:.2f} {medians['ours'] / medians[x]:.2f}x" for x in NAMES]
            table.add_row(workload.name, dtype, *shown, f"{arithmetic(small):.2f}x")
    finally:
        Console(width=None if sys.stdout.isatty() else 140).print(table)
    rows.close()
    if not whole:
        print("no CSV, which holds whole runs")
