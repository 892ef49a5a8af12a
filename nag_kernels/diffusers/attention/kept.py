# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whether keys and values of the text, kept from an earlier step, are still what a layer would compute."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module


class KeptTensor:
    """A text or a mask as it was. A change in place is seen in torch's version counter, and on a CPU in the numbers themselves.

    A tensor of inference mode has no version counter: on a GPU, where looking at numbers would wait for the device, it is taken
    for changed.
    """

    def __init__(self, given: Any):
        self.given = given
        self.version = _version(given)
        self.values = given.clone() if isinstance(given, Tensor) and given.device.type == "cpu" else None

    def is_still(self, now: Any) -> bool:
        if now is not self.given:
            return False
        if not isinstance(now, Tensor):
            return now is None
        if self.values is not None:
            return torch.equal(now, self.values)
        return self.version is not None and _version(now) == self.version


def _version(x: Any) -> int | None:
    return x._version if isinstance(x, Tensor) and not x.is_inference() else None


def _pointer(x: Tensor) -> int | None:
    try:
        return x.data_ptr()
    except RuntimeError:  # of a quantized or sharded tensor, which holds others
        return None


def state_of_weights(layer: Module) -> tuple[Any, ...] | None:
    """What keys and values of an attention layer depend on beside its text; equal states give equal keys and values.

    Of adapters (LoRA by peft) which are active and how strongly. None where it cannot be told: a hook or another forward is on
    the layer or a projection, a module comes from a package that is not known, or a parameter is of inference mode, quantized or
    sharded.
    """
    state: list[Any] = []
    if layer._forward_pre_hooks or "forward" in layer.__dict__:
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
            version, pointer = _version(parameter), _pointer(parameter)
            if version is None or pointer is None:
                return False
            state += (id(parameter), version, pointer)
    return all(_add_state(x, state) for x in module._modules.values() if x is not None)
