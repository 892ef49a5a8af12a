# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a tiny random model of a family is tested by: its arguments and texts, and an oracle."""

import contextlib
import copy
import dataclasses
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tiny_models import guided, noise

ROWS = 3
SAME = torch.arange(9) < torch.tensor([[5], [3], [4]])
WHOLE = 1000  # more tokens than there are
SEEN = (7, 3, 5), (5, 4, 1)
UNSEEN = (7, 3, 5), (5, 0, 1)


@dataclass(frozen=True)
class Tiny:
    """How a family is built and called.

    build: the model.
    arguments: all arguments of forward but the text, for this many rows.
    text: the arguments that hold a text [B, T, C] and its mask [B, T] (or None).
    image: how many tokens of it a guided layer sees.
    layer: the layer after attention in a guided one, or None where it has none; its input is [text, image], [image, text] or
        the image alone.
    text_first: which of these, where it is not the image alone.
    lengths: of text+ and text-, in tokens.  seen: how many of them a mask shows in each row, or None where there are no masks.
    tau: with which the clip fires on a part of the tokens.
    double: whether the model runs in float64.
    alone: whether the oracle must run each row by itself, as the image's place in the sequence differs from row to row.
    beside: beside(stack, site) -> a function of no argument that gives what a guided layer adds to its attention to the text, and
        which is not guided, [B, S, C] or None.
    rows: how many images a call draws.
    """

    build: Callable
    arguments: Callable
    image: int
    text: Callable = lambda x, mask: {"encoder_hidden_states": x}
    layer: Callable = lambda site: getattr(site, "to_out", None)
    text_first: bool = True
    lengths: tuple[int, int] = (7, 5)
    seen: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    tau: float = 1.25
    double: bool = True
    alone: bool = False
    beside: Callable = lambda stack, site: lambda: None
    rows: int = ROWS


def token_ids(*shape):
    """Positions of an image's tokens, each with as many numbers as the shape has."""
    return torch.cartesian_prod(*map(torch.arange, shape)).float()


def times(rows, dtype=None):
    time = torch.linspace(300, 700, rows)
    return time.long() if dtype is None else (time / 1000).to(dtype)


def videos(rows, dtype):
    return {"hidden_states": noise(rows, 4, 2, 4, 8, seed=3, dtype=dtype), "timestep": times(rows)}


def masked_text(x, mask):
    mask = torch.ones(x.shape[:2], dtype=torch.long) if mask is None else mask.long()
    return {"encoder_hidden_states": x, "encoder_attention_mask": mask}


def images(rows, dtype):
    return {"hidden_states": noise(rows, 4, 8, 8, seed=3, dtype=dtype), "timestep": times(rows)}


def timed_images(rows, dtype):
    return images(rows, dtype) | {"timestep": times(rows, dtype)}


def model_options(model):
    """No options where the model gives a tensor, and no more, anyway."""
    known = inspect.signature(getattr(model, "_orig_mod", model).forward).parameters
    return {"return_dict": False} if "return_dict" in known else {}


def output(model, arguments):
    cache = copy.deepcopy(
        {name: x for name, x in arguments.items() if name in ("kv_cache", "kv_cache_flag")}
    )  # it is written into
    out = model(**arguments | cache | model_options(model))
    sample, *sound = out if isinstance(out, tuple) else (out,)
    if sample is None:  # all that the call gives is what it keeps
        return torch.cat([x.flatten() for layer in sound[0] for x in layer.values()])[None]
    if cache:
        sound = ()
    whole = [torch.stack(x) if isinstance(x, list) else x for x in (sample, *sound) if x is not None]
    return torch.cat([x.flatten(1) for x in whole], dim=1)


def two_runs_oracle(tiny, model, sites, arguments, positive, negative, scale, tau, alpha):
    """The output of the untouched model, run twice side by side, with the prompt and with the negative.

    At each guided layer the runs wait for each other, and both go on with what the formula makes of their two outputs of
    attention: as a doubled batch does, for texts of any length. It replaces the input of the layer after attention, and
    never meets an attention function. Returns (output, shares of tokens that the clip changed, one for each layer met).
    """
    if tiny.alone and len(positive["encoder_hidden_states"]) > 1:
        rows, whole = range(len(positive["encoder_hidden_states"])), dataclasses.replace(tiny, alone=False)
        each = (
            [{k: v if v is None else v[i : i + 1] for k, v in x.items()} for x in (arguments, positive, negative)]
            for i in rows
        )
        outs, shares = zip(
            *(two_runs_oracle(whole, model, sites, *one, scale, tau, alpha) for one in each), strict=True
        )
        return torch.cat(outs), [sum(x) / len(x) for x in zip(*shares, strict=True)]
    meeting, which = threading.Barrier(2, timeout=60), threading.local()
    outputs, results, shares = [None, None], [None, None], []

    def steered(x, beside=None):
        if x.ndim == 2:
            return steered(x[None])[0]
        if x.ndim == 4:  # with its heads apart
            return steered(x.flatten(2)).view_as(x)
        image = slice(-tiny.image, None) if tiny.text_first else slice(0, tiny.image)
        outputs[which.run] = x[:, image].clone() if beside is None else x - beside
        meeting.wait()
        out, share = guided(*outputs, scale, tau, alpha)
        if which.run == 0:
            shares.append(share)
        meeting.wait()
        x = x.clone()
        x[:, image] = out if beside is None else out + beside
        return x

    def of_output(layer, inputs, out):
        return (steered(out[0]), *out[1:]) if isinstance(out, tuple) else steered(out)

    def hook(site):
        layer = tiny.layer(site)
        if layer is None:
            return site.register_forward_hook(of_output)
        layer = layer[0] if isinstance(layer, (torch.nn.ModuleList, torch.nn.Sequential)) else layer
        beside = tiny.beside(stack, site)
        return layer.register_forward_pre_hook(lambda _, inputs: (steered(inputs[0], beside()),))

    def run(place, text):
        which.run = place
        try:
            with torch.no_grad():
                results[place] = output(model, arguments | text)
        except BaseException as error:
            results[place] = error
            meeting.abort()

    with contextlib.ExitStack() as stack:
        for site in sites:
            stack.callback(hook(site).remove)
        threads = [threading.Thread(target=run, args=call) for call in enumerate((positive, negative))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results[0], shares
