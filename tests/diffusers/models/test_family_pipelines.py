# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`guide` on the pipelines of further families, with tiny random weights: what reaches their denoisers, and what does not."""

import pytest
import torch

pytest.importorskip("diffusers")

from tiny_models import denoiser, error
from tiny_pipelines import FURTHER

from nag_kernels.diffusers import guide

pytestmark = pytest.mark.usefixtures("one_thread")

SCALES = dict.fromkeys(
    (
        "hunyuan video",
        "hunyuan video from an image",
        "hunyuan video from an image, replaced",
        "framepack",
        "qwen image 2.1",
    ),
    "true_cfg_scale",
)
# How often a video in parts runs through its steps.
PARTS = dict.fromkeys(("framepack", "anyflow from an image", "wan animate", "helios", "helios in a pyramid"), 2)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("kind", FURTHER)
def test_pipeline(kind, guidance_scale):
    pipe, call, prompt, negative = FURTHER[kind]()
    scale = (0.8 if guidance_scale > 1 else 0.0) if kind in ("z image", "krea 2") else guidance_scale  # 0 is none there
    pipe.set_progress_bar_config(disable=True)
    call |= {
        SCALES.get(kind, "guidance_scale"): scale,
        "num_inference_steps": 3,
        "output_type": "latent",
    }
    if "pyramid_num_inference_steps_list" in call:
        del call["num_inference_steps"]
    if hasattr(pipe, "guider"):
        del call["guidance_scale"]
        pipe.guider.enable() if guidance_scale > 1 else pipe.guider.disable()
    if guidance_scale == 1:
        call = {name: x for name, x in call.items() if name == "negative_prompt" or not name.startswith("negative_")}
    outputs = []

    def note(model, inputs, output):
        sample = output if isinstance(output, torch.Tensor) else output[0]
        if sample is not None:  # else it only keeps keys and values
            outputs[-1].append(torch.stack(sample) if isinstance(sample, list) else sample)

    def draw():
        outputs.append([])
        torch.manual_seed(7)  # some encode an image without their generator
        latents = pipe(**call, **prompt, generator=torch.Generator().manual_seed(7), return_dict=False)[0]
        return latents[-1] if isinstance(latents, list) else latents  # of all parts

    denoiser(pipe).register_forward_hook(note)
    plain = draw()
    own = prompt.get("prompt", prompt)
    # Classifier-free guidance draws s conditional - (s - 1) unconditional, and the rounding of both with them.
    rounding = 2e-5 * (2 * guidance_scale - 1)
    with guide(pipe, own, nag_scale=8.0, nag_tau=2.0, nag_alpha=0.5):
        assert error(draw(), plain) < rounding
    with guide(pipe, negative, nag_scale=8.0, nag_tau=2.0, nag_alpha=0.5):
        assert error(draw(), plain) > 1e-3
    assert torch.equal(draw(), plain)

    # What the first step gave: its conditional rows differ, its unconditional ones do not.
    stock, _, guided, _ = outputs
    assert len({len(x) for x in outputs}) == 1
    two_calls = len(stock) > 3 * PARTS.get(kind, 1)
    assert two_calls == (guidance_scale > 1 and kind in TWO_CALLS)
    if two_calls:
        assert error(guided[0][0], stock[0][0]) > 1e-3
        assert error(guided[1], stock[1]) < 1e-5
    elif guidance_scale > 1 and kind not in ("flux fill", "dreamlite mobile"):  # which have none
        parts = 3 if kind == "dreamlite from an image" else 2
        guided, stock = (x[0].chunk(parts) for x in (guided, stock))
        conditional = 0 if kind in ("z image", "lumina next", "ace step") else parts - 1
        for i in range(parts):
            assert error(guided[i], stock[i]) > 1e-3 if i == conditional else error(guided[i], stock[i]) < 1e-5


@pytest.mark.parametrize(
    ("interval", "rows"), [((0.0, 0.3), [4, 4, 2]), ((0.1, 1.0), [2, 4, 4])], ids=["ends", "begins"]
)
def test_classifier_free_guidance_on_the_way(interval, rows):
    """With the prompt first."""
    pipe, call, prompt, negative = FURTHER["ace step"]()
    pipe.set_progress_bar_config(disable=True)
    call |= prompt | {"guidance_scale": 3.0, "num_inference_steps": 3, "output_type": "latent"}
    call |= dict(zip(("cfg_interval_start", "cfg_interval_end"), interval, strict=True))
    seen = []
    pipe.transformer.register_forward_hook(lambda model, inputs, output: seen.append(output[0]))

    def draw():
        seen.clear()
        return pipe(**call, generator=torch.Generator().manual_seed(7), return_dict=False)[0]

    plain, first = draw(), seen[:2]
    assert [len(x) for x in seen] == rows
    with guide(pipe, prompt["prompt"], nag_scale=8.0):
        assert error(draw(), plain) < 1e-5
    with guide(pipe, negative, nag_scale=8.0):
        assert error(draw(), plain) > 1e-4
    with guide(pipe, negative, nag_scale=8.0, start=0.3):
        draw()
    assert torch.equal(seen[0], first[0])
    if rows[1] == 4:  # the unconditional rows of the first guided step
        assert error(seen[1][:2], first[1][:2]) > 1e-4
        assert error(seen[1][2:], first[1][2:]) < 1e-5


@pytest.mark.skipif("cosmos 3" not in FURTHER, reason="this diffusers has no Cosmos 3")
def test_the_negative_of_cosmos3_comes_without_the_sentences_put_after_a_prompt():
    pipe, call, prompt, negative = FURTHER["cosmos 3"]()
    pipe.set_progress_bar_config(disable=True)
    call |= {"add_resolution_template": True, "add_duration_template": True, "num_inference_steps": 1}
    lengths = []
    pipe.transformer.register_forward_pre_hook(
        lambda model, args, kwargs: lengths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with guide(pipe, negative):
        pipe(**call, **prompt, guidance_scale=1.0, output_type="latent")
    longer, own = lengths
    assert own == len(negative) + 2  # two tokens end each text
    assert longer > len(prompt["prompt"]) + 20


@pytest.mark.skipif("sana wm" not in FURTHER, reason="this diffusers has no SANA-WM")
def test_the_negative_of_sana_wm_comes_without_the_instruction_put_before_a_prompt():
    pipe, call, prompt, negative = FURTHER["sana wm"]()
    pipe.set_progress_bar_config(disable=True)
    call |= {"chi_prompt": ["say more of this: "], "num_inference_steps": 1}
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda model, args, kwargs: seen.append(kwargs["mask"][:, 12:].long().sum().item()), with_kwargs=True
    )
    with guide(pipe, negative):
        pipe(**call, **prompt, guidance_scale=1.0, output_type="latent")
    assert seen == [len(negative.split()) + 1]


TWO_CALLS = {
    "nucleus",
    "longcat audio",
    "joy image edit",
    "lumina 2",
    "qwen image 2.1",
    "cosmos 3",
    "glm image",
    "hunyuan image",
    "chroma",
    "hunyuan video",
    "wan from an image",
    "wan animate",
    "kandinsky 5",
    "kandinsky 5 from an image",
    "kandinsky 5 still",
    "kandinsky 5 still from an image",
    "cosmos",
    "cosmos from an image",
    "cosmos 2",
    "cosmos 2 from an image",
    "helios",
    "helios in a pyramid",
    "hunyuan video from an image",
    "hunyuan video from an image, replaced",
    "lucy",
    "wan from a video",
    "wan vace",
    "kandinsky 6",
    "kandinsky 6 from an image",
    "motif video",
    "motif video from an image",
    "skyreels from an image",
    "skyreels forced",
    "skyreels forced from an image",
    "chronoedit",
    "hunyuan video 1.5",
    "hunyuan video 1.5 from an image",
    "framepack",
    "cogview4",
    "krea 2",
    "skyreels",
    "ovis",
}
