# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the page shows: pictures without and with the negative, a sweep, what was clipped and moved, and the code for it."""

import contextlib
import inspect
import io
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

from .. import published
from ..diagnose import readable
from ..diffusers import diagnose, guided
from ..diffusers.denoiser_calls import inner_denoiser
from ..diffusers.models.registry import find_denoisers, spec_of
from ..user_errors import LOG, UserError
from .settings import Settings, checked

Images = list[Image.Image]


@contextlib.contextmanager
def in_plain_words(before: str = "") -> Iterator[None]:
    """What goes wrong within the block becomes a `UserError` of one line; the log has the rest (NAG_LOG=debug)."""
    try:
        yield
    except Exception as error:
        LOG.debug("play", exc_info=True)
        line = next((x.strip() for x in str(error).splitlines() if x.strip()), type(error).__name__)
        known = isinstance(error, (ValueError, TypeError, RuntimeError))
        raise UserError(before + (line if known else f"{type(error).__name__}: {line}")) from error


class Model:
    """A pipeline and what the page needs to know of it. Any number of threads may draw; they wait for each other."""

    def __init__(self, name: str, pipe: Any):
        self.name, self.pipe, self.lock = name, pipe, threading.Lock()
        self.shipped = name == "shapes"  # draws in less than a second, so the page need not be told to
        known = inspect.signature(type(pipe).__call__).parameters
        # FLUX.1's guidance_scale is no classifier-free guidance, and its own needs a text
        self.cfg_name = "true_cfg_scale" if "true_cfg_scale" in known else "guidance_scale"
        denoiser = find_denoisers(pipe)[0]
        spec = spec_of(denoiser)
        self.no_cfg = spec.cfg_above
        self.papers = published.SHAPES if self.shipped else spec.settings(inner_denoiser(denoiser))
        steps = getattr(known.get("num_inference_steps"), "default", 4)
        texts = ("a large circle", "red") if self.shipped else ("a portrait of a fox", "low resolution, blurry")
        self.first = Settings(
            *texts, rule="nag", **self.usual("nag"), start=0.0, end=1.0, steps=steps if isinstance(steps, int) else 4,
            cfg_scale=self.no_cfg, seed=31 if self.shipped else 0, pictures=4 if self.shipped else 1,
        )  # fmt: skip

    def usual(self, rule: str) -> dict[str, Any]:
        """The settings to begin with under a rule: the paper's for this model, or those of the nearest that has any."""
        papers = self.papers
        nasa = published.PIXART.nasa_scale if papers.nasa_scale is None else papers.nasa_scale
        scale = {"nag": papers.nag_scale, "nasa": nasa, "vsf": published.VSF_SCALE}[rule]
        assert scale is not None
        return {"nag_scale": scale, "nag_tau": papers.nag_tau, "nag_alpha": papers.nag_alpha}

    def call(self, settings: Settings) -> dict[str, Any]:
        """The named arguments of the pipeline's call, but the generators."""
        named: dict[str, Any] = {"num_inference_steps": settings.steps, self.cfg_name: settings.cfg_scale}
        if self.cfg_name == "true_cfg_scale" and settings.cfg_scale > self.no_cfg:
            named["negative_prompt"] = [""] * settings.pictures
        return named

    def _draw(self, call: Callable[..., Any], settings: Settings) -> Images:
        generators = [torch.Generator().manual_seed(seed) for seed in settings.seeds]
        result = call([settings.prompt] * settings.pictures, generator=generators, **self.call(settings))
        if not hasattr(result, "images"):
            raise UserError(
                f"the page shows pictures, and a {type(self.pipe).__name__} draws none: give another --model"
            )
        return list(result.images)

    def without(self, settings: Settings) -> Images:
        with self.lock, in_plain_words():
            return self._draw(self.pipe, checked(settings))

    def steered(self, settings: Settings) -> Images:
        with self.lock, in_plain_words():
            settings = checked(settings)
            return self._draw(guided(self.pipe, settings.negative, **settings.guidance()), settings)

    def pair(self, settings: Settings) -> tuple[Images, Images]:
        """The pictures without and with the negative. The one that can be refused more comes first."""
        steered = self.steered(settings)
        return self.without(settings), steered

    def sweep(
        self, settings: Settings, name: str, values: list[float], drawn: Callable[[int], None] = lambda count: None
    ) -> list[Images]:
        """For each value of the setting the pictures with the negative. drawn: is told how many values are done."""
        strip = []
        for count, value in enumerate(values):
            drawn(count)
            with in_plain_words(f"at {name} {value:g}: "):
                strip.append(self.steered(settings.with_(**{name: value})))
        return strip

    def measured(self, settings: Settings) -> tuple[Image.Image, str]:
        """The figure and the tables of `diagnose` for these settings, and the settings that it suggests."""
        with self.lock, in_plain_words():
            settings = checked(settings)
            with diagnose(self.pipe, settings.negative, **settings.guidance()) as found:
                self._draw(self.pipe, settings)
        with tempfile.TemporaryDirectory() as folder:
            found.plot(Path(folder) / "layers.png")
            figure = Image.open(Path(folder) / "layers.png").convert("RGB")
        console = Console(file=io.StringIO(), width=104, record=True)
        for by in ("layer", "step"):
            console.print(readable(found.table(by), console.width))
        try:
            best = found.suggest()
        except ValueError as error:
            console.print(f"No suggestion: {error}.")
        else:
            console.print(
                f"Suggested: nag_scale {best.nag_scale:g}, nag_tau {best.nag_tau:g}, nag_alpha {best.nag_alpha:g}."
            )
            console.print(f"{best.why}.")
        return figure, console.export_text()

    def code(self, settings: Settings) -> str:
        """Python that draws exactly the pictures of `pair`, as `without` and `steered`."""
        settings = checked(settings)
        call = "\n".join(f"        {name}={value!r}," for name, value in self.call(settings).items())
        steer = ", ".join(f"{k}={quoted(v) if isinstance(v, str) else repr(v)}" for k, v in settings.guidance().items())
        if self.shipped:
            source, loaded = "from nag_kernels.shapes.pipeline import load", "load()"
            if self.pipe.device.type != "cpu":
                loaded = f'load(device="{self.pipe.device}")'
        else:
            source = "from diffusers import DiffusionPipeline"
            loaded = f"DiffusionPipeline.from_pretrained({quoted(self.name)}, torch_dtype={self.pipe.dtype})"
            loaded += f'.to("{self.pipe.device}")' if self.pipe.device.type != "cpu" else ""
        first = [source, "from nag_kernels.diffusers import guide"]
        imports = "\n".join(sorted(first))
        return f"""import torch
{imports}

pipe = {loaded}
seeds = range({settings.seed}, {settings.seed + settings.pictures})


def draw():
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(
        [{quoted(settings.prompt)}] * len(seeds),
        generator=generators,
{call}
    ).images


without = draw()
with guide(pipe, {quoted(settings.negative)}, {steer}):
    steered = draw()
"""


def quoted(text: str) -> str:
    """A text as Python writes it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)
