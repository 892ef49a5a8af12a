# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The shipped model, its page behind a real server, and what reads pictures out of the page."""

import base64
import io
import re
import socket

import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def model():
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    from nag_kernels.play.drawing import Model
    from nag_kernels.shapes.loading import load_model

    return Model("shapes", load_model("shapes", "cpu"))


@pytest.fixture(scope="session")
def direct():
    """The pictures of settings, by the pipeline itself, which nobody else has: pixels without and with the negative."""
    from nag_kernels.diffusers import guide
    from nag_kernels.shapes.loading import load_model

    pipe = load_model("shapes", "cpu")

    def draw(settings):
        def call():
            generators = [torch.Generator().manual_seed(settings.seed + i) for i in range(settings.pictures)]
            prompts, cfg = [settings.prompt] * settings.pictures, settings.cfg_scale
            return pixels(
                pipe(prompts, num_inference_steps=settings.steps, guidance_scale=cfg, generator=generators).images
            )

        numbers = {"nag_scale": settings.nag_scale, "nag_tau": settings.nag_tau, "nag_alpha": settings.nag_alpha}
        window = {"start": settings.start, "end": settings.end}
        with guide(pipe, settings.negative, rule=settings.rule, **numbers, **window):
            steered = call()
        return call(), steered

    return draw


@pytest.fixture(scope="session")
def asked():
    """The hosts that this process asked for, besides its own machine."""
    found, look_up, connect = [], socket.getaddrinfo, socket.socket.connect

    def noted(host, *arguments, **named):
        found.append(host)
        return look_up(host, *arguments, **named)

    def connected(self, address):
        if isinstance(address, tuple):
            found.append(address[0])
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", noted)
        patch.setattr(socket.socket, "connect", connected)
        yield lambda: {str(x) for x in found} - {"127.0.0.1", "localhost", "::1", "None"}


@pytest.fixture(scope="session")
def server(model, asked):
    """The address of the page."""
    pytest.importorskip("gradio")
    from nag_kernels.play.page import launch

    page = launch(model, "127.0.0.1", None, browser=False)
    yield page.local_url.rstrip("/")
    page.close(verbose=False)


def pixels(images):
    return [image.tobytes() for image in images]


def pictures_in(html):
    """Those within HTML, by the element that holds them: {"without": [...], ...} of a pair, else {"": [...]}."""
    found = {}
    for name, part in re.findall(r'data-set="(\w+)"(.+?)</figure>', html, re.DOTALL) or [("", html)]:
        data = re.findall(r"data:image/png;base64,([\w+/=]+)", part)
        found[name] = [Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB") for each in data]
    return found


@pytest.fixture(scope="session")
def reading():
    """(pixels, pictures_in)"""
    return pixels, pictures_in
