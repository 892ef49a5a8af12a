# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Sampling with ComfyUI's core, and guided models by other means: none of this knows the node or meets a function it replaces."""

import copy
import importlib
import re
import threading

import torch
from oracles import guided

CPU = torch.device("cpu")


def comfy(name):
    return importlib.import_module(f"comfy.{name}")


def one_call(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """A sampler that gives what the model says in the first step."""
    return model(x, sigmas[0] * x.new_ones(x.shape[0]), **(extra_args or {}))


def sigmas_of(patcher, *percents):
    sampling = patcher.get_model_object("model_sampling")
    return torch.tensor([*(float(sampling.percent_to_sigma(x)) for x in percents), 0.0])


def sample(patcher, x, positive, negative=None, cfg=1.0, sigmas=None, sampler=one_call):
    """The result of a sampling; `negative` is that of classifier-free guidance."""
    sigmas = sigmas_of(patcher, 0.4) if sigmas is None else sigmas
    latents = [torch.zeros_like(y) for y in x] if isinstance(x, list) else torch.zeros_like(x)
    if isinstance(x, list):
        x, latents = (comfy("nested_tensor").NestedTensor(y) for y in (x, latents))
    try:
        with torch.no_grad():
            out = comfy("samplers").sample(
                patcher, x, positive, negative or positive, cfg, CPU, comfy("samplers").KSAMPLER(sampler), sigmas,
                latent_image=latents, seed=0,
            )  # fmt: skip
            return comfy("utils").pack_latents(out.unbind())[0] if hasattr(out, "is_nested") and out.is_nested else out
    finally:  # else the core collects garbage, for a third of a second, before each sampling with another clone
        comfy("model_management").current_loaded_models.clear()


def copy_of(model):
    """All but its configuration, which a new core cannot copy."""
    return copy.deepcopy(model, {id(model.model_config): model.model_config})


def recorded_call(patcher, x, conditioning):
    """The arguments with which the core calls the model for one conditioning."""
    calls, patcher = [], patcher.clone()

    def record(executor, *args, **kwargs):
        control = args[4]  # whose lists the model empties
        calls.append(((*args[:4], copy.deepcopy(control), *args[5:]), kwargs))
        return executor(*args, **kwargs)

    patcher.add_wrapper_with_key("apply_model", "record", record)
    sample(patcher, x, conditioning)
    (call,) = calls
    return call


def two_runs(tiny, patcher, x, positive, negative, scale, tau, alpha, rule="nag", layers=None):
    """What the untouched model says in one step, run twice side by side: with the prompt and with the negative.

    At each guided layer both wait for each other, and go on with what the formula makes of their outputs of attention.
    layers: the numbers of the sites that are guided, in the order of their names; None for all.
    Returns (the result of a sampling of one call, the shares of clipped tokens).
    """
    calls = [recorded_call(patcher, x, c) for c in (positive, negative)]
    models = [copy_of(patcher.model) for _ in calls]
    tiny.beside_prompt(models[1], positive[0][0].shape[1], negative[0][0].shape[1])
    meeting, outputs, results, shares = threading.Barrier(2, timeout=60), [None, None], [None, None], []
    beside = [0]

    def steered(run, x, other):
        outputs[run] = x - other
        if run == 0:
            beside[0] = other
        meeting.wait()
        out, share = guided(*outputs, scale, tau, alpha, rule)
        out = out + beside[0]
        if run == 0:
            shares.append(share)
        meeting.wait()
        return out

    def hook(run, site, above):
        def steer(layer, inputs):
            x = inputs[0].clone()
            other = 0 if site.beside is None else site.beside(above, above.latest)
            own = (slice(None), image_tokens(site.tokens, x.shape[1], tiny.image), slice(0, site.width or x.shape[-1]))
            gate = 1 if site.gate is None else site.gate(above, above.latest)[own]
            x[own] = steered(run, x[own] / gate, other) * gate
            return (x, *inputs[1:])

        return steer

    for run, model in enumerate(models):
        modules = dict(model.diffusion_model.named_modules())
        found = [(name, site) for name in modules for site in tiny.sites if re.fullmatch(site.layer, name)]
        assert found
        for name, site in [found[i] for i in range(len(found)) if layers is None or i in layers]:
            above = modules[name.rpartition(".")[0]]
            if site.beside is not None or site.gate is not None:
                above.register_forward_pre_hook(keep_inputs, with_kwargs=True)
            modules[name].register_forward_pre_hook(hook(run, site, above))

    def run(place):
        try:
            with torch.no_grad():
                args, kwargs = calls[place]
                results[place] = models[place]._apply_model(*args, **kwargs)
        except BaseException as error:
            results[place] = error
            meeting.abort()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return patcher.model.process_latent_out(results[0].float()), shares


def image_tokens(where, tokens, image):
    if where == "newer last":
        known = importlib.import_module("comfy.ldm.hunyuan_video.model").HunyuanVideoParams.__dataclass_fields__
        where = "last" if "meanflow_sum" in known else "first"
    return {"all": slice(None), "last": slice(tokens - image, None), "first": slice(0, image)}[where]


def keep_inputs(layer, args, kwargs):
    layer.latest, layer.image_tokens = args[:2], kwargs.get("context_img_len")


def difference(a, b):
    """Relative, by the norm."""
    return ((a - b).norm() / b.norm()).item()
