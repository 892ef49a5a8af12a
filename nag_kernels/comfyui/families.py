# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""How the text reaches attention in each denoiser of ComfyUI's core, and which denoisers cannot be guided and why."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.nn import Module

from nag_kernels import published
from nag_kernels.published import Settings

from .attention import Kind
from .packing import TITLE, Text
from .text_modules import Change, each_text, pad_each, positions_begin_anew, registers_for_each

Layers = Callable[[Module], list[tuple[str, Module]]]


@dataclass(frozen=True)
class Family:
    """One way in which denoisers of ComfyUI's core have their text.

    title: the models, as people call them.
    denoisers: the names of the classes. A class that is not named is refused: what it does to its text is not known.
    kind, layers: see `attention.Kind`; the layers that see the prompt, as (name, module).
    image_first: whether joint attention of this denoiser is over [image ; text] instead of [text ; image].
    text: the arguments that hold the prompt, in the order in which the layers see them, for this denoiser.
    masked_layers: whether the layers mask the tokens that the mask of the text hides.
    changes: what happens to the text before the layers, done to each prompt by itself.
    settings: the published settings, for this model (ComfyUI's BaseModel).
    must_be_none: arguments that are refused, and why.
    may_rest: how the names of layers end that a call may leave out together.
    token_count: an argument that holds the number of text tokens.
    refuse: why this very model cannot be guided, or None.
    """

    title: str
    denoisers: tuple[str, ...]
    kind: Kind
    layers: Layers
    text: Callable[[Any], tuple[Text, ...]] = lambda denoiser: (Text("c_crossattn"),)
    masked_layers: bool = True
    image_first: Callable[[Any], bool] = lambda denoiser: False
    changes: tuple[Change, ...] = ()
    settings: Callable[[Any], Settings] = lambda model: published.FLUX
    must_be_none: Mapping[str, str] = field(default_factory=dict)
    may_rest: tuple[str, ...] = ()
    token_count: str = ""
    refuse: Callable[[Any], str | None] = lambda model: None


def layers_of(*classes: str, begin: str = "", end: str = "", cross: bool = False) -> Layers:
    """All modules of these classes whose name begins and ends so; with `cross` only those that are not self-attention."""

    def find(denoiser: Module) -> list[tuple[str, Module]]:
        named = ((name.replace("_orig_mod.", ""), module) for name, module in denoiser.named_modules())
        return [
            (name, module)
            for name, module in named
            if type(module).__name__ in classes and name.startswith(begin) and name.removesuffix("._orig_mod").endswith(end)
            and not (cross and getattr(module, "is_selfattn", True))
        ]  # fmt: skip

    return find


def _masked(denoiser: Any) -> tuple[Text, ...]:
    return (Text("c_crossattn", mask="attention_mask"),)


def _hidream_text(denoiser: Any) -> tuple[Text, ...]:
    """T5, then Llama's last layer, then the Llama layer that belongs to the block."""
    return Text("c_crossattn"), Text("encoder_hidden_states_llama3", dim=2, times=2)


def _hunyuan_text(denoiser: Any) -> tuple[Text, ...]:
    """The prompt and, in some, its quoted words (ByT5); in HunyuanVideo 1.5 both come after an image."""
    prompt = _masked(denoiser)
    if denoiser.use_cond_type_embedding:
        return Text("clip_fea", copied=True), Text("txt_byt5"), *prompt
    return (*prompt, Text("txt_byt5")) if denoiser.byt5_in is not None else prompt


def _flipped(denoiser: Any) -> bool:
    """HunyuanVideo's image came before its text up to core 0.3.75, which said so."""
    return any(getattr(block, "flipped_img_txt", False) for block in denoiser.double_blocks)


def _unet_settings(model: Any) -> Settings:
    width = model.model_config.unet_config.get("context_dim")
    return {768: published.SD15, 1024: published.SD2}.get(width, published.SDXL)


def _refuse_unet(model: Any) -> str | None:
    if any("time_stack" in name for name, _ in model.diffusion_model.named_modules()):
        return "it draws a video from an image and has no prompt"
    return "it reads an image where others read a prompt" if type(model).__name__ == "Stable_Zero123" else None


def _refuse_sd3(model: Any) -> str | None:
    denoiser = model.diffusion_model
    mixes = denoiser.context_processor is not None or denoiser.register_length > 0
    return "its text is mixed before the blocks (context_processor or registers)" if mixes else None


_FLUX_BLOCKS = layers_of("DoubleStreamBlock", "SingleStreamBlock")
_WEIGHED = {
    "attention_mask": "it weighs single tokens against each other. Remove the node that makes it (a style model with an "
    "attention bias, say), or do without this node"
}
_OMNIGEN = (
    positions_begin_anew("rope_embedder.rope_embedder", image_follows=True),
    each_text(lambda denoiser: list(denoiser.context_refiner), {0: 1, 2: 1}),  # type: ignore[arg-type]
)
_CROSS, _JOINT = Kind(joint=False), Kind(joint=True)

FAMILIES = (
    Family(
        "SD1.5, SD2, SDXL and their distilled versions", ("UNetModel",), _CROSS, layers_of("CrossAttention", end=".attn2"),
        settings=_unet_settings, refuse=_refuse_unet,
    ),
    Family(
        "SD3, SD3.5", ("OpenAISignatureMMDITWrapper",), _JOINT, layers_of("JointBlock"),
        settings=lambda model: published.SD3, refuse=_refuse_sd3,
    ),
    Family(
        "FLUX.1 (dev, schnell, Kontext, Fill, Krea), FLUX.2", ("Flux",), _JOINT, _FLUX_BLOCKS,
        changes=(positions_begin_anew("pe_embedder"),), must_be_none=_WEIGHED,
    ),
    Family("Chroma, Chroma Radiance", ("Chroma", "ChromaRadiance"), _JOINT, _FLUX_BLOCKS, must_be_none=_WEIGHED),
    Family(
        "Qwen-Image, Qwen-Image-Edit", ("QwenImageTransformer2DModel",), _JOINT, layers_of("Attention", end=".attn"),
        changes=(positions_begin_anew("pe_embedder"),), must_be_none=_WEIGHED,
    ),
    Family(
        "Z-Image, Lumina 2", ("NextDiT", "NextDiTPixelSpace"), _JOINT,
        layers_of("JointAttention", begin="layers."), _masked, masked_layers=False,
        changes=(
            pad_each,
            positions_begin_anew("rope_embedder", image_follows=True),
            each_text(lambda denoiser: list(denoiser.context_refiner), {0: 1, 1: -1, 2: 1}),  # type: ignore[arg-type]
        ),
    ),
    Family(
        "Wan 2.1, Wan 2.2 (text, image, VACE, camera, HuMo, Animate, sound, SCAIL)",
        ("WanModel", "VaceWanModel", "CameraWanModel", "HumoWanModel", "AnimateWanModel", "WanModel_S2V",
         "SCAILWanModel", "SCAIL2WanModel"),
        # Attention to an image comes first, or, where there is none, to the prompt by the weights for an image.
        Kind(joint=False, call=lambda layer: int(hasattr(layer, "k_img")),
             before=lambda arguments: arguments.get("context_img_len") is None),
        layers_of("WanT2VCrossAttention", "WanI2VCrossAttention", end=".cross_attn"),
    ),
    Family(
        "LTX-Video, LTX-2", ("LTXVModel", "LTXAVModel"), _CROSS, layers_of("CrossAttention", end="attn2"), _masked,
        may_rest=("audio_attn2",),
    ),
    Family(
        "HunyuanVideo, HunyuanVideo 1.5, HunyuanImage 2.1", ("HunyuanVideo",), _JOINT,
        _FLUX_BLOCKS, _hunyuan_text, image_first=_flipped,
        changes=(each_text(lambda denoiser: [denoiser.txt_in], {0: 1, 2: -1}),),  # type: ignore[list-item]
    ),
    Family(
        "HiDream-I1, HiDream-E1", ("HiDreamImageTransformer2DModel",), _JOINT,
        layers_of("HiDreamAttention"), _hidream_text, image_first=lambda denoiser: True,
    ),
    Family("Cosmos 1", ("GeneralDIT",), _CROSS, layers_of("Attention", cross=True), _masked),
    Family(
        "Cosmos-Predict2, Anima", ("MiniTrainDIT", "Anima"), _CROSS, layers_of("Attention", cross=True),
        must_be_none={"t5xxl_ids": "its text is mixed inside the model, as it is outside of ComfyUI's inference mode"},
    ),
    Family(
        "Krea 2", ("SingleStreamDiT",), _JOINT, layers_of("SingleStreamBlock"),
        changes=(each_text(lambda denoiser: [denoiser.txtfusion], {0: 1}),),  # type: ignore[list-item]
    ),
    Family(
        "AuraFlow", ("MMDiT",), _JOINT, layers_of("DoubleAttention", "SingleAttention"), changes=(registers_for_each,),
    ),
    Family(
        "OmniGen2", ("OmniGen2Transformer2DModel",), _JOINT, layers_of("Attention", begin="layers.", end=".attn"),
        changes=_OMNIGEN,
        must_be_none=_WEIGHED, token_count="num_tokens",
    ),
    Family(
        "Boogu-Image", ("BooguTransformer2DModel",), _JOINT,
        lambda denoiser: layers_of("BooguJointAttention")(denoiser)
        + layers_of("Attention", begin="single_stream_layers.", end=".attn")(denoiser),
        changes=_OMNIGEN, must_be_none=_WEIGHED, token_count="num_tokens",
    ),
    Family(
        "JoyImage-Edit", ("JoyImageTransformer3DModel",), _JOINT, layers_of("JoyImageAttention"),
        image_first=lambda denoiser: True,
    ),
    Family(
        "Kandinsky 5", ("Kandinsky5",), _CROSS, layers_of("CrossAttention", end=".cross_attention"),
        changes=(each_text(lambda denoiser: list(denoiser.text_transformer_blocks), {0: 1, 2: 1}),),  # type: ignore[arg-type]
    ),
    Family("Stable Audio", ("AudioDiffusionTransformer",), _CROSS, layers_of("Attention", end=".cross_attn")),
)  # fmt: skip

_NO_OPTIONS = "its attention does not take the `transformer_options`, through which a node reaches it"
REFUSED = {
    "PixArtMS": f"PixArt: {_NO_OPTIONS}",
    "HunYuanDiT": f"HunyuanDiT: {_NO_OPTIONS}",
    "ACEStepTransformer2DModel": f"ACE-Step: {_NO_OPTIONS}",
    "AsymmDiTJoint": f"Mochi: {_NO_OPTIONS}, and it pools its text by attention",
    "AceStepConditionGenerationModel": f"ACE-Step 1.5: {_NO_OPTIONS}",
    "ErnieImageModel": f"ERNIE-Image: {_NO_OPTIONS}",
    "CausalWanModel": "Wan, frame by frame: it keeps the prompt's keys from one call to the next",
    "WanAnimate2Model": "Wan-Animate 2: the same layers see a second prompt, of the pose",
    "HunYuanDiTPlain": f"Hunyuan3D 2.1: {_NO_OPTIONS}",
    "Hunyuan3Dv2": "Hunyuan3D 2: it has no prompt",
    "StageC": "Stable Cascade: its attention sees the prompt, a pooled prompt and an image as one text",
    "StageB": "Stable Cascade: its second stage has no prompt",
}


def family_of(model: Any) -> Family:
    """The family of a BaseModel of ComfyUI. Raises ValueError where there is none, or where this model cannot be guided."""
    denoiser = getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)
    name = type(denoiser).__name__
    if name in REFUSED:
        raise ValueError(f"{TITLE}: this model cannot be guided. {REFUSED[name]}. Do without this node for it")
    for family in FAMILIES:
        if name in family.denoisers:
            reason = family.refuse(model)
            if reason is not None:
                raise ValueError(f"{TITLE}: this model cannot be guided: {reason}. Do without this node for it")
            return family
    known = "; ".join(x.title for x in FAMILIES)
    raise ValueError(
        f"{TITLE}: the model class {name} is not supported. Supported are: {known}. Load such a model with ComfyUI's own "
        "loaders, or do without this node"
    )
