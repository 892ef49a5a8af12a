# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""An interrupt (Ctrl-C) at any line of guidance leaves pipeline and denoiser as they were."""

import functools
import linecache
import sys
import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from drawing import draw
from every_model import TINY, pipeline
from stand_in import filled, firm
from test_guide_afterwards import state

import nag_kernels.diffusers
from nag_kernels.diffusers import disable_guidance, enable_guidance, guide, guided

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

NEGATIVE = "a large blue dog on grass"
FOLDER = Path(nag_kernels.diffusers.__file__).parent
NAMES = ("guide", "owners", "restore", "turns", "run", "interception", "negative_prompt", "packing",
         "negative_arguments")  # fmt: skip
NAMES += ("attention/dual_forward", "attention/second_thread", "attention/pooled_modulation")
# Python looks for signals when a function begins, after a call and where a loop begins anew, and so never at these lines (the
# second comes to a trace once more when its block has ended). An exception there would meet no handler, as none is set up yet.
NEVER = ("try:", "with _lock:", "with interception_lock:")
FILES = {str(FOLDER / f"{name}.py") for name in NAMES}
assert all(Path(file).exists() for file in FILES)


def within_del(frame):
    """Where Python itself does not let an exception out."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def source(frame):
    """The line."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()


def traced(run, at_line):
    """Calls at_line(file, line) before each line of guidance that `run` comes to in this thread."""

    def trace(frame, event, _):
        if frame.f_code.co_filename not in FILES or within_del(frame):
            return None
        if event == "line" and not source(frame).startswith(NEVER):
            at_line(frame.f_code.co_filename, frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)


def struck(run, line, nth):
    """Whether `run` was interrupted, when it came to a line for the nth time."""
    left, happened = [nth], []

    def strike(*here):
        left[0] -= here == line
        if left[0] == 0 and not happened:
            happened.append(1)
            raise KeyboardInterrupt

    try:
        traced(run, strike)
    except KeyboardInterrupt:
        assert happened
        return True
    assert not happened, f"{line}: the interrupt was lost"
    return False


def met(run):
    """How often a run comes to each line."""
    times = {}
    traced(run, lambda *line: times.update({line: times.get(line, 0) + 1}))
    return times


def interrupted_everywhere(run, check, known=(), every=1):
    """At each line when it is met first and last; of those that are `known`, at one in `every`."""
    times = met(run)
    check(None)
    each = [struck_here for line, n in times.items() for struck_here in sorted({(line, 1), (line, n)})]
    old = [(line, nth) for line, nth in each if line in known][::every]
    interrupts = [(line, nth) for line, nth in each if line not in known or (line, nth) in old]
    count = 0
    for line, nth in interrupts:
        count += struck(run, line, nth)
        check(f"{Path(line[0]).name}:{line[1]}")
    assert count > 0.9 * len(interrupts)
    return count


def with_block(pipe, drawing, negative, **settings):
    with guide(pipe, negative, **settings):
        drawing()


SHORT = {"num_inference_steps": 1}
ROUTES = {
    "unet": ("sd15", {}),
    "pooled": ("sd3", {"negative_pooled": True}),
    "parts": ("HunyuanVideoTransformer3DModel", None),
    "two runs": ("OmniGenTransformer2DModel", None),
}


@functools.cache
def lines_of_parts():
    kind = ROUTES["parts"][0]
    pipe = filled(TINY[kind])
    return frozenset(met(lambda: with_block(pipe, lambda: pipe(pipe.prompt), "negative", **firm(TINY[kind]))))


@pytest.mark.parametrize("route", ROUTES)
@torch.no_grad()
def test_an_interrupt_at_any_line(route):
    kind, settings = ROUTES[route]
    if settings is None:
        pipe, negative, settings = filled(TINY[kind]), "negative", firm(TINY[kind])
        drawing = lambda: pipe(pipe.prompt)  # noqa: E731
        plain = drawing()
    else:
        pipe, negative = pipeline(kind), NEGATIVE
        drawing = lambda: draw(pipe, **SHORT)  # noqa: E731
        plain = drawing()
    # "parts", the shortest, is tried at every line; the others where they go their own ways, and at some of its lines.
    known = () if route == "parts" else lines_of_parts()
    with_block(pipe, drawing, negative, **settings)
    before, threads, wrong = whole_state(pipe), threading.active_count(), []

    def check(where):
        if whole_state(pipe) != before or threading.active_count() != threads:
            wrong.append(where)

    count = interrupted_everywhere(lambda: with_block(pipe, drawing, negative, **settings), check, known, 16)
    assert count > (20 if known else 200)
    assert not wrong
    assert torch.equal(drawing(), plain)
    with_block(pipe, drawing, negative, **settings)  # and no turn is left taken
    done = threading.Thread(target=with_block, args=(pipe, drawing, negative), kwargs=settings)
    done.start()
    done.join(60)
    assert not done.is_alive()


def whole_state(pipe):
    found = state(pipe)
    found["modules"] = [
        {name: value for name, value in vars(module).items() if name in ("forward", "processor")}
        for module in pipe.transformer.modules()
    ] if hasattr(pipe, "transformer") else None  # fmt: skip
    found["scheduler"] = sorted(vars(pipe.scheduler)) if hasattr(pipe, "scheduler") else None
    return found


def test_an_interrupt_of_one_call_and_of_enabling():
    pipe, cls = pipeline("pixart"), None
    plain, cls = draw(pipe), type(pipe)
    texts = {"prompt": "a cat", "num_inference_steps": 1, "height": 8, "width": 8, "output_type": "latent",
             "use_resolution_binning": False, "clean_caption": False, "guidance_scale": 1.0}  # fmt: skip

    def enable_and_disable():
        enable_guidance(pipe, NEGATIVE)
        enabled.append(1)
        with pytest.warns(UserWarning, match="was not called"):
            disable_guidance(pipe)

    enabled, wrong = [], []

    def check(where):
        if type(pipe) is not cls:
            if not enabled:  # else the interrupt came before disable_guidance had begun
                wrong.append(where)
            disable_guidance(pipe)
        enabled.clear()
        if type(pipe) is not cls:
            wrong.append(where)

    pipe(**texts)
    interrupted_everywhere(lambda: guided(pipe, NEGATIVE)(**texts), check, lines_of_parts(), 8)
    interrupted_everywhere(enable_and_disable, check)
    assert not wrong
    assert torch.equal(draw(pipe), plain)
