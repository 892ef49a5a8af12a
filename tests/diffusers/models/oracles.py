# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guided models by other means: none of this shares code with the package, or meets an attention function that it replaces."""

import contextlib
import copy
import dataclasses
import inspect
import threading

import torch
import torch.nn.functional as F


def twice(x):
    """The arguments for a doubled batch."""
    if isinstance(x, dict):
        return {k: v if k == "img_ids" else twice(v) for k, v in x.items()}
    if isinstance(x, list):
        return x * 2
    return torch.cat([x, x]) if isinstance(x, torch.Tensor) else x


def run(model, arguments, text, **masks):
    """The output of a model for one text per row."""
    if "img_ids" in arguments:
        ids = arguments["img_ids"]
        arguments = arguments | {"txt_ids": ids.new_zeros(*ids.shape[:-2], text.shape[1], ids.shape[-1])}
    known = inspect.signature((getattr(model, "_orig_mod", model)).forward).parameters
    masks = {name: None for name in ("encoder_attention_mask",) if name in known} | masks
    return model(**arguments, encoder_hidden_states=text, **masks).sample


def guided(positive, negative, scale, tau, alpha, rule="nag"):
    """The formula, per token over all heads, in float64: [B, S, C] -> (out, share of tokens that the clip changes)."""
    p, n = positive.double(), negative.double()
    if rule == "nasa":
        return (p - scale * n).to(positive.dtype), 0.0
    g = scale * p - (scale - 1) * n
    ratio = g.abs().sum(-1, keepdim=True) / p.abs().sum(-1, keepdim=True)
    clipped = torch.where(ratio > tau, tau / ratio, torch.ones_like(ratio)) * g
    return (alpha * clipped + (1 - alpha) * p).to(positive.dtype), (ratio > tau).double().mean().item()


@contextlib.contextmanager
def doubled_batch_oracle(sites, text_length, scale, tau, alpha, rule="nag", unsteered=()):
    """While open, a batch [positive rows; negative rows] through the untouched model is guided in both halves alike.

    It replaces the input of the layer after attention, so it never meets an attention function. In the single-stream
    blocks of FLUX.1 (no such layer) and FLUX.2 (one for attention and feed-forward together) text and image are one
    sequence, of which the image is replaced. In the sites that are `unsteered` both halves go on with the positive's image.
    Yields the list of the shares of tokens that the clip changed, one for each layer met.
    """
    clipped = []

    def hook(site):
        def steered(x):
            half = x.shape[0] // 2
            out, share = guided(x[:half], x[half:], scale, tau, alpha, rule)
            clipped.append(share)
            return torch.cat([x[:half]] * 2 if site in unsteered else [out, out])

        def steer(layer, inputs):
            return (steered(inputs[0]),)

        def with_image_steered(x):
            return torch.cat([x[:, :text_length], steered(x[:, text_length:])], dim=1)

        if not hasattr(site, "to_out"):
            return site.register_forward_hook(lambda layer, inputs, output: with_image_steered(output))
        if isinstance(site.to_out, torch.nn.Linear):  # of attention and feed-forward together
            widths = (site.inner_dim, site.to_out.in_features - site.inner_dim)

            def steer_attention(layer, inputs):
                attention, feed_forward = inputs[0].split(widths, dim=-1)
                return (torch.cat([with_image_steered(attention), feed_forward], dim=-1),)

            return site.to_out.register_forward_pre_hook(steer_attention)
        return site.to_out[0].register_forward_pre_hook(steer)

    hooks = [hook(site) for site in sites]
    try:
        yield clipped
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def vsf_oracle(sites, positive, negative, scale, bias=0.0, text_first=False, unsteered=()):
    """While open, the untouched model, run on packed texts [text+ ; text-] of these lengths, does value sign flip.

    In the guided layers it takes the place of scaled_dot_product_attention, in float64: the image sees both texts, and the
    values of text- times -scale; in joint attention text+ does not see text-, and text- sees itself as it is, not text+. In
    the sites that are `unsteered` the image does not see text- either.
    Yields the list of the calls that it took.
    """
    plain, inside, taken = F.scaled_dot_product_attention, [], []

    def attend(query, key, value, attn_mask=None, **options):
        if not inside:
            return plain(query, key, value, attn_mask, **options)
        assert options.get("scale") is None
        taken.append(key.shape)
        image = key.shape[2] - positive - negative
        pictures, texts = ["image"] * image, ["text+"] * positive + ["text-"] * negative
        kinds = texts + pictures if text_first else pictures + texts
        asking = kinds if image else ["image"] * query.shape[2]
        unseen = {("text+", "text-"), ("text-", "text+")}
        if inside[-1] in unsteered:
            unseen.add(("image", "text-"))
        seen = torch.tensor([[(q, k) not in unseen for k in kinds] for q in asking])
        flipped = torch.tensor([[(q, k) == ("image", "text-") for k in kinds] for q in asking])
        logits = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5 + bias * flipped.double()
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        weights = logits.masked_fill(~seen, -torch.inf).softmax(-1) * torch.where(
            flipped, -scale, torch.ones(1).double()
        )
        return (weights @ value.double()).to(value.dtype)

    hooks = [site.register_forward_pre_hook(lambda site, *_: inside.append(site)) for site in sites]
    hooks += [site.register_forward_hook(lambda *_: inside.clear()) for site in sites]
    F.scaled_dot_product_attention = attend
    try:
        yield taken
    finally:
        F.scaled_dot_product_attention = plain
        for hook in hooks:
            hook.remove()


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


def two_runs_oracle(tiny, model, sites, arguments, positive, negative, scale, tau, alpha, unsteered=()):
    """The output of the untouched model, run twice side by side, with the prompt and with the negative.

    At each guided layer the runs wait for each other, and both go on with what the formula makes of their two outputs of
    attention: as a doubled batch does, for texts of any length. It replaces the input of the layer after attention, and
    never meets an attention function. In the sites that are `unsteered` both go on with the prompt's. Returns (output, shares
    of tokens that the clip changed, one for each layer met).
    """
    if tiny.alone and len(positive["encoder_hidden_states"]) > 1:
        rows, whole = range(len(positive["encoder_hidden_states"])), dataclasses.replace(tiny, alone=False)
        each = (
            [{k: v if v is None else v[i : i + 1] for k, v in x.items()} for x in (arguments, positive, negative)]
            for i in rows
        )
        outs, shares = zip(
            *(two_runs_oracle(whole, model, sites, *one, scale, tau, alpha, unsteered) for one in each), strict=True
        )
        return torch.cat(outs), [sum(x) / len(x) for x in zip(*shares, strict=True)]
    meeting, which = threading.Barrier(2, timeout=60), threading.local()
    outputs, results, shares = [None, None], [None, None], []

    def steered(site, x, beside=None):
        if x.ndim == 2:
            return steered(site, x[None])[0]
        if x.ndim == 4:  # with its heads apart
            return steered(site, x.flatten(2)).view_as(x)
        image = slice(-tiny.image, None) if tiny.text_first else slice(0, tiny.image)
        outputs[which.run] = x[:, image].clone() if beside is None else x - beside
        meeting.wait()
        out, share = guided(*outputs, scale, tau, alpha)
        out = outputs[0] if site in unsteered else out
        if which.run == 0:
            shares.append(share)
        meeting.wait()
        x = x.clone()
        x[:, image] = out if beside is None else out + beside
        return x

    def of_output(site, inputs, out):
        return (steered(site, out[0]), *out[1:]) if isinstance(out, tuple) else steered(site, out)

    def hook(site):
        layer = tiny.layer(site)
        if layer is None:
            return site.register_forward_hook(of_output)
        layer = layer[0] if isinstance(layer, (torch.nn.ModuleList, torch.nn.Sequential)) else layer
        beside = tiny.beside(stack, site)
        return layer.register_forward_pre_hook(lambda _, inputs: (steered(site, inputs[0], beside()),))

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
