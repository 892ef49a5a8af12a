# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""One sampling with guidance: four wrappers around functions of ComfyUI's core, from the whole sampling down to one call.

    sampling     the negative becomes one more conditioning of the guider, so that the model itself prepares it
    step         is it within the guidance window?
    batch        which of its conditionings are those of the prompt?
    denoiser     both prompts are packed, and each layer that sees them is guided

What cannot be guided raises ValueError.
"""

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any

import comfy.ldm.modules.attention  # pyright: ignore[reportMissingImports]
import comfy.sampler_helpers  # pyright: ignore[reportMissingImports]
from comfy.patcher_extension import WrappersMP  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torch.nn import Module

from .attention import beside_replacement, entrance
from .families import Family
from .packing import TITLE, Guidance, Packed, pack

KEY = "nag_kernels"  # of our wrappers, of our conditioning in a guider, and of our entry in transformer_options


@dataclass
class Sampling:
    """What one sampling has in common. calls: how many calls of the denoiser were guided."""

    first_sigma: float
    last_sigma: float
    calls: int = 0


@dataclass(frozen=True)
class Step:
    """One step within the window.

    negative: the prepared conditioning.  prompt: the ids of the conditionings of the prompt.
    lengths: the number of tokens of each conditioning by its id.
    guided: the indices of the prompt's conditionings in the batch; None until the batch is known.
    """

    sampling: Sampling
    negative: dict[str, Any]
    prompt: frozenset[Any]
    lengths: dict[Any, int | None]
    guided: frozenset[int] | None = None


class Guide:
    """The wrappers of one node. negative: the conditioning that is connected to it.  window: start and end, 0 to 1."""

    def __init__(self, family: Family, negative: Any, guidance: Guidance, window: tuple[float, float]):
        self.family, self.negative, self.guidance, self.window = family, negative, guidance, window

    def add_to(self, patcher: Any) -> None:
        patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self.sampling)
        patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self.step)
        patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, self.batch)
        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, self.denoiser)

    def sampling(self, executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor,
                 *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        guider = executor.class_obj
        if "positive" not in guider.conds:
            raise ValueError(
                f"{TITLE}: {type(guider).__name__} has no conditioning named positive (it has {', '.join(guider.conds)}), so it "
                "cannot be told what to guide. Use a guider with a positive conditioning, such as CFGGuider or BasicGuider"
            )
        convert = guider.model_patcher.get_model_object("model_sampling").percent_to_sigma
        run = Sampling(float(convert(self.window[0])), float(convert(self.window[1])))
        steps = [float(x) for x in (sigmas[:-1] if len(sigmas) > 1 else sigmas)]
        if not any(_within(run, x) for x in steps):
            raise ValueError(
                f"{TITLE}: no step of this sampler lies between start_percent {self.window[0]:g} and end_percent "
                f"{self.window[1]:g}: its steps have sigma {max(steps):.4g} to {min(steps):.4g}, the window is "
                f"{run.first_sigma:.4g} to {run.last_sigma:.4g}. Widen the window, or connect this "
                "sampler to the model without this node"
            )
        guider.conds[KEY] = comfy.sampler_helpers.convert_cond(self.negative)
        guider.model_options["transformer_options"][KEY] = run
        out = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        if not run.calls:
            raise ValueError(f"{TITLE}: no call of the model was guided in this sampling. {_OTHER_NODE}")
        return out

    def step(self, executor: Any, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None) -> Any:
        model_options = model_options or {}
        options = model_options.get("transformer_options", {})
        run, guider = options.get(KEY), executor.class_obj
        if not isinstance(run, Sampling):
            raise ValueError(f"{TITLE}: this step is not part of a sampling that the node knows. {_OTHER_NODE}")
        step = None
        if _within(run, float(timestep.max())):
            conds = [x for name, each in guider.conds.items() if name != KEY for x in each]
            tokens = {x["uuid"]: _tokens(x) for x in conds}
            prompt = frozenset(x["uuid"] for x in guider.conds["positive"])
            step = Step(run, guider.conds[KEY][0]["model_conds"], prompt, tokens)
        return executor(x, timestep, model_options | {"transformer_options": options | {KEY: step}}, seed)

    def batch(self, executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, model_options: Any) -> Any:
        options = model_options.get("transformer_options", {})
        step = options.get(KEY)
        if isinstance(step, Step):
            ids = [frozenset(x["uuid"] for x in each or ()) for each in conds]
            # The unconditional branch may have copies of the prompt's areas, but never nothing of its own.
            guided = frozenset(i for i, each in enumerate(ids) if each and each <= step.prompt)
            options = options | {KEY: dataclasses.replace(step, guided=guided)}
            model_options = model_options | {"transformer_options": options}
        return executor(model, conds, x, timestep, model_options)

    def denoiser(self, executor: Any, x: Tensor, t: Tensor, c_concat: Any = None, c_crossattn: Any = None,
                 control: Any = None, transformer_options: Any = None, **kwargs: Any) -> Any:  # fmt: skip
        options = dict(transformer_options or {})
        step, branches, ids = options.pop(KEY, False), options.get("cond_or_uncond"), options.get("uuids")
        if step is None:  # outside of the window
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        if not isinstance(step, Step) or step.guided is None or branches is None:
            raise ValueError(f"{TITLE}: the model was called outside of a step that the node knows. {_OTHER_NODE}")
        steered = [i in step.guided for i in branches]
        if not any(steered):
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        for name, why in self.family.must_be_none.items():
            if kwargs.get(name) is not None:
                raise ValueError(f"{TITLE}: the prompt has {name}: {why}")
        denoiser = getattr(executor.class_obj.diffusion_model, "_orig_mod", executor.class_obj.diffusion_model)
        batch = x.shape[0] // len(branches)
        texts = self.family.text(denoiser)
        names = {x.argument for x in texts} | {x.mask for x in texts}
        negative = {k: v.process_cond(batch_size=batch, area=None).cond for k, v in step.negative.items() if k in names}
        lengths = [step.lengths.get(x) for x in ids or [None] * len(branches)]
        arguments = kwargs | {"c_crossattn": c_crossattn}
        changed, packed = pack(texts, arguments, negative, self.guidance, steered, batch, lengths)
        packed.image_first = self.family.image_first(denoiser)
        if not self.family.masked_layers:
            packed.mask_positive = packed.mask_negative = None
        if self.family.token_count:
            arguments[self.family.token_count] = sum(packed.lengths)
        arguments |= changed
        with self._guided(denoiser, packed, options) as options:
            out = executor(x, t, c_concat, arguments.pop("c_crossattn"), control, options, **arguments)
        self._check(denoiser, packed, options)
        step.sampling.calls += 1
        return out

    @contextlib.contextmanager
    def _guided(self, denoiser: Module, packed: Packed, options: dict[str, Any]) -> Any:
        """Guides the layers of the denoiser; gives the transformer_options to call it with."""
        layers = self.family.layers(denoiser)
        replaced = options.get("patches_replace", {}).get("attn2", {})
        if replaced:
            by_block = {_block(name): i for i, (name, _) in enumerate(layers)}

            def index_of(extra: Any) -> int | None:
                return by_block.get((*extra.get("block", ()), extra.get("block_index", 0)))

            plain = comfy.ldm.modules.attention.optimized_attention
            ours = {k: beside_replacement(packed, index_of, x, plain) for k, x in replaced.items()}
            options = options | {"patches_replace": options["patches_replace"] | {"attn2": ours}}
        with contextlib.ExitStack() as stack:
            for change in self.family.changes:
                stack.enter_context(change(denoiser, packed))
            for i, (name, layer) in enumerate(layers):
                hook = entrance(packed, self.family.kind, i, name)
                stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield options

    def _check(self, denoiser: Module, packed: Packed, options: dict[str, Any]) -> None:
        """Raises where a layer was not guided."""
        if not packed.entered and "easycache" in options:
            return  # ComfyUI's own cache has given what a guided step has left in it
        layers = self.family.layers(denoiser)
        skipped = bool(options.get("patches_replace", {}).get("dit"))  # some nodes leave whole blocks out
        expected = set(packed.entered if skipped and packed.entered else range(len(layers)))
        resting = {i for i, (name, _) in enumerate(layers) if name.endswith(self.family.may_rest)}
        if packed.entered and not resting & packed.entered:
            expected -= resting
        missing = [layers[i][0] for i in expected if i not in packed.guided]
        if missing:
            raise ValueError(
                f"{TITLE}: {len(missing)} of {len(layers)} layers of {type(denoiser).__name__} that see the prompt were not "
                f"guided, the first of them {missing[0]}. {_OTHER_NODE}"
            )


_OTHER_NODE = (
    "Another node replaces a part of ComfyUI that this one needs: remove that node, or do without this one for this "
    "model"
)


def _within(run: Sampling, sigma: float) -> bool:
    """Both ends belong to the window, as with ComfyUI's own start_percent and end_percent."""
    return run.last_sigma <= sigma <= run.first_sigma


def _tokens(cond: dict[str, Any]) -> int | None:
    text = cond.get("model_conds", {}).get("c_crossattn")
    return None if text is None else int(text.cond.shape[1])


def _block(name: str) -> tuple[str, int, int]:
    """How the UNet calls the block of a layer: input_blocks.4.1.transformer_blocks.0.attn2 is ("input", 4, 0)."""
    words = name.split(".")
    kind = words[0].removesuffix("_blocks").removesuffix("_block")
    return kind, 0 if kind == "middle" else int(words[1]), int(words[words.index("transformer_blocks") + 1])
