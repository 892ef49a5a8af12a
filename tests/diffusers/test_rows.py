# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Pipelines whose batch is not one row, or two, for each image: overlapping views of one image, three-row guidance."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from every_model import pipeline
from tiny import error

from nag_kernels.diffusers import guide

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT, NEGATIVE = "a small red cat", "a large blue dog on grass"
FIRM = {"nag_scale": 8.0, "nag_tau": 3.0, "nag_alpha": 0.5}


def parts(unet=None):
    pipe = pipeline("sd15")
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return parts | absent | ({} if unet is None else {"unet": unet(pipe.unet.config)})


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
def test_views_of_one_image(guidance_scale):
    """Three, one by one. Several in one batch are refused."""
    pipe = diffusers.StableDiffusionPanoramaPipeline(**parts())
    pipe.set_progress_bar_config(disable=True)

    def draw(views):
        return pipe(PROMPT, height=512, width=640, num_inference_steps=1, guidance_scale=guidance_scale, view_batch_size=views,
                    output_type="latent", generator=torch.Generator().manual_seed(3)).images  # fmt: skip

    assert len(pipe.get_views(512, 640)) == 3
    plain = draw(1)
    with guide(pipe, PROMPT, nag_scale=8.0, nag_tau=1.0, nag_alpha=1.0):
        assert error(draw(1), plain) < 2e-5
    with guide(pipe, NEGATIVE, **FIRM):
        assert error(draw(1), plain) > 1e-3
        for views in (2, 3):
            with pytest.raises(ValueError, match=r"batch of .* texts for 1 images"):
                draw(views)


def test_three_row_guidance_is_refused():
    """Of InstructPix2Pix: the prompt, the image alone, neither. With one row it is guided."""
    unet = lambda config: diffusers.UNet2DConditionModel.from_config(config, in_channels=8).eval()  # noqa: E731
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(**parts(unet))
    pipe.set_progress_bar_config(disable=True)
    image = torch.linspace(0, 1, 192).view(1, 3, 8, 8)

    def draw(guidance_scale):
        return pipe(PROMPT, image=image, num_inference_steps=2, guidance_scale=guidance_scale, output_type="latent",
                    generator=torch.Generator().manual_seed(3)).images  # fmt: skip

    plain = draw(1.0)
    with guide(pipe, NEGATIVE, **FIRM):
        assert error(draw(1.0), plain) > 1e-3
        with pytest.raises(ValueError, match="a batch of 3 texts for 1 images; guidance knows 1, and 2"):
            draw(3.0)
    assert torch.equal(draw(1.0), plain)
