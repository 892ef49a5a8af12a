# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What does not do is refused in one sentence, by its name, before the first picture is drawn."""

import importlib
import logging
import shutil
import time

import huggingface_hub.constants
import huggingface_hub.utils
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from nag_kernels import demo, diagnose, evaluate, hub
from nag_kernels.shapes.loading import load_model
from nag_kernels.shapes.pipeline import VARIANTS, WEIGHTS, load, load_denoiser
from nag_kernels.user_errors import UserError, in_one_sentence, named

distill = importlib.import_module("nag_kernels.distill.__main__")
prove = importlib.import_module("nag_kernels.prove.__main__")


def refused(main, arguments, capsys, status):
    """The sentence."""
    with pytest.raises(SystemExit) as end:
        main([str(x) for x in arguments])
    assert end.value.code == status
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return said.err.strip().splitlines()[-1]


@pytest.mark.parametrize(("main", "arguments", "message"), [
    (demo.main, ["--scale", "nan"], "nag_scale must be finite, got nan"),
    (demo.main, ["--tau", "0"], "nag_tau must be above 0 (inf is no clip), got 0"),
    (demo.main, ["--alpha", "2"], "nag_alpha must be between 0 and 1, got 2"),
    (demo.main, ["--cfg-scale", "nan"], "--cfg-scale must be a finite number, got nan"),
    (demo.main, ["--nasa-scale", "inf"], "--nasa-scale must be a finite number, got inf"),
    (demo.main, ["--device", "cudda"], "--device must be cpu, cuda, cuda:1 or another device of torch, got 'cudda'"),
    (demo.main, ["--device", "cuda:99"], "--device cuda:99: this torch sees"),
    (demo.main, ["--seed", "-1"], "--seed must be between 0 and 2^63, got -1"),
    (demo.main, ["--out", "demo.xyz"], "--out must be a picture, such as demo.xyz/demo.png, got demo.xyz"),
    (demo.main, ["--out", f"{__file__}/demo.png"], "is a file, not a folder"),
    (diagnose.main, ["--tau", "-1"], "nag_tau must be above 0"),
    (diagnose.main, ["--scale", "1"], "--scale must be above 1 and --alpha above 0"),
    (diagnose.main, ["--alpha", "0"], "--scale must be above 1 and --alpha above 0"),
    (diagnose.main, ["--end", "0"], "--end must be above 0"),
    (diagnose.main, ["--clipped", "1"], "--clipped must be above 0 and below 1, got 1"),
    (diagnose.main, ["--moved", "nan"], "--moved must be a finite number, got nan"),
    (diagnose.main, ["--out", __file__], "is a file, not a folder"),
    (diagnose.main, ["--samples", "0"], "--samples must be at least 1, got 0"),
    (evaluate.main, ["--methods", "cfg:nan"], "method 'cfg:nan': settings must be finite"),
    (evaluate.main, ["--methods", "vsf:1:inf"], "method 'vsf:1:inf': settings must be finite"),
    (evaluate.main, ["--methods", "nag:5:nan"], "method 'nag:5:nan': settings must be finite"),
    (evaluate.main, ["--methods", "nag:5:2.5:7"], "method 'nag:5:2.5:7': nag_alpha must be between 0 and 1, got 7"),
    (evaluate.main, ["--end", "nan"], "--end must be above 0 and at most 1, got nan"),
    (evaluate.main, ["--reference", "no/such"], "--reference must be a folder of pictures, there is none at no/such"),
    (evaluate.main, ["--call", "num_inference_steps=3"], "--call cannot set num_inference_steps"),
    (evaluate.main, ["--out", __file__], "is a file, not a folder"),
    (distill.main, ["cross", "--kappa", "nan"], "kappa_frozen must be finite, got nan"),
    (distill.main, ["cross", "--student-rate", "inf"], "student_rate must be finite, got inf"),
    (distill.main, ["cross", "--seed", "-1"], "seed must be at least 0, got -1"),
    (distill.main, ["cross", "--save-every", "0"], "--save-every must be at least 1, got 0"),
    (prove.main, ["--layers", "no/such.json"], "--layers must be a JSON file with a list of layers"),
])  # fmt: skip
def test_arguments(main, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module, name in ((demo, "load_model"), (diagnose, "load_model"), (evaluate, "load_model"), (distill, "launch")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("nothing is to be loaded"))
    assert message in refused(main, arguments, capsys, 2)
    assert not list(tmp_path.iterdir())


def test_tau_may_be_inf():
    assert evaluate.parse_method("nag:5:inf").settings == (5, float("inf"))


def test_files_and_folders(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a circle"}\n7\n')
    (tmp_path / "p.csv").write_text("prompt,reference\na circle,no.png\n")
    cases = (
        (evaluate.main, ["--prompts", "no.txt"], "error: no.txt cannot be read: No such file or directory"),
        (evaluate.main, ["--prompts", "p.jsonl"], "error: p.jsonl, line 2: must be an object"),
        (evaluate.main, ["--prompts", "p.csv"], "p.csv: 1 of the pictures that it names are not there, the first is no.png"),
        (evaluate.main, ["--model", "./no", "--prompts", "p.jsonl"], "error: p.jsonl, line 2"),
        (distill.main, ["--model", "./no", "--prompts", "no.txt"], "error: no.txt cannot be read"),
        (distill.main, ["cross", "--student", "no"], "error: there is no folder no"),
        (distill.main, ["cross", "--weights", "no"], "error: there is no folder no"),
        (demo.main, ["--model", "./no", "--prompt", "a", "--negative", "b"], "error: there is no folder ./no"),
    )  # fmt: skip
    for main, arguments, message in cases:
        assert message in refused(main, arguments, capsys, 1)


def test_texts_that_the_model_does_not_take(capsys, tmp_path, monkeypatch):
    """Before the first picture, and nothing is left behind that a run with other texts would be refused for."""
    monkeypatch.chdir(tmp_path)
    pipe = load()
    (tmp_path / "p.txt").write_text("a circle\na portrait\n")
    for module in (demo, diagnose, evaluate):
        monkeypatch.setattr(module, "load_model", lambda *_: pipe)
    for module in (demo, evaluate):
        monkeypatch.setattr(module, "draw", lambda *_, **__: pytest.fail("nothing is to be drawn"))
    monkeypatch.setattr(diagnose, "draw_and_say", lambda *_: pytest.fail("nothing is to be drawn"))
    cases = (
        (demo.main, ["--prompt", "a fox", "--negative", "red"], "words that shapes never learned: ['fox']"),
        (demo.main, ["--prompt", "a circle", "--negative", "a fox"], "words that shapes never learned: ['fox']"),
        (demo.main, ["--prompt", "a star", "--negative", "red", "--scale", "0.5"], "nag_scale"),
        (diagnose.main, ["--prompt", "a fox"], "words that shapes never learned: ['fox']"),
        (evaluate.main, ["--prompts", "p.txt", "--negative", "red"], "shapes never learned: ['portrait']"),
        (evaluate.main, ["--call", "heigth=64"], "a ShapesPipeline has no argument heigth; it has "),
    )  # fmt: skip
    for main, arguments, message in cases:
        assert message in refused(main, [*arguments, "--device", "cpu"], capsys, 1)
    assert not [*tmp_path.rglob("*.png"), *tmp_path.rglob("manifest.json")]


def test_the_reason_of_a_refusal_is_logged(caplog, capsys):
    @in_one_sentence("nag_kernels.demo")
    def main():
        with named("the model refused", KeyError):
            {}["a key"]

    with caplog.at_level(logging.DEBUG, "nag_kernels"), pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err == (
        "nag_kernels.demo: error: the model refused: KeyError: 'a key' (NAG_LOG=debug shows where)\n"
    )
    assert '{}["a key"]' in caplog.text
    with pytest.raises(ZeroDivisionError), named("the model refused", KeyError):
        _ = 1 / 0


# --- weights and networks -----------------------------------------------------------------------------------------------


def without(file, name):
    """Take the last tensor whose name ends so out of a file of weights; its whole name."""
    state = load_file(file)
    taken = [x for x in state if x.endswith(name)][-1]
    save_file({x: value for x, value in state.items() if x != taken}, file, metadata={"format": "pt"})
    return taken


@pytest.mark.parametrize(("part", "file", "name"), [
    ("unet", "diffusion_pytorch_model", "attn2.to_k.weight"), ("vae", "diffusion_pytorch_model", "conv.weight"),
    ("text_encoder", "model", "SelfAttention.q.weight"),
])  # fmt: skip
def test_shapes_with_a_tensor_missing(tmp_path, part, file, name, capfd):
    folder = tmp_path / "weights"
    shutil.copytree(WEIGHTS, folder)
    taken = without(folder / part / f"{file}.safetensors", name)
    with pytest.raises(UserError, match=rf"^{folder}: the weights lack tensors: .*{taken}"):
        load(folder)
    said = capfd.readouterr()
    assert "initialized" not in said.err + said.out
    if part == "unet":
        with pytest.raises(UserError, match=taken):
            load_denoiser(folder / VARIANTS["few"])


def test_another_pipeline_with_a_tensor_missing_and_a_file_cut(tmp_path):
    unet = UNet2DModel(8, 3, 3, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), "cpu").unet is not None
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    taken = without(file, "conv_out.weight")
    with pytest.raises(UserError, match=f"^{tmp_path}: the weights lack tensors: .*{taken}"):
        load_model(str(tmp_path), "cpu")
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(UserError, match=f"model {tmp_path} cannot be loaded: "):
        load_model(str(tmp_path), "cpu")
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(UserError, match=f"model {tmp_path} cannot be loaded: .*model_index.json"):
        load_model(str(tmp_path), "cpu")


def test_a_model_by_name_without_a_network_fails_at_once(monkeypatch, capsys):
    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append((url, timeout))
            raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(UserError, match="model no-such-owner/no-such-model cannot be loaded: "):
            load_model("no-such-owner/no-such-model", "cpu")
    assert time.monotonic() - began < 10  # huggingface_hub alone waits for 23 seconds a file
    assert asked == [(huggingface_hub.constants.ENDPOINT, hub.SECONDS)]
    assert (
        "cannot be reached (Name or service not known): only models that are here already load"
        in capsys.readouterr().err
    )


def test_a_network_is_asked_for_nothing_where_models_are_folders(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: pytest.fail("it was asked"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.go_offline_if_need_be(str(tmp_path))
    hub.go_offline_if_need_be()
    for name in ("./no", "/no/such", "a/b/c", "~/no-such-folder", "C:\\models\\no"):
        with pytest.raises(UserError, match="there is no folder"):
            hub.go_offline_if_need_be(str(tmp_path), name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.go_offline_if_need_be("owner/name")


def test_a_network_that_answers_stays_in_use(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub.utils, "get_session", lambda: type("", (), {"head": lambda self, url, timeout: 503})()
    )
    hub.go_offline_if_need_be("owner/name")
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_a_folder_that_nobody_may_write_into(capsys):
    @in_one_sentence("evaluate")
    def main():
        raise PermissionError(13, "Permission denied", "/no/such/folder")

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "evaluate: error: [Errno 13] Permission denied: '/no/such/folder'\n"
