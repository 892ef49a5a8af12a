# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m nag_kernels.evaluate` end to end: on shapes, with a tiny random CLIP, resumed, and with scores that are missing."""

import contextlib
import csv
import json
import re
import sys
import types
from dataclasses import replace

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("torchmetrics")
pytest.importorskip("diffusers")

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

from nag_kernels import evaluate, scores
from nag_kernels.evaluate import Item, Method, parse_method, read_prompts
from nag_kernels.scores import Drawn, Judges, Score, mean_score

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["<|pad|>", "<|start|>", "<|end|>", "a", "large", "blue", "red", "circle", "square", "of", "left"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with a tiny random CLIP, its tokenizer and its processor."""
    folder = tmp_path_factory.mktemp("clip")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<|pad|>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=[("<|start|>", 1), ("<|end|>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<|pad|>", unk_token="<|pad|>",
                                        bos_token="<|start|>", eos_token="<|end|>")  # fmt: skip
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=len(WORDS), max_position_embeddings=16, bos_token_id=1, eos_token_id=2,
                          pad_token_id=0, **size)  # fmt: skip
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **size)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=6)).save_pretrained(
        folder
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def pictures(folder, count, side=32, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        low = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(low).resize((side, side)).save(folder / f"{i}.png")
    return sorted(folder.glob("*.png"))


def rows_of(folder):
    with (folder / "scores.csv").open(newline="") as file:
        return {(row["method"], row["metric"]): row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_end_to_end_on_shapes(tmp_path, capsys, clip, monkeypatch):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,negative\na large circle,red\na blue square,on white\n")
    pictures(tmp_path / "real", 12)
    methods = ["none", "cfg:3", "nag:5:2.5:0.2", "nasa:0.5", "vsf:1.5:-0.1", "cfg:2+nag"]
    out = tmp_path / "out"
    arguments = ["--prompts", str(prompts), "--methods", *methods, "--images", "3", "--batch", "4", "--steps", "2",
                 "--device", "cpu", "--clip", str(clip), "--reference", str(tmp_path / "real"), "--out", str(out)]  # fmt: skip
    evaluate.main(arguments)
    said = capsys.readouterr().out
    assert "missing: the package hpsv2 is not installed: pip install hpsv2, in an environment of its own" in said
    rows = rows_of(out)
    metrics = ["clip_score", "fid", "pfid", "frechet_clip", "image_reward", "hpsv2", "shows_negative", "clean_match"]
    assert list(rows) == [(method, metric) for method in methods for metric in metrics]
    for (_, metric), row in rows.items():
        if metric in ("clip_score", "shows_negative", "clean_match"):
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
            assert row["samples"] == "6"
        elif metric == "frechet_clip":
            assert float(row["value"]) > 0
            assert (row["low"], row["samples"], row["note"]) == ("", "6", "to 12 real pictures")
        else:
            assert (row["value"], row["samples"]) == ("", "0")
            assert row["note"].startswith("missing: ")
    files = {method: sorted((out / parse_method(method).folder).glob("*.png")) for method in methods}
    assert all(len(each) == 6 for each in files.values())
    assert len({b"".join(x.read_bytes() for x in each) for each in files.values()}) == len(methods)
    sheet = Image.open(out / "contact_sheet.png")
    assert sheet.width > 6 * 160

    # A cut run: two pictures are gone, one is half written. What is there stays, what comes is what was there.
    kept, lost, half = files["none"][0], files["none"][3], files["nag:5:2.5:0.2"][1]
    torn, empty = files["nasa:0.5"][:2]
    before = {x: np.asarray(Image.open(x)).astype(int) for x in (kept, lost, half, torn, empty)}
    torn.write_bytes(torn.read_bytes()[:-100])
    empty.write_bytes(b"")
    age = kept.stat().st_mtime_ns
    lost.unlink()
    half.rename(half.with_suffix(".part"))
    (out / "scores.csv").write_text("method,metric,value\nnone,clip_score,much\n")
    evaluate.main(arguments)
    assert "scores.csv is damaged: what it held is not kept" in capsys.readouterr().err
    assert kept.stat().st_mtime_ns == age
    for path, picture in before.items():  # another batch rounds otherwise
        assert abs(np.asarray(Image.open(path)).astype(int) - picture).max() <= 1
    for key, row in rows_of(out).items():
        assert row["samples"] == rows[key]["samples"]
        if row["value"]:
            assert float(row["value"]) == pytest.approx(float(rows[key]["value"]), abs=0.05)

    monkeypatch.setattr(evaluate, "load_model", lambda *_: pytest.fail("there is nothing to draw"))
    evaluate.main(arguments)
    with pytest.raises(SystemExit, match="1"):
        evaluate.main([*arguments, "--steps", "3"])
    assert "was begun with steps 2, now 3: give another --out" in capsys.readouterr().err
    (out / "manifest.json").write_text('{"model": "sha')
    with pytest.raises(SystemExit, match="1"):
        evaluate.main(arguments)
    assert (
        f"error: {out / 'manifest.json'}, which says what the pictures there are of, is damaged"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(("text", "call", "settings"), [
    ("none", {"guidance_scale": 1.0}, None),
    ("cfg:3", {"guidance_scale": 3.0, "negative_prompt": ["red", "on white"]}, None),
    ("nag:5:2.5:0.2", {"guidance_scale": 1.0}, {"rule": "nag", "nag_scale": 5.0, "nag_tau": 2.5, "nag_alpha": 0.2}),
    ("nasa", {"guidance_scale": 1.0}, {"rule": "nasa"}),
    ("cfg:2+vsf:1.5:-0.1", {"guidance_scale": 2.0, "negative_prompt": ["red", "on white"]},
     {"rule": "vsf", "nag_scale": 1.5, "negative_logit_bias": -0.1}),
])  # fmt: skip
def test_a_method_is_the_call_that_it_says(text, call, settings, monkeypatch):
    seen = {}

    class Pipe:
        def __call__(self, prompt, generator, guidance_scale=7.5, **more):
            seen["call"] = {"guidance_scale": guidance_scale} | more
            return types.SimpleNamespace(images=[(prompt, [each.initial_seed() for each in generator])])

    def guide(pipe, negatives, **given):
        seen["guide"] = (negatives, given)
        return contextlib.nullcontext()

    monkeypatch.setattr(evaluate, "guide", guide)
    monkeypatch.setattr(evaluate, "spec_of", lambda denoiser: types.SimpleNamespace(cfg_above=1.0))
    monkeypatch.setattr(evaluate, "find_denoisers", lambda pipe: [pipe])
    options = types.SimpleNamespace(steps=3, end=0.5, call={"height": 32})
    items = [Item("a circle", "red"), Item("a square", "on white")]
    (found,) = evaluate.draw(Pipe(), parse_method(text), items, [7, 9], options)
    assert found == (["a circle", "a square"], [7, 9])
    assert seen["call"] == call | {"num_inference_steps": 3, "height": 32}
    assert seen.get("guide") == (settings and (["red", "on white"], settings | {"end": 0.5}))


def test_a_picture_is_whole_or_drawn_again(tmp_path):
    path = pictures(tmp_path, 1)[0]
    assert evaluate.is_whole(path)
    content = path.read_bytes()
    damaged = (b"", content[:7], content[:-12], content[: len(content) // 2], b"no picture",
               content[:100] + bytes([content[100] ^ 1]) + content[101:])  # fmt: skip
    for each in damaged:
        path.write_bytes(each)
        assert not evaluate.is_whole(path)
    path.unlink()
    assert not evaluate.is_whole(path)


def test_pictures_do_not_depend_on_the_batch(tmp_path):
    drawn = []
    for batch in ("1", "5"):
        out = tmp_path / batch
        options = evaluate.parse(["--batch", batch, "--steps", "1", "--device", "cpu", "--out", str(out)])
        items = [Item("a large circle", "red"), Item("a blue square", "on white")] * 2
        evaluate.check_manifest(options, items)
        paths = evaluate.generate(lambda: evaluate.load_model("shapes", "cpu"), [parse_method("nag")], items, options)[
            "nag"
        ]
        drawn.append([np.asarray(Image.open(x.path)).astype(int) for x in paths])
    assert max(abs(a - b).max() for a, b in zip(*drawn, strict=True)) <= 1


def test_clip_score_and_distance_are_those_of_the_library(tmp_path, clip):
    drawn = [Drawn(path, text, "red") for path, text in zip(pictures(tmp_path / "a", 5), ["a circle", "a red square"] * 3,
                                                            strict=False)]  # fmt: skip
    pictures(tmp_path / "real", 8, seed=1)
    found = {x.metric: x for x in Judges(str(clip), tmp_path / "real", "cpu").all(drawn)}
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    cosines, features = [], []
    for each in drawn:
        inputs = processor(text=[each.prompt], images=[Image.open(each.path)], return_tensors="pt")
        with torch.no_grad():
            out = model(**inputs)
        features.append(out.image_embeds[0])
        cosines.append(100 * torch.cosine_similarity(out.image_embeds, out.text_embeds).item())
    assert found["clip_score"].value == pytest.approx(np.mean(cosines), abs=1e-3)
    assert found["clip_score"].low <= np.mean(cosines) <= found["clip_score"].high
    same = {x.metric: x for x in Judges(str(clip), tmp_path / "a", "cpu").all(drawn)}
    assert abs(same["frechet_clip"].value) < 1e-3 * found["frechet_clip"].value


def test_packages_that_are_there_are_called(tmp_path, monkeypatch):
    drawn = [Drawn(path, f"prompt {i}", "red") for i, path in enumerate(pictures(tmp_path, 3))]
    seen = []

    def hps(path, prompt, hps_version):
        seen.append((path, prompt, hps_version))
        return [np.float32(0.25 + len(seen) / 100)]

    reward = types.SimpleNamespace(score=lambda prompt, path: float(prompt[-1]))
    loaded = []
    monkeypatch.setitem(sys.modules, "hpsv2", types.SimpleNamespace(score=hps))
    monkeypatch.setitem(sys.modules, "ImageReward", types.SimpleNamespace(
        load=lambda name, device: loaded.append((name, device)) or reward))  # fmt: skip
    judges = Judges(str(tmp_path / "nowhere"), None, "cpu", "v2.1")
    for _ in range(2):
        found = {x.metric: x for x in judges.all(drawn)}
    assert loaded == [("ImageReward-v1.0", "cpu")]
    assert found["image_reward"].value == 1
    assert [x[1:] for x in seen[:1]] == [("", "v2.1")]  # to load its weights
    assert seen[1:4] == [(str(x.path), x.prompt, "v2.1") for x in drawn]
    assert found["hpsv2"].value == pytest.approx(25 + 6)
    assert found["clip_score"].value is None
    assert found["fid"].note == "missing: ValueError: no folder of real pictures was given (--reference)"


def test_what_cannot_be_had_is_tried_once_and_what_fails_for_some_pictures_again(tmp_path, monkeypatch):
    drawn = [Drawn(path, f"prompt {i}", "red") for i, path in enumerate(pictures(tmp_path / "a", 3))]
    bad = [replace(each, prompt="prompt ?") for each in drawn]
    tried = []

    def once(name):
        tried.append(name)
        raise OSError(f"no weights of {name}\nin any mirror")

    monkeypatch.setattr(scores, "_Clip", once)
    monkeypatch.setitem(sys.modules, "hpsv2", types.SimpleNamespace(score=lambda *_, **__: once("hpsv2")))
    reward = types.SimpleNamespace(score=lambda prompt, path: float(prompt[-1]))
    monkeypatch.setitem(sys.modules, "ImageReward", types.SimpleNamespace(load=lambda *_, **__: reward))
    judges = Judges("clip", tmp_path / "a", "cpu")
    sets = {"none": drawn, "nag": bad, "vsf": drawn}
    found = {name: judges.all(each) for name, each in sets.items()}
    by = {(method, x.metric): x for method, each in found.items() for x in each}
    assert tried == ["clip", "hpsv2"]
    for method in found:
        for metric, name in (("clip_score", "clip"), ("frechet_clip", "clip"), ("hpsv2", "hpsv2")):
            assert by[method, metric] == Score(metric, 0, note=f"missing: OSError: no weights of {name}")
    failed = Score("image_reward", 0, note="failed: ValueError: could not convert string to float: '?'")
    assert by["nag", "image_reward"] == failed
    assert by["none", "image_reward"].value == by["vsf", "image_reward"].value == 1
    said = evaluate.reasons(found)
    assert "hpsv2: missing: OSError: no weights of hpsv2" in said
    assert f"image_reward: {failed.note} (nag)" in said
    metric, method, value, bounds, count = ([*x.cells] for x in evaluate.table(found, "a title").columns)
    begins = metric.index("image_reward")
    rows = list(zip(method, value, bounds, count, strict=True))[begins : begins + 3]
    assert rows == [("none", "1.000", "0.000 to 2.000", "3"), ("nag", "failed", "", ""), ("vsf", *rows[0][1:])]
    evaluate.write_scores(found, tmp_path / "scores.csv")
    assert [rows_of(tmp_path)["nag", "image_reward"][name] for name in ("value", "samples")] == ["", "0"]


def test_a_distance_that_fails_for_some_pictures_is_tried_again(tmp_path, clip):
    drawn = [Drawn(path, "a circle", "red") for path in pictures(tmp_path / "a", 3)]
    pictures(tmp_path / "real", 3, seed=1)
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    judges = Judges(str(clip), tmp_path / "real", "cpu")
    sets = (drawn, [*drawn, replace(drawn[0], path=broken)], drawn[:1], drawn)
    first, *failed, again = [{x.metric: x for x in judges.all(each)} for each in sets]
    assert first == again
    assert first["frechet_clip"].value > 0
    assert [x["frechet_clip"].value for x in failed] == [None, None]
    assert failed[0]["frechet_clip"].note.startswith("failed: UnidentifiedImageError")
    assert failed[1]["frechet_clip"].note == "failed: ValueError: a distance needs at least two pictures, got 1"


def test_patches_are_the_middle(tmp_path):
    image = np.zeros((301, 310, 3), dtype=np.uint8)
    image[1:300, 5:304] = 255
    Image.fromarray(image).save(tmp_path / "x.png")
    assert scores.middle(tmp_path / "x.png").shape == (3, 299, 299)
    assert scores.middle(tmp_path / "x.png").min() == 255
    with pytest.raises(ValueError, match=r"at least 400 wide and high for patches, got .* of 310x301"):
        scores.middle(tmp_path / "x.png", 400)


def test_bootstrap_interval():
    values = np.random.default_rng(1).normal(3, 2, 400)
    score = mean_score("m", values)
    assert score.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert score.low == pytest.approx(values.mean() - half, abs=0.05)
    assert score.high == pytest.approx(values.mean() + half, abs=0.05)
    assert mean_score("m", values) == score


def test_methods():
    assert parse_method("none") == Method("none")
    assert parse_method("cfg:7.5") == Method("cfg:7.5", 7.5)
    assert parse_method("nag:5:2.5") == Method("nag:5:2.5", None, "nag", (5, 2.5))
    assert parse_method("cfg:7+nasa:0.5") == Method("cfg:7+nasa:0.5", 7, "nasa", (0.5,))
    assert parse_method("vsf:3.5:-0.1").settings == (3.5, -0.1)
    assert "/" not in parse_method("cfg:7+nag").folder
    for wrong in ("", "cfg", "vsf", "nag+nasa", "none+nag", "nag:1:2:3:4", "sega"):
        with pytest.raises(ValueError, match="method must be none, cfg:SCALE"):
            parse_method(wrong)
    with pytest.raises(ValueError, match="settings must be numbers, got 'much'"):
        parse_method("nag:much")


def test_prompt_files(tmp_path):
    lines, table, records = (tmp_path / name for name in ("a.txt", "a.csv", "a.jsonl"))
    lines.write_text("a cat\n\n a dog, red \n")
    assert read_prompts(lines, "blurry") == [Item("a cat", "blurry"), Item("a dog, red", "blurry")]
    table.write_text('prompt,negative,reference\n"a cat,\nred",,1.png\na dog,grass,\n')
    assert read_prompts(table, "blurry") == [Item("a cat,\nred", "blurry", "1.png"), Item("a dog", "grass")]
    records.write_text(json.dumps({"prompt": "a cat", "negative": "x"}) + "\n")
    assert read_prompts(records, "blurry") == [Item("a cat", "x")]
    for path, text, message in ((lines, "\n", "holds no prompts"), (table, "text\na cat\n", "a column named prompt"),
                                (table, "prompt,negative\na cat,\n,red\n", "line 3: entry 2 has no prompt")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_prompts(path, "blurry")


def test_references_of_the_prompts_file(tmp_path):
    pictures(tmp_path / "p", 2)
    options = evaluate.parse(["--prompts", str(tmp_path / "a.csv"), "--out", str(tmp_path / "out")])
    options.out.mkdir()
    items = [Item("a", "b", "p/1.png"), Item("a", "b")]
    for _ in range(2):
        folder = evaluate.reference_folder(options, items)
    assert Judges("clip", folder, "cpu").real == [folder / "000000.png"]
    assert (folder / "000000.png").read_bytes() == (tmp_path / "p" / "1.png").read_bytes()
    (folder / "000000.png").unlink()
    (folder / "000000.png").symlink_to(tmp_path / "moved.png")
    evaluate.reference_folder(options, items)
    assert (folder / "000000.png").exists()
    assert evaluate.reference_folder(options, [Item("a", "b")]) is None


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--model", "some/folder"], ["--methods", "best"],
                                       ["--call", "height"], ["--dtype", "int8"]])  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        evaluate.parse(arguments)
    assert "error" in capsys.readouterr().err


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        evaluate.parse(["--help"])
    said = capsys.readouterr().out
    for option in (
        "model",
        "prompts",
        "negative",
        "methods",
        "steps",
        "images",
        "batch",
        "seed",
        "call",
        "clip",
        "out",
    ):
        assert re.search(rf"--{option} \S+.*\n?\s+\S+", said), option
