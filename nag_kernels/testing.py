# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs, the eager baseline, wrong formulas and the comparator: shared by the tests and the benchmarks."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference

# Largest share of the eager formula's error that a kernel may make, against float64 (DESIGN of the numbers: README).
MARGIN = {torch.float16: 1.05, torch.bfloat16: 1.05, torch.float32: 1.5, torch.float64: 4.0}
HALF_MARGIN = 0.65  # in half precision at scale 5, tau 2.5, alpha 0.25 over 64 tokens or more


def make_inputs(
    batch: int = 1, length: int = 64, heads: int = 4, size: int = 64, positive: int = 77, negative: int = 77,
    shared: int = 0, kv_heads: int | None = None, negative_batch: int | None = None, masks: bool = False,
    bias: float = 0.0, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0,
) -> dict:  # fmt: skip
    """Keyword arguments of the operation but its settings: normal random tensors [B, T, H, D], masks with one key of
    each text hidden per sample and about a quarter of the others."""
    generator = torch.Generator().manual_seed(seed)
    kv_heads = kv_heads or heads

    def normal(b, t, h):
        return torch.randn(b, t, h, size, generator=generator, dtype=torch.float64).to(device, dtype)

    def mask(b, t):
        hidden = torch.rand(b, t, generator=generator) < 0.25
        if t > 1:
            hidden[:, t // 2] = True
            hidden[:, 0] = False
        return (~hidden).to(device)

    lengths = {"positive": (batch, positive), "negative": (negative_batch or batch, negative)}
    if shared:
        lengths["shared"] = (batch, shared)
    inputs: dict = {"query": normal(batch, length, heads)}
    for part, (b, t) in lengths.items():
        inputs[f"key_{part}"], inputs[f"value_{part}"] = normal(b, t, kv_heads), normal(b, t, kv_heads)
        if masks:
            inputs[f"mask_{part}"] = mask(b, t)
    if bias:
        inputs["negative_logit_bias"] = bias
    return inputs


def cast(inputs: dict, dtype: torch.dtype) -> dict:
    return {name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in inputs.items()}


def truth(inputs: dict, *settings, rule: str = "nag") -> Tensor:
    """The reference in float64, on the inputs as they are (rounded to their dtype)."""
    return reference.fused_guided_attention(**with_settings(cast(inputs, torch.float64), settings), rule=rule)


def with_settings(inputs: dict, settings: tuple) -> dict:
    return {**inputs, **dict(zip(("nag_scale", "nag_tau", "nag_alpha"), settings, strict=True))}


def whole(parts: list[Tensor]) -> Tensor:
    """Keys, values or masks [B, T, ...] of several parts in one tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def eager_attention(inputs: dict, *parts: str, flip: float = -1.0) -> Tensor:
    """[B, S, H*D]: one call of scaled_dot_product_attention over the keys of all parts, in the dtype of the inputs; the
    values of the negative times -flip."""
    query = inputs["query"]
    batch, length, heads, _ = query.shape
    names = [name for name in parts if inputs.get(f"key_{name}") is not None]
    bias = inputs.get("negative_logit_bias", 0.0) if "negative" in names else 0.0

    def tensor(kind: str, name: str) -> Tensor:
        x = inputs[f"{kind}_{name}"].expand(batch, -1, -1, -1)
        return -flip * x if (kind, name) == ("value", "negative") and flip != -1 else x

    def seen(name: str) -> Tensor:
        mask = inputs.get(f"mask_{name}")
        added = query.new_full((1, inputs[f"key_{name}"].shape[1]), bias if name == "negative" else 0.0)
        return (added if mask is None else added.masked_fill(~mask, float("-inf"))).expand(batch, -1)

    key, value = (whole([tensor(kind, name) for name in names]) for kind in ("key", "value"))
    repeats = heads // key.shape[2]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, 2) for x in (key, value))
    mask = None
    if bias != 0 or any(inputs.get(f"mask_{name}") is not None for name in names):
        mask = whole([seen(name) for name in names])[:, None, None, :]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=inputs.get("softmax_scale"))
    return out.transpose(1, 2).reshape(batch, length, -1)


def eager_branches(inputs: dict) -> tuple[Tensor, Tensor]:
    """Z+ and Z- [B, S, H*D]."""
    return eager_attention(inputs, "shared", "positive"), eager_attention(inputs, "shared", "negative")


def eager_guidance(positive: Tensor, negative: Tensor, scale, tau, alpha, rule: str = "nag") -> Tensor:
    """The method as published code runs it: a dozen passes over [B, S, C], each rounded to the dtype of the inputs."""
    if rule == "nasa":
        return positive - scale * negative
    extrapolated = positive * scale - negative * (scale - 1)
    ratio = extrapolated.norm(p=1, dim=-1, keepdim=True) / positive.norm(p=1, dim=-1, keepdim=True)
    clipped = extrapolated * ratio.clamp(max=tau) / ratio
    return clipped * alpha + positive * (1 - alpha)


def eager(inputs: dict, *settings, rule: str = "nag") -> Tensor:
    """The baseline of every comparison: SDPA twice and the eager formula or, for "vsf", SDPA once with flipped values."""
    if rule == "vsf":
        return eager_attention(inputs, "shared", "positive", "negative", flip=settings[0]).view(inputs["query"].shape)
    positive, negative = eager_branches(inputs)
    scale, tau, alpha = settings
    return eager_guidance(positive, negative, scale, tau, alpha, rule).view(inputs["query"].shape)


def error(out: Tensor, exact: Tensor) -> float:
    """|out - exact|_2 / |exact|_2 in float64; inf where out has a NaN or an Inf."""
    out, exact = out.double(), exact.double()
    if not bool(torch.isfinite(out).all()):
        return float("inf")
    norm = exact.norm()
    return float((out - exact).norm() / norm) if norm > 0 else float((out - exact).norm())


def rounding_floor(dtype: torch.dtype) -> float:
    """On a few numbers the eager error may be near zero by luck. Then one rounding of the result is still allowed and,
    where the arithmetic is no wider than the result, seven more (sums, row factors, products)."""
    return torch.finfo(dtype).eps * (0.5 if dtype in (torch.float16, torch.bfloat16) else 4.0)


def limit(inputs: dict, exact: Tensor, settings: tuple, rule: str, rounded: bool = False) -> float:
    """The largest error that a kernel may make on these inputs (DESIGN: numbers).

    rounded: of one that rounds Z+ and Z- to the dtype of the inputs, as the eager formula does.
    """
    dtype = inputs["query"].dtype
    half = dtype in (torch.float16, torch.bfloat16)
    floor = rounding_floor(dtype)
    published = eager(inputs, *settings, rule=rule)
    baseline = error(published, exact) if bool(torch.isfinite(published).all()) else 2 * floor  # float16 may overflow
    tokens = inputs["query"].shape[0] * inputs["query"].shape[1]
    if half and not rounded and tokens >= 64 and rule == "nag" and settings == (5.0, 2.5, 0.25):
        return HALF_MARGIN * baseline
    return max(MARGIN[dtype] * baseline, floor)


def assert_within_baseline(out: Tensor, inputs: dict, *settings, rule: str = "nag", rounded: bool = False) -> None:
    """`out` against float64: its error stays below the share of the eager formula's error that its dtype allows."""
    query = inputs["query"]
    assert out.shape == query.shape, f"shape {tuple(out.shape)}, expected {tuple(query.shape)}"
    assert out.dtype == query.dtype, f"dtype {out.dtype}, expected {query.dtype}"
    assert out.is_contiguous(), f"strides {out.stride()} are not contiguous"
    if out.numel() == 0:
        return
    exact = truth(inputs, *settings, rule=rule)
    found, allowed = error(out, exact), limit(inputs, exact, settings, rule, rounded)
    assert found <= allowed, f"error {found:.3g} against float64, allowed {allowed:.3g} ({query.dtype}, rule {rule})"


# --- named wrong formulas: the comparator must reject each -----------------------------------------------------------


def _mutant(combine: Callable[..., Tensor], rounded: bool = False, swapped: bool = False):
    def run(inputs: dict, *settings, rule: str = "nag") -> Tensor:
        dtype = inputs["query"].dtype
        positive = truth(inputs, 0.0, 2.5, 0.25, rule="nasa")  # Z+ - 0 Z-
        negative = positive - truth(inputs, 1.0, 2.5, 0.25, rule="nasa")  # Z+ - (Z+ - Z-)
        if rounded:
            positive, negative = positive.to(dtype).double(), negative.to(dtype).double()
        if swapped:
            positive, negative = negative, positive
        return combine(positive, negative, *settings).to(dtype).contiguous()

    return run


def _nag(norm_dims: tuple[int, ...], order: int = 1, clip: bool = True, last: bool = False):
    def combine(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
        g = scale * positive - (scale - 1) * negative
        if last:  # the clip applied to the blend instead of to G
            g = alpha * g + (1 - alpha) * positive
        norm = lambda x: x.abs().pow(order).sum(norm_dims, keepdim=True).pow(1 / order)  # noqa: E731
        f = (tau * norm(positive) / norm(g)).clamp(max=1) if clip else 1.0
        return f * g if last else alpha * f * g + (1 - alpha) * positive

    return combine


WRONG_FORMULAS = {
    "norm per head": _mutant(_nag((-1,))),
    "L2 norm": _mutant(_nag((-2, -1), order=2)),
    "no clip": _mutant(_nag((-2, -1), clip=False)),
    "clip after the blend": _mutant(_nag((-2, -1), last=True)),
    "branches swapped": _mutant(_nag((-2, -1)), swapped=True),
    "branches rounded before the blend": _mutant(_nag((-2, -1)), rounded=True),
}


def _vsf(combine: Callable[..., Tensor], rounded: bool = False):
    """combine(Z+, T-, Z-, share of the softmax that text- takes, scale); T- attends to text- alone, Z- to shared keys too."""

    def run(inputs: dict, *settings) -> Tensor:
        def plain(change: dict, scale: float = 0.0) -> Tensor:
            return truth({**inputs, **change}, scale, 2.5, 0.25, rule="nasa")

        none = {"key_shared": None, "value_shared": None, "mask_shared": None}
        positive = plain({})
        alone, negative = ((plain(change) - plain(change, 1.0)) for change in (none, {}))
        values = {name: torch.zeros_like(x) for name, x in inputs.items() if name.startswith("value_")}
        values["value_negative"] = values["value_negative"] + 1
        share = truth({**inputs, **values}, -1.0, 2.5, 0.25, rule="vsf")
        dtype = inputs["query"].dtype
        if rounded:
            positive, alone = positive.to(dtype).double(), alone.to(dtype).double()
        return combine(positive, alone, negative, share, settings[0]).to(dtype).contiguous()

    return run


RIGHT_VSF = _vsf(lambda z, t, _, share, scale: (1 - share) * z - scale * share * t)
ROUNDED_VSF = _vsf(lambda z, t, _, share, scale: (1 - share) * z - scale * share * t, rounded=True)
WRONG_VSF = {
    "sign not flipped": _vsf(lambda z, t, _, share, scale: (1 - share) * z + scale * share * t),
    "scale left out": _vsf(lambda z, t, _, share, scale: (1 - share) * z - share * t),
    "text- outside of the softmax": _vsf(lambda z, t, _, share, scale: z - scale * t),
    "text- not in the sum": _vsf(lambda z, t, _, share, scale: z - scale * share / (1 - share) * t),
    "scale in the softmax as well": _vsf(
        lambda z, t, _, share, scale: ((1 - share) * z - scale * share * t) / (1 - share + scale * share)
    ),
    "Z- in the place of T-": _vsf(lambda z, _, negative, share, scale: (1 - share) * z - scale * share * negative),
}
