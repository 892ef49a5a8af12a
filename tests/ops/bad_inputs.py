# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""One table of bad inputs. test_ops.py sends each through every path: front door, raw operation, fake, reference."""

import math
from typing import NamedTuple

import torch

from nag_kernels import testing


class Bad(NamedTuple):
    name: str
    change: dict  # argument -> what it becomes, or a function of the good one
    error: type[Exception]
    message: str  # what follows "nag::operation: "
    schema: bool = False  # torch's own schema refuses it before any of our code in a raw call


def attention_inputs(device="cpu", tensors=False) -> dict:
    """Batch 2, 5 tokens, 4 heads of 8, 2 key heads; texts of 3 (positive) and 4 (negative), 6 shared keys, masks."""
    inputs = testing.make_inputs(batch=2, length=5, heads=4, kv_heads=2, size=8, positive=3, negative=4, shared=6,
                                 masks=True, device=device)  # fmt: skip
    settings = {"nag_scale": 5.0, "nag_tau": 2.5, "nag_alpha": 0.25}
    if tensors:
        settings = {name: torch.full((), x, device=device) for name, x in settings.items()}
    return {**inputs, **settings, "rule": "nag"}


def guidance_inputs(device="cpu", tensors=False) -> dict:
    settings = {"nag_scale": 5.0, "nag_tau": 2.5, "nag_alpha": 0.25}
    if tensors:
        settings = {name: torch.full((), x, device=device) for name, x in settings.items()}
    make = lambda: torch.randn(2, 5, 32).to(device)  # noqa: E731
    return {"positive": make(), "negative": make(), **settings, "rule": "nag"}


def other_device(x):
    return x.to("meta") if x.device.type == "cpu" else torch.zeros(x.shape, dtype=x.dtype)


def without(*names):
    return dict.fromkeys(names)


ATTENTION = [
    Bad("query is a list", {"query": [1.0]}, TypeError, "query must be a tensor, got list", schema=True),
    Bad("query 3-D", {"query": lambda x: x[0]}, ValueError,
        "query must be 4-D (batch, length, heads, head size), got shape (5, 4, 8)"),
    Bad("query int64", {"query": lambda x: x.long()}, TypeError,
        "query must be float32, float16, bfloat16 or float64, got int64"),
    Bad("query head size 0", {"query": lambda x: x[..., :0]}, ValueError,
        "query must have a head size of at least 1, got 0"),
    Bad("key_shared alone", {"value_shared": None}, ValueError,
        "key_shared and value_shared must be given together, got only key_shared"),
    Bad("value_shared alone", {"key_shared": None}, ValueError,
        "key_shared and value_shared must be given together, got only value_shared"),
    Bad("key_positive 3-D", {"key_positive": lambda x: x[0]}, ValueError,
        "key_positive must be 4-D (batch, length, heads, head size), got shape (3, 2, 8)"),
    Bad("key heads 3", {"key_positive": lambda x: x.repeat(1, 1, 2, 1)[:, :, :3]}, ValueError,
        "key_positive must have a number of heads that divides query's 4, got 3"),
    Bad("key heads 0", {"key_positive": lambda x: x[:, :, :0]}, ValueError,
        "key_positive must have a number of heads that divides query's 4, got 0"),
    Bad("heads before lengths",
        {"query": lambda x: x.transpose(1, 2), "key_positive": lambda x: x.new_zeros(2, 4, 3, 8)}, ValueError,
        "key_positive must have a number of heads that divides query's 5, got 3; "
        "if these are (batch, heads, length, head size), call x.transpose(1, 2) on each"),
    Bad("heads before lengths, and they divide",
        {"query": lambda x: x.new_zeros(2, 4, 6, 8), "key_positive": lambda x: x.new_zeros(2, 4, 3, 8),
         "value_positive": lambda x: x.new_zeros(2, 4, 3, 8), "mask_positive": None,
         "key_negative": lambda x: x.new_zeros(2, 4, 5, 8)}, ValueError,
        "key_negative must have 3 heads like key_positive, got 5; "
        "if these are (batch, heads, length, head size), call x.transpose(1, 2) on each"),
    Bad("value_positive bfloat16", {"value_positive": lambda x: x.bfloat16()}, TypeError,
        "value_positive must be float32 like query, got bfloat16"),
    Bad("key_negative float64", {"key_negative": lambda x: x.double()}, TypeError,
        "key_negative must be float32 like query, got float64"),
    Bad("value_negative 5-D", {"value_negative": lambda x: x[None]}, ValueError,
        "value_negative must be 4-D (batch, length, heads, head size), got shape (1, 2, 4, 2, 8)"),
    Bad("key_negative head size 7", {"key_negative": lambda x: x[..., :7]}, ValueError,
        "key_negative must have head size 8 like query, got 7"),
    Bad("key_negative one head", {"key_negative": lambda x: x[:, :, :1]}, ValueError,
        "key_negative must have 2 heads like key_positive, got 1"),
    Bad("key_positive batch 1", {"key_positive": lambda x: x[:1]}, ValueError,
        "key_positive must have batch 2 like query, got 1"),
    Bad("key_negative batch 3", {"key_negative": lambda x: x.repeat(2, 1, 1, 1)[:3]}, ValueError,
        "key_negative must have batch 2 or 1, got 3"),
    Bad("key_shared batch 1", {"key_shared": lambda x: x[:1]}, ValueError,
        "key_shared must have batch 2 like query, got 1"),
    Bad("value_negative longer", {"value_negative": lambda x: x.repeat(1, 2, 1, 1)}, ValueError,
        "value_negative must have shape (2, 4, 2, 8) like key_negative, got (2, 8, 2, 8)"),
    Bad("value_negative batch 1, key batch 2", {"value_negative": lambda x: x[:1]}, ValueError,
        "value_negative must have shape (2, 4, 2, 8) like key_negative, got (1, 4, 2, 8)"),
    Bad("key_negative on another device", {"key_negative": other_device}, ValueError,
        "key_negative must be on {device} like query, got {other}"),
    Bad("mask_shared without key_shared", without("key_shared", "value_shared"), ValueError,
        "mask_shared must come with key_shared, got None for that"),
    Bad("float mask", {"mask_positive": lambda x: x.float()}, TypeError,
        "mask_positive must be bool (False = not seen), got float32"),
    Bad("mask of another length", {"mask_negative": lambda x: x[:, :3]}, ValueError,
        "mask_negative must have shape (2 or 1, 4), got (2, 3)"),
    Bad("mask of batch 3", {"mask_shared": lambda x: x.repeat(2, 1)[:3]}, ValueError,
        "mask_shared must have shape (2 or 1, 6), got (3, 6)"),
    Bad("mask 1-D", {"mask_positive": lambda x: x[0]}, ValueError,
        "mask_positive must have shape (2 or 1, 3), got (3)"),
    Bad("mask on another device", {"mask_positive": other_device}, ValueError,
        "mask_positive must be on {device} like query, got {other}"),
    Bad("softmax_scale inf", {"softmax_scale": math.inf}, ValueError, "softmax_scale must be finite, got inf"),
    Bad("softmax_scale nan", {"softmax_scale": math.nan}, ValueError, "softmax_scale must be finite, got nan"),
    Bad("softmax_scale is a string", {"softmax_scale": "1"}, TypeError, "softmax_scale must be a number, got str",
        schema=True),
    Bad("bias None", {"negative_logit_bias": None}, TypeError, "negative_logit_bias must be a number, got NoneType",
        schema=True),
    Bad("bias inf", {"negative_logit_bias": -math.inf}, ValueError, "negative_logit_bias must be finite, got -inf"),
    Bad("bias without shared keys",
        {**without("key_shared", "value_shared", "mask_shared"), "negative_logit_bias": 0.5}, ValueError,
        "negative_logit_bias must be 0 without key_shared (it would cancel), got 0.5"),
]  # fmt: skip

GUIDANCE = [
    Bad("positive is a list", {"positive": [1.0]}, TypeError, "positive must be a tensor, got list", schema=True),
    Bad("positive int32", {"positive": lambda x: x.int()}, TypeError,
        "positive must be float32, float16, bfloat16 or float64, got int32"),
    Bad("positive 0-D", {"positive": lambda x: x[0, 0, 0]}, ValueError,
        "positive must have at least 1 dimension (all heads of a token), got shape ()"),
    Bad("negative bfloat16", {"negative": lambda x: x.bfloat16()}, TypeError,
        "negative must be float32 like positive, got bfloat16"),
    Bad("negative on another device", {"negative": other_device}, ValueError,
        "negative must be on {device} like positive, got {other}"),
    Bad("negative shorter", {"negative": lambda x: x[:, :4]}, ValueError,
        "negative must have shape (2, 5, 32) like positive, got (2, 4, 32)"),
    Bad("rule vsf", {"rule": "vsf"}, ValueError,
        "rule 'vsf' needs how much of one softmax each text takes, which two attention outputs do not hold; "
        "use fused_guided_attention"),
]  # fmt: skip

RULE = [Bad("unknown rule", {"rule": "cfg"}, ValueError, "rule must be 'nag', 'nasa' or 'vsf', got 'cfg'")]
FLOATS = RULE + [
    Bad("scale nan", {"nag_scale": math.nan}, ValueError, "nag_scale must be finite, got nan"),
    Bad("scale inf", {"nag_scale": math.inf}, ValueError, "nag_scale must be finite, got inf"),
    Bad("scale is a string", {"nag_scale": "5"}, TypeError, "nag_scale must be a number, got str", schema=True),
    Bad("scale -1e39", {"nag_scale": -1e39}, ValueError, "nag_scale must be finite in float32, got -1e+39"),
    Bad("tau 1e40", {"nag_tau": 1e40}, ValueError, "nag_tau must be finite in float32, or inf (no clip), got 1e+40"),
    Bad("tau 0", {"nag_tau": 0.0}, ValueError, "nag_tau must be above 0 (inf is no clip), got 0"),
    Bad("tau nan", {"nag_tau": math.nan}, ValueError, "nag_tau must be above 0 (inf is no clip), got nan"),
    Bad("tau -1.5", {"nag_tau": -1.5}, ValueError, "nag_tau must be above 0 (inf is no clip), got -1.5"),
    Bad("alpha 1.5", {"nag_alpha": 1.5}, ValueError, "nag_alpha must be between 0 and 1, got 1.5"),
    Bad("alpha -0.25", {"nag_alpha": -0.25}, ValueError, "nag_alpha must be between 0 and 1, got -0.25"),
    Bad("alpha nan", {"nag_alpha": math.nan}, ValueError, "nag_alpha must be between 0 and 1, got nan"),
]
TENSORS = RULE + [
    Bad("scale float64", {"nag_scale": lambda x: x.double()}, TypeError, "nag_scale must be float32, got float64"),
    Bad("tau 3 values", {"nag_tau": lambda x: x.repeat(3)}, ValueError, "nag_tau must have shape () or (2,), got (3)"),
    Bad("alpha 2-D", {"nag_alpha": lambda x: x.view(1, 1)}, ValueError,
        "nag_alpha must have shape () or (2,), got (1, 1)"),
    Bad("alpha on another device", {"nag_alpha": other_device}, ValueError,
        "nag_alpha must be on {device} like {first}, got {other}"),
]  # fmt: skip


def table():
    """(operation, overload, row) for every row that the overload can meet."""
    for op, rows in (("fused_guided_attention", ATTENTION), ("guidance", GUIDANCE)):
        for overload, settings in (("default", FLOATS), ("tensor", TENSORS)):
            for row in rows + settings:
                yield op, overload, row


def bad_call(op: str, overload: str, row: Bad, device: str = "cpu") -> tuple[dict, str]:
    """The arguments of the bad call, and the whole message that it must raise."""
    make = attention_inputs if op == "fused_guided_attention" else guidance_inputs
    inputs = make(device, tensors=overload == "tensor")
    for name, value in row.change.items():
        inputs[name] = value(inputs[name]) if callable(value) else value
    first = "query" if op == "fused_guided_attention" else "positive"
    other = "meta" if device == "cpu" else "cpu"
    message = row.message.replace("{device}", device).replace("{other}", other).replace("{first}", first)
    return inputs, f"nag::{op}: {message}"
