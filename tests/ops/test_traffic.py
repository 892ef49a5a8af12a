# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Kernels and bytes of what serves where no kernel of ours may run, counted by dispatch at the size of a FLUX.1 layer."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nag_kernels import reference, sdpa, testing
from nag_kernels.checks import Attention

MIB = 1 << 20
SETTINGS = (5.0, 2.5, 0.25)
FLUX = (1, 4096, 24, 128)
OUTPUT = 24 * MIB  # of that layer, in bfloat16


class Traffic(TorchDispatchMode):
    """Counts operations that launch a kernel, and the bytes that they read and write: each operand once, an output once."""

    def __init__(self):
        super().__init__()
        self.kernels: list[str] = []
        self.sizes: list[int] = []

    @property
    def bytes(self) -> int:
        return sum(self.sizes)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = operation(*args, **kwargs)
        free = operation.is_view or "empty" in operation.name() or operation.name() == "aten::detach"
        if not free:
            given = {id(x): x for x in args if isinstance(x, torch.Tensor)}
            made = {id(x): x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)}
            self.kernels.append(operation.name())
            self.sizes.append(sum(x.numel() * x.element_size() for x in [*given.values(), *made.values()]))
        return out


def counted(run) -> Traffic:
    with Traffic() as traffic:
        run()
    return traffic


def branches(dtype=torch.bfloat16):
    return torch.randn(2, *FLUX).to(dtype).unbind(0)


def as_tensors():
    return tuple(torch.tensor(x) for x in SETTINGS)


def test_the_published_formula_and_the_reference_are_counted_so():
    """What the bound is made of: ten passes of published code, and what each step of the reference in float32 costs."""
    positive, negative = (x.flatten(2) for x in branches())
    published = counted(lambda: testing.eager_guidance(positive, negative, *SETTINGS))
    assert 480 * MIB < published.bytes < 481 * MIB
    plain = counted(lambda: reference.guidance(positive, negative, *SETTINGS))
    assert 1176 * MIB < plain.bytes < 1177 * MIB
    assert len(plain.kernels) > 20


@pytest.mark.parametrize("rule", ["nag", "nasa"])
@pytest.mark.parametrize("settings", [SETTINGS, as_tensors()], ids=["numbers", "tensors"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("spend", [True, False])
def test_the_plain_formula_is_no_heavier_than_published_code(rule, settings, dtype, spend):
    positive, negative = branches(dtype)
    run = lambda: sdpa.guidance(positive, negative, *settings, rule, dims=(2, 3), spend=spend)  # noqa: E731
    traffic = counted(run)
    size = positive.element_size() // 2
    fills = 0 if settings is not SETTINGS else 1
    assert len(traffic.kernels) <= (10 if rule == "nag" else 1 + fills), traffic.kernels
    assert traffic.bytes <= (457 if rule == "nag" else 73) * MIB * size


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("shared", [0, 4096])
def test_around_attention_there_is_no_pass_over_the_tokens(monkeypatch, shared, masks):
    """Attention itself left out: with shared keys one copy of all keys and values, which published code makes twice. What
    masks cost is passes over keys, not over tokens."""
    made = []

    def attention(query, key, value, **_):
        made.append(torch.empty_like(query.transpose(1, 2)).transpose(1, 2))  # FlashAttention's layout
        return made[-1]

    monkeypatch.setattr(sdpa.F, "scaled_dot_product_attention", attention)
    inputs = testing.make_inputs(length=4096, heads=24, size=128, positive=512, negative=512, shared=shared, masks=masks,
                                 dtype=torch.bfloat16)  # fmt: skip
    traffic = counted(lambda: sdpa.fused_guided_attention(*Attention(**testing.with_settings(inputs, as_tensors()))))
    assert len(made) == 2
    tokens = [name for name, size in zip(traffic.kernels, traffic.sizes, strict=True) if size >= OUTPUT]
    assert len(tokens) <= 6 + (2 if shared else 0) + (4 if shared and masks else 0), tokens
    keys = 2 * 2 * (shared + 2 * 512) * 24 * 128 * 2 if shared else 0  # keys and values, read and written
    if masks:
        keys += 2 * 2 * 2 * (shared + 512) * 24 * 128 * 2 + MIB  # of each branch, what is hidden filled with zeros
    else:
        assert len(traffic.kernels) <= 10 + (2 if shared else 0), traffic.kernels
    assert traffic.bytes <= 457 * MIB + keys


class Made(TorchDispatchMode):
    """The bytes of all tensors that are made, and lie in the place of none that was there."""

    def __init__(self, *there):
        super().__init__()
        self.there, self.bytes = list(there), 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        if all(out.data_ptr() != x.data_ptr() for x in self.there):
            self.there.append(out)
            self.bytes += out.numel() * out.element_size()
        return out


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.bfloat16, 4 * OUTPUT), (torch.float32, 0)], ids=str)
def test_memory_beyond_the_branches(dtype, allowed):
    """In bfloat16 two buffers in float32; in float32 none."""
    positive, negative = branches(dtype)
    with Made(positive, negative) as made:
        sdpa.guidance(positive, negative, *as_tensors(), dims=(2, 3), spend=True)
    assert allowed <= made.bytes <= allowed + MIB
