# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which file of this folder knows which denoiser class; a file is imported when its denoiser comes."""

import dataclasses
import functools
import importlib
from types import ModuleType
from typing import Any

import diffusers
from torch.nn import Module, ModuleDict, ModuleList

from nag_kernels.layer_choice import LayerChoice, chosen_layers

from ..attention.base import Layer
from ..denoiser_calls import Denoiser, Modules, denoisers_of, inner_denoiser, named_modules
from ..guard import is_compiled
from .spec import ModelSpec

TESTED_WITH = "0.42.1"

# The file of this folder whose `MODELS` has the entry of a denoiser class.
FILES = {
    "UNet2DConditionModel": "unet",
    "UNetMotionModel": "unet",
    "PixArtTransformer2DModel": "pixart",
    "SD3Transformer2DModel": "sd3",
    "SanaTransformer2DModel": "sana",
    "FluxTransformer2DModel": "flux",
    "ChromaTransformer2DModel": "chroma",
    "ZImageTransformer2DModel": "z_image",
    "HunyuanVideoTransformer3DModel": "hunyuan_video",
    "Flux2Transformer2DModel": "flux2",
    "Flux3Transformer2DModel": "flux3",
    "QwenImageTransformer2DModel": "qwen_image",
    "LTXVideoTransformer3DModel": "ltx",
    "LTX2VideoTransformer3DModel": "ltx2",
    "WanTransformer3DModel": "wan",
    "SkyReelsV2Transformer3DModel": "skyreels_v2",
    "ChronoEditTransformer3DModel": "chronoedit",
    "WanAnimateTransformer3DModel": "wan_animate",
    "WanVACETransformer3DModel": "wan",
    "CogView4Transformer2DModel": "cogview",
    "GlmImageTransformer2DModel": "glm_image",
    "CogView3PlusTransformer2DModel": "cogview",
    "AllegroTransformer3DModel": "allegro",
    "CogVideoXTransformer3DModel": "cogvideox",
    "AuraFlowTransformer2DModel": "auraflow",
    "BriaTransformer2DModel": "bria",
    "BriaFiboTransformer2DModel": "bria",
    "HiDreamImageTransformer2DModel": "hidream",
    "HunyuanImageTransformer2DModel": "hunyuan_image",
    "HunyuanVideo15Transformer3DModel": "hunyuan_video",
    "HunyuanVideoFramepackTransformer3DModel": "hunyuan_video",
    "MochiTransformer3DModel": "mochi",
    "Lumina2Transformer2DModel": "lumina",
    "LongCatImageTransformer2DModel": "longcat_image",
    "OvisImageTransformer2DModel": "ovis_image",
    "Krea2Transformer2DModel": "krea",
    "PRXTransformer2DModel": "prx",
    "ErnieImageTransformer2DModel": "ernie_image",
    "NucleusMoEImageTransformer2DModel": "nucleus_image",
    "JoyImageEditTransformer3DModel": "joy_image",
    "JoyImageEditPlusTransformer3DModel": "joy_image",
    "LuminaNextDiT2DModel": "lumina",
    "CosmosTransformer3DModel": "cosmos",
    "SanaVideoTransformer3DModel": "sana",
    "SanaWMTransformer3DModel": "sana",
    "HeliosTransformer3DModel": "helios",
    "ConsisIDTransformer3DModel": "cogvideox",
    "EasyAnimateTransformer3DModel": "easyanimate",
    "MotifVideoTransformer3DModel": "motif_video",
    "Kandinsky6Transformer3DModel": "kandinsky",
    "AnyFlowTransformer3DModel": "anyflow",
    "AnyFlowFARTransformer3DModel": "anyflow",
    "HunyuanDiT2DModel": "hunyuan_dit",
    "LatteTransformer3DModel": "latte",
    "Kandinsky5Transformer3DModel": "kandinsky",
    "StableAudioDiTModel": "stable_audio",
    "StableAudio3DiTModel": "stable_audio",
    "AceStepTransformer1DModel": "ace_step",
    "LongCatAudioDiTTransformer": "longcat_audio",
    "UNet3DConditionModel": "unet_3d",
    "I2VGenXLUNet": "unet_3d",
    "DreamLiteUNetModel": "dreamlite",
    "Kandinsky3UNet": "kandinsky3",
    "AudioLDM2UNet2DConditionModel": "audioldm2",
    "UVit2DModel": "amused",
    "UNetControlNetXSModel": "controlnet_xs",
    "QwenImage21Transformer2DModel": "qwen_image",
    "Cosmos3OmniTransformer": "cosmos",
    "BriaFibo2Transformer2DModel": "bria",
    "OmniGenTransformer2DModel": "omnigen",
    "Ideogram4Transformer2DModel": "ideogram",
    "MiniMaxH3Transformer3DModel": "minimax_h3",
    "WanAnimate2Transformer3DModel": "wan_animate_2",
}

# Denoiser classes that cannot be guided at all, each with the reason.
REFUSED = {
    "MiniMaxMusic3Transformer1DModel": (
        "no attention layer sees a prompt, because what is made of the prompt is put beside each frame of the sound, along the "
        "channels; use the classifier-free guidance of the pipeline's guider"
    ),
}


def file_of(kind: str) -> ModuleType:
    """The file that knows the denoiser class of this name, imported.

    Raises: ImportError where the installed diffusers lacks something that the file uses of it.
    """
    try:
        return importlib.import_module(f".{FILES[kind]}", __package__)
    except ImportError as error:
        raise ImportError(f"guide: {kind} needs another diffusers than {diffusers.__version__}: {error}") from error


@functools.cache
def entry(kind: str) -> ModelSpec:
    """The entry of the denoiser class of this name. Raises ImportError where the installed diffusers is too old for it."""
    spec: ModelSpec = file_of(kind).MODELS[kind]
    if version_of(diffusers.__version__) < version_of(spec.since):
        raise ImportError(f"guide: {kind} needs diffusers {spec.since} or newer, found {diffusers.__version__}")
    return spec


def version_of(text: str) -> list[int]:
    """The first two numbers of a version."""
    return [int(x) for x in text.split(".")[:2]]


def all_models() -> dict[str, ModelSpec]:
    """The entries of all denoiser classes, but of those whose file the installed diffusers is too old for."""
    found = {}
    for kind in FILES:
        try:
            found[kind] = entry(kind)
        except ImportError:
            continue
    return found


def find_denoisers(pipe: Any) -> list[Module]:
    """The pipeline's denoisers whose calls are guided: one, or the two of Wan 2.2. Raises ValueError where it has none, or two of
    a kind each."""
    found = denoisers_of(pipe)
    if not found:
        raise ValueError(
            f"guide: {type(pipe).__name__} has no denoiser (no module named transformer or unet); a modular pipeline has it "
            "after load_components()"
        )
    if any(spec_of(x) is not spec_of(found[0]) for x in found):
        kinds = " and ".join(type(inner_denoiser(x)).__name__ for x in found)
        raise ValueError(f"guide: the denoisers of {type(pipe).__name__} must be of one kind, got {kinds}")
    return found


def further_denoisers(pipe: Any, found: list[Module]) -> list[tuple[str, Module]]:
    """What a pipeline holds beside its denoisers that are found, and what could draw as well, each with the attribute's name."""
    plain, known = spec_of(found[0]).unconditional_denoiser, set(map(inner_denoiser, found))
    held = [(name, x) for name, held in vars(pipe).items() if name != plain for x in _modules_in(held)]
    kinds = [(name, x, type(inner_denoiser(x)).__mro__) for name, x in held if inner_denoiser(x) not in known]
    return [(name, x) for name, x, kind in kinds if any(cls.__name__ in FILES for cls in kind)]


def _modules_in(x: Any, depth: int = 3) -> list[Module]:
    """An attribute of a pipeline that is a model, or those that it holds in lists, tuples and mappings."""
    if isinstance(x, (ModuleList, ModuleDict)):
        return list(x.children())
    if isinstance(x, Module):
        return [x]
    held = x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else ()
    return [z for y in held for z in _modules_in(y, depth - 1)] if depth else []


def supported() -> str:
    """A table of the denoisers that `guide` supports, with one line for each.

    route: how the model is guided. "drop-in": a processor of this package replaces the model's own. "generic": the model keeps
        its own processor, in which the call of attention is replaced. "dual forward": the model runs twice, as under
        classifier-free guidance, because its prompts cannot be packed.
    exact: the dtypes in which the guided model equals, up to rounding, two runs of the untouched model side by side.
    """
    lines = [f"{'denoiser':40s} {'route':12s} {'exact in':34s} tested with"]
    lines += [
        f"{name:40s} {spec.route:12s} {spec.exact:34s} diffusers {TESTED_WITH}" for name, spec in all_models().items()
    ]
    return "\n".join(lines)


def spec_of(denoiser: Denoiser) -> ModelSpec:
    """The entry for this denoiser. Raises ValueError, with the supported classes, where there is none."""
    denoiser = inner_denoiser(denoiser)
    for cls in type(denoiser).__mro__:
        if cls.__name__ in FILES:
            return entry(cls.__name__)
        if cls.__name__ in REFUSED:
            raise ValueError(f"guide: {cls.__name__} cannot be guided: {REFUSED[cls.__name__]}")
    raise ValueError(f"guide: {type(denoiser).__name__} is not supported; supported denoisers: {', '.join(FILES)}")


@dataclasses.dataclass(frozen=True)
class Found:
    """What a guided call finds on a denoiser when it begins.

    modules: all of the denoiser's, by name. layers: those that see the text. unsteered: of these, those that are not chosen.
    """

    modules: Modules
    layers: list[Layer]
    unsteered: set[Layer]


def find_layers(denoiser: Denoiser, choice: LayerChoice | None = None, modules: Modules | None = None) -> Found:
    """The attention layers to be guided.

    modules: of the denoiser, where they are known. Raises TypeError or ValueError for a choice of layers that does not fit, and
    ValueError where guidance could not act, or not everywhere: a processor that is not known (attention slicing, xformers), no
    such layer at all, or another number than the model's configuration says.
    """
    spec, modules = spec_of(denoiser), modules or named_modules(denoiser)
    compiled = spec.dual_forward is not None and is_compiled(denoiser, modules)
    denoiser = inner_denoiser(denoiser)
    kind = type(denoiser).__name__
    reason = spec.refuse(denoiser)
    if reason is not None:
        raise ValueError(f"guide: this {kind} cannot be guided: {reason}")
    if compiled:
        raise ValueError(f"guide: this {kind} cannot be guided: it is compiled, and its texts cannot be packed")
    layers = list(spec.layers(modules))
    known = " or ".join(spec.stock)
    for name, module in layers:
        unknown = spec.why_unknown(module.processor)
        if unknown is not None:
            processor = type(module.processor)
            package = (processor.__module__ or "").partition(".")[0]
            advice = (
                "Disable attention slicing, xformers or whatever has set it, or "
                f"call set_attn_processor({spec.stock[0]}())"
                if processor.__module__ == "diffusers.models.attention_processor"
                else f"A pipeline, a callback or a package has set it ({package}), and it may do what no other processor does: "
                "draw without that, or without guidance"
            )
            raise ValueError(
                f"guide: the attention processor at {kind}.{name} is {processor.__name__}, {unknown}: "
                f"guidance needs {known}. {advice}"
            )
    if len(layers) != spec.layer_count(denoiser) or not layers:
        raise ValueError(
            f"guide: {kind} has {len(layers)} attention layers that see text, expected {spec.layer_count(denoiser)}"
            + ("" if layers else "; guidance has nothing to act on")
        )
    return Found(modules, [module for _, module in layers], _unsteered(layers, choice))


def guided_layers(denoiser: Denoiser) -> list[Layer]:
    """The layers of `find_layers`."""
    return find_layers(denoiser).layers


def _unsteered(layers: list[tuple[str, Layer]], choice: LayerChoice | None) -> set[Layer]:
    """Those that are not chosen. They are numbered in the order in which the model runs them."""
    if choice is None:
        return set()
    # A UNet has its middle after its ups, or before its downs.
    places = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    layers = sorted(layers, key=lambda layer: places.get(layer[0].split(".")[0], 0))
    chosen = chosen_layers("guide", choice, [name for name, _ in layers])
    return set() if chosen is None else {layer for i, (_, layer) in enumerate(layers) if i not in chosen}
