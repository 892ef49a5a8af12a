# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m nag_kernels.demo`: its picture, its table, and the claim that it is there to show."""

import re

import pytest
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from nag_kernels import demo
from nag_kernels.shapes import loading
from nag_kernels.shapes.classifier import load_classifier, matches, read, shows
from nag_kernels.shapes.evaluate import sample
from nag_kernels.shapes.pipeline import WEIGHTS, load


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


def drawn(samples: int, batch: int, methods: tuple[str, ...]) -> list[tuple[str, str, dict[str, demo.Cell]]]:
    """Every default prompt drawn by these methods."""
    options = demo.parse(["--device", "cpu"])
    assert options.samples >= 256
    options.samples, options.batch = samples, batch
    pipe, judge = loading.load_model("shapes", "cpu"), loading.shapes_judge()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "METHODS", methods)
        return [(*case, demo.run_case(pipe, *case, options, judge)) for case in options.cases]


@pytest.fixture(scope="module")
def default_cells() -> list[tuple[str, str, dict[str, demo.Cell]]]:
    """Every method, 12 samples in two batches; once for all tests."""
    return drawn(12, 8, demo.METHODS)


@pytest.fixture(scope="module")
def many_cells() -> list[tuple[str, str, dict[str, demo.Cell]]]:
    """128 samples of the 256 that a user gets."""
    return drawn(128, 64, ("no negative", "NAG"))


def shares_of(text: str) -> list[tuple[str, ...]]:
    return re.findall(r"(no negative|CFG|NASA|NAG) .*?(\d+) .*?([\d.]+ %) .*?([\d.]+ %)", text)


@pytest.mark.slow
def test_two_runs_print_the_same_shares_and_draw_the_same_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "ROUNDS", 1)  # of timing
    monkeypatch.setattr(demo, "TIMED", 1)
    outputs = []
    for name in ("one.png", "two.png"):
        demo.main(["--prompt", "a large circle", "--negative", "red", "--samples", "8", "--steps", "4", "--device", "cpu",
                   "--out", str(tmp_path / name)])  # fmt: skip
        outputs.append(shares_of(capsys.readouterr().out))
    assert [row[0] for row in outputs[0]] == list(demo.METHODS)
    assert outputs[0] == outputs[1]
    pictures = [Image.open(tmp_path / name) for name in ("one.png", "two.png")]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert pictures[0].width > 1000
    assert pictures[0].height > 250


@pytest.mark.slow
def test_every_method_draws_every_sample(default_cells):
    for _, _, cells in default_cells:
        assert list(cells) == list(demo.METHODS)
        assert all(len(cell.pictures) == len(cell.shows) == len(cell.clean) == 12 for cell in cells.values())


@pytest.mark.slow
def test_nag_halves_the_negative_and_keeps_the_picture(many_cells):
    """What the project promises for the shipped weights, over all default prompts together."""
    rate = {}
    for method in ("no negative", "NAG"):
        for kind in ("shows", "clean"):
            flags = [flag for _, _, cells in many_cells for flag in getattr(cells[method], kind)]
            rate[method, kind] = sum(flags) / len(flags)
    assert rate["no negative", "shows"] > 0.1
    assert rate["NAG", "shows"] <= 0.5 * rate["no negative", "shows"]
    assert rate["NAG", "clean"] >= rate["no negative", "clean"] - 0.05


@pytest.mark.slow
def test_only_guided_methods_name_a_backend(default_cells):
    for _, _, cells in default_cells:
        for method, cell in cells.items():
            assert (cell.backend in ("cpu", "reference")) == (method in ("NASA", "NAG"))


def test_the_judge_reads_what_the_picture_shows():
    pipe = load()
    pictures = sample(pipe, ["a large red circle", "a large blue circle"] * 8, seed=3)
    reading = read(load_classifier(), pictures)
    red = shows(reading, "red")
    assert red[::2].float().mean() > 0.8
    assert red[1::2].float().mean() < 0.2
    assert (matches(reading, "a large circle") == shows(reading, "large circle") & ~reading.two).all()


def test_guidance_that_does_nothing_raises():
    options = demo.parse(
        ["--prompt", "a circle", "--negative", "red", "--samples", "2", "--scale", "1.0000001", "--device", "cpu"]
    )
    with pytest.raises(RuntimeError, match="left every picture"):
        demo.run_case(loading.load_model("shapes", "cpu"), "a circle", "red", options, None)


def test_a_method_without_its_backend_raises(monkeypatch):
    options = demo.parse(["--prompt", "a circle", "--negative", "red", "--samples", "2", "--device", "cpu"])
    monkeypatch.setattr(demo, "guide", lambda pipe, *args, **settings: demo.contextlib.nullcontext())
    with pytest.raises(RuntimeError, match="ran no backend"):
        demo.run_case(loading.load_model("shapes", "cpu"), "a circle", "red", options, None)


def test_any_other_pipeline_is_shown_and_timed_but_not_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "load_model", lambda name, device: load(WEIGHTS, device))
    monkeypatch.setattr(demo, "ROUNDS", 2)  # of timing
    demo.main(["--model", "some/folder", "--prompt", "a circle", "--negative", "red", "--device", "cpu",
               "--steps", "4", "--out", str(tmp_path / "other.png")])  # fmt: skip
    said, progress = capsys.readouterr()
    assert re.search(r"drawing: 100%.*?20/20 .*pictures/s", progress)  # by each method 2 pictures, and 3 timed ones
    assert "drawing:   0%" in progress
    assert max(len(line) for line in said.splitlines() if not line.startswith("picture: ")) <= 80
    assert '"a circle" without "red"' in said
    assert said.count("not read") == 2 * len(demo.METHODS)
    assert Image.open(tmp_path / "other.png").width > 1000


@pytest.mark.parametrize(
    "arguments",
    [["--prompt", "a circle"], ["--model", "some/folder"], ["--steps", "0"], ["--samples", "0"], ["--no-such"]],
)
def test_arguments_that_do_not_fit_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        demo.parse(arguments)
    assert "error" in capsys.readouterr().err


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        demo.parse(["--help"])
    said = capsys.readouterr().out
    for option in ("prompt", "negative", "scale", "tau", "alpha", "steps", "seed", "model", "device", "samples", "out"):
        assert re.search(rf"--{option} [A-Z]+\s+\S+", said), option


def test_chosen_seeds_put_those_that_show_the_negative_first():
    cells = {"no negative": demo.Cell([None] * 10, [i % 3 == 0 for i in range(10)], [True] * 10)}
    assert demo.choose_seeds(cells, columns=2, rows=2) == [0, 3, 1, 2]
    assert demo.choose_seeds({"no negative": demo.Cell([None] * 3)}, 2, 1) == [0, 1]
