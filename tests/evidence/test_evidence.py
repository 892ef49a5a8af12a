# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m nag_kernels.evidence`: distances, intervals, the cache, verdicts and the page."""

import itertools
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import nag_kernels
from evidence import __main__ as command
from evidence import run as running
from evidence.cells import (
    CFG,
    FULL,
    MANY,
    NAG,
    NONE,
    PAIRS,
    QUICK,
    TABLES,
    VARIANTS_OF,
    Cell,
    Size,
    Steering,
    cells_of,
)  # fmt: skip
from evidence.claims import claims_of, outcome, verdict
from evidence.frechet import frechet, moments
from evidence.measures import Replicates, contrast, draws, interval
from evidence.renders import real, there, wanted_scenes
from evidence.report import write
from evidence.rows import load_rows, update
from evidence.students import add_student, measure_student, welch
from nag_kernels.shapes.classifier import load_classifier, matches, read, shows
from nag_kernels.shapes.pipeline import load

ROOT = Path(nag_kernels.__file__).parent.parent
TINY = Size("quick", per_pair=2, per_pair_many=1, replicates=20, reference=4)


@pytest.fixture(scope="module")
def pipe():
    return load()


def random_gaussian(seed: int, width: int = 6):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(width, generator=generator, dtype=torch.float64), root @ root.T


# --- distances


@pytest.mark.slow
def test_an_installed_package_says_where_the_evidence_is(tmp_path, monkeypatch, capsys):
    aside = shutil.ignore_patterns("__pycache__", "weights")
    shutil.copytree(ROOT / "nag_kernels", tmp_path / "nag_kernels", ignore=aside)
    call = [sys.executable, "-m", "nag_kernels.evidence", "--help"]
    done = subprocess.run(
        call, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "in a checkout of the repository" in done.stderr
    monkeypatch.setattr(sys, "argv", call[2:])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("nag_kernels.evidence", run_name="__main__")
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("usage: python -m nag_kernels.evidence")


def test_frechet_is_the_closed_form_of_gaussians():
    mean, other = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 1.0, 3.0])
    spread, other_spread = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.5, 1.0])
    found = frechet(mean, spread.square().diag(), other, other_spread.square().diag())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, ((mean - other).square().sum() + (spread - other_spread).square().sum()).double())
    # Of two by two matrices tr (AB)^1/2 = (tr AB + 2 (det AB)^1/2)^1/2, whether they commute or not.
    (m1, s1), (m2, s2) = random_gaussian(1, 2), random_gaussian(2, 2)
    product = s1 @ s2
    cross = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = (m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * cross
    torch.testing.assert_close(frechet(m1, s1, m2, s2), expected)


def test_frechet_does_not_depend_on_order_origin_or_rotation():
    (m1, s1), (m2, s2) = random_gaussian(3), random_gaussian(4)
    found = frechet(m1, s1, m2, s2)
    torch.testing.assert_close(frechet(m2, s2, m1, s1), found)
    torch.testing.assert_close(frechet(m1 + 100, s1, m2 + 100, s2), found)
    turn = torch.linalg.qr(random_gaussian(5)[1]).Q
    torch.testing.assert_close(frechet(turn @ m1, turn @ s1 @ turn.T, turn @ m2, turn @ s2 @ turn.T), found)
    torch.testing.assert_close(frechet(m1, s1, m1, s1), torch.zeros((), dtype=torch.float64), atol=1e-9, rtol=0)


def test_moments_with_weights_are_those_of_repeated_samples():
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) + 50
    weights = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 2, 1, 0, 3, 1, 0]])
    means, covariances = moments(features, weights)
    for row, mean, covariance in zip(weights, means, covariances, strict=True):
        repeated = features.double().repeat_interleave(row, 0)
        torch.testing.assert_close(mean, repeated.mean(0))
        torch.testing.assert_close(covariance, repeated.T.cov())
    with pytest.raises(ValueError, match="at least 2"):
        moments(features[:1])


# --- intervals


def test_a_95_percent_interval_holds_the_truth_about_95_times_in_100():
    rng, pairs, each, held = np.random.default_rng(0), 8, 24, 0
    rates = rng.uniform(0.1, 0.9, pairs)
    counts = draws(pairs, each, 300)
    for _ in range(300):
        flags = rng.random((pairs, each)) < rates[:, None]
        _, low, high = interval((counts * flags).sum(-1).mean(1) / each, "match")
        held += low <= rates.mean() <= high
    assert 0.90 <= held / 300 <= 0.98


def test_replicates_are_paired_from_cell_to_cell():
    counts = draws(4, 16, 200)
    assert (counts[0] == 1).all()
    assert (counts.sum(-1) == 16).all()
    draws.cache_clear()
    assert np.array_equal(draws(4, 16, 200), counts)  # in another process as well
    flags = np.random.default_rng(1).random((4, 16)) < 0.5
    shares = (counts * flags).sum(-1).mean(1) / 16
    cell = Replicates(64, {"match": shares})
    assert contrast([(1.0, cell), (-1.0, cell)], "match") == (0, 0, 0)
    alone = interval(shares, "match")
    assert alone[1] < alone[0] < alone[2]
    shorter = replace(cell, values={"match": shares[:-1]})
    for what, other in (("replicates", shorter), ("samples", replace(cell, samples=256))):
        with pytest.raises(ValueError, match=rf"the same number of {what} to be paired, got \["):
            contrast([(1.0, cell), (-1.0, other)], "match")


def test_the_verdict_follows_from_the_intervals():
    ends = (0.1, 0.2), (-0.1, 0.2), (0.0, 0.2), (-0.2, -0.1)
    assert [outcome(*each) for each in ends] == ["for", "open", "open", "against"]
    assert verdict([]) == "not measured"
    assert verdict(["for"] * 3) == "shown"
    assert verdict(["for", "open"]) == verdict(["open"]) == "not shown at this scale"
    assert verdict(["for", "for", "against"]) == verdict(["open", "against"]) == "contradicted"


# --- renders, the run and the page


def test_renders_satisfy_the_prompt_and_not_the_negative():
    classifier = load_classifier()
    for index, pair in enumerate(PAIRS):
        scenes = wanted_scenes(pair, 40, np.random.default_rng(index))
        assert len(scenes) == 40
        assert there(scenes, pair.prompt).all()
        assert not there(scenes, pair.negative).any()
        reading = read(classifier, real(pair, 40, (0, index)))  # another judge than the scene's own facts
        assert matches(reading, pair.prompt).float().mean() > 0.9
        assert shows(reading, pair.negative).float().mean() < 0.1
    with pytest.raises(ValueError, match="must be possible"):
        wanted_scenes(replace(PAIRS[0], negative="star"), 4, np.random.default_rng(0))


def test_cells_are_drawn_once_each_and_have_names_of_their_own():
    cells = cells_of(tuple(TABLES))
    assert len({cell.name for cell in cells}) == len({cell.stem for cell in cells}) == len(cells)
    places = [cell.variant for cell in cells]
    assert sum(a != b for a, b in itertools.pairwise(places)) == len(set(places)) - 1
    for kind, variants in VARIANTS_OF.items():
        wanted = {cell for claim in claims_of(kind) for each in claim.contrasts for _, cell in each.terms}
        assert wanted <= set(cells)
        for contrasted in (each for claim in claims_of(kind) for each in claim.contrasts):
            for size in (FULL, QUICK):  # paired: of as many samples
                assert len({size.samples(cell) for _, cell in contrasted.terms}) == 1, contrasted.says
        assert {cell.variant for cell in wanted} == set(variants)


def test_a_cut_run_goes_on_and_draws_no_cell_twice(tmp_path, monkeypatch):
    cells, drawn = [Cell("renders", 4), Cell("few", 1), Cell("few", 1, CFG[0]), Cell("few", 2)], []

    def stand_in(cell, each):
        if len(drawn) == 2 and not (tmp_path / "cut").exists():
            (tmp_path / "cut").touch()
            raise KeyboardInterrupt
        drawn.append(cell.name)
        return torch.rand(len(PAIRS) * each, 3, 32, 32, generator=torch.Generator().manual_seed(len(drawn))) * 2 - 1

    monkeypatch.setattr(running, "pictures_of", stand_in)
    with pytest.raises(KeyboardInterrupt):
        running.run(cells, TINY, tmp_path, workers=1)
    assert [running.row_of(cell, TINY, tmp_path) is not None for cell in cells] == [True, True, False, False]
    assert running.run(cells, TINY, tmp_path, workers=1) == 2
    assert running.run(cells, TINY, tmp_path, workers=1) == 0
    assert drawn == [cell.name for cell in cells]
    assert running.run(cells[:1], replace(TINY, replicates=21), tmp_path, workers=1) == 1  # of another size: drawn anew
    monkeypatch.setattr(running, "digest", lambda variant: "other weights")
    assert running.row_of(cells[1], TINY, tmp_path) is None
    assert not list(tmp_path.glob("*.part"))


def test_cells_whose_files_are_damaged_are_drawn_again(tmp_path, monkeypatch):
    cells, drawn = [Cell("renders", 4), Cell("few", 1), Cell("few", 2)], []

    def stand_in(cell, each):
        drawn.append(cell.name)
        same = torch.Generator().manual_seed(cell.steps)  # the same as before, and so a file of the same length
        return torch.rand(len(PAIRS) * each, 3, 32, 32, generator=same) * 2 - 1

    monkeypatch.setattr(running, "pictures_of", stand_in)
    assert running.run(cells, TINY, tmp_path, workers=1) == 3
    row, arrays, flipped = (
        tmp_path / f"{cell.stem}{end}" for cell, end in zip(cells, (".json", ".npz", ".npz"), strict=True)
    )
    reference = running.reference_file(TINY, tmp_path)
    content = flipped.read_bytes()
    drawn.clear()
    row.write_bytes(row.read_bytes()[:50])
    arrays.write_bytes(arrays.read_bytes()[:-100])
    reference.write_bytes(b"")
    # One bit of the first array: the length and the table of contents at the end stay.
    flipped.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    assert not running.is_whole(reference)
    assert running.run(cells, TINY, tmp_path, workers=1) == 3
    assert drawn == [cell.name for cell in cells]
    assert running.is_whole(reference)
    assert all(running.row_of(cell, TINY, tmp_path) is not None for cell in cells)
    update(TINY, tmp_path, tmp_path / "evidence")
    assert {row["name"] for row in load_rows(tmp_path / "evidence" / "cells.csv")} == set(drawn)


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    work = tmp_path_factory.mktemp("evidence")
    cells = [Cell("renders", 4), Cell("few", 1), Cell("few", 1, NAG[0]), Cell("few", 1, CFG[1])]
    assert running.run(cells, TINY, work, workers=1) == 4
    update(TINY, work, work / "evidence")
    write(work / "evidence", work / "evidence.md")
    return work


def test_the_page_is_made_from_the_csv_files_alone(quick_run, tmp_path):
    text = (quick_run / "evidence.md").read_text()
    assert "This is a quick run" in text
    write(shutil.copytree(quick_run / "evidence", tmp_path / "evidence"), tmp_path / "evidence.md")
    assert (tmp_path / "evidence.md").read_text() == text
    rows = load_rows(tmp_path / "evidence" / "cells.csv")
    assert [row["method"] for row in rows if row["variant"] == "few"] == ["no negative", "CFG 2", NAG[0].label]
    for row in rows:
        assert f"{100 * float(row['clean_match']):.1f} [" in text
        assert f"{float(row['frechet']):.3f} [" in text
    steered = next(row for row in rows if row["method"] == NAG[0].label)
    plain = next(row for row in rows if row["method"] == NONE.label and row["variant"] == "few")
    assert float(steered["match_gain"]) == pytest.approx(float(steered["match"]) - float(plain["match"]), abs=2e-5)
    assert "`teacher`: not shipped, or not measured yet" in text
    claims = load_rows(tmp_path / "evidence" / "claims.csv")
    assert {row["claim"] for row in claims} >= {"NAG removes in few steps", "CFG collapses in few steps"}
    assert "not measured whole (1 of 5)" in text
    assert running.replicates_of(Cell("few", 1), quick_run).samples == TINY.samples(Cell("few", 1)) * len(PAIRS)
    assert TINY.samples(Cell("teacher", MANY)) != TINY.samples(Cell("few", 1))


def test_rows_that_are_not_kept_stay_while_their_weights_do(quick_run, tmp_path):
    folder = tmp_path / "evidence"
    shutil.copytree(quick_run / "evidence", folder)
    before = [(folder / name).read_text() for name in ("cells.csv", "claims.csv")]
    update(TINY, tmp_path / "empty", folder)
    assert [(folder / name).read_text() for name in ("cells.csv", "claims.csv")] == before
    for name in ("cells.csv", "claims.csv"):
        weights = {row["weights"] for row in load_rows(folder / name)}
        text = (folder / name).read_text()
        for each in weights:
            text = text.replace(each, "0" * 12)
        (folder / name).write_text(text)
    update(TINY, tmp_path / "empty", folder)
    assert load_rows(folder / "cells.csv") == load_rows(folder / "claims.csv") == []


def test_the_committed_page_is_that_of_the_committed_csv_files(tmp_path):
    folder = ROOT / "docs" / "evidence"
    if not (folder / "cells.csv").exists():
        pytest.skip("docs/evidence/cells.csv is not there: `make evidence` writes it")
    write(shutil.copytree(folder, tmp_path / "evidence"), tmp_path / "evidence.md")
    assert (tmp_path / "evidence.md").read_text() == (ROOT / "docs" / "evidence.md").read_text()
    assert {row["size"] for row in load_rows(folder / "cells.csv")} == {"full"}


def test_a_student_is_measured_and_takes_the_place_of_its_older_row(pipe, tmp_path):
    pipe.unet.save_pretrained(tmp_path / "unet")
    row = measure_student(tmp_path / "unet", "fixed 2", 1, TINY, tmp_path)
    assert (row["architecture"], row["kappa"], row["seed"]) == ("cross", "fixed 2", "1")
    assert 0 <= float(row["clean_match"]) <= 1
    for seed in ("2", "1"):
        add_student(row | {"seed": seed, "match": f"0.{seed}"}, tmp_path / "evidence" / "students.csv")
    add_student(row | {"match": "0.7"}, tmp_path / "evidence" / "students.csv")
    rows = load_rows(tmp_path / "evidence" / "students.csv")
    assert [(each["seed"], each["match"]) for each in rows] == [("1", "0.7"), ("2", "0.2")]
    write(tmp_path / "evidence", tmp_path / "evidence.md")
    assert "| cross | fixed 2 | 2 |" in (tmp_path / "evidence.md").read_text()
    # A worked example: means 2 and 4, variances 1 and 1, three each: t(4) = 2.776, half width 2.776 (2/3)^1/2.
    assert welch([1, 2, 3], [3, 4, 5]) == pytest.approx((-2, -2 - 2.2666, -2 + 2.2666), abs=1e-3)
    assert welch([1.0], [1.0, 2.0]) is None


def test_the_command_line_says_what_it_needs(capsys):
    for arguments, message in (
        (["--only", "few_step"], "--only must name tables among few_steps"),
        (["student", "--kappa", "fixed 2"], "student needs --unet, --kappa and --seed"),
        (["student", "--unet", "x", "--seed", "1", "--kappa", "2"], "must begin with 'fixed' or 'random'"),
        (["--workers", "0"], "--workers must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            command.parse(arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.parse(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in TABLES)
    assert command.parse(["--quick"]).docs == command.parse(["--quick"]).work != command.parse([]).work
    assert Steering(cfg=2, empty=True, pag=1, rule="nag", scale=5).label == "CFG 2 (empty) + PAG 1 + NAG 5 / 2.5 / 0.25"
