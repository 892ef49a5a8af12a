# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The part of the table of families that goes the generic route and whose models are UNets, or nearly."""

import math
from collections.abc import Callable, Iterator

from diffusers import Transformer2DModel
from torch.nn import Module

from .family import Family, Settings
from .generic_families import named
from .rebound_processor import Layout
from .texts_apart import Part, audioldm2, kandinsky3, prompt_alone


def unet_settings(unet: Module) -> Settings:
    if unet.config.addition_embed_type == "text_time":
        return Settings(3.0, 2.5, 0.5)  # SDXL
    return Settings(3.0, 2.5, 0.375, nasa_scale=0.2 if unet.config.cross_attention_dim == 1024 else 0.1)  # SD2, SD1.5


def _blocks(unet: Module, name: str = "BasicTransformerBlock") -> list[Module]:
    return [module for module in unet.modules() if type(module).__name__ == name]


def _dreamlite_refuse(unet: Module) -> str | None:
    """What is refused of `UNet2DConditionModel`, which it derives from."""
    known = {"addition_embed_type": (None, "time"), "encoder_hid_dim_type": (None, "text_proj", "text_proj_rms")}
    unknown = [f"{name} '{unet.config[name]}'" for name, values in known.items() if unet.config[name] not in values]
    return f"{' and '.join(unknown)} may read the text outside attention" if unknown else None


def _audioldm2_layers(unet: Module) -> Iterator[tuple[str, Module, int]]:
    """(name, layer, which of the texts it sees): a block has layers for nothing, a first or a second text, in turns."""
    for name, block in unet.named_modules():
        widths = getattr(block, "cross_attention_dim", None) if hasattr(block, "attentions") else None
        for i, attention in enumerate(block.attentions if widths else ()):
            turn = i % len(widths)
            for x, layer in attention.named_modules() if widths[turn] else ():
                if x.endswith("attn2") and hasattr(layer, "processor"):
                    yield f"{name}.attentions.{i}.{x}", layer, int(turn > 1)


def _xs(control: bool) -> Callable[[Module], Iterator[tuple[str, Module]]]:
    """Of a UNet with ControlNet-XS: the layers of the UNet, or of the control, that see the text."""
    return lambda unet: ((x, layer) for x, layer in named("attn2")(unet) if (".ctrl_" in x) == control)


def _xs_count(unet: Module) -> int:
    """Two in each block on the way down, three on the way up, one between."""
    config = unet.config
    layers = config.transformer_layers_per_block
    layers = layers if isinstance(layers, (list, tuple)) else [layers] * len(config.down_block_types)
    down = sum(2 * n for n, kind in zip(layers, config.down_block_types, strict=True) if "CrossAttn" in kind)
    up = sum(3 * n for n, kind in zip(reversed(layers), config.up_block_types, strict=True) if "CrossAttn" in kind)
    return down + layers[-1] + up


def _xs_control(unet: Module) -> list[Part]:
    return [(layer, "forward", prompt_alone) for _, layer in _xs(control=True)(unet)]


def _unet_of_frames(layout: str) -> Family:
    """Its layers between frames see no text, and those within a frame see it once for each."""

    def sites(unet):
        for name, module in unet.named_modules():
            if name.endswith(".attn2") and hasattr(module, "processor") and module.is_cross_attention:
                yield name, module

    def count(unet):
        return sum(len(x.transformer_blocks) for x in unet.modules() if isinstance(x, Transformer2DModel))

    return Family(
        text={"encoder_hidden_states": 1},
        sites=sites,
        site_count=count,
        layout=Layout(layout, ("AttnProcessor2_0",), by_frame=True),
        unknown=("attention_mask",),
    )


UNET_FAMILIES: dict[str, Family] = {
    "UNet3DConditionModel": _unet_of_frames("cross"),
    "I2VGenXLUNet": _unet_of_frames("keys"),  # the image's tokens follow the text
    "DreamLiteUNetModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        sites=named("attn2"),
        site_count=lambda unet: len(_blocks(unet, "BasicTransformerBlockDreamLite")),
        layout=Layout("cross", ("DreamLiteAttnProcessor2_0",), masks=True),
        refuse=_dreamlite_refuse,
        cfg_above=-math.inf,  # where it has it, it always has it
        cfg_rows=3,  # without text and image, with the image, with both
    ),
    "Kandinsky3UNet": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        sites=lambda unet: ((x, layer) for x, layer in named("attention")(unet) if ".attentions.0." not in x),
        site_count=lambda unet: 2 * unet.config.layers_per_block * (len(unet.config.block_out_channels) - 1),
        layout=Layout("cross", ("AttnProcessor2_0",), masks=True),
        apart=lambda unet, text: [(unet.add_time_condition, "forward", kandinsky3)],
    ),
    "AudioLDM2UNet2DConditionModel": Family(
        text={"encoder_hidden_states": 1, "encoder_hidden_states_1": 1},
        parts=(
            ("encoder_hidden_states", "encoder_attention_mask"),
            ("encoder_hidden_states_1", "encoder_attention_mask_1"),
        ),
        sites=lambda unet: ((name, layer) for name, layer, _ in _audioldm2_layers(unet)),
        site_count=lambda unet: sum(not x.double_self_attention for x in _blocks(unet)),
        layout=Layout("cross", ("AttnProcessor2_0",), masks=True),
        apart=lambda unet, text: audioldm2((layer, place) for _, layer, place in _audioldm2_layers(unet)),
    ),
    "UVit2DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=lambda unet: ((x, layer) for x, layer in named("attn1", "attn2")(unet) if layer.is_cross_attention),
        site_count=lambda unet: unet.config.num_hidden_layers + 2 * 2 * unet.config.num_res_blocks,
        layout=Layout("cross", ("AttnProcessor2_0",)),
        timestep="",  # it is told none
    ),
    "UNetControlNetXSModel": Family(
        text={"encoder_hidden_states": 1},
        sites=_xs(control=False),
        site_count=_xs_count,
        layout=Layout("cross", ("AttnProcessor2_0",)),
        settings=unet_settings,
        apart=lambda unet, text: _xs_control(unet),
    ),
}
