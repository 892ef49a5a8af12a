# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for SD.Next: those parts of its script interface that `sdnext/nag_guidance.py` was seen to use, and nothing else.

It is written for these tests and is no code of SD.Next. It behaves like the version of July 2026 in what matters to the script:
the pipeline's class changes during the run, the prompts are encoded before the call, and some errors of a pipeline end the run
without a picture and without a sentence. `test_sdnext_real.py` runs SD.Next itself.
"""

import sys
from types import ModuleType, SimpleNamespace

import diffusers
import torch


class Element:
    """Any element of the page."""

    def __init__(self, *_, value=None, label=None, **__):
        self.value, self.label = value, label

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


class Script:
    def elem_id(self, name):
        return f"script_{name}"


class Application:
    """SD.Next with one model. `pictures` are what it has drawn: latents."""

    def __init__(self, pipe):
        self.pipe, self.shared = pipe, ModuleType("modules.shared")
        self.shared.sd_model = pipe
        self.shared.state = SimpleNamespace(interrupted=False, skipped=False)
        self.calls = []  # the pipeline, and the arguments of its call
        self.drawing = ModuleType("modules.processing_diffusers")
        self.drawing.set_pipeline_args = self.set_pipeline_args
        self.drawing.process_diffusers = self.process_diffusers
        self.encodes, self.otherwise, self.cancels = True, False, False

    def modules(self):
        manager, parser = ModuleType("modules.scripts_manager"), ModuleType("modules.prompt_parser_diffusers")
        manager.Script, manager.AlwaysVisible = Script, object()
        parser.get_prompt_schedule = lambda text, steps: ([text], "[" in text and steps > 1)
        page, package = ModuleType("gradio"), ModuleType("modules")
        page.Accordion = page.Row = page.HTML = page.Checkbox = page.Slider = Element
        parts = {"shared": self.shared, "processing_diffusers": self.drawing, "scripts_manager": manager}
        for name, part in (parts := parts | {"prompt_parser_diffusers": parser}).items():
            setattr(package, name, part)
        return {"gradio": page, "modules": package, **{f"modules.{name}": part for name, part in parts.items()}}

    def set_pipeline_args(self, p, model, prompts, negative_prompts, **kwargs):
        arguments = {"generator": [torch.Generator().manual_seed(p.seed + i) for i in range(len(prompts))]}
        if self.encodes:
            parts = model.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
                                        negative_prompt=negative_prompts)  # fmt: skip
            names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
            arguments |= dict(zip(names, parts, strict=False))
            arguments["negative_prompt_embeds"] = (
                1.25 * arguments["negative_prompt_embeds"]
            )  # like a weight of all words
        else:
            arguments |= {"prompt": prompts, "negative_prompt": negative_prompts}
        if p.init_images is not None:
            arguments |= {"image": p.init_images, "strength": p.strength}
        else:
            arguments |= {"height": 8, "width": 8}
        arguments |= {"callback_on_step_end": self.step_end, **kwargs}
        self.calls.append((model, arguments))
        return arguments

    def step_end(self, pipe, step, timestep, kept):
        if self.cancels:
            self.shared.state.interrupted = True
            raise AssertionError("cancelled")
        return kept

    def process_diffusers(self, p):
        original, state = self.shared.sd_model, self.shared.state
        if p.init_images is not None:
            self.shared.sd_model = diffusers.AutoPipelineForImage2Image.from_pipe(self.shared.sd_model)
        results = self.one_pass(p)
        if results is not None and p.hires:
            p.init_images, p.strength = results, 0.5
            self.shared.sd_model = diffusers.AutoPipelineForImage2Image.from_pipe(self.shared.sd_model)
            results = self.one_pass(p)
        self.shared.sd_model = original
        return [] if results is None or state.interrupted else list(results)

    def one_pass(self, p):
        arguments = self.drawing.set_pipeline_args(
            p=p, model=self.shared.sd_model, prompts=p.prompts, negative_prompts=p.negative_prompts,
            num_inference_steps=4, guidance_scale=p.cfg_scale, output_type="latent",
        )  # fmt: skip
        try:
            if self.otherwise:
                model = self.shared.sd_model
                return type(model).__mro__[1].__call__(model, **arguments).images
            return self.shared.sd_model(**arguments).images
        except AssertionError:
            return None
        except (ValueError, RuntimeError):  # logged, without a word on the page
            self.shared.state.interrupted = True
            return None

    def draw(self, script, values, prompt="a red cat", negative="blurry dog", **given):
        """One run, as for a press of the button. It goes on after an error of the script, as SD.Next does.

        `values` are those of the section.
        """
        self.shared.state.interrupted = False
        p = SimpleNamespace(
            prompts=[prompt] * given.pop("batch", 1), seed=1, init_images=None, strength=0.7, hires=False, cfg_scale=1.0,
            skip=[], state="", extra_generation_params={},
        )  # fmt: skip
        p.negative_prompts = [negative] * len(p.prompts)
        vars(p).update(given)
        try:
            script.process(p, *values)
        except Exception as error:
            print(error, file=sys.stderr)
        self.parameters = p.extra_generation_params
        return self.drawing.process_diffusers(p)
