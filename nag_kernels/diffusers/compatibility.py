# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What else may be switched on at a denoiser while it is guided: caches, hooks, checkpointing, several devices."""

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import Module

from .denoiser_calls import Denoiser, Modules, inner_denoiser, named_modules
from .guard import is_compiled
from .models.registry import spec_of

# Of diffusers' own hooks those that leave what a layer computes as it is. All others (caches of steps or layers, skipped
# layers, perturbed attention) carry results from one call into another, or change attention.
HARMLESS_HOOKS = ("group_offloading", "layerwise_casting", "context_parallel", "tensor_parallel", "hooks")

# Packages that carry results of layers from step to step, and what ends that. When cache_dit is disabled it leaves a forward of
# its own on the model, which stands in another module and computes what the model's own does.
STEP_CACHES = {
    "DeepCache": "call disable() of your DeepCacheSDHelper while guidance is enabled",
    "cache_dit.caching.cache_adapters": "call cache_dit.disable_cache(pipe) while guidance is enabled",
    "para_attn": "load the pipeline anew, without apply_cache_on_pipe",
    "tgate": "load the pipeline anew, without T-GATE",
}


def check_combination(denoiser: Denoiser, modules: Modules, negative_pooled: bool) -> None:
    """Raises ValueError, with what to do, where something on the denoiser, or on its modules, would make guidance wrong."""
    spec, model = spec_of(denoiser), inner_denoiser(denoiser)
    where = f"guide: this {type(model).__name__} cannot be guided: "
    if getattr(model, "is_cache_enabled", False):
        raise ValueError(
            f"{where}its cache ({type(model._cache_config).__name__}) would carry steps with guidance into steps without; "
            "call disable_cache()"
        )
    for layer, name, hook in _hooks(modules):
        module = type(hook).__module__
        if module.startswith("diffusers.") and module.rpartition(".")[2] not in HARMLESS_HOOKS:
            raise ValueError(
                f"{where}diffusers' hook '{name}' at {layer or 'the model itself'} changes what a layer computes or carries "
                "it from step to step, whether guided or not; remove it"
            )
    written_in = _written_in(modules.values())
    for package, advice in STEP_CACHES.items():
        if any(f"{name}.".startswith(f"{package}.") for name in written_in):
            raise ValueError(
                f"{where}{package.partition('.')[0]} is enabled on it, which would carry what guided steps computed into steps "
                f"that are not guided, and the other way round: {advice}"
            )
    check_parallel(where, spec, modules)
    if spec.route == "dual forward":
        _check_dual_forward(where, modules)
    if negative_pooled:
        if not spec.pooled:
            raise ValueError(
                f"{where}negative_pooled needs a model whose layers are modulated by pooled text: SD3 or FLUX.1"
            )
        if is_compiled(denoiser, modules):
            raise ValueError(
                f"{where}negative_pooled works through hooks, which a compiled model does not see; use it without "
                "torch.compile"
            )
        chunked = [name for name, module in modules.items() if getattr(module, "_chunk_size", None) is not None]
        if chunked:
            raise ValueError(
                f"{where}negative_pooled needs feed-forward layers that run whole; {chunked[0]} is chunked: call "
                "disable_forward_chunking()"
            )


def check_forward(denoiser: Denoiser) -> None:
    """For guidance in a part of the steps: raises ValueError where somebody has replaced the denoiser's forward, on its class or
    on itself. A function that knows the original (`functools.wraps`) is no replacement."""
    model = inner_denoiser(denoiser)
    forward = inspect.unwrap(model.__dict__.get("forward") or type(model).forward)
    function = getattr(forward, "__func__", forward)
    written_in = getattr(function, "__globals__", {}).get("__name__")
    own = {kind.__module__ for kind in type(model).__mro__}
    if written_in is None or written_in in own or written_in.partition(".")[0] in ("torch", "cache_dit"):
        return
    raise ValueError(
        f"guide: this {type(model).__name__} cannot be guided in a part of the steps: its forward was replaced by "
        f"{function.__qualname__} of {written_in}, which may carry what guided steps computed into other steps, as TeaCache "
        "does. Put the original forward back, or leave out start, end, sigma_end and a nag_scale for each step"
    )


def check_gradients(denoiser: Denoiser) -> None:
    """Raises ValueError where layers would run once more, for a gradient, after the guided call has ended."""
    if torch.is_grad_enabled() and getattr(inner_denoiser(denoiser), "is_gradient_checkpointing", False):
        raise ValueError(
            "guide: gradient checkpointing runs layers again in backward, when guidance has left them: call "
            "disable_gradient_checkpointing(), or put the processors themselves into the model"
        )


def _check_dual_forward(where: str, modules: Modules) -> None:
    """Two runs take turns within a layer, which must not lose its weights when the first of them leaves it."""
    grouped = any(type(hook).__module__.endswith("group_offloading") for _, _, hook in _hooks(modules))
    inside = (module for name, module in modules.items() if name)
    if grouped or any(getattr(getattr(x, "_hf_hook", None), "offload", False) for x in inside):
        raise ValueError(
            f"{where}its texts cannot be packed, and two runs that take turns would meet layers whose weights are offloaded; "
            "use enable_model_cpu_offload() or none"
        )


def check_calls(denoiser: Denoiser, calls: Mapping[Module, int], arguments: Mapping[str, Any]) -> None:
    """Raises RuntimeError where a layer did not see the text exactly once in a guided call with these arguments of forward."""
    idle = spec_of(denoiser).idle_layers(arguments)
    if not idle and all(n == 1 for n in calls.values()):
        return
    named = [(name, x) for name, x in inner_denoiser(denoiser).named_modules() if x in calls]
    by_name = {name: calls[x] for name, x in named if calls[x] or not any(part in name for part in idle)}
    counts = list(by_name.values())
    wrong = [f"{name} ({n})" for name, n in by_name.items() if n != 1]
    if not wrong:
        return
    raise RuntimeError(
        f"guide: each of {len(counts)} attention layers must see the text once per call, but {counts.count(0)} "
        f"did not see it and {sum(n > 1 for n in counts)} saw it more often: guidance would not act everywhere; "
        f"layers (times seen): {', '.join(wrong[:4])}" + (", ..." if len(wrong) > 4 else "")
    )


def check_parallel(where: str, spec: Any, modules: Modules) -> None:
    config = getattr(modules[""], "_parallel_config", None)
    context = getattr(config, "context_parallel_config", None)
    if config is None:
        if _sharded_by_hand(modules):
            raise ValueError(
                f"{where}its weights are sharded (DTensor), but not through enable_parallelism(): which heads are here is "
                "not known"
            )
        return
    if context is None and getattr(config, "tensor_parallel_config", None) is None:
        raise ValueError(
            f"{where}it is spread over several devices in a way that is not known ({type(config).__name__})"
        )
    if context is None:
        if spec.route == "dual forward":
            raise ValueError(
                f"{where}its texts cannot be packed, and it is spread over several devices; use one device"
            )
        return
    if not spec.context_parallel:
        raise ValueError(
            f"{where}context parallelism is not supported for this model; use tensor parallelism or one device"
        )
    if getattr(context, "ulysses_anything", False) or getattr(context, "ring_anything", False):
        raise ValueError(
            f"{where}ulysses_anything and ring_anything give the devices unequal parts of the texts; use ulysses_degree or "
            "ring_degree alone, with texts of a length that they divide"
        )


def _sharded_by_hand(modules: Modules) -> bool:
    """By tensor parallelism, that is; fully sharded weights are whole again when a layer runs."""
    if "torch.distributed.tensor" not in sys.modules or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    sharded = any(isinstance(x, DTensor) for x in modules[""].parameters())
    return sharded and not any(isinstance(x, FSDPModule) for x in modules.values())


def sequence_mesh(denoiser: Denoiser) -> Any | None:
    """The devices over which context parallelism splits the text, as a mesh of one dimension; None where it does not.

    Read from the hooks that split (a plan may be given by the user): Wan's leaves the text whole.
    """
    model = inner_denoiser(denoiser)
    config = getattr(getattr(model, "_parallel_config", None), "context_parallel_config", None)
    if config is None:
        return None
    text = next(iter(spec_of(model).text))
    splits = any(
        text in (getattr(hook, "metadata", None) or ())
        for _, name, hook in _hooks(named_modules(model))
        if "cp_input" in name
    )
    return config._flattened_mesh if splits else None


def head_mesh(denoiser: Denoiser) -> Any | None:
    """The devices over which tensor parallelism shards the heads, None where it does not."""
    config = getattr(getattr(inner_denoiser(denoiser), "_parallel_config", None), "tensor_parallel_config", None)
    return None if config is None else config._mesh


def _written_in(layers: Iterable[Module]) -> set[str]:
    """The Python modules of the layers' classes and of any forward that somebody has put on one, whatever that says of itself."""
    found = {kind.__module__ for kind in set(map(type, layers))}
    for forward in [layer.__dict__["forward"] for layer in layers if "forward" in layer.__dict__]:
        function = getattr(forward, "__func__", forward)
        found.add(getattr(function, "__module__", None) or "")
        found.add(getattr(function, "__globals__", {}).get("__name__") or "")
    return found


def _hooks(modules: Modules) -> Iterator[tuple[str, str, Any]]:
    """(layer, name, hook) of all of diffusers' hooks."""
    hooked = [(layer, module) for layer, module in modules.items() if "_diffusers_hook" in module.__dict__]
    for layer, module in hooked:
        for name, hook in getattr(module._diffusers_hook, "hooks", {}).items():
            yield layer, name, hook
