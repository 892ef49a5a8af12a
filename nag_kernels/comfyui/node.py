# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The node: its inputs, and what it says where they do not fit."""

import functools
import importlib
import importlib.util
import logging
import re
from typing import Any

from nag_kernels.checks import check_scalars
from nag_kernels.layer_choice import chosen_layers

from .families import family_of
from .packing import TITLE, Guidance
from .sampling import KEY, Guide

NEWEST_CORE = "0.33.0"  # of which all models were tested
RULES = ("nag", "nasa", "vsf")
PUBLISHED = -1.0  # stands for what the papers use for the model
NOT_IN_A_NEGATIVE = {
    "area": "an area", "mask": "a mask", "hooks": "LoRA or model hooks", "gligen": "boxes (GLIGEN)",
    "strength": "a strength", "start_percent": "a range of steps", "end_percent": "a range of steps",
}  # fmt: skip


def _number(low: float, high: float, default: float, tooltip: str, step: float = 0.05) -> tuple[str, dict[str, Any]]:
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step, "round": 0.001, "tooltip": tooltip}


class NegativePromptInAttention:
    """Steers the attention to the prompt away from a negative prompt, in each step that is drawn with the model it returns."""

    DESCRIPTION = (
        "A negative prompt that works without CFG, also in few-step models: inside attention, what the image takes from the "
        "prompt is steered away from what it would take from the negative prompt (NAG, NASA or VSF)."
    )
    CATEGORY = "model_patches/guidance"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        scale = (
            "How far to steer. nag: 1 is not at all, 3 to 5 is usual. nasa: 0 is not at all, 0.1 to 1 is usual. vsf: 1.7 to 6 is "
            "usual. -1 takes what is published for the model."
        )
        tau = "nag only: how many times larger attention may become before it is clipped. -1 takes what is published (2.5)."
        alpha = "nag only: the share of the steered attention, 0 to 1. Raise it if the negative is still there. -1: published."
        return {
            "required": {
                "model": ("MODEL",),
                "negative": (
                    "CONDITIONING",
                    {"tooltip": "What the picture should not show, encoded by the model's own CLIP."},
                ),
                "nag_scale": _number(-1.0, 50.0, PUBLISHED, scale),
                "nag_tau": _number(-1.0, 100.0, PUBLISHED, tau),
                "nag_alpha": _number(-1.0, 1.0, PUBLISHED, alpha, step=0.005),
                "rule": (list(RULES), {"tooltip": "How to steer: nag for most, nasa, or vsf."}),
                "start_percent": _number(0.0, 1.0, 0.0, "Where in the sampling to begin.", step=0.01),
                "end_percent": _number(0.0, 1.0, 1.0, "Where to stop: 0.25 keeps most of the effect.", step=0.01),
                "layers": (
                    "STRING",
                    {"default": "all", "tooltip": "Which layers to steer: all, numbers such as 0-9, 12, or names."},
                ),
            }
        }

    def patch(self, model: Any, negative: Any, nag_scale: float = PUBLISHED, nag_tau: float = PUBLISHED,
              nag_alpha: float = PUBLISHED, rule: str = "nag", start_percent: float = 0.0, end_percent: float = 1.0,
              layers: str = "all") -> tuple[Any]:  # fmt: skip
        """A copy of `model` that is guided. Raises ValueError where the inputs do not fit, or the model cannot be guided."""
        if any(KEY in each for each in model.wrappers.values()):
            raise ValueError(
                f"{TITLE}: this model already has a negative of another such node. Connect one of them only"
            )
        family = family_of(model.model)
        _warn_of_a_newer_core()
        if rule not in RULES:
            raise ValueError(f"{TITLE}: rule must be one of {', '.join(RULES)}, got {rule!r}")
        if not 0 <= start_percent < end_percent <= 1:
            raise ValueError(
                f"{TITLE}: start_percent must be below end_percent, both from 0 to 1, got {start_percent:g} and "
                f"{end_percent:g}: no step would be guided"
            )
        _check_negative(negative)
        settings = self._settings(family.settings(model.model), family.title, rule, nag_scale, nag_tau, nag_alpha)
        names = [name for name, _ in family.layers(model.model.diffusion_model)]
        chosen = chosen_layers(TITLE, layers.strip() or "all", names)
        guide = Guide(
            family,
            negative,
            Guidance(*settings, rule=rule, chosen=chosen),
            (start_percent, end_percent),
        )
        guided = model.clone()
        guide.add_to(guided)
        return (guided,)

    def _settings(
        self, papers: Any, title: str, rule: str, scale: float, tau: float, alpha: float
    ) -> tuple[float, float, float]:
        if scale == PUBLISHED:
            published = {"nag": papers.nag_scale, "nasa": papers.nasa_scale, "vsf": None}[rule]
            if published is None:
                usual = {"nasa": "0.1 to 1", "vsf": "1.7 to 6"}[rule]
                raise ValueError(
                    f"{TITLE}: nag_scale must be given for rule {rule}: none is published for {title}. {usual} is usual"
                )
            scale = published
        tau = papers.nag_tau if tau == PUBLISHED else tau
        alpha = papers.nag_alpha if alpha == PUBLISHED else alpha
        check_scalars(TITLE, scale, tau, alpha)
        return scale, tau, alpha


@functools.cache
def _warn_of_a_newer_core() -> None:
    """Once. A model may lay its text otherwise there, which need not be seen."""
    core = importlib.util.find_spec("comfyui_version")
    version = importlib.import_module("comfyui_version").__version__ if core else NEWEST_CORE
    if [int(x) for x in re.findall(r"\d+", version)[:3]] > [int(x) for x in NEWEST_CORE.split(".")]:
        logging.getLogger("nag_kernels").warning(
            "%s: this is ComfyUI %s, newer than %s, the newest that was tested. Compare a picture whose negative is the prompt "
            "itself with one without this node: they must be alike",
            TITLE, version, NEWEST_CORE,
        )  # fmt: skip


def _check_negative(negative: Any) -> None:
    if len(negative) != 1:
        raise ValueError(
            f"{TITLE}: the negative must be one conditioning, got {len(negative)}. Join several with Conditioning (Concat), "
            "not with Conditioning (Combine)"
        )
    found = next((words for name, words in NOT_IN_A_NEGATIVE.items() if negative[0][1].get(name) is not None), None)
    if found is not None:
        raise ValueError(
            f"{TITLE}: the negative has {found}, which cannot be taken into account. Connect a text encode node directly; "
            "start_percent and end_percent of this node say which steps are guided"
        )


NODE_CLASS_MAPPINGS = {"NagKernelsNegativePrompt": NegativePromptInAttention}
NODE_DISPLAY_NAME_MAPPINGS = {"NagKernelsNegativePrompt": f"{TITLE} (NAG, NASA, VSF)"}
