# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A bare denoiser and its guidance as one module, whose calls take both texts: what torch.export can write down."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module

from .guide import guide
from .models.registry import spec_of


class GuidedDenoiser(Module):
    def __init__(self, denoiser: Module, **settings: Any):
        super().__init__()
        self.denoiser = denoiser
        self.settings = settings

    def forward(self, *args: Any, negative: Mapping[str, Any], nag_scale=None, nag_tau=None, nag_alpha=None, **kwargs: Any) -> Any:
        block = guide(self.denoiser, negative, **self.settings)
        with block:
            block.run.given = (nag_scale, nag_tau, nag_alpha)
            output = self.denoiser(*args, **kwargs, return_dict=False)
        return output[0] if len(output) == 1 else output
