# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`diagnose`: what it records against float64 by hand and against two runs side by side, and that it changes nothing."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

from drawing import denoiser, draw
from every_model import TINY, pipeline
from oracles import two_runs_oracle
from PIL import Image
from rich.console import Console
from stand_in import Pipeline
from tiny import TEXT, texts

from nag_kernels import diagnose as command
from nag_kernels.diffusers import diagnose, guide
from nag_kernels.diffusers.attention import base
from nag_kernels.diffusers.denoiser_calls import inner_denoiser
from nag_kernels.diffusers.diagnose import BINS, FIRST_OCTAVE, PER_OCTAVE, Findings
from nag_kernels.diffusers.models.registry import guided_layers

pytestmark = pytest.mark.usefixtures("one_thread")

NEGATIVE = "a large blue dog on grass"
FIRM = {"nag_scale": 8.0, "nag_tau": 3.0, "nag_alpha": 0.5}  # the clip fires on a part of the tokens
KINDS = pytest.mark.parametrize("kind", ["sd15", "pixart", "sd3", "flux"])


def site_names(pipe):
    names = {site: name for name, site in inner_denoiser(denoiser(pipe)).named_modules()}
    return [names[site] for site in guided_layers(denoiser(pipe))]


def by_hand(query, key_positive, value_positive, key_negative, value_negative, scale, tau, alpha, key_shared=None,
            value_shared=None, mask_positive=None, mask_negative=None, **_):  # fmt: skip
    """(R, |Z+ - Z-| / |Z+|, |out - Z+| / |Z+|) of each steered token in float64, with torch's own attention."""
    branches = []
    texts = ((key_positive, value_positive, mask_positive), (key_negative, value_negative, mask_negative))
    for *text, mask in texts:
        shared = (key_shared, value_shared)
        key, value = (x if s is None else torch.cat([s, x], 1) for s, x in zip(shared, text, strict=True))
        if mask is not None:
            mask = F.pad(mask, (key.shape[1] - mask.shape[1], 0), value=True)[:, None, None]
        parts = (x.double().transpose(1, 2) for x in (query, key, value))
        branches.append(F.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2).flatten(2))
    p, n = branches
    s, t, a = (x.double().reshape(-1, 1, 1) for x in (scale, tau, alpha))
    g = s * p - (s - 1) * n
    norm = p.abs().sum(-1, keepdim=True)
    ratio = g.abs().sum(-1, keepdim=True) / norm
    out = a * g * torch.minimum(ratio, t) / ratio + (1 - a) * p
    found = (ratio, (p - n).abs().sum(-1, keepdim=True) / norm, (out - p).abs().sum(-1, keepdim=True) / norm)
    steered = (s != 1).flatten().expand(len(p))
    return [x[steered].flatten() for x in found]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@KINDS
def test_what_is_recorded_equals_float64_by_hand(kind, guidance_scale, monkeypatch):
    pipe, calls = pipeline(kind), []
    operation = base.fused_guided_attention

    def watched(*arguments, **options):
        calls.append(by_hand(*arguments, **options))
        return operation(*arguments, **options)

    monkeypatch.setattr(base, "fused_guided_attention", watched)
    with diagnose(pipe, NEGATIVE, **FIRM) as found:
        draw(pipe, prompt=["a cat", "two red birds in a tree"], guidance_scale=guidance_scale)
    names = found.layers  # in the order in which they ran: a UNet's middle comes before what goes up
    assert sorted(names) == sorted(site_names(pipe))
    assert found.steps == [0, 1, 2, 3]
    assert len(calls) == 4 * len(names)
    partly = 0
    for place, (ratio, difference, moved) in enumerate(calls):
        cell = found.cell(names[place % len(names)], place // len(names))
        assert cell.tokens == ratio.numel()
        assert cell.clipped == pytest.approx((ratio > 3).double().mean().item(), abs=1e-9)
        assert cell.difference == pytest.approx(difference.mean().item(), rel=1e-4)
        assert cell.moved == pytest.approx(moved.mean().item(), rel=1e-4)
        bins = ((ratio.log2() - FIRST_OCTAVE) * PER_OCTAVE).floor().long().clamp(-1, BINS - 2) + 1
        assert (torch.bincount(bins, minlength=BINS) - cell.counts).abs().sum() <= 2  # at the edge of a bin
        assert cell.moved_by_ratio.sum().item() == pytest.approx(moved.sum().item(), rel=1e-4)
        for share in (0.25, 0.5, 0.9):
            wanted = ratio.sort().values[math.ceil(share * ratio.numel()) - 1].item()
            assert cell.quantile(share) == pytest.approx(wanted, rel=0.03)
        partly += 0 < cell.clipped < 1
    assert partly
    whole = torch.cat([ratio for ratio, _, _ in calls])
    assert found.cell().clipped == pytest.approx((whole > 3).double().mean().item(), abs=1e-9)


@pytest.mark.parametrize("kind", TINY)
@torch.no_grad()
def test_every_family_clips_what_two_runs_clip(kind):
    tiny, pipe = TINY[kind], Pipeline(TINY[kind])
    masks = [None, None]
    if tiny.seen is not None:
        pairs = zip(tiny.lengths, tiny.seen, strict=True)
        masks = [torch.arange(length) < torch.tensor(seen)[:, None] for length, seen in pairs]
    both = zip(("positive", "negative"), texts(tiny.rows, *tiny.lengths, TEXT, torch.float32), masks, strict=True)
    pipe.texts = {name: tiny.text(x, mask) for name, x, mask in both}
    settings = {"nag_scale": 8.0, "nag_tau": tiny.tau, "nag_alpha": 0.5}
    sites = guided_layers(pipe.transformer)
    _, clipped = two_runs_oracle(tiny, pipe.transformer, sites, pipe.arguments, *pipe.texts.values(),
                                 *settings.values())  # fmt: skip
    with guide(pipe, "negative", **settings):
        wanted = pipe(pipe.prompt)
    with diagnose(pipe, "negative", **settings) as found:
        got = pipe(pipe.prompt)
    assert torch.equal(got, wanted)
    assert sorted(found.layers) == sorted(site_names(pipe))
    cells = [found.cell(layer, 0) for layer in found.layers]
    for cell, share in zip(cells, clipped, strict=True):
        assert cell.clipped == pytest.approx(share, abs=1.5 / cell.tokens)


@KINDS
def test_the_guided_output_has_the_same_bits_and_nothing_stays(kind):
    pipe = pipeline(kind)
    plain, cls = draw(pipe), type(pipe)
    before = [site.processor for site in guided_layers(denoiser(pipe))]
    with guide(pipe, NEGATIVE, **FIRM):
        wanted = draw(pipe)
    with diagnose(pipe, NEGATIVE, **FIRM) as found:
        assert torch.equal(draw(pipe), wanted)
    tokens = found.cell().tokens
    assert type(pipe) is cls
    assert all(x is site.processor for x, site in zip(before, guided_layers(denoiser(pipe)), strict=True))
    assert torch.equal(draw(pipe), plain)
    with guide(pipe, NEGATIVE, **FIRM):
        draw(pipe)
    assert found.cell().tokens == tokens


@KINDS
def test_scale_1_has_ratio_1_and_clips_and_moves_nothing(kind):
    pipe = pipeline(kind)
    with diagnose(pipe, NEGATIVE, nag_scale=1.0) as found:
        draw(pipe)
    cell = found.cell()
    assert cell.counts[1 - FIRST_OCTAVE * PER_OCTAVE] == cell.tokens > 0  # the bin that begins at 1
    assert cell.clipped == 0
    assert cell.moved == 0
    assert cell.difference > 0.01
    with pytest.raises(ValueError, match="nag_scale must be above 1 and nag_alpha above 0 for a suggestion, got 1"):
        found.suggest()


@pytest.mark.parametrize(("window", "steps"), [({"end": 0.5}, [0, 1]), ({"start": 0.25, "end": 0.75}, [1, 2])])
def test_steps_that_are_not_guided_are_not_recorded(window, steps):
    pipe = pipeline("sd15")
    with diagnose(pipe, NEGATIVE, **FIRM, **window) as found:
        draw(pipe)
        draw(pipe)  # the same steps once more
    assert found.steps == steps
    once = (3 * 8 * 8 + 4 * 4) * len(steps)  # the tokens of four layers
    assert found.cell().tokens == 2 * once


def test_both_denoisers_of_wan_22():
    pipe = pipeline("wan 2.2")
    with diagnose(pipe, NEGATIVE, **FIRM) as found:
        draw(pipe)
    second = [x for x in found.layers if x.startswith("transformer_2.")]
    assert len(second) == len(found.layers) / 2
    assert {step for step in found.steps if found._raw.get((second[0], step))} == {1, 2, 3}


@pytest.mark.parametrize("rule", ["nasa", "vsf"])
def test_a_rule_without_tau_is_refused(rule):
    with (
        pytest.raises(ValueError, match=f"rule must be 'nag', got '{rule}': it has no nag_tau"),
        diagnose(pipeline("sd15"), NEGATIVE, nag_scale=0.5, rule=rule),
    ):
        pass


def test_a_compiled_denoiser_is_refused_and_the_pipeline_put_back():
    pipe = pipeline("sd15")
    cls = type(pipe)
    pipe.unet.compile()
    with pytest.raises(ValueError, match="must not be compiled"), diagnose(pipe, NEGATIVE):
        pass
    assert type(pipe) is cls


def test_half_precision_inference_mode_and_no_call():
    pipe = pipeline("sd15").to(torch.bfloat16)
    with diagnose(pipe, NEGATIVE, nag_tau=math.inf) as found:
        with pytest.raises(ValueError, match="nothing was recorded: was StableDiffusionPipeline called"):
            found.cell()
        with torch.inference_mode():
            draw(pipe)
        draw(pipe)
    cell = found.cell()
    assert cell.clipped == 0
    assert math.isfinite(cell.moved)
    assert 0.5 < cell.quantile(0.5) < 10


def hand_made(scale=5.0, tau=2.5, alpha=0.25, name="layer"):
    """Findings of one layer of two channels, in which Z+ = (1, 0), and Z- = (1 - x, 0) for x = 0.01 to 1."""
    found = Findings(pipeline("sd15"), scale, tau, alpha)
    found._names = {"layer": name}
    x = torch.arange(1, 101, dtype=torch.double) / 100
    positive = torch.stack([torch.ones(100), torch.zeros(100)], -1).double()[None]
    negative = positive - torch.stack([x, torch.zeros(100)], -1)[None]
    found.branches("layer", positive, negative, tuple(torch.tensor(v) for v in (scale, tau, alpha)))
    return found


def test_a_case_worked_out_on_paper():
    cell = hand_made().cell()  # R = 1 + 4 x, clipped where x > 0.375; moved by alpha min(4 x, 1.5)
    assert cell.tokens == 100
    assert cell.clipped == pytest.approx(0.63)  # 0.38 to 1
    assert cell.difference == pytest.approx(0.505)
    wanted = sum(0.25 * min(0.04 * i, 1.5) for i in range(1, 101)) / 100
    assert cell.moved == pytest.approx(wanted)
    for share in (0.1, 0.5, 0.95):
        assert cell.quantile(share) == pytest.approx(1 + 4 * share, rel=0.02)


def test_a_suggestion_is_the_stated_rule():
    found = hand_made()
    reach = found.cell().moved / 0.25  # about 1.22
    proposal = found.suggest()
    assert (proposal.nag_scale, proposal.nag_tau, proposal.nag_alpha) == (5, 2.5, 0.25)
    assert "starting point" in proposal.why
    assert found.suggest(moved=0.2).nag_alpha == pytest.approx(0.2 / reach, abs=0.005)
    assert hand_made(scale=1.5).suggest(clipped=0.1).nag_tau == pytest.approx(1 + 0.5 * 0.9, rel=0.03)
    assert hand_made(scale=1.5).suggest().nag_alpha == 1
    for wrong in ({"clipped": 0.0}, {"clipped": 1.0}, {"moved": 0.0}):
        with pytest.raises(ValueError, match="clipped must be between 0 and 1 and moved above 0"):
            found.suggest(**wrong)
    with pytest.raises(ValueError, match="nag_alpha above 0 for a suggestion, got 5 and 0"):
        hand_made(alpha=0.0).suggest()


def test_tokens_of_zeros_and_of_nothing_finite():
    found = Findings(pipeline("sd15"), 5.0, 2.5, 0.25)
    found._names = {"layer": "layer"}
    positive = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [torch.nan, 1.0], [1.0, 1.0]]])
    negative = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]])
    found.branches("layer", positive, negative, tuple(torch.tensor(v) for v in (5.0, 2.5, 0.25)))
    cell = found.cell()
    assert cell.tokens == 4
    assert cell.counts[-1] == 2  # from nothing to something, and not a number
    assert cell.clipped == 0.25


def test_tables_and_pictures_of_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    command.main(["--steps", "2", "--samples", "2", "--device", "cpu", "--out", str(tmp_path / "new")])
    said = capsys.readouterr().out
    assert re.search(r"│ all +│ +1024 │ +\d", said)
    assert re.search(r"mid_block\.\S+attn2 +│ +64 │", said)
    assert re.search(r"suggested: nag_scale=5, nag_tau=[\d.]+, nag_alpha=[\d.]+", said)
    for name in ("layers.png", "pictures.png"):
        assert Image.open(tmp_path / "new" / name).width > 900
    with pytest.raises(ValueError, match="by must be 'layer' or 'step', got 'head'"):
        hand_made().table("head")


def test_the_command_measures_the_layers_that_are_chosen(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    draw = ["--steps", "2", "--samples", "2", "--device", "cpu", "--out", str(tmp_path)]
    command.main([*draw, "--layers", "mid_block"])
    said = capsys.readouterr().out
    assert re.search(r"│ all +│ +64 │", said)
    assert "up_blocks" not in said
    with pytest.raises(SystemExit):
        command.main([*draw, "--layers", "nowhere"])
    assert "layers must be all, numbers and ranges from 0 to 6" in capsys.readouterr().err


def test_tables_are_readable_at_80_columns(capsys):
    found = hand_made(name="transformer_blocks.10.attentions.1.transformer_blocks.0.attn2")
    for by in ("layer", "step"):
        Console(width=80).print(command.readable(found.table(by), 80))
    said = capsys.readouterr().out
    assert "…" not in said
    folded = [line.split("│")[1].strip() for line in said.splitlines() if line.count("│") > 2]
    assert found.layers[0] in "".join(folded)
    for name in ("tokens", "clipped", "R 5 %", "R 99 %", "differ", "moved"):
        assert said.count(name) >= 2
    wide = found.table("layer")
    assert command.readable(wide, 140).padding == found.table("layer").padding


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--samples", "-1"], ["--no-such"]])
def test_arguments_that_do_not_fit_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        command.parse(arguments)
    assert "error" in capsys.readouterr().err


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        command.parse(["--help"])
    said = capsys.readouterr().out
    for option in (
        "model",
        "prompt",
        "negative",
        "scale",
        "tau",
        "alpha",
        "layers",
        "end",
        "steps",
        "samples",
        "seed",
        "out",
    ):
        assert re.search(rf"--{option} [A-Z_]+\s+\S+", said), option
