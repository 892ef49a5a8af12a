# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""One process of both operations on DTensor, for test_sharding.py; checks itself against a run on whole tensors."""

import itertools

import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import nag_kernels

BATCH, SEQUENCE, HEADS = Shard(0), Shard(1), Shard(2)


def error(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


def attention_inputs(rows_negative, settings, masks):
    """Both texts have eight tokens, so that only its place tells a mask or a key from another."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    rows = {"positive": 4, "negative": rows_negative, "shared": 4}
    tensors = {"query": random(4, 12, 4, 8)}
    for part, n in rows.items():
        tensors |= {f"key_{part}": random(n, 8, 4, 8), f"value_{part}": random(n, 8, 4, 8)}
        if part in masks:
            tensors[f"mask_{part}"] = torch.rand(n, 8, generator=draw) < 0.7
    return tensors | {name: torch.as_tensor(x) for name, x in settings.items()}


def placed(mesh, tensors, placements):
    """Each as `placements` says, or whole where it has too few rows or dimensions for that."""
    whole = [Replicate()] * mesh.ndim
    own = placements if isinstance(placements, dict) else {}
    if not own and BATCH in placements:
        rows = len(tensors["query"])
        by_rows = [x if x == BATCH else Replicate() for x in placements]
        own = {name: by_rows for name, x in tensors.items() if x.ndim and len(x) == rows} | {"query": placements}
    elif not own:
        own = {"query": placements}
    return {name: distribute_tensor(x, mesh, own.get(name, whole)) for name, x in tensors.items()}


FLOATS = {"nag_scale": 5.0, "nag_tau": 1.2, "nag_alpha": 0.5}
OF_ALL = {name: torch.tensor(x) for name, x in FLOATS.items()}
OF_EACH = {name: [x, 1.1 * x, 0.9 * x, 1.3 * x] for name, x in FLOATS.items()}

# (rule, rows of the negative, settings, masks): each two of these values meet.
MASKS = ((), ("positive",), ("negative",))
CASES = [
    (rule, (4, 1)[(i + j) % 2], settings, MASKS[(i + j) % 3])
    for i, rule in enumerate(("nag", "nasa", "vsf"))
    for j, settings in enumerate(({}, OF_ALL, OF_EACH))
]
CASES += [("vsf", 1, OF_EACH, ()), ("nag", 1, {}, ("negative",)), ("nasa", 4, OF_ALL, ("positive",))]


def check_attention(mesh, placements, *, stays=True):
    """Against whole tensors, without a byte sent where `stays`."""
    found = []
    for rule, rows, settings, masks in CASES:
        tensors = attention_inputs(rows, settings, masks)
        floats = {} if settings else FLOATS
        wanted = nag_kernels.fused_guided_attention(**tensors, **floats, rule=rule)
        on_mesh = placed(mesh, tensors, placements)
        with CommDebugMode() as sent:
            got = nag_kernels.fused_guided_attention(**on_mesh, **floats, rule=rule)
        assert not stays or sent.get_total_counts() == 0, (placements, rule, settings, masks)
        assert not stays or list(got.placements) == list(placements)
        found.append(error(got.full_tensor(), wanted))
    assert max(found) < 1e-12, (placements, found)
    return max(found)


def check_gradients(mesh, placements):
    """Of all that has one, keys of all samples or of one, settings of all or of each sample."""
    for rule, rows, settings in itertools.product(("nag", "vsf"), (4, 1), (OF_ALL, OF_EACH)):
        tensors = {name: x.clone() for name, x in attention_inputs(rows, settings, ()).items()}
        both = tensors, placed(mesh, tensors, placements)
        for inputs in both:
            for x in inputs.values():
                x.requires_grad_()
            nag_kernels.fused_guided_attention(**inputs, rule=rule).square().sum().backward()
        for name, x in both[1].items():
            got, wanted = x.grad.full_tensor(), both[0][name].grad
            bound = 1e-12 if x.ndim > 1 else 1e-6  # settings are float32
            assert (got - wanted).norm() <= bound * wanted.norm(), (placements, rule, rows, name)


def check_guidance(mesh, placements, *, stays=True):
    draw = torch.Generator().manual_seed(1)
    found = []
    for rule, settings in itertools.product(("nag", "nasa"), ({}, OF_ALL, OF_EACH)):
        tensors = {x: torch.randn(4, 12, 32, generator=draw, dtype=torch.float64) for x in ("positive", "negative")}
        tensors |= {name: torch.as_tensor(x) for name, x in settings.items()}
        floats = {} if settings else FLOATS
        wanted = nag_kernels.guidance(**tensors, **floats, rule=rule)
        whole, by_rows = [Replicate()] * mesh.ndim, [x if x == BATCH else Replicate() for x in placements]
        own = {name: placements if x.ndim == 3 else by_rows if x.ndim else whole for name, x in tensors.items()}
        on_mesh = {name: distribute_tensor(x, mesh, own[name]) for name, x in tensors.items()}
        with CommDebugMode() as sent:
            got = nag_kernels.guidance(**on_mesh, **floats, rule=rule)
        assert not stays or (sent.get_total_counts() == 0 and list(got.placements) == list(placements))
        found.append(error(got.full_tensor(), wanted))
    assert max(found) < 1e-12, (placements, found)
    return max(found)


def main():
    """The largest error of each placement."""
    size = dist.get_world_size()
    mesh = dist.init_device_mesh("cpu", (size,) if size == 2 else (2, size // 2))
    whole, found = [Replicate()] * mesh.ndim, []
    split = [[BATCH], [SEQUENCE]] if size == 2 else [[BATCH, SEQUENCE]]
    for placements in [whole, *split]:
        found.append(max(check_attention(mesh, placements), check_guidance(mesh, placements)))
        check_gradients(mesh, placements)
    heads = [Replicate()] * (mesh.ndim - 1) + [HEADS]
    parts = ("positive", "negative", "shared")
    everything = {f"{x}_{y}": heads for x in ("key", "value") for y in parts} | {"query": heads}
    everything |= {f"mask_{y}": [Replicate()] * (mesh.ndim - 1) + [SEQUENCE] for y in parts}
    found.append(max(check_attention(mesh, everything, stays=False), check_guidance(mesh, heads, stays=False)))
    return found
