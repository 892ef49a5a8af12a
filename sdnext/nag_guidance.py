# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Negative guidance (NAG) in SD.Next, by the Python package nag-kernels. Copy this file into SD.Next's folder `scripts`.

SD.Next makes new pipeline objects while it draws (from text, from an image, for hires and for the detailer). After an error of a
script it goes on without the script. So the section of the page only notes its settings on the run, and two functions of SD.Next
are wrapped. One makes the arguments of each call of a pipeline: its wrapper guides that very call. The other draws a batch: its
wrapper checks that each call was guided. A run in which the section is off passes through both wrappers as it is.
"""

import functools
import inspect
import sys

import gradio as gr
from modules import processing_diffusers, prompt_parser_diffusers, scripts_manager, shared

TITLE = "Negative guidance (NAG)"
PUBLISHED = -1  # of a setting: what the paper uses for the model
NAMES = ("enabled", "scale", "tau", "alpha", "end")
DEFAULTS = (False, PUBLISHED, PUBLISHED, PUBLISHED, 1.0)


class NegativeGuidanceError(Exception):
    """Ends the run, with its sentence on the page, in the log and in the answer of the API.

    SD.Next catches ValueError, RuntimeError and AssertionError around a pipeline, and would end the run without a sentence.
    """

    def __init__(self, reason):
        self.detail = f"{TITLE}: {reason}"
        super().__init__(self.detail)


def cancelled():
    return shared.state.interrupted or shared.state.skipped


def settings_of(p):
    """The section's settings for a run, or None if it is off."""
    given = getattr(p, "negative_guidance", ())
    settings = dict(zip(NAMES, (*given, *DEFAULTS[len(given) :]), strict=False))
    if not settings.pop("enabled"):
        return None
    if len(given) > len(NAMES):
        raise NegativeGuidanceError(f"its values are {', '.join(NAMES)}, and {len(given)} were given.")
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise NegativeGuidanceError(f"{name} must be a number, got {value!r}.")
    return settings


class Run:
    """The calls of pipelines in one batch of a run with guidance."""

    def __init__(self, settings):
        self.settings = settings
        self.prepared = self.guided = 0
        self.waiting = []  # what takes back the classes of pipelines that were not called

    def prepare(self, p, pipe, negatives, arguments):
        """Guides the next call of the pipeline, which has these arguments."""
        self.prepared += 1
        p.extra_generation_params[TITLE] = " ".join(f"{k}={v:g}" for k, v in self.settings.items() if v != PUBLISHED)
        plain = type(pipe)

        def put_back():
            if type(pipe) is stand_in:
                pipe.__class__ = plain

        @functools.wraps(plain.__call__)
        def call(pipe, *args, **kwargs):
            put_back()
            try:
                result = self.draw(pipe, negative_of(negatives, arguments), args, kwargs)
            except Exception as error:
                if isinstance(error, AssertionError) and cancelled():  # SD.Next's own way to end the call
                    raise
                raise NegativeGuidanceError(error) from error
            self.guided += 1
            return result

        stand_in = type(plain.__name__, (plain,), {"__call__": call, "__module__": plain.__module__})
        try:
            pipe.__class__ = stand_in
        except TypeError as error:
            raise NegativeGuidanceError(f"a {plain.__name__} cannot be guided ({error}).") from error
        self.waiting.append(put_back)

    def draw(self, pipe, negative, args, kwargs):
        try:
            from nag_kernels.diffusers import guided
        except ModuleNotFoundError as error:
            if error.name not in ("nag_kernels", "nag_kernels.diffusers"):
                raise
            raise RuntimeError(
                "the Python package nag-kernels is missing. In a checkout of it, install it into the Python that runs SD.Next: "
                f"{sys.executable} -m pip install ."
            ) from error
        scale, tau, alpha = (None if self.settings[k] == PUBLISHED else self.settings[k] for k in NAMES[1:4])
        steered = guided(pipe, negative, nag_scale=scale, nag_tau=tau, nag_alpha=alpha, end=self.settings["end"])
        return steered(*args, **kwargs)

    def check(self, p):
        """Raises if a call was not guided, before SD.Next shows or keeps a picture of it."""
        again = str(getattr(p, "state", "") or "").startswith("reprocess")  # may take the latents of an earlier run
        if self.guided < max(self.prepared, 0 if again or "base" in p.skip or hasattr(p, "dummy") else 1):
            raise NegativeGuidanceError(
                f"{self.guided} of {max(self.prepared, 1)} calls were guided. SD.Next, or another script, has drawn in a way "
                "that guidance cannot steer. Switch that off, or this section."
            )


def negative_of(negatives, arguments):
    """The negative prompt for `guided`: the embeddings that SD.Next gives to this call, or else the texts."""
    negatives = [negatives] if isinstance(negatives, str) else list(negatives or [])
    if not negatives or not all(isinstance(text, str) and text.strip() for text in negatives):
        raise ValueError(
            "the negative prompt is empty. Type what the picture should not show, or switch this section off."
        )
    steps = arguments.get("num_inference_steps") or 100
    if any(prompt_parser_diffusers.get_prompt_schedule(text, steps)[1] for text in negatives):
        raise ValueError(
            "the negative prompt changes from step to step ([a:b:0.5] or [a|b]). Guidance takes one that stays."
        )
    encoded = {
        name.removeprefix("negative_"): value
        for name, value in arguments.items()
        if name.startswith("negative_") and name.removeprefix("negative_") in arguments and value is not None
    }
    texts = encoded.pop("prompt", None) or negatives
    return encoded if "prompt_embeds" in encoded else texts


class Hooks:
    """What the wrappers of SD.Next's functions do."""

    def __init__(self):
        self.runs = []  # the running one last

    def process_diffusers(self, plain, p):
        settings = settings_of(p)
        if settings is None:
            return plain(p)
        model, run = shared.sd_model, Run(settings)
        self.runs.append(run)
        try:
            results = plain(p)
            if results != [] and not cancelled():
                run.check(p)
            return results
        except NegativeGuidanceError:
            shared.sd_model = model  # as SD.Next does when a run is cancelled
            raise
        finally:
            self.runs.pop()
            for put_back in run.waiting:
                put_back()

    def set_pipeline_args(self, plain, *args, **kwargs):
        arguments = plain(*args, **kwargs)
        if self.runs:
            its = inspect.signature(plain).bind(*args, **kwargs).arguments
            self.runs[-1].prepare(its["p"], its["model"], its["negative_prompts"], arguments)
        return arguments


def install():
    """Wraps the two functions once. If SD.Next loads this file again, the wrappers take the new `Hooks`."""
    first = not hasattr(processing_diffusers, "negative_guidance")
    functions = {name: getattr(processing_diffusers, name) for name in ("process_diffusers", "set_pipeline_args")}
    processing_diffusers.negative_guidance = Hooks()
    for name, plain in functions.items() if first else ():

        @functools.wraps(plain)
        def wrapper(*args, _name=name, _plain=plain, **kwargs):
            return getattr(processing_diffusers.negative_guidance, _name)(_plain, *args, **kwargs)

        setattr(processing_diffusers, name, wrapper)


install()  # before the class: if SD.Next no longer has these functions, the section does not appear


class NegativeGuidance(scripts_manager.Script):
    def title(self):
        return TITLE

    def show(self, is_img2img):
        return scripts_manager.AlwaysVisible

    def ui(self, is_img2img):
        with gr.Accordion(TITLE, open=False, elem_id=self.elem_id("section")):
            gr.HTML(
                "<span>Steers away from the negative prompt, also at CFG 1. -1 is the published setting of the model.</span>"
            )
            enabled = gr.Checkbox(label="Enabled", value=False, elem_id=self.elem_id("enabled"))
            with gr.Row():
                scale = gr.Slider(-1, 20, value=PUBLISHED, step=0.5, label="Scale", elem_id=self.elem_id("scale"))
                tau = gr.Slider(-1, 10, value=PUBLISHED, step=0.25, label="Tau", elem_id=self.elem_id("tau"))
            with gr.Row():
                alpha = gr.Slider(-1, 1, value=PUBLISHED, step=0.025, label="Alpha", elem_id=self.elem_id("alpha"))
                end = gr.Slider(0, 1, value=1.0, step=0.05, label="End", elem_id=self.elem_id("end"))
        return [enabled, scale, tau, alpha, end]

    def process(self, p, *values):
        """Only notes the values, as SD.Next would go on after an error here."""
        if values:  # the detailer's own runs have none, and keep those of the run
            p.negative_guidance = values
