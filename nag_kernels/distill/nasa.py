# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The student's step steered away from a negative text inside attention, with the gradient of the steering."""

import torch
from torch import Tensor

from nag_kernels.diffusers.families import checked_sites, family_of
from nag_kernels.diffusers.guided_processor import PackedText, put_processor
from nag_kernels.diffusers.packing import Packer
from nag_kernels.diffusers.texts_apart import texts_apart

from .denoiser import Denoiser


class Steered:
    """A denoiser whose attention to text is that of NASA, out = Z+ - scale Z- (arXiv 2412.02687).

    The two texts are packed as `nag_kernels.diffusers.guide` packs them, and the fused operation's own gradient reaches both
    branches. Raises ValueError for a module that `guide` does not serve, or serves by two runs only.
    """

    def __init__(self, denoiser: Denoiser):
        module = denoiser.module
        self.denoiser, self.family = denoiser, family_of(module)
        if self.family.route == "slow":
            raise ValueError(f"nasa needs a model whose texts can be packed; {type(module).__name__} is run twice")
        self.text = PackedText(rule="nasa")
        self.sites = checked_sites(module)
        self.stock = [site.processor for site in self.sites]
        self.ours = [self.family.replaced(each, self.text) for each in self.stock]
        self.parts = tuple(self.family.apart(module, self.text))

    def __call__(self, x: Tensor, u: Tensor, text: tuple, negative: tuple, scale: float) -> Tensor:
        """The module's prediction at x_t [B, ...], away from the text `negative`, of the form of `text`."""
        asked = [
            self.denoiser.arguments(self.denoiser.module, x, self.denoiser.schedule.timestep(u), each)
            for each in (text, negative)
        ]
        packer = Packer(self.family, asked[1], len(x), False, False, self.text)
        arguments = dict(asked[0]) | packer.pack(asked[0])
        self.text.nag_scale = torch.full((), scale, dtype=torch.float32, device=x.device)
        self.text.nag_tau = self.text.nag_alpha = torch.ones((), dtype=torch.float32, device=x.device)
        self._put(self.ours)
        try:
            with texts_apart(self.parts, self.text):
                return self.denoiser.module(**arguments, return_dict=False)[0]
        finally:
            self._put(self.stock)

    def _put(self, processors: list) -> None:
        for site, processor in zip(self.sites, processors, strict=True):
            put_processor(site, processor)
