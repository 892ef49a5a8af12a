# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the node cannot guide raises in its own words: what came, what is needed, what to do."""

import copy
import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from comfy_oracle import CPU, comfy, difference, one_call, sample, sigmas_of

from nag_kernels import published


@pytest.fixture
def parts(model):
    tiny, patcher = model("sd15")
    return tiny, patcher, tiny.start(), tiny.conditioning(1, 12), tiny.conditioning(2, 9)


REFUSED = {
    "PixArtMS": "PixArt", "HunYuanDiT": "HunyuanDiT", "ACEStepTransformer2DModel": "ACE-Step", "AsymmDiTJoint": "Mochi",
    "AceStepConditionGenerationModel": r"ACE-Step 1\.5", "ErnieImageModel": "ERNIE-Image", "WanAnimate2Model": "Wan-Animate 2",
    "CausalWanModel": "Wan, frame by frame", "HunYuanDiTPlain": "Hunyuan3D 2.1", "Hunyuan3Dv2": "Hunyuan3D 2",
    "StageC": "Stable Cascade", "StageB": "Stable Cascade",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_guided(node, parts, name):
    _, patcher, _, _, negative = parts
    own = copy.copy(patcher.model)
    own._modules = own._modules | {"diffusion_model": type(name, (torch.nn.Module,), {})()}
    other = comfy("model_patcher").ModelPatcher(own, CPU, CPU)
    with pytest.raises(ValueError, match=rf"cannot be guided\. {REFUSED[name]}: .*Do without this node"):
        node(other, negative)


def test_a_model_that_is_not_known(node, parts):
    _, patcher, _, _, negative = parts
    own = copy.copy(patcher.model)
    own._modules = own._modules | {"diffusion_model": type("NewDiT", (torch.nn.Module,), {})()}
    with pytest.raises(ValueError, match=r"class NewDiT is not supported\. Supported are: SD1\.5.*FLUX"):
        node(comfy("model_patcher").ModelPatcher(own, CPU, CPU), negative)


# Of core 0.33.0, what gets the general message: models that are not served yet, and models without a prompt.
GENERAL = {
    "CogVideoXTransformer3DModel", "HiDreamO1Transformer", "Ideogram4Transformer2DModel", "LensTransformer2DModel",
    "MageFlowTransformer2DModel", "MiniMaxH3Model", "MiniMaxMusic3DiT", "PixDiT_T2I", "PidNet", "WanDancerModel",
    "DepthAnything3Net", "LatentSeqMMFlowModel", "NaDiT", "RTv4", "SAM3Model", "Trellis2",
}  # fmt: skip


PARTS = {
    "CLIPEmbeddingNoiseAugmentation",
    "ImageConcatWithNoiseAugmentation",
    "NumberConditioner",
    "Timestep",
}  # no denoisers


def test_every_denoiser_of_the_core_is_known_or_refused(node):
    """No class that a model of this core has is left to the general message, but for those above."""
    families = importlib.import_module("nag_kernels.comfyui.families")
    known = {x for family in families.FAMILIES for x in family.denoisers} | set(families.REFUSED)
    base, words = comfy("model_base"), set()
    for each in vars(base).values():
        if isinstance(each, type) and issubclass(each, base.BaseModel):
            words |= {*each.__init__.__code__.co_names}
            words |= {x.__name__ for x in each.__init__.__defaults__ or () if isinstance(x, type)}
    modules = [x for name, x in sys.modules.items() if name.startswith(("comfy.ldm.", "comfy.model_base")) and x]
    classes = {x.__name__ for module in modules for x in vars(module).values()
               if isinstance(x, type) and issubclass(x, torch.nn.Module) and not issubclass(x, base.BaseModel)}  # fmt: skip
    used = (words & classes) - PARTS
    assert sorted(used - known - GENERAL) == []
    assert not known & GENERAL
    assert len(used & known) > 15


def test_an_image_to_video_unet_has_no_prompt(node, parts, monkeypatch):
    _, patcher, _, _, negative = parts
    own = copy.copy(patcher.model)
    own._modules = dict(own._modules)
    own.diffusion_model = copy.deepcopy(patcher.model.diffusion_model)
    own.diffusion_model.middle_block[1].time_stack = torch.nn.ModuleList()
    with pytest.raises(ValueError, match="draws a video from an image"):
        node(comfy("model_patcher").ModelPatcher(own, CPU, CPU), negative)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"rule": "cfg"}, "rule must be one of nag, nasa, vsf, got 'cfg'"),
        ({"start_percent": 0.6, "end_percent": 0.4}, r"must be below end_percent, .* got 0\.6 and 0\.4"),
        ({"start_percent": 0.5, "end_percent": 0.5}, "no step would be guided"),
        ({"end_percent": 0.0}, "no step would be guided"),
        ({"nag_tau": 0.0}, "nag_tau must be above 0"),
        ({"nag_alpha": 1.5}, "nag_alpha must be between 0 and 1"),
        ({"layers": "0-7"}, r"numbers and ranges from 0 to 6 .* got '0-7'"),
        ({"layers": "3-1"}, "got '3-1'"),
        ({"layers": "0, first"}, "got 'first'"),
        ({"layers": "-1"}, "got '-1'"),
        ({"rule": "vsf"}, r"nag_scale must be given for rule vsf: none is published .* 1\.7 to 6"),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit(node, parts, inputs, words):
    _, patcher, _, _, negative = parts
    with pytest.raises(ValueError, match=f"Negative Prompt in Attention.*{words}"):
        node(patcher, negative, **inputs)


def test_settings_of_the_model(node, model):
    given = {}
    for name in ("sd15", "sdxl", "sd3", "flux", "z_image"):
        tiny, patcher = model(name)
        (guided,) = node(patcher, tiny.conditioning(2, 9))
        guidance = guided.wrappers["apply_model"]["nag_kernels"][0].__self__.guidance
        given[name] = (guidance.nag_scale, guidance.nag_tau, guidance.nag_alpha)
    papers = {
        "sd15": published.SDXL, "sdxl": published.SDXL, "sd3": published.SD3, "flux": published.FLUX, "z_image": published.FLUX,
    }  # fmt: skip
    assert given == {k: (x.nag_scale, x.nag_tau, x.nag_alpha) for k, x in papers.items()}
    for width, expected in ((768, published.SD15), (1024, published.SD2), (2048, published.SDXL)):
        tiny, patcher = model("sd15")
        own = copy.copy(patcher.model)
        own.model_config = SimpleNamespace(unet_config=own.model_config.unet_config | {"context_dim": width})
        if expected.nasa_scale is None:
            with pytest.raises(ValueError, match=r"rule nasa: none is published for SD1\.5.* 0\.1 to 1 is usual"):
                node(tiny.patcher(own), tiny.conditioning(2, 9), rule="nasa")
            continue
        (guided,) = node(tiny.patcher(own), tiny.conditioning(2, 9), rule="nasa")
        guidance = guided.wrappers["apply_model"]["nag_kernels"][0].__self__.guidance
        assert (guidance.nag_scale, guidance.nag_alpha) == (expected.nasa_scale, expected.nag_alpha)


@pytest.mark.parametrize(
    ("added", "words"),
    [
        ({"area": (4, 4, 0, 0)}, "has an area"),
        ({"mask": torch.ones(1, 8, 8)}, "has a mask"),
        ({"start_percent": 0.2, "end_percent": 0.8}, "has a range of steps"),
        ({"hooks": object()}, "has LoRA or model hooks"),
        ({"strength": 0.5}, "has a strength"),
        ({"gligen": ("position", None, [])}, r"has boxes \(GLIGEN\)"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_a_negative_that_says_more_than_a_text(node, parts, added, words):
    _, patcher, _, _, negative = parts
    negative[0][1] |= added
    with pytest.raises(ValueError, match=f"the negative {words}, .* Connect a text encode node directly"):
        node(patcher, negative)


def test_two_negatives(node, parts):
    _, patcher, _, positive, negative = parts
    with pytest.raises(
        ValueError, match=r"must be one conditioning, got 2\. Join several with Conditioning \(Concat\)"
    ):
        node(patcher, negative + positive)


def test_two_nodes(node, parts):
    _, patcher, _, _, negative = parts
    with pytest.raises(ValueError, match="already has a negative of another such node"):
        node(*node(patcher, negative), negative)


def test_a_negative_of_another_text_encoder(node, parts):
    _, patcher, x, positive, _ = parts
    (guided,) = node(patcher, [[torch.randn(1, 9, 48), {}]])
    with pytest.raises(
        ValueError, match=r"c_crossattn is \[1, 9, 48\] and the prompt's \[1, 12, 32\].*the CLIP that belongs"
    ):
        sample(guided, x, positive)


def test_a_negative_without_a_text(node, parts):
    _, patcher, x, positive, _ = parts
    (guided,) = node(patcher, [[torch.randn(1, 0, 32), {}]])
    with pytest.raises(ValueError, match=r"the negative has no tokens .*c_crossattn.*a text encode node"):
        sample(guided, x, positive)


def test_a_sampler_without_a_step_in_the_window(node, parts):
    _, patcher, x, positive, negative = parts
    (guided,) = node(patcher, negative, end_percent=0.25)
    with pytest.raises(
        ValueError, match=r"no step of this sampler lies between start_percent 0 and end_percent 0\.25: .*Widen"
    ):
        sample(guided, x, positive, sigmas=sigmas_of(patcher, 0.4, 0.7))


def test_a_guider_without_a_positive(node, parts):
    _, patcher, x, positive, negative = parts
    guider = comfy("samplers").CFGGuider(*node(patcher, negative))
    guider.inner_set_conds({"first": positive, "second": positive})
    with pytest.raises(ValueError, match=r"has no conditioning named positive \(it has first, second\)"):
        guider.sample(x, x, comfy("samplers").KSAMPLER(one_call), sigmas_of(patcher, 0.4), seed=0)


def test_an_attention_bias(node, model):
    tiny, patcher = model("flux")
    positive, negative = tiny.conditioning(1, 12), tiny.conditioning(2, 9)
    positive[0][1] |= {"attention_mask": torch.ones(1, 28, 28), "attention_mask_img_shape": (4, 4)}
    with pytest.raises(ValueError, match=r"the prompt has attention_mask: .*Remove the node that makes it"):
        sample(*node(patcher, negative), tiny.start(), positive)


def test_a_block_that_another_node_gives_a_mask(node, model):
    tiny, patcher = model("flux")
    other = patcher.clone()
    other.set_model_patch_replace(
        lambda args, extra: extra["original_block"](args | {"attn_mask": torch.zeros(1, 1, 37, 37)}),
        "dit",
        "double_block",
        1,
    )
    with pytest.raises(
        ValueError, match=r"double_blocks\.1 got an attention mask \[1, 1, 37, 37\], which cannot be split"
    ):
        sample(*node(other, tiny.conditioning(2, 9)), tiny.start(), tiny.conditioning(1, 12))


def test_a_mask_of_fractions(node, model):
    tiny, patcher = model("ltxv")
    positive, negative = tiny.conditioning(1, 12), tiny.conditioning(2, 9)
    negative[0][1]["attention_mask"] = negative[0][1]["attention_mask"].float()
    with pytest.raises(
        ValueError, match=r"attention_mask must be \[batch, 9\] of whole numbers .* got \[1, 9\] of float32"
    ):
        sample(*node(patcher, negative), tiny.start(), positive)


def test_a_patch_that_changes_the_text_inside_the_model(node, parts):
    _, patcher, x, positive, negative = parts
    other = patcher.clone()
    other.set_model_attn2_patch(lambda n, context, value, extra: (n, context[:, 1:], value[:, 1:]))
    with pytest.raises(ValueError, match=r"attn2 attends to 20 tokens, where those .* are 12 \+ 9\. Another node"):
        sample(*node(other, negative), x, positive)


def test_a_patch_that_adds_tokens_of_a_style_to_the_text(node, model):
    """As the core's USOStyleReference: of [style ; text+ ; text-] and the image nothing but the blocks' own text says how many
    tokens there are."""
    tiny, patcher = model("flux")
    other = patcher.clone()
    other.model_options["transformer_options"]["patches"] = {
        "post_input": [lambda x: x | {n: torch.cat([x[n][:, :5], x[n]], 1) for n in ("txt", "txt_ids")}]
    }
    sample(other, tiny.start(), tiny.conditioning(1, 12))
    with pytest.raises(
        ValueError, match=r"double_blocks\.0 got 26 tokens of text, where those .* are 12 \+ 9\. Another node"
    ):
        sample(*node(other, tiny.conditioning(2, 9)), tiny.start(), tiny.conditioning(1, 12))


def test_a_patch_that_changes_the_batch_inside_the_model(node, parts):
    tiny, patcher, x, positive, negative = parts
    other = patcher.clone()
    other.set_model_attn2_patch(lambda n, *texts: (y.repeat(2, 1, 1) for y in (n, *texts[:2])))
    with pytest.raises(ValueError, match=r"has 4 rows, expected 2: another node changes the batch"):
        sample(*node(other, negative), x, positive, tiny.conditioning(3, 12), cfg=2.0)


def test_attention_that_does_not_pass_the_core(node, parts, monkeypatch):
    _, patcher, x, positive, negative = parts
    layer = patcher.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2
    monkeypatch.setattr(layer, "forward", lambda x, **kwargs: x, raising=False)
    with pytest.raises(
        ValueError, match=r"1 of 7 layers of UNetModel that see the prompt were not guided, .*middle_block\.1"
    ):
        sample(*node(patcher, negative), x, positive)


def test_a_layer_that_is_not_called(node, parts, monkeypatch):
    _, patcher, x, positive, negative = parts
    block = patcher.model.diffusion_model.middle_block[1].transformer_blocks[0]
    monkeypatch.setattr(block, "forward", lambda x, **kwargs: x, raising=False)
    with pytest.raises(ValueError, match=r"1 of 7 layers of UNetModel .* not guided"):
        sample(*node(patcher, negative), x, positive)


def test_a_cache_that_leaves_the_model_out(node, parts):
    _, patcher, x, positive, negative = parts
    other = patcher.clone()
    other.set_model_unet_function_wrapper(lambda apply, args: torch.zeros_like(args["input"]))
    with pytest.raises(ValueError, match="no call of the model was guided"):
        sample(*node(other, negative), x, positive)
    skipped = patcher.clone()
    skipped.add_wrapper_with_key("diffusion_model", "cache", lambda executor, x, *args, **kwargs: x)
    with pytest.raises(ValueError, match="7 of 7 layers of UNetModel"):
        sample(*node(skipped, negative), x, positive)


def test_a_node_that_splits_the_conditionings_itself(node, parts):
    _, patcher, x, positive, negative = parts
    other = patcher.clone()
    other.model_options["sampler_calc_cond_batch_function"] = lambda args: comfy("samplers")._calc_cond_batch(
        args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
    )
    with pytest.raises(ValueError, match="called outside of a step that the node knows"):
        sample(*node(other, negative), x, positive)


def test_the_model_is_as_before_after_an_error(node, parts):
    _, patcher, x, positive, negative = parts
    before = sample(patcher, x, positive)
    other = patcher.clone()
    other.set_model_attn2_patch(lambda n, context, value, extra: (n, context[:, 1:], value[:, 1:]))
    with pytest.raises(ValueError, match="attends to 20 tokens"):
        sample(*node(other, negative), x, positive)
    assert torch.equal(sample(patcher, x, positive), before)
    assert not any(module._forward_pre_hooks for module in patcher.model.modules())


def test_a_sampler_that_draws_no_step(node, parts):
    """As KSampler (Advanced) with start_at_step behind the last one: the core gives the latent image back."""
    _, patcher, x, positive, negative = parts
    out = sample(*node(patcher, negative), x, positive, sigmas=torch.tensor([]))
    assert difference(out, torch.zeros_like(x) + 1) == 1


@pytest.mark.parametrize(("version", "warns"), [("0.33.0", False), ("0.34.0", True), ("1.0", True), ("0.3.75", False)])
def test_a_core_that_is_newer_than_what_was_tested(node, parts, monkeypatch, caplog, version, warns):
    _, patcher, _, _, negative = parts
    module = importlib.import_module("nag_kernels.comfyui.node")
    monkeypatch.setattr(importlib.import_module("comfyui_version"), "__version__", version)
    module._warn_of_a_newer_core.cache_clear()
    with caplog.at_level("WARNING", "nag_kernels"):
        for _ in range(2):
            node(patcher, negative)
    said = [x.getMessage() for x in caplog.records if "newer than 0.33.0" in x.getMessage()]
    assert len(said) == warns
    module._warn_of_a_newer_core.cache_clear()
