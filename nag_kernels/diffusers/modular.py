# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is different about diffusers' modular pipelines: their call takes what their blocks take, and a guider says which call
of the denoiser is which."""

import functools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from diffusers import ModularPipeline
from torch.nn import Module

from .denoiser_calls import DENOISERS
from .places import not_placed
from .restore import Replaced

_OWN = ("state", "output")  # of the call of every modular pipeline


def is_modular(pipe: Any) -> bool:
    return isinstance(pipe, ModularPipeline)


def guiders_of(pipe: ModularPipeline) -> dict[str, Any]:
    """A pipeline's guiders by name: one, or one for each of two denoisers, or of a video and its sound."""
    from diffusers.guiders import BaseGuidance

    return {name: x for name, x in pipe.components.items() if isinstance(x, BaseGuidance)}


def check_guiders(pipe: Any) -> None:
    """Raises ValueError where a modular pipeline has a guider that calls the denoiser otherwise than with the prompt and with the
    unconditional text."""
    from diffusers.guiders import BaseGuidance

    if not is_modular(pipe):
        return
    for name, guider in guiders_of(pipe).items():
        kind = type(guider)
        if kind.__name__ == "NormalizedAttentionGuidance":
            raise ValueError(
                f"guide: {type(pipe).__name__} has the {name} {kind.__name__}, which guides by itself, away from the call's "
                f"negative_prompt; give it another before, pipe.update_components({name}=ClassifierFreeGuidance("
                "guidance_scale=1.0)), say, or call it without guide"
            )
        two = kind._input_predictions == ["pred_cond", "pred_uncond"] or kind.__name__ == "LTX2Guidance"
        if kind.prepare_models is BaseGuidance.prepare_models and two:
            continue  # it takes no layer in hand, and its calls have names of which the meaning is known
        raise ValueError(
            f"guide: {type(pipe).__name__} has the {name} {kind.__name__}, which changes layers of the denoiser in some of its "
            "calls, or makes calls of another kind than with the prompt and with the unconditional text: what to guide cannot "
            f"be told. Give it another before, pipe.update_components({name}=ClassifierFreeGuidance(guidance_scale=1.0)), say"
        )


def prompts_as_given(replaced: Replaced, pipe: ModularPipeline) -> None:
    """No block rewrites the prompt until `replaced` is put back: those that give a prompt are left out."""
    from diffusers.modular_pipelines import SequentialPipelineBlocks

    for block in list(_blocks_in(pipe._blocks)):
        if isinstance(block, SequentialPipelineBlocks):
            kept = {name: x for name, x in block.sub_blocks.items() if not _rewrites_prompt(x)}
            replaced.attribute(block, "sub_blocks", type(block.sub_blocks)(kept))


def _rewrites_prompt(block: Any) -> bool:
    """Whether a prompt is what the block gives, and not some block within it."""
    from diffusers.modular_pipelines import SequentialPipelineBlocks

    of_itself = not isinstance(block, SequentialPipelineBlocks)
    return of_itself and any(x.name == "prompt" for x in block.intermediate_outputs)


def guider_calls_noticed(replaced: Replaced, pipe: Any, notice: Callable[[str | None], None]) -> None:
    """Until `replaced` is put back, `notice` is told for which branch a guider has the denoiser called next by this thread
    ("pred_cond", "pred_uncond"), and None after it. As `interception.contexts_noticed`, whose word is the later one."""
    if not is_modular(pipe):
        return
    thread = threading.get_ident()
    for guider in guiders_of(pipe).values():
        names: list[str] = []  # of the calls of this step, in their order

        def batches(
            *arguments: Any, names: list[str] = names, original: Any, key: str = guider._identifier_key, **named: Any
        ) -> Any:
            found = original(*arguments, **named)
            if threading.get_ident() == thread:
                names[:] = [getattr(batch, key) for batch in found]
            return found

        def prepare(
            denoiser: Any, guider: Any = guider, original: Any = guider.prepare_models, names: list[str] = names
        ) -> None:
            original(denoiser)
            if threading.get_ident() == thread:  # by its count, as some guiders' is_conditional fails
                known, count = names or guider._input_predictions, guider._count_prepared
                notice(known[count - 1] if 0 < count <= len(known) else f"call {count} of {type(guider).__name__}")

        def clean_up(denoiser: Any, original: Any = guider.cleanup_models) -> None:
            original(denoiser)
            if threading.get_ident() == thread:
                notice(None)

        for preparing in ("prepare_inputs", "prepare_inputs_from_block_state"):
            original = getattr(guider, preparing)
            replaced.attribute(guider, preparing, functools.partial(batches, original=original))
        replaced.attribute(guider, "prepare_models", prepare)
        replaced.attribute(guider, "cleanup_models", clean_up)


def input_names(pipe: ModularPipeline) -> Collection[str]:
    """What the pipeline's call takes by name."""
    return [x.name for x in _inputs(pipe) if x.name is not None]


def _inputs(pipe: ModularPipeline) -> list[Any]:
    blocks: Any = pipe._blocks
    return list(blocks.inputs)


def named_arguments(pipe: ModularPipeline, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, with the defaults of the blocks, and with what came in a state or for a group of inputs.

    Of its "state" only the groups are still of use.
    """
    from diffusers.modular_pipelines import PipelineState

    given, inputs = arguments.get("state") or PipelineState(), _inputs(pipe)
    found = {x.name: x.default for x in inputs if x.name is not None} | given.values
    groups = {group: list(members) for group, members in given.kwargs_mapping.items()}
    kinds = {x.kwargs_type for x in inputs}
    for name, value in arguments.items():
        if name in kinds and isinstance(value, Mapping):
            groups[name] = [*groups.get(name, []), *value]
            found |= value
        else:
            found[name] = value
    return found | {"state": PipelineState(kwargs_mapping=groups)}


def as_call(pipe: ModularPipeline, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The way back: named arguments as the call takes them. Those that no block takes by name go in a state."""
    from diffusers.modular_pipelines import PipelineState

    names = {*input_names(pipe), *_OWN}
    unnamed = {name: x for name, x in arguments.items() if name not in names}
    call = {name: x for name, x in arguments.items() if name in names}
    return call | {"state": PipelineState(unnamed, arguments["state"].kwargs_mapping)}


def parts_with_state(pipe: Any) -> list[Any]:
    """What a run writes into: the scheduler, and a modular pipeline's guiders and whatever else it has without weights."""
    from diffusers import ConfigMixin

    if not is_modular(pipe):
        return [getattr(pipe, "scheduler", None)]
    return [x for x in pipe.components.values() if isinstance(x, ConfigMixin) and not isinstance(x, Module)]


def silenced(replaced: Replaced, pipe: ModularPipeline) -> None:
    """No block shows a progress bar until `replaced` is put back."""
    for block in _blocks_in(pipe._blocks):
        if hasattr(block, "progress_bar"):
            config = {**getattr(block, "_progress_bar_config", {}), "disable": True}
            replaced.attribute(block, "_progress_bar_config", config)


def _blocks_in(block: Any) -> Iterator[Any]:
    yield block
    for inside in getattr(block, "sub_blocks", {}).values():
        yield from _blocks_in(inside)


def first_timestep(pipe: ModularPipeline, arguments: Mapping[str, Any]) -> int:
    """With which of its scheduler's timesteps a run begins: later ones where it starts from an image."""
    scheduler: Any = getattr(pipe, "scheduler", None)
    from_image = any(arguments.get(name) is not None for name in ("image", "image_latents"))
    if from_image and not hasattr(scheduler, "begin_index"):
        raise ValueError(
            not_placed(
                f"{type(scheduler).__name__} does not say with which of its steps a run from an image begins; leave them out, "
                "or take a scheduler that has set_begin_index"
            )
        )
    return getattr(scheduler, "begin_index", None) or 0


def table() -> str:
    """Of the modular pipelines of the installed diffusers, with their own blocks, which `guide` serves: a table in Markdown."""
    import diffusers

    from .models.registry import FILES, REFUSED

    rows = ["| modular pipeline | denoiser | guiders | guided |", "|---|---|---|---|"]
    for kind in sorted(x for x in dir(diffusers) if x.endswith("ModularPipeline") and x != "ModularPipeline"):
        pipe = getattr(diffusers, kind)()
        hints = {name: spec.type_hint for name, spec in pipe._component_specs.items() if name in DENOISERS}
        denoisers = list(dict.fromkeys(hint.__name__ for hint in hints.values() if hint is not None))
        guiders = list(dict.fromkeys(type(x).__name__ for x in guiders_of(pipe).values()))
        unknown = [REFUSED.get(name, f"{name} is not known") for name in denoisers if name not in FILES]
        guided = f"raises: {'; '.join(unknown)}" if unknown else "yes"
        named = (" and ".join(f"`{name}`" for name in names) or "-" for names in (denoisers, guiders))
        rows.append(f"| `{kind}` | {' | '.join(named)} | {guided} |")
    return "\n".join(rows)
