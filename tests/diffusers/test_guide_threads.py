# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`guide` and `guided` in programs with several threads: each call follows the guidance of its own context, or none."""

import asyncio
import concurrent.futures
import threading

import pytest
import torch

pytest.importorskip("diffusers")


import diffusers
from drawing import denoiser, draw
from every_model import TINY, pipeline
from pipeline_parts import NEGATIVE
from stand_in import filled, firm
from test_unet import _controlnet
from tiny import error, seeded

from nag_kernels.diffusers import disable_guidance, enable_guidance, guide, guided

pytestmark = pytest.mark.usefixtures("one_thread")

OTHERS = ["red", "a house", NEGATIVE]
SHORT = {"num_inference_steps": 2}
PATIENCE = 60  # seconds


def same_parts(pipe):
    """Another pipeline over the same denoiser, with a scheduler of its own."""
    other = type(pipe)(**{**pipe.components, "scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config)})
    other.set_progress_bar_config(disable=True)
    return other


def in_thread(function):
    """What it returns, or its exception, when called in another thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(PATIENCE)


class Stop:
    """A place at which a thread waits until another lets it go."""

    def __init__(self):
        self.came, self.go = threading.Event(), threading.Event()

    def __call__(self, *arguments):
        self.came.set()
        assert self.go.wait(PATIENCE)
        return arguments[-1] if arguments else None  # as a step callback returns its values

    def __bool__(self):
        return self.came.is_set()


# --- whose guidance it is ---------------------------------------------------------------------------------------------


def test_two_threads_that_enter_blocks_at_once():
    pipe = pipeline("pixart")
    plain, cls = draw(pipe, **SHORT), type(pipe)
    wanted = {}
    for negative in OTHERS[:2]:
        with guide(pipe, negative):
            wanted[negative] = draw(pipe, **SHORT)
    for _ in range(60):
        barrier = threading.Barrier(2)

        def work(negative, barrier=barrier):
            barrier.wait(PATIENCE)
            with guide(pipe, negative):
                return draw(pipe, **SHORT)

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            drawn = list(pool.map(work, OTHERS[:2]))
        assert type(pipe) is cls
        assert all(torch.equal(got, wanted[negative]) for got, negative in zip(drawn, OTHERS, strict=False))
    assert torch.equal(draw(pipe, **SHORT), plain)


def test_a_call_by_another_thread_is_plain():
    pipe = pipeline("pixart")
    plain = draw(pipe)
    with guide(pipe, NEGATIVE):
        guided_here = draw(pipe)
        assert torch.equal(in_thread(lambda: draw(pipe)), plain)
        assert torch.equal(draw(pipe), guided_here)
    assert error(guided_here, plain) > 1e-3


def test_blocks_of_two_threads_beside_each_other():
    pipe = pipeline("sd15")
    wanted = []
    for negative in OTHERS[:2]:
        with guide(pipe, negative):
            wanted.append(draw(pipe))

    def work():
        with guide(pipe, OTHERS[1]):
            return draw(pipe)

    with guide(pipe, OTHERS[0]):
        assert torch.equal(in_thread(work), wanted[1])
        assert torch.equal(draw(pipe), wanted[0])


def test_enabled_guidance_is_everybodys():
    pipe = pipeline("pixart")
    with guide(pipe, NEGATIVE):
        wanted = draw(pipe)
    with guide(pipe, OTHERS[0]):
        another = draw(pipe)
        in_thread(lambda: enable_guidance(pipe, NEGATIVE))
        assert torch.equal(draw(pipe), another)  # a block's own settings come first
        assert torch.equal(in_thread(lambda: draw(pipe)), wanted)
    assert torch.equal(draw(pipe), wanted)
    assert torch.equal(in_thread(lambda: draw(pipe)), wanted)

    def nested():
        with pytest.raises(RuntimeError, match="enabled already on this PixArtAlphaPipeline"), guide(pipe, "x"):
            pass
        with pytest.raises(RuntimeError, match="enabled already"):
            guided(pipe, "x")

    nested()
    in_thread(nested)
    in_thread(lambda: disable_guidance(pipe))
    assert error(draw(pipe), wanted) > 1e-3
    with guide(pipe, NEGATIVE), pytest.raises(RuntimeError, match="not enabled on this PixArtAlphaPipeline"):
        draw(pipe)
        disable_guidance(pipe)


def test_asyncio():
    """A block belongs to its task, to the tasks that this one starts, and to the threads that it hands its calls to."""
    pipe = pipeline("pixart")
    plain, wanted = draw(pipe, **SHORT), {}
    for negative in OTHERS:
        with guide(pipe, negative):
            wanted[negative] = draw(pipe, **SHORT)

    async def request(negative, in_threads):
        await asyncio.sleep(0)
        if negative is None:
            return draw(pipe, **SHORT)
        with guide(pipe, negative):
            await asyncio.sleep(0.01)
            got = await asyncio.to_thread(draw, pipe, **SHORT) if in_threads else draw(pipe, **SHORT)
            await asyncio.sleep(0.01)
            again = await asyncio.create_task(request_within())
            assert torch.equal(again, got)
        return got

    async def request_within():
        return draw(pipe, **SHORT)

    async def serve():
        asked = [(x, threads) for x in (*OTHERS, None) for threads in (False, True)]
        return asked, await asyncio.gather(*(request(*one) for one in asked))

    asked, drawn = asyncio.run(serve())
    for (negative, _), got in zip(asked, drawn, strict=True):
        assert torch.equal(got, plain if negative is None else wanted[negative])


def test_a_task_that_outlives_the_block_is_plain_again():
    pipe = pipeline("pixart")
    plain = draw(pipe)

    async def serve():
        async def late():
            await ended.wait()
            return draw(pipe)

        ended = asyncio.Event()
        with guide(pipe, NEGATIVE):
            task = asyncio.create_task(late())
            await asyncio.sleep(0)
            draw(pipe)
        ended.set()
        return await task

    assert torch.equal(asyncio.run(serve()), plain)


# --- calls at the same time -------------------------------------------------------------------------------------------


def test_guided_calls_of_one_denoiser_wait_for_each_other():
    pipe = pipeline("sd3")
    other, stop, order = same_parts(pipe), Stop(), []
    wanted = []
    for one, negative in ((pipe, OTHERS[0]), (other, OTHERS[1])):
        with guide(one, negative):
            wanted.append(draw(one))

    def first():
        with guide(pipe, OTHERS[0]):
            got = draw(pipe, callback_on_step_end=stop)
            order.append("first")
            return got

    def second():
        assert stop.came.wait(PATIENCE)
        with guide(other, OTHERS[1]):
            got = draw(other)
            order.append("second")
            return got

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        drawn = [pool.submit(first), pool.submit(second)]
        assert stop.came.wait(PATIENCE)
        with pytest.raises(concurrent.futures.TimeoutError):
            drawn[1].result(0.3)
        stop.go.set()
        assert all(torch.equal(x.result(PATIENCE), y) for x, y in zip(drawn, wanted, strict=True))
    assert order == ["first", "second"]


@pytest.mark.parametrize("kind", ["sd15", "sd3", "OmniGenTransformer2DModel"])
@torch.no_grad()
def test_a_call_of_the_denoiser_in_the_middle_of_a_guided_one(kind):
    """It waits until the stock layers are back."""
    families = kind[0].isupper()
    pipe = filled(TINY[kind]) if families else pipeline(kind)
    negative = "negative" if families else NEGATIVE
    settings = firm(TINY[kind]) if families else {}
    drawing = (lambda: pipe(pipe.prompt)) if families else (lambda: draw(pipe))
    model, calls = denoiser(pipe), []
    note = model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    drawing()
    note.remove()
    args, kwargs = calls[0]
    first = model(*args, **kwargs)
    plain = first if isinstance(first, torch.Tensor) else first[0]
    with guide(pipe, negative, **settings):
        wanted = drawing()
    stop = Stop()
    last = list(model.children())[-1]

    def wait_once(*_):
        if not stop:
            stop()

    hook = last.register_forward_pre_hook(wait_once)

    def work():
        with torch.no_grad(), guide(pipe, negative, **settings):
            return drawing()

    def meanwhile():
        with torch.no_grad():
            output = model(*args, **kwargs)
            return output if isinstance(output, torch.Tensor) else output[0]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        guided_picture = pool.submit(work)
        assert stop.came.wait(PATIENCE)
        direct = pool.submit(meanwhile)
        with pytest.raises(concurrent.futures.TimeoutError):
            direct.result(0.2)
        stop.go.set()
        assert torch.equal(direct.result(PATIENCE), plain)
        assert torch.equal(guided_picture.result(PATIENCE), wanted)
    hook.remove()


@pytest.mark.parametrize("where", ["between steps", "within the denoiser"])
@pytest.mark.parametrize("own", [True, False], ids=["same pipeline", "another"])
def test_a_plain_call_that_began_before(where, own):
    """Guidance comes while it runs: a pipeline's own call ends first, a denoiser's call in any case."""
    pipe = pipeline("sd3")
    other, stop = pipe if own else same_parts(pipe), Stop()
    plain = draw(other)
    with guide(pipe, NEGATIVE):
        wanted = draw(pipe)
    call = {"callback_on_step_end": stop} if where == "between steps" else {}
    hook = None
    if not call:
        hook = pipe.transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: stop() if not stop else None)

    def work():
        with guide(pipe, NEGATIVE):
            return draw(pipe)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(draw, other, **call)
        assert stop.came.wait(PATIENCE)
        second = pool.submit(work)
        if own or not call:
            with pytest.raises(concurrent.futures.TimeoutError):
                second.result(0.3)
        else:
            assert torch.equal(second.result(PATIENCE), wanted)
        stop.go.set()
        assert torch.equal(first.result(PATIENCE), plain)
        assert torch.equal(second.result(PATIENCE), wanted)
    if hook is not None:
        hook.remove()


def test_calls_that_would_wait_for_each_other_for_ever():
    pipes, barrier, raised = [pipeline("pixart"), pipeline("sd3")], threading.Barrier(2), []

    def work(mine, theirs):
        def call_the_other(*arguments):
            if 0 in arguments[:2]:  # the number of the step
                barrier.wait(PATIENCE)
                try:
                    with guide(theirs, NEGATIVE):
                        draw(theirs)
                except RuntimeError as error:
                    raised.append(str(error))
            return arguments[-1]

        name = "callback" if mine is pipes[0] else "callback_on_step_end"
        with guide(mine, NEGATIVE):
            return draw(mine, **{name: call_the_other})

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        drawn = [pool.submit(work, *pair) for pair in (pipes, pipes[::-1])]
        assert all(x.result(PATIENCE).isfinite().all() for x in drawn)
    assert len(raised) == 1
    assert "neither could go on" in raised[0]


def test_contexts_of_another_threads_call_are_its_own():
    """Pipelines name their calls on the denoiser (`cache_context`); another thread's names do not change what is guided."""
    pipe = pipeline("flux")
    options = {"guidance_scale": 3.0}
    with guide(pipe, NEGATIVE):
        wanted = draw(pipe, **options)

    def name_it_otherwise():
        context = pipe.transformer.cache_context("a name of its own")
        context.__enter__()
        context.__exit__(None, None, None)
        context = pipe.transformer.cache_context("uncond")
        context.__enter__()

    hook = pipe.transformer.register_forward_pre_hook(lambda *_: in_thread(name_it_otherwise))
    with guide(pipe, NEGATIVE):
        assert torch.equal(draw(pipe, **options), wanted)
    hook.remove()


def test_a_controlnet_that_two_pipelines_share():
    """While one thread encodes a negative, for which the ControlNet need not run, it runs for another."""
    pipe = pipeline("sd15")
    controlnet = seeded(_controlnet)
    make = lambda unet: diffusers.StableDiffusionControlNetPipeline(  # noqa: E731
        **{**pipe.components, "unet": unet, "scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config)},
        controlnet=controlnet, requires_safety_checker=False,
    )  # fmt: skip
    one, other = make(pipe.unet), make(pipeline("sd15").unet)
    image = torch.linspace(0, 1, 192).view(1, 3, 8, 8)
    plain = draw(other, image=image, height=8, width=8)
    encoding, drawn = threading.Event(), threading.Event()
    encode = one.encode_prompt

    def slow(*args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            encoding.set()
            assert drawn.wait(60)
        return encode(*args, **kwargs)

    one.encode_prompt = slow
    thread = threading.Thread(target=lambda: guided(one, NEGATIVE)("a cat", image=image, height=8, width=8,
                                                                   num_inference_steps=1, output_type="latent"))  # fmt: skip
    thread.start()
    try:
        assert encoding.wait(60)
        assert torch.equal(draw(other, image=image, height=8, width=8), plain)
    finally:
        drawn.set()
        thread.join()
