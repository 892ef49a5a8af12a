# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""One guided call: `guide` by request, as in a server."""

import concurrent.futures
import copy
import os
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from drawing import draw
from every_model import pipeline
from pipeline_parts import NEGATIVE
from test_guide_threads import OTHERS

from nag_kernels.diffusers import guide, guided

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = {"num_inference_steps": 2}


def test_one_call():
    pipe = pipeline("pixart")
    plain, cls = draw(pipe), type(pipe)
    with guide(pipe, NEGATIVE, nag_scale=8.0, end=0.5):
        wanted = draw(pipe)
    steer = guided(pipe, NEGATIVE, nag_scale=8.0, end=0.5)

    class Drawn(cls):  # so that `draw` calls it
        def __call__(self, **call):
            return steer(**call)

    shown = copy.copy(pipe)
    shown.__class__ = Drawn
    for _ in range(2):
        assert torch.equal(draw(shown), wanted)
        assert type(pipe) is cls
        assert torch.equal(draw(pipe), plain)
    with pytest.raises(ValueError, match="there is no negative text"):
        guided(pipe, None)
    with pytest.raises(ValueError, match="needs prompt or prompt_embeds"):
        steer()
    assert type(pipe) is cls
    with guide(pipe, NEGATIVE), pytest.raises(RuntimeError, match="enabled already"):
        draw(pipe)
        draw(shown)


@pytest.mark.slow
def test_a_server_under_load():
    """Many short requests by 8 threads, with different negatives and with none: each picture is that of its own single run."""
    requests, pipe = int(os.environ.get("NAG_SERVER_REQUESTS", "200")), pipeline("pixart")
    cls = type(pipe)
    asked = [*OTHERS, None]
    alone = {}
    for negative in asked:
        with guide(pipe, negative) if negative else warnings.catch_warnings():
            alone[negative] = draw(pipe, **SHORT)

    def answer(i):
        torch.set_num_threads(1)
        negative, how = asked[i % 4], i // 4 % 3
        if negative is None:
            return negative, draw(pipe, **SHORT)
        if how == 0:
            with guide(pipe, negative):
                return negative, draw(pipe, **SHORT)
        steer = guided(pipe, negative)
        call = {"prompt": "a small red cat", "guidance_scale": 1.0, "height": 8, "width": 8, "output_type": "latent",
                "generator": torch.Generator().manual_seed(7), "max_sequence_length": 12, **SHORT,
                "use_resolution_binning": False, "clean_caption": False}  # fmt: skip
        return negative, steer(**call).images

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(answer, range(requests)))
    assert len(drawn) == requests
    assert all(torch.equal(got, alone[negative]) for negative, got in drawn)
    assert type(pipe) is cls
    assert torch.equal(draw(pipe, **SHORT), alone[None])


def test_the_servers_example_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "server.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    pipe = pipeline("pixart")

    class Small(type(pipe)):
        def __call__(self, prompt=None, **options):
            small = {"guidance_scale": 1.0, "height": 8, "width": 8, "output_type": "latent", "max_sequence_length": 12,
                     "use_resolution_binning": False, "clean_caption": False}  # fmt: skip
            return super().__call__(prompt=prompt, **small | options | SHORT)

    pipe.__class__ = Small
    requests = [{"prompt": "a cat", "negative": OTHERS[i % 3], "seed": i} for i in range(12)]
    names = {"pipe": pipe, "requests": requests}
    exec(code, names)
    for request, image in zip(requests, names["images"], strict=True):
        with guide(pipe, request["negative"], nag_scale=5.0):
            alone = pipe(request["prompt"], generator=torch.Generator().manual_seed(request["seed"])).images[0]
        assert torch.equal(image, alone)
