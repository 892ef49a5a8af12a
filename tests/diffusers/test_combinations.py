# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`guide` together with what else may be switched on at a pipeline: each works, against the doubled batch, or is refused."""

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import hooks
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from drawing import denoiser, denoiser_texts, draw, draw_with_oracle, few_steps
from every_model import MODELS, model_arguments, pipeline, text_width
from oracles import run
from tiny import error, seeded, texts
from torch._dynamo.testing import CompileCounterWithBackend

from nag_kernels.diffusers import PackedText, enable_guidance, guide
from nag_kernels.diffusers.models.registry import guided_layers, spec_of

pytestmark = pytest.mark.usefixtures("one_thread")

NEGATIVE = "a large blue dog on grass"
FIRM = {"nag_scale": 8.0, "nag_tau": 3.0, "nag_alpha": 0.5}
STEERING = {"scale": 8.0, "tau": 3.0, "alpha": 0.5}
CPU = torch.device("cpu")

# --- what leaves the model's function as it is, or changes it in a way that the doubled batch shows as well ------------------


def lora(pipe):
    peft = pytest.importorskip("peft")
    names = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"]
    denoiser(pipe).add_adapter(
        peft.LoraConfig(r=4, target_modules=names, init_lora_weights=False), adapter_name="style"
    )
    kind = {"UNet2DConditionModel": "cross_", "WanTransformer3DModel": ""}.get(type(denoiser(pipe)).__name__, "joint_")
    return {f"{kind}attention_kwargs": {"scale": 0.5}}


def quantised(pipe):
    torchao = pytest.importorskip("torchao.quantization")
    model = denoiser(pipe)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    assert any(type(x) is not torch.nn.Parameter for x in model.parameters())


def quantised_by_bitsandbytes(kind):
    """As `BitsAndBytesConfig` replaces the linear layers of a model while it is loaded: with weights of 4 or 8 bits."""

    def quantise(pipe):
        layers = pytest.importorskip("bitsandbytes.nn")
        for block in (x for name, x in denoiser(pipe).named_modules() if name.split(".")[-1].isdigit()):
            for name, linear in [(name, x) for name, x in block.named_modules() if type(x) is torch.nn.Linear]:
                shape, bias = (linear.in_features, linear.out_features), linear.bias is not None
                if kind == 8:
                    ours = layers.Linear8bitLt(*shape, bias, has_fp16_weights=False)
                else:
                    ours = layers.Linear4bit(*shape, bias, compute_dtype=torch.float32, quant_type="nf4")
                ours.load_state_dict(linear.state_dict())
                block.set_submodule(name, ours.to(CPU)) if name else None
        assert any(x.dtype in (torch.int8, torch.uint8) for x in denoiser(pipe).parameters())

    return quantise


def sequential_offload(pipe):
    """Weights stay on the meta device between the layers' calls, as `enable_sequential_cpu_offload` has it."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(denoiser(pipe), CPU, offload_buffers=False)
    assert all(x.device.type == "meta" for x in denoiser(pipe).parameters())


def model_offload(pipe):
    accelerate = pytest.importorskip("accelerate")
    hook = None
    for name in pipe.model_cpu_offload_seq.split("->"):
        if isinstance(getattr(pipe, name, None), torch.nn.Module):
            _, hook = accelerate.cpu_offload_with_hook(getattr(pipe, name), CPU, prev_module_hook=hook)


def group_offload(kind):
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}

    def offload(pipe):
        try:
            denoiser(pipe).enable_group_offload(CPU, CPU, offload_type=kind, **options)
        except AttributeError as error:  # of older versions
            if torch.accelerator.current_accelerator() is None and "'NoneType'" in str(error):
                pytest.skip("this diffusers offloads groups beside an accelerator alone")
            raise

    return offload


def casting(pipe):
    denoiser(pipe).enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert denoiser(pipe).transformer_blocks[0].attn.to_k.weight.dtype == torch.float8_e4m3fn


def attention_backend(pipe):
    denoiser(pipe).set_attention_backend("_native_math")


def checkpointing(pipe):
    denoiser(pipe).enable_gradient_checkpointing()  # of no effect without gradients


def fused(pipe):
    denoiser(pipe).fuse_qkv_projections()


def fused_and_back(pipe):
    """diffusers' `Attention` goes on saying that it is fused; its fused weights are stale."""
    denoiser(pipe).fuse_qkv_projections()
    denoiser(pipe).unfuse_qkv_projections()
    with torch.no_grad():
        for site in guided_layers(denoiser(pipe)):
            site.to_k.weight.mul_(0.5)


COMBINATIONS = {
    "lora": (lora, ["sd15", "sd3", "flux", "wan"]),
    "quantised": (quantised, ["sd15", "pixart", "sd35", "flux", "wan"]),
    "quantised by bitsandbytes, 4 bits": (quantised_by_bitsandbytes(4), ["sd15", "sd35", "flux", "wan"]),
    "quantised by bitsandbytes, 8 bits": (quantised_by_bitsandbytes(8), ["sd15", "sd35", "flux", "wan"]),
    "sequential offload": (sequential_offload, ["sd15", "pixart", "sd35", "flux", "wan"]),
    "model offload": (model_offload, ["sd15", "sd3", "flux"]),
    "group offload, blocks": (group_offload("block_level"), ["sd15", "sd35", "flux", "wan"]),
    "group offload, leaves": (group_offload("leaf_level"), ["sd15", "sd35", "flux", "wan"]),
    "layerwise casting": (casting, ["sd35", "flux"]),
    "attention backend": (attention_backend, ["flux", "wan", "ltx"]),
    "gradient checkpointing without gradients": (checkpointing, ["sd15", "sd3", "flux"]),
    "fused projections": (fused, ["sd15", "pixart", "sd3", "flux", "wan"]),
    "projections fused no more": (fused_and_back, ["sd15", "pixart", "sd3", "flux", "wan"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, (_, kinds) in COMBINATIONS.items() for kind in kinds]
)
def test_together_with(name, kind, monkeypatch):
    # set_attention_backend of one model chooses for every model of the process.
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)
    pipe = pipeline(kind)
    options = {"guidance_scale": 3.0, "num_inference_steps": few_steps(kind)}
    options |= COMBINATIONS[name][0](pipe) or {}
    plain = draw(pipe, **options)
    recorded = denoiser_texts(pipe, **options | {"prompt": NEGATIVE})
    wanted, clipped = draw_with_oracle(pipe, 1, recorded, **STEERING, **options)
    assert any(share < 1 for share in clipped), clipped
    with guide(pipe, NEGATIVE, **FIRM):
        got = draw(pipe, **options)
    assert error(got, wanted) < 2e-5
    assert error(got, plain) > 1e-3
    assert torch.equal(draw(pipe, **options), plain)


@pytest.mark.parametrize("kind", ["sd35"])
def test_fused_projections_of_a_model_with_norms_of_query_and_key(kind):
    pipe = pipeline(kind)
    pipe.transformer.fuse_qkv_projections()
    with pytest.raises(ValueError, match="leaves out the norms of query and key, which this model has"):
        enable_guidance(pipe, NEGATIVE)
    pipe.transformer.unfuse_qkv_projections()
    with guide(pipe, NEGATIVE):
        draw(pipe)


# --- caches and hooks -------------------------------------------------------------------------------------------------

CACHES = {
    "first block": ("FirstBlockCacheConfig", {"threshold": 0.1}),
    "pyramid": ("PyramidAttentionBroadcastConfig",
                {"spatial_attention_block_skip_range": 2, "current_timestep_callback": lambda: 500}),
    "faster": ("FasterCacheConfig", {"current_timestep_callback": lambda: 500}),
    "taylor": ("TaylorSeerCacheConfig", {}),
    "mag": ("MagCacheConfig", {"num_inference_steps": 4, "calibrate": True}),
    "sea": ("SeaCacheConfig", {}),
}  # fmt: skip


@pytest.mark.parametrize("directly", [False, True], ids=["enable_cache", "applied directly"])
@pytest.mark.parametrize("cache", CACHES)
def test_caches_are_refused(cache, directly):
    name, options = CACHES[cache]
    if not hasattr(hooks, name):
        pytest.skip(f"this diffusers has no {name}")
    pipe = pipeline("flux")
    config = getattr(hooks, name)(**options)
    if directly:  # which the model does not say of itself
        apply = {"first block": "first_block_cache", "pyramid": "pyramid_attention_broadcast", "faster": "faster_cache",
                 "taylor": "taylorseer_cache", "mag": "mag_cache", "sea": "sea_cache"}[cache]  # fmt: skip
        getattr(hooks, f"apply_{apply}")(pipe.transformer, config)
        message = "diffusers' hook '.*' at .* changes what a layer computes or carries it from step to step"
    else:
        pipe.transformer.enable_cache(config)
        message = rf"its cache \({name}\) would carry steps with guidance into steps without; call disable_cache\(\)"
    with pytest.raises(ValueError, match=message):
        enable_guidance(pipe, NEGATIVE)
    if not directly:
        pipe.transformer.disable_cache()
        with guide(pipe, NEGATIVE):
            draw(pipe)


def test_hooks_that_skip_layers_are_refused():
    pipe = pipeline("flux")
    hooks.apply_layer_skip(pipe.transformer, hooks.LayerSkipConfig(indices=[1], fqn="transformer_blocks"))
    with pytest.raises(ValueError, match=r"diffusers' hook 'layer_skip_hook' at transformer_blocks\.1 changes"):
        enable_guidance(pipe, NEGATIVE)


# --- gradients --------------------------------------------------------------------------------------------------------


def test_gradient_checkpointing_of_a_guided_call_is_refused():
    pipe = pipeline("sd3")
    pipe.__class__ = type("Trained", (type(pipe),), {"__call__": type(pipe).__call__.__wrapped__})  # without no_grad
    with guide(pipe, NEGATIVE):
        draw(pipe)
        pipe.transformer.enable_gradient_checkpointing()
        with pytest.raises(ValueError, match="runs layers again in backward, when guidance has left them"):
            draw(pipe)


@pytest.mark.parametrize("kind", ["sd15", "sd3", "flux"])
def test_gradient_checkpointing_with_processors_put_in_by_hand(kind):
    model, arguments = seeded(MODELS[kind], torch.float64).train(), model_arguments(kind, 2, torch.float64)
    packed = torch.cat(texts(2, 7, 7, text_width(kind), torch.float64), dim=1).requires_grad_()
    values = {name: torch.tensor(x) for name, x in FIRM.items()}
    text = PackedText(7, 7, **values)
    sites = guided_layers(model)
    for site in sites:
        site.processor = spec_of(model).processors[type(site.processor)](text=text)

    def gradients():
        loss = run(model, arguments, packed).square().sum()
        return torch.autograd.grad(loss, [packed, sites[0].to_k.weight])

    wanted = gradients()
    model.enable_gradient_checkpointing()
    for got, before in zip(gradients(), wanted, strict=True):
        assert error(got, before) < 1e-12


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "how"), [
    ("sd15", "repeated blocks"), ("sd35", "blocks"), ("flux", "whole"),
])  # fmt: skip
def test_guidance_that_ends_on_the_way_compiles_nothing_at_the_second_image(kind, how):
    torch._dynamo.reset()
    pipe, compiler = pipeline(kind), CompileCounterWithBackend("eager")
    with guide(pipe, NEGATIVE, end=0.5, **FIRM):
        wanted = draw(pipe)
    model = denoiser(pipe)
    if how == "whole":
        pipe.transformer = torch.compile(model, backend=compiler, fullgraph=True)
    elif how == "repeated blocks":
        model.compile_repeated_blocks(backend=compiler, fullgraph=True)
    else:
        for block in model.transformer_blocks:
            block.compile(backend=compiler, fullgraph=True)
    graphs = []
    for settings in ({}, {}, {"nag_scale": 3.0}, {"start": 0.25, "end": 1.0}, {"sigma_end": 0.5}):
        with guide(pipe, NEGATIVE, **FIRM | {"end": 0.5} | settings):
            got = draw(pipe)
        if not settings:
            assert error(got, wanted) < 1e-5
        graphs.append(compiler.frame_count)
    assert graphs == graphs[:1] * 5
    assert graphs[0] > 0
