# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The one place for model families: what `guide` must know about a denoiser, one entry per class.

A family whose attention is one of the kinds in `cross_attention` and `joint_attention` is one more entry here; another kind
needs its own processor.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    FusedJointAttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    JointAttnProcessor2_0,
)
from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor, FluxIPAdapterAttnProcessor
from diffusers.models.transformers.transformer_flux2 import (
    Flux2Attention,
    Flux2AttnProcessor,
    Flux2ParallelSelfAttention,
    Flux2ParallelSelfAttnProcessor,
)
from diffusers.models.transformers.transformer_ltx import LTXAttention, LTXVideoAttnProcessor
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch.nn import Module

from .cross_attention import (
    NAGAttnProcessor2_0,
    NAGLTXVideoAttnProcessor,
    NAGSanaAttnProcessor2_0,
    NAGWanAttnProcessor2_0,
)
from .ip_adapter import NAGFluxIPAdapterAttnProcessor, NAGIPAdapterAttnProcessor2_0
from .joint_attention import (
    NAGFlux2AttnProcessor,
    NAGFlux2ParallelSelfAttnProcessor,
    NAGFluxAttnProcessor2_0,
    NAGJointAttnProcessor2_0,
    NAGQwenDoubleStreamAttnProcessor2_0,
)


@dataclass(frozen=True)
class Settings:
    """What the papers use for a model: NAG's scale (phi + 1), tau, alpha; NASA's scale, None if none is published."""

    nag_scale: float
    nag_tau: float
    nag_alpha: float
    nasa_scale: float | None = None


@dataclass(frozen=True)
class Family:
    """How text reaches attention in one denoiser class.

    text: the arguments of forward that hold the text, and the dimension its tokens lie along (-2: with or without a batch).
    masks: the arguments that hold its masks, [B, T] (1 = seen) or a bias [B, 1, T].
    sites: (name, module) of every attention layer that sees the text.
    site_count: how many there must be, found in another way.
    processors: ours for each stock processor; any other at a site is refused.
    settings: the papers' settings for this very model.
    refuse: why this very model cannot be guided, or None.
    negative_call: arguments of the pipeline's call that are others for a negative than for a prompt.
    two_calls: whether classifier-free guidance calls the model twice a step, and not once with a doubled batch.
    unknown: arguments of forward that must be None, as they would change attention.
    keeps_text: whether keys and values of the texts are kept over the steps of a run: they depend on neither step nor image,
        and are small beside the model.
    pooled: the argument of forward with the pooled text that modulates the layers of both texts; "" where there is none.
    context_parallel: whether the model works under diffusers' context parallelism; others are refused there.
    """

    text: Mapping[str, int]
    masks: tuple[str, ...]
    sites: Callable[[Module], Iterator[tuple[str, Module]]]
    site_count: Callable[[Module], int]
    processors: Mapping[type, type]
    settings: Callable[[Module], Settings]
    refuse: Callable[[Module], str | None] = lambda denoiser: None
    negative_call: Mapping[str, Any] = field(default_factory=dict)
    two_calls: bool = False
    unknown: tuple[str, ...] = ()
    keeps_text: bool = False
    pooled: str = ""
    context_parallel: bool = False


def _cross_attentions(denoiser: Module) -> Iterator[tuple[str, Attention]]:
    for name, module in denoiser.named_modules():
        if isinstance(module, Attention) and (module.is_cross_attention or module.added_kv_proj_dim is not None):
            yield name, module


def _joint_attentions(denoiser: Module) -> Iterator[tuple[str, Attention]]:
    """Those with text projections; the `attn2` of SD3.5-Medium sees the image alone."""
    for name, module in denoiser.named_modules():
        if isinstance(module, Attention) and module.added_kv_proj_dim is not None:
            yield name, module


def _all_of(*kinds: type) -> Callable[[Module], Iterator[tuple[str, Module]]]:
    return lambda denoiser: ((name, module) for name, module in denoiser.named_modules() if isinstance(module, kinds))


def _ltx_attentions(denoiser: Module) -> Iterator[tuple[str, LTXAttention]]:
    """The second of each block: nothing on a layer says whether it sees text, as text is as wide as the image."""
    for name, module in denoiser.named_modules():
        if isinstance(module, LTXAttention) and name.endswith("attn2"):
            yield name, module


def _wan_attentions(denoiser: Module) -> Iterator[tuple[str, WanAttention]]:
    for name, module in denoiser.named_modules():
        if isinstance(module, WanAttention) and module.is_cross_attention:
            yield name, module


def _unet_sites(unet: Module) -> int:
    blocks = [x for x in unet.modules() if isinstance(x, BasicTransformerBlock)]
    return sum(not x.double_self_attention for x in blocks) + sum(bool(x.only_cross_attention) for x in blocks)


def _unet_settings(unet: Module) -> Settings:
    if unet.config.addition_embed_type == "text_time":
        return Settings(3.0, 2.5, 0.5)  # SDXL
    return Settings(3.0, 2.5, 0.375, nasa_scale=0.2 if unet.config.cross_attention_dim == 1024 else 0.1)  # SD2, SD1.5


def _unet_refuse(unet: Module) -> str | None:
    if unet.config.addition_embed_type not in (None, "text_time"):
        return f"addition_embed_type '{unet.config.addition_embed_type}' reads the text outside attention"
    if unet.config.encoder_hid_dim_type not in (None, "text_proj", "ip_image_proj"):
        return f"encoder_hid_dim_type '{unet.config.encoder_hid_dim_type}' changes the text before attention"
    return None


def _sd3_refuse(transformer: Module) -> str | None:
    sites = [attn for _, attn in _joint_attentions(transformer)]
    if any(type(attn.processor) is FusedJointAttnProcessor2_0 and attn.norm_q is not None for attn in sites):
        return (
            "its projections are fused, and diffusers' processor for that leaves out the norms of query and key, which this "
            "model has: call unfuse_qkv_projections()"
        )
    return None


FAMILIES: dict[str, Family] = {
    "UNet2DConditionModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        sites=_cross_attentions,
        site_count=_unet_sites,
        processors={
            AttnProcessor2_0: NAGAttnProcessor2_0,
            FusedAttnProcessor2_0: NAGAttnProcessor2_0,
            IPAdapterAttnProcessor2_0: NAGIPAdapterAttnProcessor2_0,
        },
        settings=_unet_settings,
        refuse=_unet_refuse,
        keeps_text=True,
    ),
    "PixArtTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        sites=_cross_attentions,
        site_count=lambda transformer: transformer.config.num_layers,
        processors={AttnProcessor2_0: NAGAttnProcessor2_0, FusedAttnProcessor2_0: NAGAttnProcessor2_0},
        settings=lambda transformer: Settings(5.0, 2.5, 0.375, nasa_scale=0.5),
        keeps_text=True,
    ),
    "SD3Transformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=(),
        sites=_joint_attentions,
        site_count=lambda transformer: transformer.config.num_layers,
        processors={
            JointAttnProcessor2_0: NAGJointAttnProcessor2_0,
            FusedJointAttnProcessor2_0: NAGJointAttnProcessor2_0,
        },
        settings=lambda transformer: Settings(5.0, 2.5, 0.125),
        refuse=_sd3_refuse,
        pooled="pooled_projections",
    ),
    "SanaTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        sites=_cross_attentions,
        site_count=lambda transformer: transformer.config.num_layers,
        processors={SanaAttnProcessor2_0: NAGSanaAttnProcessor2_0},
        settings=lambda transformer: Settings(5.0, 2.5, 0.375),
        negative_call={"complex_human_instruction": None},  # an instruction to enhance prompts, not for negatives
        keeps_text=True,
    ),
    "FluxTransformer2DModel": Family(
        text={"encoder_hidden_states": 1, "txt_ids": -2},
        masks=(),
        sites=_all_of(FluxAttention),
        site_count=lambda transformer: transformer.config.num_layers + transformer.config.num_single_layers,
        processors={
            FluxAttnProcessor: NAGFluxAttnProcessor2_0,
            FluxIPAdapterAttnProcessor: NAGFluxIPAdapterAttnProcessor,
        },
        settings=lambda transformer: Settings(5.0, 2.5, 0.25),
        two_calls=True,
        pooled="pooled_projections",
        context_parallel=True,
    ),
    "Flux2Transformer2DModel": Family(
        text={"encoder_hidden_states": 1, "txt_ids": -2},
        masks=(),
        sites=_all_of(Flux2Attention, Flux2ParallelSelfAttention),
        site_count=lambda transformer: transformer.config.num_layers + transformer.config.num_single_layers,
        processors={
            Flux2AttnProcessor: NAGFlux2AttnProcessor,
            Flux2ParallelSelfAttnProcessor: NAGFlux2ParallelSelfAttnProcessor,
        },
        settings=lambda transformer: Settings(5.0, 2.5, 0.25),  # FLUX.1's; none are published
        two_calls=True,
        unknown=("kv_cache_mode",),
        context_parallel=True,
    ),
    "QwenImageTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_hidden_states_mask",),
        sites=_joint_attentions,
        site_count=lambda transformer: transformer.config.num_layers,
        processors={QwenDoubleStreamAttnProcessor2_0: NAGQwenDoubleStreamAttnProcessor2_0},
        settings=lambda transformer: Settings(5.0, 2.5, 0.25),  # FLUX.1's; none are published
        two_calls=True,
    ),
    "LTXVideoTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        sites=_ltx_attentions,
        site_count=lambda transformer: transformer.config.num_layers,
        processors={LTXVideoAttnProcessor: NAGLTXVideoAttnProcessor},
        settings=lambda transformer: Settings(5.0, 2.5, 0.25),  # Wan's; none are published
        context_parallel=True,
    ),
    "WanTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=(),
        sites=_wan_attentions,
        site_count=lambda transformer: transformer.config.num_layers,
        processors={WanAttnProcessor: NAGWanAttnProcessor2_0},
        settings=lambda transformer: Settings(5.0, 2.5, 0.25),
        two_calls=True,
        context_parallel=True,
    ),
    "WanVACETransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=(),
        sites=_wan_attentions,
        site_count=lambda transformer: transformer.config.num_layers + len(transformer.config.vace_layers),
        processors={WanAttnProcessor: NAGWanAttnProcessor2_0},
        settings=lambda transformer: Settings(5.0, 2.5, 0.25),
        two_calls=True,
    ),
}


def inner_denoiser(denoiser: Module) -> Module:
    """The model itself where `torch.compile` has wrapped it."""
    return getattr(denoiser, "_orig_mod", denoiser)


def find_denoisers(pipe: Any) -> list[Module]:
    """The pipeline's denoisers: one, or the two of Wan 2.2. Raises ValueError where it has none, or two of a kind each."""
    named = (getattr(pipe, name, None) for name in ("transformer", "transformer_2", "unet"))
    found = list(dict.fromkeys(x for x in named if isinstance(x, Module)))
    if not found:
        raise ValueError(f"guide: {type(pipe).__name__} has no denoiser (no module named transformer or unet)")
    if any(family_of(x) is not family_of(found[0]) for x in found):
        kinds = " and ".join(type(inner_denoiser(x)).__name__ for x in found)
        raise ValueError(f"guide: the denoisers of {type(pipe).__name__} must be of one kind, got {kinds}")
    return found


def supported() -> str:
    """The denoisers that `guide` knows, a line each: class, where the text goes, our processors."""
    lines = [f"{'denoiser':28s} {'texts packed in':40s} processors"]
    for name, family in FAMILIES.items():
        processors = ", ".join(dict.fromkeys(ours.__name__ for ours in family.processors.values()))
        lines.append(f"{name:28s} {', '.join((*family.text, *family.masks)):40s} {processors}")
    return "\n".join(lines)


def family_of(denoiser: Module) -> Family:
    """The entry for this denoiser. Raises ValueError, with the supported classes, where there is none."""
    denoiser = inner_denoiser(denoiser)
    for cls in type(denoiser).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    raise ValueError(f"guide: {type(denoiser).__name__} is not supported; supported denoisers: {', '.join(FAMILIES)}")


def checked_sites(denoiser: Module) -> list[Module]:
    """The attention layers to be guided.

    Raises ValueError where guidance could not act, or not everywhere: a processor that is not known (attention
    slicing, xformers), no site at all, or another number than the model's configuration says.
    """
    family, denoiser = family_of(denoiser), inner_denoiser(denoiser)
    kind = type(denoiser).__name__
    reason = family.refuse(denoiser)
    if reason is not None:
        raise ValueError(f"guide: this {kind} cannot be guided: {reason}")
    sites = list(family.sites(denoiser))
    known = " or ".join(x.__name__ for x in family.processors)
    for name, module in sites:
        if type(module.processor) not in family.processors:
            raise ValueError(
                f"guide: the attention processor at {kind}.{name} is {type(module.processor).__name__}, which is not "
                f"known: guidance needs {known}. Disable attention slicing, xformers or whatever has set "
                f"it, or call set_attn_processor({next(iter(family.processors)).__name__}())"
            )
    if len(sites) != family.site_count(denoiser) or not sites:
        raise ValueError(
            f"guide: {kind} has {len(sites)} attention layers that see text, expected {family.site_count(denoiser)}"
            + ("" if sites else "; guidance has nothing to act on")
        )
    return [module for _, module in sites]
