# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What others hang on a denoiser: hooks and wrappers that read its arguments by position, tomesd, DeepCache."""

import functools
import inspect
import types

import pytest
import torch

pytest.importorskip("diffusers")


from drawing import denoiser, denoiser_texts, draw, draw_with_oracle
from every_model import TINY, pipeline
from stand_in import filled, firm
from tiny import error

from nag_kernels.diffusers import enable_guidance, guide
from nag_kernels.diffusers.models.registry import spec_of

pytestmark = pytest.mark.usefixtures("one_thread")

NEGATIVE = "a large blue dog on grass"
FIRM = {"nag_scale": 8.0, "nag_tau": 3.0, "nag_alpha": 0.5}
WHOLE_PIPELINES = ["sd15", "pixart", "sd3", "flux", "wan"]


def by_position(model, count):
    """From now on `model` is called with its first `count` arguments by position, whoever calls it and however."""
    plain = type(model)
    names = list(inspect.signature(plain.forward).parameters)[1 : count + 1]

    def call(self, *args, **kwargs):
        there = list(args)
        for name in names[len(args) :]:
            if name not in kwargs:
                break
            there.append(kwargs.pop(name))
        return plain.__call__(self, *there, **kwargs)

    model.__class__ = type(plain.__name__, (plain,), {"__call__": call})


def drawn(kind):
    """A pipeline, a function that draws with it, and what guides it: a whole pipeline, or a model that is called once."""
    if kind in WHOLE_PIPELINES:
        pipe = pipeline(kind)
        return pipe, lambda: draw(pipe), NEGATIVE, FIRM
    pipe = filled(TINY[kind])
    return pipe, lambda: pipe(pipe.prompt), "negative", firm(TINY[kind])


@pytest.mark.parametrize(
    ("kind", "count"),
    [(kind, n) for kind in WHOLE_PIPELINES for n in (1, 2)] + [(x, 99) for x in WHOLE_PIPELINES + list(TINY)],
)
@torch.no_grad()
def test_positional_arguments_stay_positional(kind, count):
    pipe, draw_it, negative, settings = drawn(kind)
    model = denoiser(pipe)
    with guide(pipe, negative, **settings):
        wanted = draw_it()
    forms, first = [], []

    def note(model, args, kwargs):
        forms.append((len(args), sorted(kwargs)))
        first.append(args[0])  # an IndexError where all come by name

    by_position(model, count)
    model.register_forward_pre_hook(note, with_kwargs=True)
    plain = draw_it()
    unguided, seen = list(forms), first[0]
    assert all(0 < n <= max(count, 2) for n, _ in unguided)  # a UNet's pipeline gives two
    forms.clear()
    first.clear()
    with guide(pipe, negative, **settings):
        got = draw_it()
    assert torch.equal(got, wanted)
    assert not torch.equal(got, plain)
    runs = 2 if spec_of(model).route == "dual forward" else 1
    assert [n for n, _ in forms] == [n for n, _ in unguided for _ in range(runs)]
    for place, (_, names) in enumerate(forms):  # a mask that only the negative has may come beside
        assert set(unguided[place // runs][1]) <= set(names)
    if isinstance(seen, torch.Tensor):
        assert torch.equal(first[0], seen)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_tomesd(kind, guidance_scale):
    """Token merging, against the doubled batch under the same merging."""
    tomesd = pytest.importorskip("tomesd")
    pipe = pipeline(kind)
    plain = draw(pipe, guidance_scale=guidance_scale)
    tomesd.apply_patch(pipe, ratio=0.5, max_downsample=4, use_rand=False)
    assert error(draw(pipe, guidance_scale=guidance_scale), plain) > 1e-3
    recorded = denoiser_texts(pipe, prompt=NEGATIVE, guidance_scale=guidance_scale)
    wanted, _ = draw_with_oracle(pipe, 1, recorded, 8.0, 3.0, 0.5, guidance_scale=guidance_scale)
    with guide(pipe, NEGATIVE, **FIRM):
        assert error(draw(pipe, guidance_scale=guidance_scale), wanted) < 2e-5
    tomesd.remove_patch(pipe)
    assert torch.equal(draw(pipe, guidance_scale=guidance_scale), plain)


def refused_with_deepcache(pipe, enable, disable):
    with guide(pipe, NEGATIVE):
        wanted = draw(pipe)
    enable()
    with pytest.raises(ValueError, match=r"DeepCache is enabled on it.*call disable\(\) of your DeepCacheSDHelper"):
        enable_guidance(pipe, NEGATIVE)
    disable()
    with guide(pipe, NEGATIVE):
        assert torch.equal(draw(pipe), wanted)
        enable()
        with pytest.raises(ValueError, match="DeepCache is enabled on it"):
            draw(pipe)
    disable()


def test_deepcache():
    helpers = pytest.importorskip("DeepCache")
    pipe = pipeline("sd15")
    helper = helpers.DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2, cache_branch_id=0)
    refused_with_deepcache(pipe, helper.enable, helper.disable)


def test_what_deepcache_leaves_on_a_model():
    """As above, without the package: it sets `forward` of the model and of its blocks to functions of its own."""
    pipe = pipeline("sd15")
    block = pipe.unet.mid_block
    wrapped = types.FunctionType((lambda *args: None).__code__, {"__name__": "DeepCache.extension.deepcache"})

    def enable():
        block.forward = wrapped

    def disable():
        del block.forward

    refused_with_deepcache(pipe, enable, disable)


def test_cache_dit_is_refused():
    cache_dit = pytest.importorskip("cache_dit")
    pipe = pipeline("flux")
    with guide(pipe, NEGATIVE):
        wanted = draw(pipe)
    cache_dit.enable_cache(pipe)
    with pytest.raises(ValueError, match=r"cache_dit is enabled on it.*call cache_dit.disable_cache\(pipe\)"):
        enable_guidance(pipe, NEGATIVE)
    cache_dit.disable_cache(pipe)
    with guide(pipe, NEGATIVE):
        assert torch.equal(draw(pipe), wanted)


def written_in(package, function):
    """The function as if it stood in a module of this package, though it says otherwise of itself (functools.wraps)."""
    return types.FunctionType(
        function.__code__, {"__name__": f"{package}.inner"}, function.__name__, closure=function.__closure__
    )


@pytest.mark.parametrize(
    ("package", "advice"), [("para_attn", "without apply_cache_on_pipe"), ("tgate", "without T-GATE")]
)
@pytest.mark.parametrize("where", ["denoiser", "layer"])
def test_other_caches_of_steps_are_refused(package, advice, where):
    """Both replace a forward: of the denoiser, or of attention layers."""
    pipe = pipeline("flux")
    module = pipe.transformer if where == "denoiser" else pipe.transformer.transformer_blocks[0].attn
    plain = module.forward
    module.forward = types.MethodType(written_in(package, lambda self, *args, **kwargs: plain(*args, **kwargs)), module)
    with pytest.raises(ValueError, match=rf"{package} is enabled on it.*{advice}"):
        enable_guidance(pipe, NEGATIVE)
    del module.forward
    with guide(pipe, NEGATIVE):
        draw(pipe)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_freeu(kind, guidance_scale):
    pipe = pipeline(kind)
    plain = draw(pipe, guidance_scale=guidance_scale)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    recorded = denoiser_texts(pipe, prompt=NEGATIVE, guidance_scale=guidance_scale)
    wanted, _ = draw_with_oracle(pipe, 1, recorded, 8.0, 3.0, 0.5, guidance_scale=guidance_scale)
    with guide(pipe, NEGATIVE, **FIRM):
        assert error(draw(pipe, guidance_scale=guidance_scale), wanted) < 2e-5
    pipe.disable_freeu()
    assert torch.equal(draw(pipe, guidance_scale=guidance_scale), plain)


def test_a_processor_of_another_package_is_refused_by_name():
    """nunchaku, xfuser: what such a processor does beside attention is not known, and another one would break its model."""
    pipe = pipeline("flux")
    stock = type(pipe.transformer.transformer_blocks[0].attn.processor)
    pipe.transformer.set_attn_processor(
        type("NunchakuFluxAttnProcessor", (stock,), {"__module__": "nunchaku.models"})()
    )
    with pytest.raises(ValueError, match=r"is NunchakuFluxAttnProcessor, which is not known.*has set it \(nunchaku\)"):
        enable_guidance(pipe, NEGATIVE)


@pytest.mark.parametrize("on", ["its class", "itself"])
def test_a_forward_that_may_keep_results_of_steps(on, monkeypatch):
    """TeaCache, as it is published, replaces the forward of the class by a function of the user's script."""
    pipe = pipeline("flux")
    model, original = pipe.transformer, type(pipe.transformer).forward

    def tea_cache(self, *args, **kwargs):
        return original(self, *args, **kwargs)

    def put(forward):
        if on == "its class":
            monkeypatch.setattr(type(model), "forward", forward)
        else:
            monkeypatch.setitem(model.__dict__, "forward", types.MethodType(forward, model))

    put(tea_cache)
    plain = draw(pipe)
    for window in ({"end": 0.5}, {"start": 0.5}, {"nag_scale": lambda i, n: 4.0 - i}):
        with pytest.raises(
            ValueError, match=r"forward was replaced by .*tea_cache of test_other_tools, which may carry"
        ):
            enable_guidance(pipe, "a large blue dog", **window)
    with guide(pipe, "a large blue dog"):
        assert error(draw(pipe), plain) > 1e-4
    put(functools.wraps(original)(tea_cache))  # a wrapper says what it wraps
    with guide(pipe, "a large blue dog", end=0.5):
        assert error(draw(pipe), plain) > 1e-4
