# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A bare denoiser and its guidance as one module, which takes the texts of both prompts: what torch.export can write down."""

from collections.abc import Mapping
from types import NoneType
from typing import Any

from torch import Tensor
from torch.nn import Module

from nag_kernels.layer_choice import LayerChoice

from .guide import guide
from .models.registry import spec_of
from .own_loop import DenoiserBlock
from .schedule import with_numbers
from .settings_as_attributes import Setting


class GuidedDenoiser(Module):
    """A denoiser whose every call is guided. The text of the negative prompt is an argument of the call.

        guided = GuidedDenoiser(unet, nag_scale=3.0)
        arguments = {"sample": sample, "timestep": timestep, "encoder_hidden_states": text}
        output = guided(arguments, {"encoder_hidden_states": negative_text})

    It computes what the denoiser computes in `with guide(denoiser, negative, ...):`. It can be exported, because it is a module
    that takes both texts: they are inputs of `torch.export.export(guided, (arguments, negative), strict=False)`. docs/export.md
    describes the way from there to ONNX, OpenVINO and AOTInductor.
    """

    nag_scale, nag_tau, nag_alpha, rule, negative_logit_bias, layers, pad, negative_pooled = (
        Setting() for _ in range(8)
    )

    def __init__(
        self, denoiser: Module, *, nag_scale: float | None = None, nag_tau: float | None = None, nag_alpha: float | None = None,
        rule: str = "nag", negative_logit_bias: float = 0.0, layers: LayerChoice | None = None, pad: bool = False,
        negative_pooled: bool = False,
    ):  # fmt: skip
        """denoiser: a UNet or a transformer of diffusers. The other arguments and the errors are those of `guide`."""
        super().__init__()
        if not isinstance(denoiser, Module):
            raise TypeError(
                f"GuidedDenoiser: denoiser must be a model (pipe.unet or pipe.transformer), got {type(denoiser).__name__}"
            )
        self.denoiser = denoiser
        self.settings: dict[str, Any] = {}
        self.change(**{
            "nag_scale": nag_scale, "nag_tau": nag_tau, "nag_alpha": nag_alpha, "rule": rule,
            "negative_logit_bias": negative_logit_bias, "layers": layers, "pad": pad, "negative_pooled": negative_pooled,
        })  # fmt: skip

    def change(self, **settings: Any) -> None:
        """Changes some of the settings, as `guided.nag_scale = 3.0` changes one. Raises as the constructor does."""
        changed = self.settings | with_numbers(settings)
        block = self._block(dict.fromkeys(spec_of(self.denoiser).text), changed)
        block.unused = False
        block.settings(self.denoiser)  # which refuses what no call could mend
        self.settings = changed

    def _block(self, negative: Mapping[str, Any], settings: dict[str, Any]) -> DenoiserBlock[Module]:
        block = guide(self.denoiser, negative, **settings)
        assert isinstance(block, DenoiserBlock)
        return block

    def forward(
        self, arguments: Mapping[str, Any], negative: Mapping[str, Any], nag_scale: Tensor | None = None,
        nag_tau: Tensor | None = None, nag_alpha: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """
        Args:
            arguments: the arguments of the denoiser's forward, by name, with the text of the prompt.
            negative: the text of the negative prompt, its mask and whatever else depends on this text, under the names of the
                denoiser's forward. It has one row, or as many rows as the text of the prompt.
            nag_scale, nag_tau, nag_alpha: float32 tensors [] or [rows of the prompt's text], in place of this module's own
                settings. In an exported program they are inputs, so they may change from step to step. Their values are not
                checked. A nag_scale of 1 (0 for rule "nasa"; "vsf" has no such value) leaves a row unguided. Give it to the
                unconditional rows of classifier-free guidance.

        Returns: what the denoiser returns with return_dict=False. If this is a tuple of one element, that element.
        """
        given = {"nag_scale": nag_scale, "nag_tau": nag_tau, "nag_alpha": nag_alpha}
        for name, value in given.items():
            if not isinstance(value, (Tensor, NoneType)):
                raise TypeError(
                    f"GuidedDenoiser: {name} of a call must be a tensor, got {value!r:.60}; numbers are settings of the module, "
                    f"GuidedDenoiser(denoiser, {name}=...)"
                )
        if "return_dict" in arguments:
            raise ValueError("GuidedDenoiser: arguments must be without return_dict, which is False here")
        block = self._block(negative, self.settings)
        with block:
            assert block.run is not None
            block.run.given = given
            output = self.denoiser(**arguments, return_dict=False)
        return output[0] if isinstance(output, tuple) and len(output) == 1 else output
