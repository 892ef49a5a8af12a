# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The pipelines: prompt in, 32x32 pictures out. Every component is a stock diffusers or transformers class."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderDC,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils import logging as diffusers_logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5EncoderModel
from transformers.utils import logging as transformers_logging

from ..whole_file import whole_file
from .whole_weights import DIFFUSERS, TRANSFORMERS, refuse_missing_tensors

WEIGHTS = Path(__file__).with_name("weights")
# Only the evidence and distillation need the denoisers other than "few": they are in a checkout and not in the wheel.
CHECKOUT_WEIGHTS = Path(__file__).parents[2] / "evidence" / "weights"
# The denoisers that one tokenizer, text encoder, autoencoder and scheduler serve: the folder of each (`folder_of`).
VARIANTS = {
    "few": "unet",  # cross-attention; distilled to four steps
    "teacher": "teacher",  # cross-attention; many steps
    "student": "student",  # cross-attention; one step
    "joint_teacher": "joint_teacher",  # joint attention; many steps
    "joint_few": "joint_few",
    "joint_student": "joint_student",
}


def folder_of(variant: str, folder: str | Path = WEIGHTS) -> Path:
    """Where the denoiser of a variant lies: in `folder`, or, of the shipped ones other than "few", in a checkout's evidence."""
    apart = Path(folder) == WEIGHTS and variant != "few"
    return (CHECKOUT_WEIGHTS if apart else Path(folder)) / VARIANTS[variant]


def denoiser_arguments(
    denoiser: Any, latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """What forward of either denoiser takes: latents [B, C, 8, 8], timestep [] or [B] (1000 sigma), and text [B, T, C'], of
    which mask [B, T] says what is text (1) and what padding."""
    if "patch_size" not in denoiser.config:  # the UNet
        return {
            "sample": latents, "timestep": timestep, "encoder_hidden_states": text, "encoder_attention_mask": mask,
        }  # fmt: skip
    text = text * mask[..., None]
    return {
        "hidden_states": latents, "encoder_hidden_states": text, "timestep": timestep.expand(len(latents)),
        "pooled_projections": text.sum(1) / mask.sum(1, keepdim=True),
    }  # fmt: skip


def velocity(denoiser: Any, latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """dx/dsigma [B, C, 8, 8] by either denoiser; arguments as in `denoiser_arguments`."""
    return denoiser(**denoiser_arguments(denoiser, latents, timestep, text, mask), return_dict=False)[0]


class ShapesPipeline(DiffusionPipeline):
    """Text to image by flow matching: latents x_1 ~ N(0, 1) are carried to x_0 along dx/dsigma = v(x, sigma, text).

    The denoiser is one of two. `unet` sees the text by masked cross-attention (`attn2` of its transformer blocks), text
    padded to `max_sequence_length` tokens. `transformer` (SD3's) attends to text and picture jointly, with zeros as padding
    and no mask; its pooled text is the mean of the text's embeddings. Classifier-free guidance runs one batch
    `[negative; prompt]`, and is off by default: "few" and the students are made for a few unguided steps.
    """

    tokenizer: Any  # its components, of which a type checker knows nothing
    text_encoder: Any
    vae: Any
    scheduler: Any
    unet: Any
    transformer: Any

    model_cpu_offload_seq = "text_encoder->unet->transformer->vae"
    _optional_components = ["unet", "transformer"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        text_encoder: T5EncoderModel,
        vae: AutoencoderDC,
        scheduler: FlowMatchEulerDiscreteScheduler,
        unet: UNet2DConditionModel | None = None,
        transformer: SD3Transformer2DModel | None = None,
    ):
        super().__init__()
        if (unet is None) == (transformer is None):
            raise ValueError("exactly one of unet and transformer must be given")
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, scheduler=scheduler, unet=unet,
            transformer=transformer,
        )  # fmt: skip
        self.vae_scale_factor = 2 ** (len(self.vae.config.encoder_block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def denoiser(self) -> Any:
        return self.unet if self.transformer is None else self.transformer

    def predict(self, latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """`velocity` by this pipeline's denoiser."""
        return velocity(self.denoiser, latents, timestep, text, mask)

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1.0

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def _embed(self, prompts: Iterable[str], images: int, device: torch.device, length: int) -> tuple[Tensor, Tensor]:
        """Embeddings [len(prompts) * images, length, C] and attention mask [len(prompts) * images, length] (int64)."""
        prompts = [re.sub(r"[.,;:!]+", " ", prompt) for prompt in prompts]
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=False, return_tensors=None)
        for prompt, ids in zip(prompts, tokens.input_ids, strict=True):
            if self.tokenizer.unk_token_id in ids:
                known = set(self.tokenizer.get_vocab()) - set(self.tokenizer.all_special_tokens)
                unknown = [word for word in prompt.lower().split() if word not in known]
                raise ValueError(f"prompt has words that shapes never learned: {unknown}; it knows {sorted(known)}")
            if len(ids) > length:
                raise ValueError(f"prompt must have at most {length - 1} words, got {len(ids) - 1}: {prompt!r}")
        ids = torch.tensor(tokens.input_ids, device=device)
        mask = torch.tensor(tokens.attention_mask, device=device)
        embeds = self.text_encoder(ids, attention_mask=mask)[0].to(self.denoiser.dtype)
        return embeds.repeat_interleave(images, 0), mask.repeat_interleave(images, 0)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        do_classifier_free_guidance: bool = False,
        negative_prompt: str | list[str] = "",
        num_images_per_prompt: int = 1,
        device: torch.device | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        max_sequence_length: int = 16,
    ) -> tuple[Tensor, Any, Any, Any]:
        """Embeddings and masks of prompt and negative prompt, in the order and shapes of PixArt's `encode_prompt`.

        Returns `prompt_embeds` [B, T, C], its mask [B, T] (1 = seen), and the same two for the negative prompt
        (None without guidance); B counts prompts times `num_images_per_prompt`, ready-made embeddings alike.
        Raises ValueError for a word outside the vocabulary, a prompt that is too long, or unequal numbers of prompts.
        """
        device = device or self._execution_device
        prompts: Any = [prompt] if isinstance(prompt, str) else prompt
        if prompt_embeds is None:
            prompt_embeds, prompt_attention_mask = self._embed(
                prompts, num_images_per_prompt, device, max_sequence_length
            )
        else:
            prompt_embeds = prompt_embeds.repeat_interleave(num_images_per_prompt, 0)
            assert prompt_attention_mask is not None  # check_inputs has seen to it
            prompt_attention_mask = prompt_attention_mask.repeat_interleave(num_images_per_prompt, 0)
        if not do_classifier_free_guidance:
            return prompt_embeds, prompt_attention_mask, None, None
        if negative_prompt_embeds is None:
            count = len(prompt_embeds) // num_images_per_prompt
            negatives = [negative_prompt] * count if isinstance(negative_prompt, str) else negative_prompt
            if len(negatives) != count:
                raise ValueError(f"negative_prompt must be one text or {count} texts, got {len(negatives)}")
            negative_prompt_embeds, negative_prompt_attention_mask = self._embed(
                negatives, num_images_per_prompt, device, prompt_embeds.shape[1]
            )
        else:
            negative_prompt_embeds = negative_prompt_embeds.repeat_interleave(num_images_per_prompt, 0)
            assert negative_prompt_attention_mask is not None
            negative_prompt_attention_mask = negative_prompt_attention_mask.repeat_interleave(num_images_per_prompt, 0)
        return prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask

    def check_inputs(
        self, prompt, prompt_embeds, prompt_attention_mask, negative_embeds, negative_mask, height, width, names
    ) -> None:
        """Raise ValueError where the arguments of a call do not fit together."""
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("exactly one of prompt and prompt_embeds must be given")
        if prompt is not None and not isinstance(prompt, str | list):
            raise ValueError(f"prompt must be a str or a list of str, got {type(prompt).__name__}")
        for name, embeds, mask in (
            ("prompt", prompt_embeds, prompt_attention_mask),
            ("negative_prompt", negative_embeds, negative_mask),
        ):
            if (embeds is None) != (mask is None):
                raise ValueError(f"{name}_embeds and {name}_attention_mask must be given together")
        side = self.denoiser.config.sample_size * self.vae_scale_factor
        if (height, width) != (side, side):
            raise ValueError(f"height and width must be {side}, the one size shapes draws, got {height} and {width}")
        unknown = set(names) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs must be among {self._callback_tensor_inputs}, "
                f"got {sorted(unknown)}"
            )

    def prepare_latents(
        self,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Standard normal latents [B, C, 8, 8], from `generator` (one per picture if a list) or as given."""
        side = self.denoiser.config.sample_size
        shape = (batch_size, self.denoiser.config.in_channels, side, side)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"generator must be one or a list of {batch_size}, got a list of {len(generator)}")
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}")
        return latents.to(device, dtype)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] = "",
        num_inference_steps: int = 4,
        sigmas: list[float] | None = None,
        guidance_scale: float = 1.0,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        max_sequence_length: int = 16,
    ) -> Any:
        """Draw pictures: `v = v_negative + guidance_scale * (v_prompt - v_negative)`, one Euler step per sigma.

        Args:
            prompt: one text or a list; words outside the small vocabulary raise.
            negative_prompt: used only with `guidance_scale` above 1 (1 = no classifier-free guidance, the default).
            num_inference_steps: Euler steps; the weights are made for 4.
            sigmas: noise levels to visit, before the scheduler's shift; default n, n-1, ..., 1 over n.
            latents: [B, C, 8, 8] start noise in place of `generator`.
            output_type: "pil", "np", "pt" (values in [0, 1]) or "latent".
            callback_on_step_end: called as f(pipeline, step, timestep, tensors); what it returns replaces the tensors.
        Returns: ImagePipelineOutput with `images`, or a tuple of one where `return_dict` is False.
        Raises: ValueError naming the argument that does not fit.
        """
        side = self.denoiser.config.sample_size * self.vae_scale_factor
        self.check_inputs(
            prompt, prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask,
            height or side, width or side, callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        self._guidance_scale, self._interrupt = guidance_scale, False
        device, guided = self._execution_device, self.do_classifier_free_guidance
        texts = self.encode_prompt(
            prompt, guided, negative_prompt, num_images_per_prompt, device, prompt_embeds, negative_prompt_embeds,
            prompt_attention_mask, negative_prompt_attention_mask, max_sequence_length,
        )  # fmt: skip
        embeds, mask, negative_embeds, negative_mask = texts
        x = self.prepare_latents(len(embeds), self.denoiser.dtype, device, generator, latents)
        levels = np.linspace(1.0, 1.0 / num_inference_steps, num_inference_steps) if sigmas is None else sigmas
        self.scheduler.set_timesteps(sigmas=levels, device=device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        progress: Any = self.progress_bar
        with progress(total=len(timesteps)) as bar:
            for step, timestep in enumerate(timesteps):
                if self._interrupt:
                    continue
                text, seen, state = embeds, mask, x
                if guided:
                    text, seen = torch.cat([negative_embeds, embeds]), torch.cat([negative_mask, mask])
                    state = torch.cat([x, x])
                velocity = self.predict(state, timestep, text, seen)
                if guided:
                    without, with_prompt = velocity.chunk(2)
                    velocity = without + guidance_scale * (with_prompt - without)
                x = self.scheduler.step(velocity, timestep, x, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors = {"latents": x, "prompt_embeds": embeds}
                    tensors["negative_prompt_embeds"] = negative_embeds
                    chosen = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, step, timestep, chosen)
                    x = changed.pop("latents", x)
                    embeds = changed.pop("prompt_embeds", embeds)
                    negative_embeds = changed.pop("negative_prompt_embeds", negative_embeds)
                bar.update()
        images: Any = x
        if output_type != "latent":
            images = self.vae.decode(x.to(self.vae.dtype) / self.vae.config.scaling_factor, return_dict=False)[0]
            images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def load(folder: str | Path = WEIGHTS, device: str | torch.device = "cpu", variant: str = "few") -> ShapesPipeline:
    """The shipped pipeline (or the one in `folder`) in float32 on `device`; its weights are stored in float16.

    `variant` chooses the denoiser: one of `VARIANTS`. Raises ValueError for another name and for weights that lack a tensor,
    FileNotFoundError for weights that are not there.
    """
    folder = Path(folder)
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"no shapes weights in {folder}; `make shapes` trains them")
    own = folder_of(variant, folder)
    if not (own / "config.json").is_file():
        raise FileNotFoundError(
            f"no weights of the variant {variant!r} in {own.parent}: an installed nag_kernels holds those of 'few' alone, "
            "the others are in evidence/weights of a checkout of the repository"
        )
    given = {} if variant == "few" else {"unet": None} | load_denoiser(own)
    bars = [module.is_progress_bar_enabled() for module in (diffusers_logging, transformers_logging)]
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        with refuse_missing_tensors(folder, DIFFUSERS, TRANSFORMERS):
            pipe = ShapesPipeline.from_pretrained(str(folder), low_cpu_mem_usage=False, **given)
    finally:
        for module, shown in zip((diffusers_logging, transformers_logging), bars, strict=True):
            module.enable_progress_bar() if shown else module.disable_progress_bar()
    for part in (pipe.text_encoder, pipe.denoiser, pipe.vae):
        part.float()
    return pipe.to(device)


def load_denoiser(folder: str | Path) -> dict[str, Any]:
    """The denoiser in `folder` under its name in `ShapesPipeline`: {"unet": ...} or {"transformer": ...}."""
    name = json.loads((Path(folder) / "config.json").read_text())["_class_name"]
    for place, cls in (("unet", UNet2DConditionModel), ("transformer", SD3Transformer2DModel)):
        if name == cls.__name__:
            with refuse_missing_tensors(folder, DIFFUSERS):
                return {place: cls.from_pretrained(str(folder), low_cpu_mem_usage=False).eval()}
    raise ValueError(f"folder must hold a UNet2DConditionModel or an SD3Transformer2DModel, got a {name}")


def save_denoiser(model: Any, folder: Path) -> None:
    """Write a denoiser for `load_denoiser`, without the path that it was read from."""
    with whole_file(folder) as part:
        model.save_pretrained(str(part))
        config = json.loads((part / "config.json").read_text())
        config.pop("_name_or_path", None)
        (part / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
