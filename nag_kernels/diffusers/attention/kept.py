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
        return torch.equal(now, self.values) if self.values is not None else self.version == _version(now) is not None


def _version(x: Any) -> int | None:
    return x._version if isinstance(x, Tensor) and not x.is_inference() else None


def _pointer(x: Tensor) -> int | None:
    try:
        return x.data_ptr()
    except RuntimeError:  # of a quantized or sharded tensor, which holds others
        return None


def state_of_weights(layer: Module) -> tuple[Any, ...] | None:
    """What the output of an attention layer's projections depends on beside their input; equal states give equal outputs.

    Of adapters (LoRA by peft) which are active and how strongly. None where it cannot be told: a hook or another forward is
    on a projection, a module comes from a package that is not known, or a parameter is of inference mode, quantized or sharded.
    """
    state: list[Any] = []
    for module in layer.modules():
        package = type(module).__module__.partition(".")[0]
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return None
        if package not in ("torch", "diffusers", "peft"):
            return None
        if package == "peft":
            adapters: Any = module
            state += [tuple(adapters.active_adapters), tuple(adapters.merged_adapters), adapters.disable_adapters]
            state += [*adapters.scaling.items()] if hasattr(adapters, "scaling") else []
        state.append(module.training)
        for parameter in (*module._parameters.values(), *module._buffers.values()):
            if parameter is None:
                continue
            version, pointer = _version(parameter), _pointer(parameter)
            if version is None or pointer is None:
                return None
            state += [id(parameter), version, pointer]
    return tuple(state)
