# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whether keys and values of the text, kept from an earlier step, are still what a layer would compute."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Module
from torch.nn.modules import module as torch_module


class _State:
    """A tensor as it is now, by its version and its memory. This keeps neither of them alive, and equals the state of no other
    tensor and no other memory, even where they get the id and the address of freed ones.
    """

    def __init__(self, tensor: Tensor):
        """Raises RuntimeError where it cannot be told: of inference mode, or quantized or sharded, which holds others."""
        self.state = tensor._version, tensor.data_ptr(), tensor.stride()
        self.tensor, self.storage = weakref.ref(tensor), StorageWeakRef(tensor.untyped_storage())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _State):
            return False
        tensor = self.tensor()
        same = tensor is not None and tensor is other.tensor()
        return same and self.storage.cdata == other.storage.cdata and self.state == other.state

    __hash__ = None  # type: ignore[assignment]


def _state(x: Any) -> _State | None:
    try:
        return _State(x) if isinstance(x, Tensor) else None
    except RuntimeError:
        return None


class KeptTensor:
    """A text or a mask as it was. A change in place is seen in torch's version counter, and on a CPU in the numbers themselves.

    A tensor of inference mode has no version counter: on a GPU, where looking at numbers would wait for the device, it is taken
    for changed.
    """

    def __init__(self, given: Any):
        self.given = given
        self.state = _state(given)
        self.values = given.clone() if isinstance(given, Tensor) and given.device.type == "cpu" else None

    def is_still(self, now: Any) -> bool:
        return now is self.given and self.has_values_of(now)

    def has_values_of(self, now: Any) -> bool:
        """On a CPU those of any tensor, else of the very one."""
        if not isinstance(now, Tensor) or not isinstance(self.given, Tensor):
            return now is self.given
        if self.values is not None:
            same = now.device.type == "cpu" and now.dtype == self.values.dtype
            return same and torch.equal(now, self.values)  # of other shapes too
        return self.state is not None and self.state == _state(now)


class KeptKeysAndValues:
    """Keys and values of both texts by attention layer, for the steps after the one that computed them.

    What counts is the text that reaches a layer: hooks may have changed it on its way, and a projection before the layers, or its
    adapters, may be another by now. So on a GPU, where looking at numbers would wait for the device, keys and values are kept
    only if the very tensor reaches the layer that the denoiser was called with.
    """

    def __init__(self, handed: Sequence[Tensor]):
        """handed: the texts that the denoiser is called with."""
        self.handed = handed
        self.text = KeptTensor(None)  # the latest that reached a layer
        self.layers: dict[Module, tuple[tuple[Any, ...], KeptTensor, tuple[Tensor, Tensor]]] = {}

    def of(
        self, layer: Module, text: Tensor, lengths: tuple[int, int], compute: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Key and value of `text`, which has these lengths, in a layer."""
        weights = state_of_weights(layer)
        on_its_way = text.device.type != "cpu" and not any(text is x for x in self.handed)
        if weights is None or on_its_way:
            self.layers.pop(layer, None)
            return compute()
        state = lengths, *weights
        known = self.layers.get(layer)
        if known is None or known[0] != state or not known[1].has_values_of(text):
            if not self.text.has_values_of(text):
                self.text = KeptTensor(text)
            known = self.layers[layer] = state, self.text, compute()
        return known[2]


def state_of_weights(layer: Module) -> tuple[Any, ...] | None:
    """What keys and values of an attention layer depend on beside its text; equal states give equal keys and values.

    Of adapters (LoRA by peft) which are active and how strongly. None where it cannot be told: a hook or another forward is on
    the layer, a projection or all modules, a module comes from a package that is not known, or a parameter is of inference mode,
    quantized or sharded. What is written to `parameter.data` in place leaves no trace that could be seen.
    """
    state: list[Any] = []
    if layer._forward_pre_hooks or "forward" in layer.__dict__:
        return None
    hooks = (*torch_module._global_forward_hooks.values(), *torch_module._global_forward_pre_hooks.values())
    if not all(getattr(hook, "__module__", "").startswith("torch.") for hook in hooks):  # torch's own count and look on
        return None
    for name, module in layer._modules.items():
        if module is not None and name not in _OF_QUERY and not _add_state(module, state):
            return None
    return tuple(state)


_OF_QUERY = ("to_q", "norm_q", "to_out")


def _add_state(module: Module, state: list[Any]) -> bool:
    """Whether it could be told."""
    package = type(module).__module__.partition(".")[0]
    if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
        return False
    if package not in ("torch", "diffusers", "peft"):
        return False
    if package == "peft":
        adapters: Any = module
        state += [tuple(adapters.active_adapters), tuple(adapters.merged_adapters), adapters.disable_adapters]
        state += [*adapters.scaling.items()] if hasattr(adapters, "scaling") else []
    state.append(module.training)
    for held in (module._parameters, module._buffers):
        for parameter in held.values():
            if parameter is None:
                continue
            now = _state(parameter)
            if now is None:
                return False
            state.append(now)
    return all(_add_state(x, state) for x in module._modules.values() if x is not None)
