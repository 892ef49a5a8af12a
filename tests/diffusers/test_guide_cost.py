# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What guidance costs beside the denoiser: the negative is encoded once, and anew wherever its text may be another one."""

import contextlib

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from drawing import draw
from every_model import pipeline
from pipeline_parts import NEGATIVE, PICTURE, ddim, image_vae
from test_unet import _controlnet
from tiny import seeded

from nag_kernels.diffusers import guide, guided
from nag_kernels.diffusers.negative_prompt import NegativeRecorder
from nag_kernels.diffusers.text_origin import TextOrigin
from nag_kernels.diffusers.unchanged import NotComparable, Unchanged, form

pytestmark = pytest.mark.usefixtures("one_thread")


@contextlib.contextmanager
def counted(*modules):
    """The modules that run, in their order."""
    ran = []
    hooks = [x.register_forward_pre_hook(lambda module, _: ran.append(module)) for x in modules]
    yield ran
    for hook in hooks:
        hook.remove()


def encoders(pipe):
    return [x for name, x in vars(pipe).items() if name.startswith("text_encoder") and x is not None]


PROMPTS = ("a small red cat", "two birds in a tree", "a hat")


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl", "pixart", "sd35", "flux", "sana", "wan"])
def test_the_negative_is_encoded_once(kind, guidance_scale):
    pipe = pipeline(kind)

    def draw_it(i):
        generator = torch.Generator().manual_seed(i)
        return draw(pipe, PROMPTS[i], generator=generator, guidance_scale=guidance_scale)

    with counted(*encoders(pipe)) as ran:
        for i in range(3):
            draw_it(i)
        plain = len(ran)
        ran.clear()
        with guide(pipe, NEGATIVE):
            draw_it(0)
            first = len(ran)
            got = [draw_it(i) for i in range(3)]
    assert first > plain / 3
    assert len(ran) - first == plain
    for i, each in enumerate(got):
        with guide(pipe, NEGATIVE):
            assert torch.equal(draw_it(i), each)


def test_one_call_that_is_kept_encodes_once():
    pipe = pipeline("pixart")
    red = guided(pipe, NEGATIVE)
    options = {"prompt": "a cat", "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent",
               "height": 8, "width": 8, "use_resolution_binning": False, "clean_caption": False}  # fmt: skip
    with counted(*encoders(pipe)) as ran:
        for _ in range(3):
            red(**options)
    assert len(ran) == 4


def controlled():
    parts = pipeline("sd15").components | {"scheduler": ddim(), "controlnet": seeded(_controlnet)}
    pipe = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
def test_a_controlnet_does_not_run_for_the_negative(guidance_scale):
    pipe = controlled()

    def draw_it(i):
        image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(i))
        return draw(pipe, image=image, guidance_scale=guidance_scale)

    with counted(pipe.controlnet, pipe.text_encoder) as ran, guide(pipe, NEGATIVE):
        got = [draw_it(i) for i in range(2)]
    assert ran.count(pipe.controlnet) == 8
    encodings = 1 if guidance_scale == 1 else 2
    assert ran.count(pipe.text_encoder) == 3 * encodings
    with guide(pipe, NEGATIVE):
        assert torch.equal(draw_it(1), got[1])


def test_an_image_to_begin_with_is_not_encoded_for_the_negative_again():
    parts = pipeline("sd15").components | {"vae": image_vae()}
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": "a cat", "num_inference_steps": 4, "output_type": "latent", "guidance_scale": 1.0}
    with counted(pipe.vae.encoder) as ran, guide(pipe, NEGATIVE):
        for image in (PICTURE, PICTURE.rotate(90), PICTURE):
            pipe(image=image, **call, generator=torch.Generator().manual_seed(1))
    assert len(ran) == 4


# --- where it is encoded anew -----------------------------------------------------------------------------------------


def in_place(pipe):
    with torch.no_grad():
        for x in pipe.text_encoder.parameters():
            x.mul_(1.5)


def through_data(pipe):
    for x in pipe.text_encoder.parameters():
        x.data.mul_(1.5)


def other_data(pipe):
    for x in pipe.text_encoder.parameters():
        x.data = 1.5 * x.data


def other_encoder(pipe):
    pipe.text_encoder = type(pipe.text_encoder)(pipe.text_encoder.config).eval()


def other_tokens(pipe):
    pipe.tokenizer.first = 7


def adapter(pipe):
    from peft import LoraConfig

    pipe.text_encoder.add_adapter(
        LoraConfig(r=4, target_modules=["q", "v", "q_proj", "v_proj"], init_lora_weights=False)
    )


def a_hook(pipe):
    def change(module, args, output):
        output.last_hidden_state.mul_(1.5)

    pipe.text_encoder.register_forward_hook(change)


CHANGES = [in_place, through_data, other_data, other_encoder, other_tokens, adapter, a_hook]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_encodes_has_changed(change):
    pipe = pipeline("pixart")
    if change is adapter:
        pytest.importorskip("peft")
    torch.manual_seed(5)
    embeds = torch.randn(1, 6, 32)
    call = {"prompt": None, "prompt_embeds": embeds, "prompt_attention_mask": torch.ones(1, 6, dtype=torch.long)}
    with guide(pipe, NEGATIVE):
        before = draw(pipe, **call)
        assert torch.equal(draw(pipe, **call), before)
        change(pipe)
        got = draw(pipe, **call)
    with guide(pipe, NEGATIVE):
        assert torch.equal(draw(pipe, **call), got)
    assert not torch.equal(got, before)


def test_the_share_of_an_adapter():
    pytest.importorskip("peft")
    pipe = pipeline("sd15")
    adapter(pipe)
    embeds = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))
    call = {"prompt": None, "prompt_embeds": embeds}
    drawn = []
    with guide(pipe, NEGATIVE):
        drawn.append(draw(pipe, **call))
        for module in pipe.text_encoder.modules():
            if hasattr(module, "scaling"):
                module.set_scale("default", 0.3)
        drawn.append(draw(pipe, **call))
        pipe.text_encoder.disable_adapters()
        drawn.append(draw(pipe, **call))
    with guide(pipe, NEGATIVE):
        assert torch.equal(draw(pipe, **call), drawn[-1])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


ARGUMENTS = {
    "another length": ("pixart", {"max_sequence_length": 5}),
    "another number of prompts": ("pixart", {"prompt": ["a cat", "a dog"]}),
    "several images": ("pixart", {"num_images_per_prompt": 2}),
    "classifier-free guidance": ("pixart", {"guidance_scale": 3.0}),
    "another unconditional text": ("pixart", {"guidance_scale": 3.0, "negative_prompt": "a house"}),
    "clip skip": ("sdxl", {"clip_skip": 1}),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_other_arguments_of_the_call(case):
    kind, options = ARGUMENTS[case]
    pipe = pipeline(kind)
    with guide(pipe, NEGATIVE):
        draw(pipe)
        got = draw(pipe, **options)
        again = draw(pipe, **options)
    with guide(pipe, NEGATIVE):
        assert torch.equal(draw(pipe, **options), got)
    assert torch.equal(again, got)


class ImageInText(diffusers.StableDiffusionPipeline):
    """The mean of the latents that it starts from goes into its text."""

    def encode_prompt(self, *args, **kwargs):
        prompt, negative = super().encode_prompt(*args, **kwargs)
        return prompt + self.picture.mean(), negative

    def __call__(self, *args, latents, **kwargs):
        self._picture = latents
        return super().__call__(*args, latents=latents, **kwargs)

    @property
    def picture(self):
        return self._picture


class RandomText(ImageInText):
    @property
    def picture(self):
        return torch.randn(4)


class ChosenByImage(ImageInText):
    """The image chooses the words."""

    def encode_prompt(self, prompt, *args, **kwargs):
        word = "red" if self._picture.mean() > 0 else "green"
        return diffusers.StableDiffusionPipeline.encode_prompt(self, f"{word} {prompt}", *args, **kwargs)


@pytest.mark.parametrize("kind", [ImageInText, RandomText, ChosenByImage])
def test_a_text_that_something_else_has_a_part_in(kind):
    pipe = kind(**pipeline("sd15").components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    noises = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)) + shift for shift in (0.5, -0.5)]

    def draw_it(noise, seed):
        torch.manual_seed(seed)
        return draw(pipe, latents=noise)

    with guide(pipe, NEGATIVE), counted(pipe.text_encoder) as ran:
        got = [draw_it(noise, seed) for seed, noise in enumerate(noises)]
    assert len(ran) == 4
    for seed, noise in enumerate(noises):
        with guide(pipe, NEGATIVE):
            assert torch.equal(draw_it(noise, seed), got[seed])


def test_what_is_kept_cannot_be_written_into(monkeypatch):
    pipe, record, recorded = pipeline("sd15"), NegativeRecorder.record, []

    def noted(self, *args):
        recorded.append(record(self, *args))
        return recorded[-1]

    monkeypatch.setattr(NegativeRecorder, "record", noted)
    with guide(pipe, NEGATIVE):
        wanted = draw(pipe)
        for _ in range(2):
            recorded[-1].arguments["encoder_hidden_states"].zero_()
            assert torch.equal(draw(pipe), wanted)


def test_nothing_is_kept_when_guidance_ends():
    pipe = pipeline("sd15")
    block = guide(pipe, NEGATIVE)
    with block:
        draw(pipe)
        guidance = block.owners[0].guidance
        assert guidance.texts._calls
    assert not guidance.texts._calls
    assert guidance.texts._encoding is None


# --- its parts --------------------------------------------------------------------------------------------------------


def origin(*weights, arguments=()):
    return TextOrigin(weights, arguments, ())


def test_what_a_text_is_made_of():
    weight, image = torch.randn(4, 4), torch.randn(3, 4)
    with torch.no_grad(), origin(weight, arguments=[image]) as made:
        ids = torch.tensor([0, 1, 2])
        text = weight[ids]
        padded = torch.zeros(5, 4)
        padded[:3] = text
        assert made.knows([text, {"mask": text.sum(1) > 0}, padded, padded[1:]])
        for other in (
            image + text,
            torch.randn(2),
            torch.empty(2),
            torch.tensor([0.5]),
            torch.dropout(text, 0.5, True),
        ):
            assert not made.knows(other)
        view = padded[4:]
        view.copy_(image[:1])
        assert not made.knows(padded)
        assert made.knows(text @ weight)
        bool(image.sum() > 0)
        assert not made.knows(text @ weight)


def test_what_is_compared():
    layer = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.1))
    layer.settings = {"scale": 1.5, "words": ["a"]}
    same = Unchanged([layer], weights=True)
    assert same()
    layer.settings["scale"] = float("1.5")
    assert same()
    for change in (
        lambda: layer.settings.update(scale=2.0), lambda: layer.settings["words"].append("b"), lambda: layer[1].train(False),
        lambda: layer[0].weight.data.mul_(2), lambda: layer.append(torch.nn.ReLU()), lambda: setattr(layer[1], "p", 0.2),
        lambda: layer.register_forward_hook(lambda *_: None), lambda: layer.to(torch.float64),
        lambda: setattr(layer[1], "__class__", torch.nn.Identity),
    ):  # fmt: skip
        same = Unchanged([layer], weights=True)
        assert same()
        change()
        assert not same()


def test_arguments_that_cannot_be_compared():
    assert form({"a": [1, True, torch.ones(2)]}) == form({"a": [1, True, torch.zeros(2)]})
    assert form(1) != form(True)
    assert form(PICTURE) != form(PICTURE.resize((8, 8)))
    for x in (object(), lambda: 0, {"a": object()}):
        with pytest.raises(NotComparable):
            form(x)
