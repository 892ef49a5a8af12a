# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The denoisers of shapes beside the first: how they load, how they are trained, what the shipped ones reach."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from nag_kernels.diffusers import guide
from nag_kernels.shapes import parallel, variants
from nag_kernels.shapes import train as training
from nag_kernels.shapes.classifier import load_classifier
from nag_kernels.shapes.evaluate import evaluate
from nag_kernels.shapes.generator import build_pipeline, build_transformer, load_generator
from nag_kernels.shapes.pipeline import VARIANTS, WEIGHTS, ShapesPipeline, folder_of, load, load_denoiser, velocity


@pytest.fixture(scope="module")
def joint() -> ShapesPipeline:
    """A joint-attention pipeline with random weights, none of them zero."""
    torch.manual_seed(1)
    model = build_transformer(layers=2).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipe = ShapesPipeline(**load().components | {"unet": None, "transformer": model})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: ShapesPipeline, **call: object) -> torch.Tensor:
    noise = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(3))
    prompts = ["a large circle", "a star on pink"]
    return pipe(prompts, num_inference_steps=2, latents=noise, output_type="latent", **call).images


def test_a_pipeline_has_one_denoiser(joint):
    assert joint.denoiser is joint.transformer
    both = joint.components | {"unet": load().unet}
    for parts in (both, joint.components | {"transformer": None}):
        with pytest.raises(ValueError, match="exactly one of unet and transformer"):
            ShapesPipeline(**parts)


def test_what_stands_in_the_padding_does_not_matter(joint):
    texts, mask, _, _ = joint.encode_prompt(["a red star", "a circle"])
    x, sigma = torch.randn(2, 8, 8, 8), torch.tensor(500.0)
    spoiled = torch.where(mask[..., None].bool(), texts, 7.0)
    for model in (joint.transformer, load().unet):
        with torch.no_grad():
            assert torch.equal(velocity(model, x, sigma, texts, mask), velocity(model, x, sigma, spoiled, mask))


@pytest.mark.parametrize(("rule", "scale", "none"), [("nag", 5.0, 1.0), ("nasa", 0.5, 0.0), ("vsf", 1.0, None)])
def test_joint_attention_is_guided_by_every_rule(joint, rule, scale, none):
    plain = latents(joint)
    with guide(joint, "red", nag_scale=scale, rule=rule):
        assert (latents(joint) - plain).abs().max() > 1e-3
    if none is not None:
        with guide(joint, "red", nag_scale=none, rule=rule):
            assert torch.allclose(latents(joint), plain, atol=1e-4)
    assert torch.equal(latents(joint), plain)


def test_classifier_free_guidance_of_joint_attention_is_two_runs(joint):
    noise = torch.randn(2, 8, 8, 8)
    texts = joint.encode_prompt(["a large circle", "a star"], True, "red")
    sigma = torch.tensor(1000.0)
    with torch.no_grad():
        positive, negative = (joint.predict(noise, sigma, *pair) for pair in (texts[:2], texts[2:]))
    expected = noise - (negative + 3 * (positive - negative))  # one step from sigma 1 to 0
    found = joint(["a large circle", "a star"], "red", guidance_scale=3.0, num_inference_steps=1, latents=noise,
                  output_type="latent").images  # fmt: skip
    assert torch.allclose(found, expected, atol=1e-4)


def test_names_and_folders_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="variant must be one of few, teacher"):
        load(variant="teachers")
    shutil.copy(WEIGHTS / "model_index.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights of the variant 'joint_student'"):
        load(tmp_path, variant="joint_student")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderDC"}')
    with pytest.raises(ValueError, match="got a AutoencoderDC"):
        load_denoiser(tmp_path)


def test_weights_of_an_older_training_load(tmp_path):
    """Its files call the denoiser "unet"."""
    pipe = load()
    parts = {"text_encoder": pipe.text_encoder, "unet": pipe.unet}
    state = {f"{part}.{name}": x.clone() for part, module in parts.items() for name, x in module.state_dict().items()}
    save_file(state, tmp_path / "flow.safetensors")
    load_generator(own := build_pipeline(2.0), tmp_path / "flow.safetensors")
    assert all(torch.equal(x, pipe.unet.state_dict()[name]) for name, x in own.unet.state_dict().items())


@pytest.fixture
def here(monkeypatch):
    """Training in this process, which has imported everything already."""

    def launch(work, workers, *arguments):
        assert workers == 1
        threads = torch.get_num_threads()
        try:
            parallel._enter(0, workers, parallel.free_port(), work, arguments)
        finally:
            torch.set_num_threads(threads)

    monkeypatch.setattr(variants, "launch", launch)


@pytest.mark.slow
def test_a_quick_training_of_each_variant_runs_through(tmp_path, capsys, here):
    bare = shutil.ignore_patterns(*(name for name in VARIANTS.values() if name != "unet"))
    shutil.copytree(WEIGHTS, tmp_path / "weights", ignore=bare)
    variants.main(
        ["--quick", "--folder", str(tmp_path / "weights"), "--work", str(tmp_path / "work"), "--workers", "1"]
    )
    said = capsys.readouterr().out
    for variant in variants.SETTINGS:
        assert f"{variant}, {variants.STEPS[variant]} steps: one: objects and clean" in said
        folder = tmp_path / "weights" / VARIANTS[variant]
        assert "_name_or_path" not in json.loads((folder / "config.json").read_text())
        file = load_file(folder / "diffusion_pytorch_model.safetensors")
        assert {value.dtype for value in file.values()} == {torch.float16}
        pipe = load(tmp_path / "weights", variant=variant)
        assert (pipe.unet is None) == variant.startswith("joint")
        assert pipe("a circle", num_inference_steps=1).images[0].size == (32, 32)
    # Each from what it is to start from: a few steps leave it near, but not as it was.
    far = lambda one, other: max((a - b).abs().max() for a, b in zip(one.parameters(), other.parameters(), strict=True))  # noqa: E731
    made = {variant: load(tmp_path / "weights", variant=variant).denoiser for variant in variants.SETTINGS}
    for variant, before in (("teacher", load().unet), ("joint_few", made["joint_teacher"])):
        assert 0 < far(made[variant], before) < 0.02
    variants.main(["teacher", "--quick", "--go-on", "--folder", str(tmp_path / "weights"), "--work",
                   str(tmp_path / "work"), "--workers", "1"])  # fmt: skip
    record = json.loads((tmp_path / "weights" / "teacher" / "training.json").read_text())
    assert record["before"]["settings"] == record["settings"]
    gone_on = load(tmp_path / "weights", variant="teacher").unet
    assert 0 < far(gone_on, made["teacher"]) < far(gone_on, load().unet)
    for wrong in (["few"], ["teacher", "--adopt", str(tmp_path)], ["--adopt", str(tmp_path)]):
        with pytest.raises(SystemExit):
            variants.main(wrong)


@pytest.mark.parametrize("quick", [[], ["--quick"]])
def test_shipped_weights_are_replaced_only_where_their_folder_is_named(tmp_path, monkeypatch, quick):
    monkeypatch.chdir(tmp_path)
    report = {"minutes": {}, "evaluation": {}, "sampling steps": 4, "samples": {}}
    asked = []

    def all_stages(settings, work, out):
        asked.append((work, out))
        return report

    def one(variant, settings, folder, work, go_on):
        asked.append((work, folder, folder_of(variant, folder)))
        return report

    monkeypatch.setattr(training, "train", all_stages)
    monkeypatch.setattr(variants, "train", one)
    work = Path("out/shapes-quick" if quick else "out/shapes")
    own = work.with_name(f"{work.name}-weights")
    training.main(quick)
    variants.main(["teacher", *quick])
    assert asked == [(work, own), (work, own, own / "teacher")]
    for variant in VARIANTS:  # what training starts from is a copy
        source, copy = folder_of(variant), folder_of(variant, own)
        assert {x.name for x in source.iterdir()} == {x.name for x in copy.iterdir()}
    assert {x.name for x in WEIGHTS.iterdir()} <= {x.name for x in own.iterdir()}
    asked.clear()
    training.main([*quick, "--out", str(WEIGHTS)])
    variants.main(["teacher", *quick, "--folder", os.path.relpath(WEIGHTS)])
    assert asked == [(work, WEIGHTS), (work, WEIGHTS, folder_of("teacher"))]
    (work / "settings.json").parent.mkdir(parents=True)
    (work / "settings.json").write_text("{")
    with pytest.raises(SystemExit, match="1"):
        training.main(quick)


def test_a_student_is_adopted_with_its_record(tmp_path, monkeypatch):
    run, folder = tmp_path / "run", tmp_path / "weights"
    shutil.copytree(WEIGHTS, folder, ignore=shutil.ignore_patterns(*(n for n in VARIANTS.values() if n != "unet")))
    shutil.copytree(WEIGHTS / "unet", run / "student")
    (run / "settings.json").write_text('{"kappa_frozen": 2.0}')
    (run / "metrics.csv").write_text("step,seconds\n1,60\n2,30\n")
    monkeypatch.setattr(variants, "evaluate", lambda pipe, judge, count, seed, steps: {"pictures": count * steps})
    variants.main(["student", "--adopt", str(run), "--folder", str(folder)])
    found = json.loads((folder / "student" / "training.json").read_text())
    assert (found["minutes"], found["settings"], found["samples"]) == (1.5, {"kappa_frozen": 2.0}, {"pictures": 1000})
    name = "diffusion_pytorch_model.safetensors"
    assert (folder / "student" / name).read_bytes() == (run / "student" / name).read_bytes()  # float16, as it was
    assert load(folder, variant="student").unet is not None


SHIPPED = ("teacher", "student", "joint_teacher", "joint_few", "joint_student")


@pytest.mark.slow
@pytest.mark.parametrize("variant", SHIPPED)
def test_the_shipped_weights_draw_as_their_record_says(variant):
    record = json.loads((folder_of(variant) / "training.json").read_text())
    steps, count = record["sampling steps"], 32
    found = evaluate(load(variant=variant), load_classifier(), count, seed=5, steps=steps)
    for name in ("one: objects", "one: objects and clean", "two: objects"):
        expected = record["samples"][name]
        spread = (max(expected * (1 - expected), 0.01) / count) ** 0.5
        assert abs(found[name] - expected) < 4 * spread, name
    size = (folder_of(variant) / "diffusion_pytorch_model.safetensors").stat().st_size
    assert size < 8 * 2**20
