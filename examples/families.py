# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A guided run of a model family: with published weights, or with `--tiny` random ones in seconds.

    python examples/families.py                                  # what there is
    python examples/families.py z-image --tiny                   # random weights: shows that it runs, draws nothing
    python examples/families.py z-image --prompt "a fox in snow" --negative "blurry" --out fox.png
    python examples/families.py flux --model black-forest-labs/FLUX.1-dev --steps 28

The published weights named here are defaults to download, not a claim that they have been tried. `--tiny` takes its models from
`tests`, so it needs a checkout and the packages of `pip install '.[commands]'`.
"""

import argparse
import sys
import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nag_kernels.diffusers import guide


@dataclass(frozen=True)
class Example:
    """model: where the weights can be had.  steps: how many, and call: what else the pipeline wants.  tiny: in `tests`."""

    model: str
    steps: int
    tiny: str
    call: dict[str, Any] = field(default_factory=dict)


FREE = {"guidance_scale": 1.0}  # without classifier-free guidance: the negative acts inside attention alone
EXAMPLES = {
    "sd15": Example("stable-diffusion-v1-5/stable-diffusion-v1-5", 25, "sd15", FREE),
    "sdxl-turbo": Example("stabilityai/sdxl-turbo", 4, "sdxl", {"guidance_scale": 0.0}),
    "animatediff": Example("", 8, "animatediff", FREE),
    "animatediff-xl": Example("", 25, "animatediff xl", FREE),
    "pia": Example("", 25, "pia", FREE),
    "modelscope": Example("damo-vilab/text-to-video-ms-1.7b", 25, "modelscope", FREE),
    "i2vgen-xl": Example("ali-vilab/i2vgen-xl", 50, "i2vgen-xl", FREE),
    "pixart": Example("PixArt-alpha/PixArt-XL-2-512x512", 20, "pixart", FREE),
    "sana": Example("Efficient-Large-Model/Sana_1600M_1024px_diffusers", 20, "sana", FREE),
    "sana-sprint": Example("Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers", 2, "sana sprint"),
    "sd35": Example("stabilityai/stable-diffusion-3.5-large-turbo", 4, "sd35", FREE),
    "flux": Example("black-forest-labs/FLUX.1-schnell", 4, "flux"),
    "flux-2-klein": Example("black-forest-labs/FLUX.2-klein-4B", 4, "flux 2", FREE),
    "flux-fill": Example("black-forest-labs/FLUX.1-Fill-dev", 28, "flux fill"),
    "chroma": Example("lodestones/Chroma1-HD", 30, "chroma", FREE),
    "qwen-image": Example("Qwen/Qwen-Image", 30, "qwen image"),
    "z-image": Example("Tongyi-MAI/Z-Image-Turbo", 8, "z image", {"guidance_scale": 0.0}),
    "hunyuan-video": Example("hunyuanvideo-community/HunyuanVideo", 30, "hunyuan video"),
    "framepack": Example("", 30, "framepack"),
    "hunyuan-1.5": Example("hunyuanvideo-community/HunyuanVideo-1.5-480p_t2v", 50, "hunyuan video 1.5"),
    "hunyuan-1.5-i2v": Example(
        "hunyuanvideo-community/HunyuanVideo-1.5-480p_i2v", 50, "hunyuan video 1.5 from an image"
    ),
    "hunyuan-image": Example("hunyuanvideo-community/HunyuanImage-2.1-Distilled-Diffusers", 8, "hunyuan image"),
    "wan": Example("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 30, "wan", FREE),
    "wan-i2v": Example("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", 30, "wan from an image", FREE),
    "wan-vace": Example("Wan-AI/Wan2.1-VACE-1.3B-diffusers", 30, "wan vace", FREE),
    "lucy": Example("", 50, "lucy", FREE),
    "allegro": Example("rhymes-ai/Allegro", 50, "allegro", FREE),
    "wan-animate": Example("", 20, "wan animate", FREE),
    "ltx": Example("Lightricks/LTX-Video", 30, "ltx", FREE),
    "ltx-2": Example("Lightricks/LTX-2", 8, "ltx 2", FREE | {"stg_scale": 0.0, "modality_scale": 1.0}),
    "kandinsky-5": Example("", 50, "kandinsky 5", FREE),
    "cosmos": Example("nvidia/Cosmos-1.0-Diffusion-7B-Text2World", 35, "cosmos", FREE),
    "cosmos-2": Example("nvidia/Cosmos-Predict2-2B-Text2Image", 35, "cosmos 2", FREE),
    "cosmos-3": Example("", 35, "cosmos 3", FREE),
    "helios": Example("", 50, "helios", FREE),
    "kandinsky-6": Example("", 50, "kandinsky 6", FREE),
    "motif-video": Example("", 50, "motif video"),
    "motif-video-i2v": Example("", 50, "motif video from an image"),
    "cogview3-plus": Example("THUDM/CogView3-Plus-3B", 30, "cogview3", FREE),
    "cogview4": Example("THUDM/CogView4-6B", 30, "cogview4", FREE),
    "cogvideox": Example("THUDM/CogVideoX-2b", 30, "cogvideox", FREE),
    "cogvideox-i2v": Example("THUDM/CogVideoX-5b-I2V", 30, "cogvideox from an image", FREE),
    "consisid": Example("", 50, "consisid", FREE),
    "easyanimate": Example("", 50, "easyanimate", FREE),
    "auraflow": Example("fal/AuraFlow-v0.3", 30, "auraflow", FREE),
    "hunyuan-dit": Example("Tencent-Hunyuan/HunyuanDiT-Diffusers", 30, "hunyuan dit", FREE),
    "latte": Example("maxin-cn/Latte-1", 50, "latte", FREE),
    "lumina-2": Example("Alpha-VLLM/Lumina-Image-2.0", 30, "lumina 2", FREE),
    "mochi": Example("genmo/mochi-1-preview", 30, "mochi", FREE),
    "sana-video": Example("Efficient-Large-Model/SANA-Video_2B_480p_diffusers", 30, "sana video", FREE),
    "sana-wm": Example("", 60, "sana wm", FREE),
    "skyreels": Example("Skywork/SkyReels-V2-T2V-14B-540P-Diffusers", 30, "skyreels", FREE),
    "skyreels-i2v": Example("Skywork/SkyReels-V2-I2V-14B-720P-Diffusers", 50, "skyreels from an image", FREE),
    "chronoedit": Example("nvidia/ChronoEdit-14B-Diffusers", 50, "chronoedit", FREE),
    "glm-image": Example("", 50, "glm image", FREE),
    "hidream": Example("", 16, "hidream", FREE),
    "bria-fibo": Example("briaai/FIBO", 50, "bria fibo", FREE),
    "bria-fibo-2": Example("", 50, "bria fibo 2", FREE),
    "longcat-image": Example("", 50, "longcat image", FREE),
    "ideogram-4": Example("", 30, "ideogram 4"),
    "omnigen": Example("Shitao/OmniGen-v1-diffusers", 50, "omnigen"),
    "bria": Example("briaai/BRIA-3.2", 30, "bria", FREE),
    "prx": Example("Photoroom/prx-512-t2i-sft", 28, "prx", FREE),
    "ernie-image": Example("baidu/ERNIE-Image-Turbo", 8, "ernie image", FREE),
    "kolors": Example("Kwai-Kolors/Kolors-diffusers", 25, "kolors", FREE),
    "nucleus": Example("NucleusAI/NucleusMoE-Image", 50, "nucleus", FREE),
    "joy-image-edit": Example("jdopensource/JoyAI-Image-Edit-Diffusers", 40, "joy image edit", FREE),
    "joy-image-edit-plus": Example("jdopensource/JoyAI-Image-Edit-Plus-Diffusers", 30, "joy image edit plus", FREE),
    "dreamlite-mobile": Example("carlofkl/DreamLite-mobile", 4, "dreamlite mobile"),
    "lumina-next": Example("Alpha-VLLM/Lumina-Next-SFT-diffusers", 30, "lumina next", FREE),
    "kandinsky-3": Example("kandinsky-community/kandinsky-3", 25, "kandinsky 3", FREE),
    "qwen-image-2.1": Example("", 40, "qwen image 2.1"),
    "krea-2": Example("", 8, "krea 2", {"guidance_scale": 0.0}),
    "ovis": Example("AIDC-AI/Ovis-Image-7B", 30, "ovis", FREE),
    "anyflow": Example("", 4, "anyflow", FREE),
    "anyflow-i2v": Example("", 4, "anyflow from an image", FREE),
    "stable-audio": Example("stabilityai/stable-audio-open-1.0", 100, "stable audio", FREE),
    "audioldm-2": Example("cvssp/audioldm2", 100, "audioldm 2", FREE),
    "stable-audio-3": Example("", 50, "stable audio 3", FREE),
    "ace-step": Example("", 30, "ace step", FREE),
    "longcat-audio": Example("", 30, "longcat audio", FREE),
}


def published(example: Example, options: argparse.Namespace):
    """(pipeline, what draws a picture or a video with it, the negative)."""
    from diffusers import DiffusionPipeline

    model = options.model or example.model
    if not model:
        raise SystemExit("this family has no default weights here: name them with --model, or take --tiny")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=torch.bfloat16).to(device)
    call = example.call | {"prompt": options.prompt, "num_inference_steps": options.steps or example.steps}
    if options.image:
        from diffusers.utils import load_image

        call["image"] = load_image(options.image)
    if options.mask:
        from diffusers.utils import load_image

        call["mask_image"] = load_image(options.mask)
    return pipe, lambda: pipe(**call, generator=torch.Generator().manual_seed(options.seed)), options.negative


def tiny(example: Example, options: argparse.Namespace):
    """The same, of random weights and as small as can be; its output is latents."""
    folder = Path(__file__).parents[1] / "tests" / "diffusers" / "models"
    if not folder.is_dir():
        raise SystemExit(f"--tiny takes its models from a checkout of the repository, and there is no {folder}")
    sys.path.insert(0, str(folder))
    try:
        import drawing
        import every_model
    except ImportError as error:
        hint = "--tiny takes its models from the tests, so it needs what they need: pip install '.[commands]'"
        raise SystemExit(f"{hint} ({error})") from error

    if example.tiny in every_model.FULL_PIPELINES:
        pipe = every_model.pipeline(example.tiny)
        return pipe, lambda: drawing.draw(pipe, options.prompt), options.negative
    pipe, call, prompt, negative = every_model.EXAMPLES[example.tiny]()
    pipe.set_progress_bar_config(disable=True)
    if hasattr(pipe, "guider"):
        pipe.guider.disable()  # its classifier-free guidance
    call = {name: x for name, x in call.items() if not name.startswith("negative_")} | example.call | prompt
    call |= {"num_inference_steps": 3, "output_type": "latent", "return_dict": False}

    def draw():
        latents = pipe(**call, generator=torch.Generator().manual_seed(options.seed))[0]
        return latents[-1] if isinstance(latents, list) else latents  # of all parts of a video

    return pipe, draw, negative


def save(output: Any, name: str, pipe: Any) -> None:
    if hasattr(output, "images"):
        output.images[0].save(f"{name}.png")
    elif hasattr(output, "audios"):
        config = (getattr(pipe, "vocoder", None) or pipe.vae).config
        sound = (
            torch.as_tensor(output.audios[0]).float().cpu().reshape(-1, output.audios[0].shape[-1])
        )  # [channels, samples]
        with wave.open(f"{name}.wav", "wb") as file:
            file.setnchannels(len(sound))
            file.setsampwidth(2)
            file.setframerate(config.sampling_rate)
            file.writeframes((sound.T.clamp(-1, 1) * 32767).short().numpy().tobytes())
    else:
        from diffusers.utils import export_to_video

        export_to_video(output.frames[0], f"{name}.mp4")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="?", choices=EXAMPLES)
    parser.add_argument("--tiny", action="store_true", help="random weights")
    parser.add_argument("--model", help="a repository or folder with weights of this family")
    parser.add_argument("--prompt", default="a small red cat on a sofa")
    parser.add_argument("--negative", default="low resolution, blurry")
    parser.add_argument("--image", help="for pipelines that start from one")
    parser.add_argument("--mask", help="for pipelines that fill one in")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, help="how far to go away (the paper's for this family)")
    parser.add_argument("--end", type=float, default=1.0, help="the guided part of the steps")
    parser.add_argument("--out", default="guided", help="the beginning of the names of what is drawn")
    options = parser.parse_args(arguments)
    if options.family is None:
        for name, example in EXAMPLES.items():
            print(f"{name:15s} {example.model or '(name the weights with --model)'}")
        return
    pipe, draw, negative = (tiny if options.tiny else published)(EXAMPLES[options.family], options)
    plain = draw()
    with guide(pipe, negative, nag_scale=options.scale, end=options.end):
        guided = draw()
    if options.tiny:
        difference = ((guided - plain).norm() / plain.norm()).item()
        print(f"{type(pipe).__name__}: guidance changed the latents by {difference:.1%}")
        return
    save(plain, f"{options.out}-without", pipe)
    save(guided, options.out, pipe)


if __name__ == "__main__":
    main()
