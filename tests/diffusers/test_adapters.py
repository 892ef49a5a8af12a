# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`guide` with a ControlNet, and with an IP-Adapter."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers.models.attention_processor import (
    Attention,
    IPAdapterAttnProcessor2_0,
    SD3IPAdapterJointAttnProcessor2_0,
)
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxIPAdapterAttnProcessor
from drawing import denoiser, draw
from every_model import pipeline
from oracles import guided
from tiny import error, noise, seeded, texts

from nag_kernels.diffusers import (
    NAGFluxIPAdapterAttnProcessor,
    NAGIPAdapterAttnProcessor2_0,
    NAGSD3IPAdapterJointAttnProcessor2_0,
    PackedText,
    guide,
)
from nag_kernels.diffusers.models.registry import guided_layers

pytestmark = pytest.mark.usefixtures("one_thread")

NEGATIVE = "a large blue dog on grass"
FIRM = {"nag_scale": 8.0, "nag_tau": 3.0, "nag_alpha": 0.5}

# --- ControlNet -------------------------------------------------------------------------------------------------------


def controlled(kind):
    """A ControlNet pipeline, and the option with its image."""
    pipe, image = pipeline(kind), torch.linspace(0, 1, 192).view(1, 3, 8, 8)
    if kind == "sd3":
        net = seeded(
            lambda: diffusers.SD3ControlNetModel.from_transformer(
                pipe.transformer, num_layers=2, num_extra_conditioning_channels=0
            ),
            seed=4,
        )
        return diffusers.StableDiffusion3ControlNetPipeline(**pipe.components, controlnet=net), {"control_image": image}
    net = diffusers.FluxControlNetModel.from_transformer(
        pipe.transformer, num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=16,
        load_weights_from_transformer=False,
    )  # fmt: skip
    net = seeded(lambda: net, seed=4)
    return diffusers.FluxControlNetPipeline(**pipe.components, controlnet=net), {"control_image": image}


def controlled_call(kind):
    """A ControlNet pipeline, and the options of its call."""
    pipe, control = controlled(kind)
    pipe.set_progress_bar_config(disable=True)
    options = {
        "guidance_scale": 1.0,
        "height": 8,
        "width": 8,
        "num_inference_steps": 2,
        "output_type": "latent",
        **control,
    }
    options |= {"max_sequence_length": 12} if kind == "flux" else {}
    return pipe, options


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_controlnet(kind):
    """The ControlNet sees the prompt alone; its residuals go into the guided model."""
    pipe, options = controlled_call(kind)

    def draw_it(scale=1.0):
        torch.manual_seed(1)  # the image is encoded with noise
        return pipe(prompt="a small red cat", generator=torch.Generator().manual_seed(7),
                    controlnet_conditioning_scale=scale, **options).images  # fmt: skip

    plain, without = draw_it(), draw_it(0.0)
    assert error(without, plain) > 1e-3
    texts_seen = []
    pipe.controlnet.register_forward_pre_hook(
        lambda model, args, kwargs: texts_seen.append(kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    with guide(pipe, "a small red cat", nag_scale=8.0, nag_tau=1.0, nag_alpha=1.0):
        assert error(draw_it(), plain) < 2e-5
    with guide(pipe, NEGATIVE, **FIRM):
        guided = draw_it()
        assert error(draw_it(0.0), guided) > 1e-3
    assert error(guided, plain) > 1e-3
    assert len(set(texts_seen)) == 1
    assert torch.equal(draw_it(), plain)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_controlnet_does_not_run_for_the_negative(kind):
    pipe, options = controlled_call(kind)
    runs = []
    pipe.controlnet.register_forward_pre_hook(lambda *_: runs.append(1))
    with guide(pipe, NEGATIVE):
        pipe("a small red cat", **options)
    assert len(runs) == 2
    with guide(pipe, NEGATIVE), pytest.raises(RuntimeError, match="a fault of the ControlNet"):
        pipe.controlnet.register_forward_pre_hook(fault)
        pipe("a small red cat", **options)


def fault(*_):
    raise RuntimeError("a fault of the ControlNet")


# --- IP-Adapter -------------------------------------------------------------------------------------------------------


class ImageProjection(torch.nn.Module):
    """Image prompts as an image encoder gives them, one list entry for each adapter, to tokens of the text's width."""

    def forward(self, images):
        return [x.flatten(1, 2)[:, :, :32] for x in images]


def with_image_prompts(pipe):
    """Two adapters at each text layer, and the option of a call with their image prompts."""
    model, images = (
        denoiser(pipe),
        [torch.randn(1, 1, 3, 32, generator=torch.Generator().manual_seed(i)) for i in (1, 2)],
    )
    torch.manual_seed(5)
    if isinstance(pipe, diffusers.FluxPipeline):
        for block in model.transformer_blocks:
            block.attn.set_processor(FluxIPAdapterAttnProcessor(32, 32, num_tokens=(3, 3), scale=[0.7, 0.4]))
        model.encoder_hid_proj = ImageProjection()
        model.encoder_hid_proj.num_ip_adapters = 2
        return {"ip_adapter_image_embeds": images, "negative_ip_adapter_image_embeds": [-x for x in images]}
    for site in guided_layers(model):
        site.set_processor(IPAdapterAttnProcessor2_0(site.to_k.out_features, 32, num_tokens=(3, 3), scale=[0.7, 0.4]))
    model.encoder_hid_proj = ImageProjection()
    model.encoder_hid_proj.image_projection_layers = [torch.nn.Linear(1, 1)] * 2
    model.config.encoder_hid_dim_type = "ip_image_proj"
    return {"ip_adapter_image_embeds": [torch.cat([-x, x]) for x in images]}


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_ip_adapter(kind, guidance_scale):
    """Attention to the text is guided, attention to the image prompts is what it was."""
    pipe = pipeline(kind)
    options = {"guidance_scale": guidance_scale}
    without = draw(pipe, **options)
    options |= with_image_prompts(pipe)
    if guidance_scale == 1 and kind == "sd15":
        options["ip_adapter_image_embeds"] = [x[1:] for x in options["ip_adapter_image_embeds"]]
    plain = draw(pipe, **options)
    assert error(plain, without) > 1e-2
    processors = [site.processor for site in guided_layers(denoiser(pipe))]
    with guide(pipe, "a small red cat", nag_scale=8.0, nag_tau=1.0, nag_alpha=1.0):
        assert error(draw(pipe, **options), plain) < 2e-5
    with guide(pipe, NEGATIVE, **FIRM):
        assert error(draw(pipe, **options), plain) > 1e-3
    assert torch.equal(draw(pipe, **options), plain)
    now = [site.processor for site in guided_layers(denoiser(pipe))]
    assert all(x is before for x, before in zip(now, processors, strict=True))
    names = [name for name, _ in denoiser(pipe).named_parameters() if "to_k_ip" in name and name.endswith("weight")]
    assert len(names) == 2 * sum(hasattr(x, "to_k_ip") for x in processors)  # as modules of the model, as they were


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
def test_a_pipeline_with_ip_adapter_masks(guidance_scale):
    pipe = pipeline("sd15")
    options = {"guidance_scale": guidance_scale} | with_image_prompts(pipe)
    if guidance_scale == 1:
        options["ip_adapter_image_embeds"] = [x[1:] for x in options["ip_adapter_image_embeds"]]
    pipe.unet.encoder_hid_proj.forward = lambda images: [x[..., :32] for x in images]  # [B, images, tokens, C]
    everywhere = draw(pipe, **options)
    left = torch.ones(1, 1, 8, 8)
    left[..., 4:] = 0
    options["cross_attention_kwargs"] = {"ip_adapter_masks": [left, 1 - left]}
    plain = draw(pipe, **options)
    assert error(plain, everywhere) > 1e-3
    with guide(pipe, "a small red cat", nag_scale=8.0, nag_tau=1.0, nag_alpha=1.0):
        assert error(draw(pipe, **options), plain) < 2e-5
    with guide(pipe, NEGATIVE, **FIRM):
        assert error(draw(pipe, **options), plain) > 1e-3
    assert torch.equal(draw(pipe, **options), plain)


def ip_layer(kind):
    """(layer, call without its text, negative text's layer output before to_out is guided) in float64."""
    torch.manual_seed(6)
    if kind == "flux":
        attn = FluxAttention(
            32, heads=4, dim_head=8, out_dim=32, bias=True, added_kv_proj_dim=32, context_pre_only=False
        )
        stock = FluxIPAdapterAttnProcessor(32, 32, num_tokens=(3,), scale=0.7)
    else:
        attn = Attention(query_dim=32, cross_attention_dim=32, heads=4, dim_head=8)
        stock = IPAdapterAttnProcessor2_0(32, 32, num_tokens=(3,), scale=0.7)
    attn = seeded(lambda: attn, torch.float64)
    attn.set_processor(stock.double())
    return attn, stock


@pytest.mark.parametrize("kind", ["unet", "flux"])
@torch.no_grad()
def test_a_layer_with_an_ip_adapter(kind):
    attn, stock = ip_layer(kind)
    x, prompt = noise(3, 9, 32, seed=7), noise(3, 3, 32, seed=8)
    positive, negative = texts(3, 7, 5, 32, torch.float64)
    packed = torch.cat([positive, negative], dim=1)
    caught = []
    hook = attn.to_out[0].register_forward_pre_hook(lambda layer, inputs: caught.append(inputs[0]))
    if kind == "flux":
        _, _, images = attn(x, positive, ip_hidden_states=[prompt])
        attn(x, negative, ip_hidden_states=[prompt])
        hook.remove()
        wanted = attn.to_out[0](guided(*caught, 8.0, 2.0, 0.5)[0])
    else:
        scale, stock.scale = stock.scale, [0.0]
        attn(x, (positive, [prompt]))
        attn(x, (negative, [prompt]))
        stock.scale = scale
        attn(x, (positive, [prompt]))
        hook.remove()
        images = caught[2] - caught[0]
        wanted = attn.to_out[0](guided(*caught[:2], 8.0, 2.0, 0.5)[0] + images)
    ours = {"flux": NAGFluxIPAdapterAttnProcessor, "unet": NAGIPAdapterAttnProcessor2_0}[kind]
    plain = attn(x, positive, ip_hidden_states=[prompt]) if kind == "flux" else attn(x, (positive, [prompt]))
    attn.set_processor(ours(8.0, 2.0, 0.5, adapter=stock))
    again = attn(x, positive, ip_hidden_states=[prompt]) if kind == "flux" else attn(x, (positive, [prompt]))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    attn.set_processor(ours(8.0, 2.0, 0.5, PackedText(7, 5), adapter=stock))
    if kind == "flux":
        got, _, beside = attn(x, packed, ip_hidden_states=[prompt])
        assert error(beside, images) < 1e-12
    else:
        got = attn(x, (packed, [prompt]))
    assert error(got, wanted) < 1e-12
    if kind == "flux":
        with pytest.raises(ValueError, match="ip_adapter_masks must be None"):
            attn(x, packed, ip_hidden_states=[prompt], ip_adapter_masks=[torch.ones(1, 1, 3, 3)])
    with pytest.raises(ValueError, match="needs an adapter"):
        attn(x, packed)


@pytest.mark.parametrize("scale", [[0.7, 0.4], [[0.7, 0.3], 0.4], [[0.0, 0.5], [0.4]]], ids=["one", "each", "some"])
@pytest.mark.parametrize("masked", [(True, True), (True, False)], ids=["both", "one"])
@torch.no_grad()
def test_ip_adapter_masks(scale, masked):
    """Two adapters with two images and one; the image prompts act where they act without guidance."""
    if not masked[1] and isinstance(scale[1], list):
        scale = [scale[0], 0.4]
    torch.manual_seed(6)
    stock = IPAdapterAttnProcessor2_0(32, 32, num_tokens=(3, 3), scale=scale)
    attn = seeded(lambda: Attention(query_dim=32, cross_attention_dim=32, heads=4, dim_head=8), torch.float64)
    attn.set_processor(stock.double())
    x, prompts = (
        noise(3, 16, 32, seed=7),
        [noise(3, 2, 3, 32, seed=8).view(3, 2, 3, 32), noise(3, 1, 3, 32, seed=9).view(3, 1, 3, 32)],
    )
    positive, negative = texts(3, 7, 5, 32, torch.float64)
    given = [torch.rand(1, n, 8, 8).round() if have else None for n, have in zip((2, 1), masked, strict=True)]
    caught = []
    hook = attn.to_out[0].register_forward_pre_hook(lambda layer, inputs: caught.append(inputs[0]))
    attn(x, (positive, prompts), ip_adapter_masks=given)
    stock.scale = [0.0, 0.0]
    attn(x, (positive, prompts))
    attn(x, (negative, prompts))
    hook.remove()
    stock.scale = scale
    shown, *alone = caught
    assert error(shown, alone[0]) > 1e-2
    wanted = attn.to_out[0](guided(*alone, 8.0, 2.0, 0.5)[0] + shown - alone[0])
    attn.set_processor(NAGIPAdapterAttnProcessor2_0(8.0, 2.0, 0.5, PackedText(7, 5), adapter=stock))
    packed = torch.cat([positive, negative], dim=1)
    assert error(attn(x, (packed, prompts), ip_adapter_masks=given), wanted) < 1e-12
    for masks, message in (
        ([given[0]], "one entry for each of the 2 IP-Adapters, got 1"),
        ([torch.ones(1, 3, 8, 8), None], r"here \(1, 2, height, width\), got \(1, 3, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            attn(x, (packed, prompts), ip_adapter_masks=masks)
    stock.scale = [[0.1, 0.2, 0.3], 0.4]
    with pytest.raises(ValueError, match="one for each of its 2 images, got 3"):
        attn(x, (packed, prompts), ip_adapter_masks=[given[0], None])
    with pytest.raises(ValueError, match="needs ip_adapter_masks"):
        attn(x, (packed, prompts))


# --- IP-Adapter of SD3 ------------------------------------------------------------------------------------------------


def sd3_with_an_image_prompt(kind, dtype=torch.float32):
    """The pipeline after its own load_ip_adapter, with weights of an adapter made at random."""
    pipe = pipeline(kind)
    model = pipe.transformer.to(dtype)
    image_proj = diffusers.models.embeddings.IPAdapterTimeImageProjection(
        embed_dim=12, output_dim=32, hidden_dim=64, heads=1, num_queries=3, timestep_in_dim=8
    )
    names = list(model.attn_processors)
    layers = torch.nn.ModuleList(SD3IPAdapterJointAttnProcessor2_0(32, 32, 8, 64) for _ in names)
    weights = {"image_proj": seeded(lambda: image_proj, dtype, 5), "ip_adapter": seeded(lambda: layers, dtype, 6)}
    with torch.no_grad():
        for layer in layers:
            layer.norm_q.weight.mul_(4)
    pipe.load_ip_adapter({name: x.state_dict() for name, x in weights.items()}, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.7)
    return pipe


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("kind", ["sd3", "sd35"])
def test_ip_adapter_of_sd3(kind, guidance_scale):
    pipe, prompt = sd3_with_an_image_prompt(kind), noise(1, 2, 12, seed=9, dtype=torch.float32)
    options = {"guidance_scale": guidance_scale}
    without = draw(pipe, **options)
    options["ip_adapter_image_embeds"] = prompt if guidance_scale == 1 else torch.cat([-prompt, prompt])
    plain = draw(pipe, **options)
    assert error(plain, without) > 1e-2
    processors = list(pipe.transformer.attn_processors.values())
    with guide(pipe, "a small red cat", nag_scale=8.0, nag_tau=1.0, nag_alpha=1.0):
        same = error(draw(pipe, **options), plain)
        assert same < 2e-5
    for pooled in (False, True):
        with guide(pipe, NEGATIVE, **FIRM, negative_pooled=pooled):
            assert error(draw(pipe, **options), plain) > max(1e-3, 10 * same)
    with guide(pipe, NEGATIVE, **FIRM):  # the adapter is loaded, and there is no image prompt
        assert error(draw(pipe, guidance_scale=guidance_scale), without) > 1e-3
    assert torch.equal(draw(pipe, **options), plain)
    now = pipe.transformer.attn_processors.values()
    assert all(x is before for x, before in zip(now, processors, strict=True))


def doubled_with_image_prompts(site, scale, tau, alpha, shares):
    """Hooks by which a batch [positive; negative] through an untouched layer is guided in both halves, but for its attention to
    the image prompt: what the stock layer gives to `to_out` beyond what it gives without the prompt."""
    own, calls = [], []

    def note(layer, args, kwargs):
        if not own:
            calls[:] = [(args, kwargs)]

    def steer(layer, inputs):
        if own:  # the layer runs again, without the image prompt
            own.append(inputs[0])
            return None
        own.append(None)
        args, kwargs = calls[0]
        site(*args, **kwargs | {"ip_hidden_states": None})
        texts, beside = own[1], inputs[0] - own[1]
        own.clear()
        out, share = guided(*texts.chunk(2), scale, tau, alpha)
        shares.append(share)
        return (torch.cat([out, out]) + beside,)

    return [site.register_forward_pre_hook(note, with_kwargs=True), site.to_out[0].register_forward_pre_hook(steer)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", ["sd3", "sd35"])
@torch.no_grad()
def test_sd3_with_an_ip_adapter_equals_two_runs(kind, dtype):
    pipe = sd3_with_an_image_prompt(kind, dtype)
    model, settings, shares = pipe.transformer, (8.0, 1.5, 0.5), []
    positive, negative = texts(3, 7, 7, 64, dtype)
    image, pooled, prompt = (noise(3, *n, seed=3 + i, dtype=dtype) for i, n in enumerate([(4, 8, 8), (48,), (2, 12)]))
    time = torch.linspace(300, 700, 3).long()

    def run(text, rows):
        kwargs = {"ip_adapter_image_embeds": torch.cat([prompt] * rows)}
        more = (torch.cat([x] * rows) for x in (pooled, time))
        return model(torch.cat([image] * rows), text, *more, joint_attention_kwargs=kwargs).sample

    plain, sites = run(positive, 1), guided_layers(model)
    hooks = [hook for site in sites for hook in doubled_with_image_prompts(site, *settings, shares)]
    wanted = run(torch.cat([positive, negative]), 2)[:3]
    for hook in hooks:
        hook.remove()
    assert any(0 < share < 1 for share in shares), shares
    for site in sites:
        adapter = site.processor
        site.set_processor(NAGSD3IPAdapterJointAttnProcessor2_0(*settings, adapter=adapter))
    assert torch.equal(run(positive, 1), plain)
    for site in sites:
        site.processor.text = PackedText(7, 7)
    got = run(torch.cat([positive, negative], dim=1), 1)
    assert error(got, wanted) < {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    assert error(wanted, plain) > 1e-3


def test_the_processor_for_sd3_needs_its_adapter():
    attn = guided_layers(pipeline("sd3").transformer)[0]
    attn.set_processor(NAGSD3IPAdapterJointAttnProcessor2_0(text=PackedText(7, 5)))
    x = noise(2, 9, 32, seed=7, dtype=torch.float32)
    with pytest.raises(ValueError, match="needs an adapter"):
        attn(x, torch.cat([x, x], dim=1)[:, :12])
