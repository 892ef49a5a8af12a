# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The one place for model families: what `guide` must know about a denoiser, one entry per class.

A family whose attention is one of the kinds in `cross_attention` and `joint_attention` is one more entry here; another kind
needs its own processor.
"""

from collections.abc import Callable, Iterator
from typing import Any

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    FusedJointAttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    JointAttnProcessor2_0,
    SD3IPAdapterJointAttnProcessor2_0,
)
from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0
from diffusers.models.transformers.transformer_chronoedit import WanAttention as ChronoEditAttention
from diffusers.models.transformers.transformer_chronoedit import WanAttnProcessor as ChronoEditAttnProcessor
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor, FluxIPAdapterAttnProcessor
from diffusers.models.transformers.transformer_flux2 import (
    Flux2Attention,
    Flux2AttnProcessor,
    Flux2ParallelSelfAttention,
    Flux2ParallelSelfAttnProcessor,
)
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.models.transformers.transformer_ltx import LTXAttention, LTXVideoAttnProcessor
from diffusers.models.transformers.transformer_ltx2 import (
    LTX2Attention,
    LTX2AudioVideoAttnProcessor,
    LTX2PerturbedAttnProcessor,
)
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Attention, SkyReelsV2AttnProcessor
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from diffusers.models.transformers.transformer_wan_animate import WanAttention as WanAnimateAttention
from diffusers.models.transformers.transformer_wan_animate import WanAttnProcessor as WanAnimateAttnProcessor
from diffusers.models.transformers.transformer_z_image import ZSingleStreamAttnProcessor
from torch.nn import Module

from .after_flux import NAGChromaAttnProcessor2_0, NAGFlux2AttnProcessor, NAGFlux2ParallelSelfAttnProcessor
from .cross_attention import (
    NAGAttnProcessor2_0,
    NAGLTX2AudioVideoAttnProcessor,
    NAGLTX2PerturbedAttnProcessor,
    NAGLTXVideoAttnProcessor,
    NAGSanaAttnProcessor2_0,
    NAGWanAttnProcessor2_0,
)
from .denoiser_calls import inner_denoiser
from .family import Family, Settings
from .generic_families import GENERIC_FAMILIES
from .ip_adapter import (
    NAGFluxIPAdapterAttnProcessor,
    NAGIPAdapterAttnProcessor2_0,
    NAGSD3IPAdapterJointAttnProcessor2_0,
)
from .joint_attention import (
    NAGFluxAttnProcessor2_0,
    NAGJointAttnProcessor2_0,
    NAGQwenDoubleStreamAttnProcessor2_0,
)
from .slow_families import SLOW_FAMILIES
from .sound_families import SOUND_FAMILIES
from .text_last import NAGHunyuanVideoAttnProcessor2_0, NAGZSingleStreamAttnProcessor
from .texts_apart import token_refiner, z_image
from .unet_families import UNET_FAMILIES, unet_settings


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


def _attentions_in(*blocks: str) -> Callable[[Module], Iterator[tuple[str, Attention]]]:
    return lambda denoiser: (
        (name, module)
        for name, module in denoiser.named_modules()
        if isinstance(module, Attention) and name.split(".")[0] in blocks
    )


def _ltx_attentions(denoiser: Module) -> Iterator[tuple[str, Module]]:
    """The second of each block, and of the sound: nothing on a layer says whether it sees text, as text is as wide as the
    image."""
    for name, module in denoiser.named_modules():
        if isinstance(module, (LTXAttention, LTX2Attention)) and name.split(".")[-1] in ("attn2", "audio_attn2"):
            yield name, module


def _wan_attentions(denoiser: Module) -> Iterator[tuple[str, Module]]:
    kinds = (WanAttention, WanAnimateAttention, SkyReelsV2Attention, ChronoEditAttention)
    for name, module in denoiser.named_modules():
        if isinstance(module, kinds) and module.is_cross_attention:
            yield name, module


def _wan_like(processor: type, **more: Any) -> Family:
    """Wan, and models with its layers under other names."""
    return Family(
        text={"encoder_hidden_states": 1},
        sites=_wan_attentions,
        site_count=lambda transformer: transformer.config.num_layers,
        processors={processor: NAGWanAttnProcessor2_0},
        settings=lambda transformer: Settings(5.0, 2.5, 0.25),
        two_calls=True,
        **more,
    )


def _unet_sites(unet: Module) -> int:
    blocks = [x for x in unet.modules() if isinstance(x, BasicTransformerBlock)]
    return sum(not x.double_self_attention for x in blocks) + sum(bool(x.only_cross_attention) for x in blocks)


def _unet_refuse(unet: Module) -> str | None:
    if unet.config.addition_embed_type not in (None, "text_time"):
        return f"addition_embed_type '{unet.config.addition_embed_type}' reads the text outside attention"
    if unet.config.encoder_hid_dim_type not in (None, "text_proj", "ip_image_proj"):
        return f"encoder_hid_dim_type '{unet.config.encoder_hid_dim_type}' changes the text before attention"
    if any(type(x).__name__ == "SplitInferenceModule" for x in unet.modules()):
        return "its layers see a part of the frames at a time (enable_free_noise_split_inference)"
    return None


def _unet(**more: Any) -> Family:
    return Family(
        text={"encoder_hidden_states": 1},
        sites=_cross_attentions,  # AnimateDiff's between frames have no text
        site_count=_unet_sites,
        processors={
            AttnProcessor2_0: NAGAttnProcessor2_0,
            FusedAttnProcessor2_0: NAGAttnProcessor2_0,
            IPAdapterAttnProcessor2_0: NAGIPAdapterAttnProcessor2_0,
        },
        settings=unet_settings,
        refuse=_unet_refuse,
        keeps_text=True,
        **more,
    )


def _sd3_refuse(transformer: Module) -> str | None:
    sites = [attn for _, attn in _joint_attentions(transformer)]
    if any(type(attn.processor) is FusedJointAttnProcessor2_0 and attn.norm_q is not None for attn in sites):
        return (
            "its projections are fused, and diffusers' processor for that leaves out the norms of query and key, which this "
            "model has: call unfuse_qkv_projections()"
        )
    return None


FAMILIES: dict[str, Family] = (
    {
        "UNet2DConditionModel": _unet(masks=("encoder_attention_mask",)),
        "UNetMotionModel": _unet(frames=lambda arguments: arguments["sample"].shape[2], unknown=("attention_mask",)),
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
                SD3IPAdapterJointAttnProcessor2_0: NAGSD3IPAdapterJointAttnProcessor2_0,
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
        "ChromaTransformer2DModel": Family(
            text={"encoder_hidden_states": 1, "txt_ids": -2},
            masks=("attention_mask",),
            masks_for_image=True,
            hard_masks=True,
            sites=_all_of(FluxAttention),
            site_count=lambda transformer: transformer.config.num_layers + transformer.config.num_single_layers,
            processors={FluxAttnProcessor: NAGChromaAttnProcessor2_0},
            two_calls=True,
        ),
        "ZImageTransformer2DModel": Family(
            text={"cap_feats": 0},
            in_lists=True,
            sites=_attentions_in("layers"),
            site_count=lambda transformer: transformer.config.n_layers,
            processors={ZSingleStreamAttnProcessor: NAGZSingleStreamAttnProcessor},
            apart=lambda transformer, text: z_image(transformer),
            prompt_first=True,
            cfg_above=0.0,
            unknown=("siglip_feats", "image_noise_mask", "controlnet_block_samples"),
            timestep="t",
        ),
        "HunyuanVideoTransformer3DModel": Family(
            text={"encoder_hidden_states": 1},
            masks=("encoder_attention_mask",),
            counted_masks=True,
            hard_masks=True,
            sites=_attentions_in("transformer_blocks", "single_transformer_blocks"),
            site_count=lambda transformer: transformer.config.num_layers + transformer.config.num_single_layers,
            processors={HunyuanVideoAttnProcessor2_0: NAGHunyuanVideoAttnProcessor2_0},
            apart=lambda transformer, text: [(transformer.context_embedder, "forward", token_refiner)],
            two_calls=True,
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
            hard_masks=True,
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
        "LTX2VideoTransformer3DModel": Family(
            text={"encoder_hidden_states": 1, "audio_encoder_hidden_states": 1},
            masks=("encoder_attention_mask", "audio_encoder_attention_mask"),
            sites=_ltx_attentions,
            site_count=lambda transformer: 2 * transformer.config.num_layers,
            processors={
                LTX2AudioVideoAttnProcessor: NAGLTX2AudioVideoAttnProcessor,
                LTX2PerturbedAttnProcessor: NAGLTX2PerturbedAttnProcessor,
            },
            negative_call={"enable_prompt_enhancement": False},
        ),
        "WanTransformer3DModel": _wan_like(WanAttnProcessor, context_parallel=True),
        "SkyReelsV2Transformer3DModel": _wan_like(SkyReelsV2AttnProcessor, by_timestep=True),
        "ChronoEditTransformer3DModel": _wan_like(ChronoEditAttnProcessor),
        "WanAnimateTransformer3DModel": _wan_like(WanAnimateAttnProcessor, by_timestep=True),
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
    | GENERIC_FAMILIES
    | SOUND_FAMILIES
    | UNET_FAMILIES
    | SLOW_FAMILIES
)


TESTED_WITH = "0.42.1"


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
    """The denoisers that `guide` knows, a line each.

    route: "drop-in" is a processor of our own; "generic" keeps the model's and replaces its call of attention; "slow" runs the
        model twice, as classifier-free guidance does, where texts cannot be packed.
    exact: in which types the guided model equals, but for rounding, two runs of the untouched one side by side.
    """
    lines = [f"{'denoiser':40s} {'route':8s} {'exact in':34s} tested with"]
    lines += [
        f"{name:40s} {family.route:8s} {family.exact:34s} diffusers {TESTED_WITH}" for name, family in FAMILIES.items()
    ]
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
    family, wrapped, denoiser = family_of(denoiser), denoiser, inner_denoiser(denoiser)
    kind = type(denoiser).__name__
    reason = family.refuse(denoiser)
    if reason is not None:
        raise ValueError(f"guide: this {kind} cannot be guided: {reason}")
    if family.beside and (wrapped is not denoiser or any(x._compiled_call_impl for x in denoiser.modules())):
        raise ValueError(f"guide: this {kind} cannot be guided: it is compiled, and its texts cannot be packed")
    sites = list(family.sites(denoiser))
    known = " or ".join(family.stock)
    for name, module in sites:
        unknown = family.why_unknown(module.processor)
        if unknown is not None:
            raise ValueError(
                f"guide: the attention processor at {kind}.{name} is {type(module.processor).__name__}, {unknown}: "
                f"guidance needs {known}. Disable attention slicing, xformers or whatever has set it, or "
                f"call set_attn_processor({family.stock[0]}())"
            )
    if len(sites) != family.site_count(denoiser) or not sites:
        raise ValueError(
            f"guide: {kind} has {len(sites)} attention layers that see text, expected {family.site_count(denoiser)}"
            + ("" if sites else "; guidance has nothing to act on")
        )
    return [module for _, module in sites]
