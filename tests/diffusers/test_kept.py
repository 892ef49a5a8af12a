# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""When keys and values of the text are no longer what a layer would compute: texts and weights, each by itself."""

import weakref

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

pytest.importorskip("diffusers")

from nag_kernels.diffusers.attention.kept import KeptKeysAndValues, KeptTensor, state_of_weights


def test_on_a_gpu_nothing_is_kept_of_a_text_that_is_not_the_denoisers_own():
    handed, layer, calls = torch.ones(1, 4, 2, device="meta"), torch.nn.ModuleDict({"to_k": torch.nn.Linear(2, 2)}), []
    kept = KeptKeysAndValues([handed])
    for text in (handed, handed, handed.clone(), handed):
        kept.of(layer, text, (2, 2), lambda: calls.append(None) or (handed, handed))
    assert len(calls) == 3
    kept.of(layer, handed, (3, 1), lambda: calls.append(None) or (handed, handed))
    assert len(calls) == 4


def test_what_a_tensor_was():
    x = torch.ones(2, 3)
    kept = KeptTensor(x)
    assert kept.is_still(x)
    assert not kept.is_still(x.clone())
    x[0, 0] = 2
    assert not kept.is_still(x)
    assert KeptTensor(None).is_still(None)
    on_device = KeptTensor(torch.ones(2, 3))
    on_device.values = None  # as on a GPU
    assert on_device.is_still(on_device.given)
    on_device.given.add_(1)
    assert not on_device.is_still(on_device.given)
    on_device = KeptTensor(torch.ones(2, 3, device="meta"))
    assert on_device.is_still(on_device.given)
    on_device.given.data = torch.ones(2, 3, device="meta")
    assert not on_device.is_still(on_device.given)
    with torch.inference_mode():
        inference = KeptTensor(torch.ones(2))
        assert inference.is_still(inference.given)
        inference.values = None
        assert not inference.is_still(inference.given)


def new_parameter(linear):
    values = torch.empty(0)
    linear.weight = None
    linear.weight = torch.nn.Parameter(values.resize_(64, 64).normal_())


def new_memory(linear):
    linear.weight.data = torch.empty(0)
    linear.weight.data = torch.randn(64, 64)


def same_memory(linear):
    weight = linear.weight.data
    weight.neg_()
    linear.weight = None
    linear.weight = torch.nn.Parameter(weight)


def turned(linear):
    linear.weight.data = linear.weight.data.t()


@pytest.mark.parametrize("change", [new_parameter, new_memory, same_memory, turned])
def test_a_weight_that_gets_the_id_and_the_address_of_a_freed_one_is_another(change):
    layer = torch.nn.ModuleDict({"to_k": torch.nn.Linear(64, 64, bias=False)})
    for _ in range(50):
        before = state_of_weights(layer)
        change(layer["to_k"])
        assert state_of_weights(layer) != before


def test_a_state_of_weights_keeps_no_memory():
    layer = torch.nn.ModuleDict({"to_k": torch.nn.Linear(64, 64, bias=False)})
    state, memory = state_of_weights(layer), StorageWeakRef(layer["to_k"].weight.untyped_storage())
    parameter = weakref.ref(layer["to_k"].weight)
    assert state is not None
    layer["to_k"].weight.data = torch.empty(0)
    assert memory.expired()
    layer["to_k"].weight = None
    assert parameter() is None


def test_whose_state_cannot_be_told():
    class Own(torch.nn.Linear):
        pass

    def layer(linear=torch.nn.Linear):
        return torch.nn.ModuleDict({"to_k": linear(2, 2)})

    known = layer()
    assert state_of_weights(known) == state_of_weights(known) is not None
    assert state_of_weights(known) != state_of_weights(known.eval())
    assert state_of_weights(layer(Own)) is None
    for hook in ("register_forward_hook", "register_forward_pre_hook"):
        hooked = layer()
        getattr(hooked["to_k"], hook)(lambda *call: None)
        assert state_of_weights(hooked) is None
    replaced = layer()
    replaced["to_k"].forward = lambda x: x
    assert state_of_weights(replaced) is None
    with torch.inference_mode():
        assert state_of_weights(layer()) is None
