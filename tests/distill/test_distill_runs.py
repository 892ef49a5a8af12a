# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Runs of a distillation: resumed bit for bit and by nothing else, in several processes, from the command line."""

import copy
import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_distillation import TINY, levels, prompts, tiny, tiny_model, weights

from nag_kernels.distill.__main__ import parser, settings_of
from nag_kernels.distill.command import become, file_prompts
from nag_kernels.distill.settings import SHAPES, Settings
from nag_kernels.distill.train import Distillation, distil, refuse_another
from nag_kernels.shapes.parallel import free_port
from nag_kernels.user_errors import UserError


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    distil(whole := tiny(TINY), tmp_path / "whole")
    distil(tiny(TINY), tmp_path / "parts", until=2, save_every=1)
    torch.manual_seed(99)
    distil(second := tiny(TINY), tmp_path / "parts")
    assert second.done == 4
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))
    whole, parts = ((tmp_path / x / "metrics.csv").read_text().splitlines() for x in ("whole", "parts"))
    assert [x.rsplit(",", 1)[0] for x in whole] == [x.rsplit(",", 1)[0] for x in parts]  # but for the seconds
    assert len(whole) == 5


def test_torn_small_files_are_made_good_and_a_torn_checkpoint_is_named(tmp_path):
    distil(whole := tiny(TINY), tmp_path / "whole")
    distil(tiny(TINY), folder := tmp_path / "torn", until=2)
    kept = (folder / "settings.json").read_bytes()
    (folder / "settings.json").write_bytes(kept[:40])
    with (folder / "metrics.csv").open("a") as file:
        file.write("2,1.5")  # of a row that was cut
    (folder / "watch.csv").write_text("")
    distil(second := tiny(TINY), folder)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))
    assert (folder / "settings.json").read_bytes() == kept
    steps = [line.split(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()]
    assert steps == ["step", "1", "2", "3", "4"]
    state = folder / "state.pt"
    for content in (state.read_bytes()[:1000], b""):
        state.write_bytes(content)
        with pytest.raises(
            UserError, match=f"the checkpoint {state} cannot be read; without it the run begins again: "
        ):
            distil(tiny(TINY), folder)


def nudged(module: torch.nn.Module) -> torch.nn.Module:
    """The same but for the smallest change of its last weight."""
    module = copy.deepcopy(module)
    last = list(module.state_dict().values())[-1].flatten()
    last[-1] = torch.nextafter(last[-1], torch.tensor(9.0))
    return module


def other_run(what: str) -> tuple[Distillation, str]:
    """A run that differs from `tiny(TINY)` in one thing, and what is to be said of it."""
    model, settings, texts = tiny_model(), TINY, prompts
    student, said = tiny_model().module, rf"holds a run with {what} '\w+', asked is '\w+': remove it"
    if what == "teacher":
        model = replace(model, module=nudged(model.module))
    elif what == "start_student":
        student = nudged(student)
    elif what == "text_encoders":
        model = replace(model, encoders=(torch.nn.Linear(2, 2),))
    elif what == "levels":
        model = replace(model, levels=levels("flow"))
        said = "levels 'epsilon, 1000 timesteps .*', asked is 'flow, shift 2, 1000 timesteps'"
    elif what == "prompts":
        texts = lambda step, count: [text.replace("xxxx", "yyyy") for text in prompts(step, count)]  # noqa: E731
        said = "prompts must give the 1 steps"
    else:
        settings = replace(TINY, student_rate=2e-3, kappa_lora=2.0)
        said = r"with kappa_lora \[0.5, 4.0\], asked is 2.0; student_rate 0.001, asked is 0.002: remove"
    return Distillation(model, student, texts, settings, Accelerator(cpu=True)), said


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run after its first step, which a test leaves as it is."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("begun")
    for _ in range(2):
        distil(tiny(TINY), folder, until=1)
    return folder


@pytest.mark.parametrize("what", ["settings", "teacher", "start_student", "text_encoders", "levels", "prompts"])
def test_a_checkpoint_of_another_run_is_refused_by_what_differs(what, begun):
    before = {path.name: path.read_bytes() for path in begun.iterdir()}
    other, said = other_run(what)
    with pytest.raises(ValueError, match=said):
        distil(other, begun)
    assert {path.name: path.read_bytes() for path in begun.iterdir()} == before
    with pytest.raises(ValueError, match=said):
        other.load_state_dict(torch.load(begun / "state.pt"))
    assert other.done == 0


def test_a_folder_that_does_not_say_what_it_came_from_is_refused(tmp_path):
    distil(tiny(TINY), tmp_path, until=1)
    kept = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps({k: v for k, v in kept.items() if k != "teacher"} | {"gone": 1}))
    with pytest.raises(
        ValueError, match=r"a run with teacher not recorded, asked is '\w+'; gone 1, asked is not recorded"
    ):
        distil(tiny(TINY), tmp_path)


def test_other_mixed_precision_is_another_run():
    refuse_another({"mixed_precision": "no"}, {"mixed_precision": "no"}, "x")
    with pytest.raises(ValueError, match="x holds a run with mixed_precision 'no', asked is 'bf16': remove it or name"):
        refuse_another({"mixed_precision": "no"}, {"mixed_precision": "bf16"}, "x")
    assert tiny(TINY).record["mixed_precision"] == "no"


def test_a_prompts_file_that_changed_is_refused_where_it_was_read(tmp_path):
    path = tmp_path / "prompts.txt"

    def run(lines: list[str]) -> Distillation:
        path.write_text("\n".join(lines))
        model = tiny_model()
        return Distillation(model, copy.deepcopy(model.module), file_prompts(path, 0), TINY, Accelerator(cpu=True))

    lines = ["a" * (1 + k % 5) + str(k) for k in range(20)]
    distil(first := run(lines), tmp_path / "run", until=2)
    read, later = first.prompts(1, 4)[0], first.prompts(2, 4)[0]
    for changed in ([read[::-1] if x == read else x for x in lines], [*lines, "one more"], lines[1:]):
        with pytest.raises(ValueError, match=r"prompts must give the 2 steps .* is the file"):
            distil(run(changed), tmp_path / "run")
    # What was not read yet decides nothing yet: what follows is what the new file gives from the start.
    changed = ["longer than it was" if x == later else x for x in lines]
    distil(gone_on := run(changed), tmp_path / "run")
    distil(whole := run(changed), tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(gone_on), strict=True))


def test_the_student_and_its_average_move_apart_from_the_teacher(tmp_path):
    run = tiny(TINY)
    first, seen = copy.deepcopy(run.student), []
    look = lambda student: seen.append(student.conv_out.weight.clone()) or {"mean": 1.0}  # noqa: E731
    distil(run, tmp_path, look, watch_every=2)
    assert len(seen) == 3
    assert torch.equal(seen[0], first.conv_out.weight)
    assert not torch.equal(seen[2], first.conv_out.weight)
    assert not torch.equal(seen[2], run.student.conv_out.weight)  # it is the averaged one that is looked at
    base = {name.replace(".base_layer", ""): each for name, each in run.model.module.named_parameters()}
    assert all(torch.equal(each, base[name]) for name, each in first.named_parameters())
    (tmp_path / "state.pt").unlink()  # a run that was cut before its first checkpoint looks before its first step again
    distil(tiny(TINY), tmp_path, look, watch_every=2)
    assert [line[0] for line in (tmp_path / "watch.csv").open()] == ["s", "0", "2", "4"]


def worker(rank: int, port: int, folder: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # a forked process has that of the tests before
    become(rank, 2, port)
    torch.set_default_dtype(torch.float64)
    run = tiny(TINY)
    assert (run.accelerator.num_processes, run.part) == (2, slice(2 * rank, 2 * rank + 2))
    numbers = [run.step() for _ in range(2)]
    torch.save(([each.detach() for each in weights(run)], numbers), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_are_one_with_the_joined_batch(tmp_path):
    """In float64: AdamW divides by the gradient, and where that is tiny it would make much of float32's rounding."""
    # Forked processes need not import everything again; but autograd's threads of a GPU cannot be forked.
    begin = "spawn" if torch.cuda.is_available() else "fork"
    torch.multiprocessing.start_processes(worker, (free_port(), str(tmp_path)), nprocs=2, start_method=begin)
    (first, told), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.set_default_dtype(torch.float64)
    try:
        run = tiny(TINY)
        start = [each.detach().clone() for each in weights(run)]
        numbers = [run.step() for _ in range(2)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert start[0].dtype == torch.float64
    away = lambda x: sum((a - b).square().sum() for a, b in zip(x, weights(run), strict=True)).sqrt()  # noqa: E731
    assert away(first) < 1e-4 * away(start)
    for name in ("student_norm", "lora_norm"):  # of the averaged gradient, whose length AdamW does not tell
        assert [each[name] for each in told] == pytest.approx([each[name] for each in numbers], rel=1e-3)


def test_prompts_of_a_file_come_once_each(tmp_path):
    (tmp_path / "p.txt").write_text("a\nb\n\nc\n")
    prompts = file_prompts(tmp_path / "p.txt", 0)
    said = [text for step in range(3) for text in prompts(step, 2)]
    assert sorted(said[:3]) == sorted(said[3:]) == ["a", "b", "c"]
    assert prompts(1, 2) == said[2:4]
    (tmp_path / "p.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        file_prompts(tmp_path / "p.txt", 0)


def test_the_command_line_sets_the_settings():
    read = lambda *words: settings_of(parser().parse_args(words))  # noqa: E731
    assert read("cross") == SHAPES
    assert read("cross", "--kappa", "2").kappa_frozen == 2.0
    ranges = read("joint", "--kappa", "0.5", "3", "--kappa-lora", "1", "--steps", "7")
    assert (ranges.kappa_frozen, ranges.kappa_lora, ranges.steps) == ((0.5, 3.0), 1.0, 7)
    assert read("--model", "x").student_rate == Settings().student_rate


@pytest.mark.parametrize("wrong", [
    {"kappa_frozen": (4.0, 0.5)}, {"weight": "sds"}, {"lora_targets": "some"}, {"t_low": 0.9, "t_high": 0.1},
    {"text_dropped": 1.5}, {"lora_steps": 0},
])  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)
