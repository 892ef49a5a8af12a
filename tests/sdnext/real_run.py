# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Starts a checkout of SD.Next on the CPU, draws over its HTTP API, and prints what it found as one line of JSON.

It is run by a Python that has what SD.Next needs: `python real_run.py CHECKOUT DATA_FOLDER MODEL`. The data folder has a folder
`models/Diffusers` with the model, and a folder `extensions` with the script. Nothing in the checkout is changed, and nothing is
installed: SD.Next's installer is not run.
"""

import base64
import hashlib
import io
import json
import os
import socket
import sys
import traceback
import urllib.error
import urllib.request

NAG = "negative guidance (nag)"
MARK = "FOUND "


def started(checkout, data):
    """SD.Next's server in this process, without its installer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.chdir(checkout)
    sys.path.insert(0, checkout)
    sys.argv = ["launch.py", "--data-dir", data, "--extensions-dir", f"{data}/extensions", "--port", str(port)]
    os.environ.update(PIP_NO_INDEX="1", HF_HUB_OFFLINE="1")
    import installer
    from modules import cmd_args

    cmd_args.parse_args()
    installer.add_args(cmd_args.parser)
    installer.args, _ = cmd_args.parser.parse_known_args()
    installer.setup_logging()
    installer.install = installer.installed = lambda *_, **__: True
    installer.read_options()
    import webui

    webui.webui()
    return f"http://127.0.0.1:{port}/sdapi/v1"


class Drawing:
    def __init__(self, address):
        self.address = address

    def post(self, path, body):
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def __call__(self, *values, negative="blurry dog", path="/txt2img", **given):
        """The numbers of the pictures, or the sentence of a refusal."""
        body = {"prompt": "a red cat", "negative_prompt": negative, "steps": 4, "width": 64, "height": 64, "seed": 1,
                "cfg_scale": 1.0, **given}  # fmt: skip
        if values:
            body["alwayson_scripts"] = {NAG: {"args": values}}
        answer = self.post(path, body)
        if "images" not in answer:
            return answer["errors"]
        return [hashlib.sha256(opened(each).convert("RGB").tobytes()).hexdigest() for each in answer["images"]]


def opened(text):
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(text)))


def picture():
    from PIL import Image

    image = Image.new("RGB", (64, 64))
    image.putdata([(4 * (i % 64), 4 * (i // 64), (37 * i) % 256) for i in range(64 * 64)])
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def difference_from_guide(draw, **given):
    """The largest difference of the latents from those of `guide` with the same pipeline and arguments, and from none at all."""
    import torch
    from modules import processing_diffusers

    from nag_kernels.diffusers import guide

    calls, latents = [], []
    arguments_of, decode = processing_diffusers.set_pipeline_args, processing_diffusers.process_decode

    def noted(*args, **kwargs):
        arguments = arguments_of(*args, **kwargs)
        calls.append((kwargs["model"], dict(arguments)))
        return arguments

    def seen(p, output):
        latents.append(output.images.clone())
        return decode(p, output)

    processing_diffusers.set_pipeline_args, processing_diffusers.process_decode = noted, seen
    try:
        draw(True, 5, 2.5, 0.5, 1, **given)
    finally:
        processing_diffusers.set_pipeline_args, processing_diffusers.process_decode = arguments_of, decode
    ((pipe, arguments),), (drawn,) = calls, latents
    names = {"prompt_embeds", "pooled_prompt_embeds"} & set(arguments)
    negative = {name: arguments["negative_" + name] for name in names}
    arguments.pop("callback_on_step_end")
    if type(pipe).__name__ == "StableDiffusionXLImg2ImgPipeline":
        pipe.register_to_config(requires_aesthetics_score=False)  # as for the call; SD.Next has taken it away since

    def latents_of():
        arguments["generator"] = [torch.Generator().manual_seed(1)]
        return pipe(**arguments).images

    with torch.inference_mode():
        plain = latents_of()
        with guide(pipe, negative, nag_scale=5, nag_tau=2.5, nag_alpha=0.5):
            guided = latents_of()
    return [(drawn - other).abs().max().item() for other in (guided, plain)]


def on_the_page():
    """What the page shows in the place of the result if a run is refused."""
    from modules import call_queue, processing, scripts_manager, shared
    from modules.api.script import init_default_script_args

    def run():
        p = processing.StableDiffusionProcessingTxt2Img(
            sd_model=shared.sd_model, prompt="a red cat", negative_prompt="", steps=4, width=64, height=64, seed=1
        )
        p.scripts = scripts_manager.scripts_txt2img
        p.script_args = init_default_script_args(p.scripts)
        p.per_script_args = {"Negative guidance (NAG)": [True]}
        return processing.process_images(p)

    return call_queue.wrap_gradio_gpu_call(run, extra_outputs=[None, "", ""], name="Text")()[-1]


def detailed(draw):
    """The pictures of a run with the detailer, and how many calls were guided. What it looks for is found by these lines."""
    from types import SimpleNamespace

    from modules import shared
    from PIL import Image

    import nag_kernels.diffusers

    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    item = SimpleNamespace(
        cls=0, label="face", score=1.0, box=[16, 16, 48, 48], mask=mask, item=None, width=32, height=32
    )
    detailer, guided, calls = type(shared.detailer), nag_kernels.diffusers.guided, []
    kept = detailer.load, detailer.predict
    detailer.load, detailer.predict = lambda *_, **__: ("face", object()), lambda *_, **__: [item]
    nag_kernels.diffusers.guided = lambda *args, **kwargs: calls.append(args[0]) or guided(*args, **kwargs)
    given = {"detailer_enabled": True, "detailer_models": ["face"], "detailer_steps": 4, "detailer_resolution": 64}
    try:
        pictures = [draw(**given), draw(True, **given), draw(True, 1, 2.5, 0.5, 1, **given), draw(**given)]
    finally:
        detailer.load, detailer.predict = kept
        nag_kernels.diffusers.guided = guided
    return pictures, [type(pipe).__name__ for pipe in calls]


def found(draw, model):
    draw.post("/options", {"sd_model_checkpoint": model, "diffusers_offload_mode": "none"})
    image = {"path": "/img2img", "init_images": [picture()], "denoising_strength": 0.6}
    hires = {"enable_hr": True, "hr_upscaler": "Latent Nearest", "hr_scale": 1.5, "hr_resize_mode": 1, "hr_force": True,
             "hr_second_pass_steps": 3, "denoising_strength": 0.5}  # fmt: skip
    result = {}
    for name, given in {"text": {}, "image": image, "hires": hires, "CFG": {"cfg_scale": 5.0}}.items():
        result[name] = {
            "off": draw(**given),
            "on": draw(True, **given),
            "other": draw(True, negative="green", **given),
            "nothing": draw(True, 1, 2.5, 0.5, 1, **given),
            "again": draw(False, **given),
        }
    result["refused"] = [
        draw(True, negative=""),
        draw(True, 0.5),
        draw(True, negative="[blurry:dog:0.5]"),
        draw(True, 3, 2.5, 7, **image),
    ]
    result["after"] = draw()
    result["guide"] = [difference_from_guide(draw), difference_from_guide(draw, **image)]
    result["page"] = on_the_page()
    result["detailer"], result["detailer's calls"] = detailed(draw)
    result["after the detailer"] = draw()
    draw.post("/options", {"diffusers_offload_mode": "balanced"})
    result["offloaded"] = [draw(), draw(True, 5, 2.5, 0.5, 1), draw(True, 1, 2.5, 0.5, 1), draw()]
    return result


if __name__ == "__main__":
    checkout, data, model = sys.argv[1:]
    try:
        print(MARK + json.dumps(found(Drawing(started(checkout, data)), model)), flush=True)
    except Exception:
        print(traceback.format_exc(), file=sys.stderr, flush=True)  # SD.Next has a hook of its own for this
    os._exit(0)  # past the threads of the server
