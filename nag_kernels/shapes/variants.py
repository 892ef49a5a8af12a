# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Train the other denoisers of shapes, on the autoencoder, text encoder and classifier that are there already.

    teacher        the UNet of the four steps, taught flow matching over all noise levels again: many steps, and CFG
    joint_teacher  a joint-attention transformer (SD3's), taught flow matching from nothing
    joint_few      the same, distilled to four steps

One-step students are made by `python -m nag_kernels.distill`; `--adopt FOLDER` takes one from where that left it:

    python -m nag_kernels.shapes.variants student --adopt out/distill/cross
"""

import argparse
import csv
import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..whole_file import whole_file, write_text
from .classifier import load_classifier
from .evaluate import evaluate
from .generator import build_transformer, load_generator, match_flow, straighten
from .parallel import launch
from .pipeline import VARIANTS, WEIGHTS, ShapesPipeline, folder_of, load, save_denoiser
from .settings import QUICK, Settings

SETTINGS = {
    "teacher": Settings(flow_steps=2000, flow_rate=1e-3, flow_visited=0.2),
    "joint_teacher": Settings(flow_steps=5000, flow_rate=2e-3, compiled=True, watch_every=1250),
    "joint_few": Settings(few_steps=300),
}
# Of sampling, in the evaluation.
STEPS = {"teacher": 25, "student": 1, "joint_teacher": 25, "joint_few": 4, "joint_student": 1}


def start(variant: str, folder: Path, go_on: bool = False) -> ShapesPipeline:
    """The pipeline that training of `variant` starts from: its own weights in `folder`, where it is to `go_on`."""
    if go_on:
        return load(folder, variant=variant)
    if variant == "teacher":
        return load(folder)
    if variant == "joint_few":
        return load(folder, variant="joint_teacher")
    parts = load(folder).components
    return ShapesPipeline(**parts | {"unet": None, "transformer": build_transformer()})


def _run(rank: int, workers: int, settings: Settings, variant: str, folder: Path, path: Path, go_on: bool) -> None:
    torch.manual_seed(settings.seed + 70 + 10 * list(SETTINGS).index(variant) + rank)
    settings = replace(settings, seed=settings.seed + 1000 * go_on)  # other pictures than before
    learn = straighten if variant == "joint_few" else match_flow
    learn(settings, rank, start(variant, folder, go_on), folder / "classifier.safetensors", path)


def train(variant: str, settings: Settings, folder: Path, work: Path, go_on: bool = False) -> dict:
    """Train `variant`, write it into `folder` in float16, and return what its `training.json` holds."""
    work.mkdir(parents=True, exist_ok=True)
    path, began = work / f"{variant}.safetensors", time.monotonic()
    launch(_run, settings.workers, settings, variant, folder, path, go_on)
    spent = (time.monotonic() - began) / 60
    before = json.loads(record(folder, variant).read_text()) if go_on else None
    pipe = start(variant, folder, go_on)
    load_generator(pipe, path)
    save_denoiser(pipe.denoiser.half(), folder_of(variant, folder))
    return judge(variant, asdict(settings), folder, spent, before)


def judge(variant: str, settings: dict, folder: Path, minutes: float, before: dict | None = None) -> dict:
    """Evaluate `variant` as it loads from `folder`; write and return its `training.json`.

    before: that of the weights that its training went on from.
    """
    steps = STEPS[variant]
    classifier = load_classifier(folder / "classifier.safetensors")
    judged = settings.get("judged", Settings.judged) // (2 if steps == 25 else 1)
    found = evaluate(load(folder, variant=variant), classifier, judged, seed=999, steps=steps)
    report = {"settings": settings, "minutes": minutes, "torch": torch.__version__}
    report |= {"before": before} if before else {}
    report |= {"sampling steps": steps, "samples": found}
    write_text(record(folder, variant), json.dumps(report, indent=1) + "\n")
    return report


def record(folder: Path, variant: str) -> Path:
    return folder_of(variant, folder) / "training.json"


def adopt(variant: str, run: Path, folder: Path) -> dict:
    """Take the student that `nag_kernels.distill` left in `run` as `variant`; returns its `training.json`."""
    target = folder_of(variant, folder)
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        with whole_file(target / name) as part:
            shutil.copyfile(run / "student" / name, part)
    with (run / "metrics.csv").open() as file:
        minutes = sum(float(row["seconds"]) for row in csv.DictReader(file)) / 60
    return judge(variant, json.loads((run / "settings.json").read_text()), folder, minutes)


def copy_shipped(folder: Path) -> None:
    """Put into `folder` what it lacks of the shipped weights, those of the variants included."""
    parts = [(path, folder / path.name) for path in WEIGHTS.iterdir()]
    parts += [
        (path, folder_of(name, folder)) for name in VARIANTS if name != "few" and (path := folder_of(name)).is_dir()
    ]
    for source, target in parts:
        if not target.exists():
            with whole_file(target) as part:
                shutil.copytree(source, part) if source.is_dir() else shutil.copyfile(source, part)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m nag_kernels.shapes.variants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("variant", nargs="*", help=f"what to train, in turn (default: {', '.join(SETTINGS)})")
    parser.add_argument("--folder", type=Path, help="weights to start from and to add to (default: that of --work with "
                        "'-weights' behind it, a copy of the shipped ones: these stay unless their folder is named)")  # fmt: skip
    parser.add_argument(
        "--work", type=Path, help="folder for what training leaves (default: out/shapes, out/shapes-quick)"
    )
    parser.add_argument("--go-on", action="store_true", help="train on from the variant's own weights in the folder")
    parser.add_argument("--quick", action="store_true", help="a few steps of each, to see that everything runs")
    parser.add_argument("--workers", type=int, default=Settings.workers, help="processes, one thread each")
    parser.add_argument("--adopt", type=Path, help="the folder of a distillation, whose student becomes the variant")
    options = parser.parse_args(arguments)
    known = ("student", "joint_student") if options.adopt else tuple(SETTINGS)
    if options.adopt and len(options.variant) != 1:
        parser.error(f"--adopt needs one variant, got {len(options.variant)}")
    for variant in options.variant:
        if variant not in known:
            parser.error(f"variant must be among {', '.join(known)}, got {variant!r}")
    options.work = options.work or Path("out/shapes-quick" if options.quick else "out/shapes")
    if options.folder is None:
        options.folder = options.work.with_name(f"{options.work.name}-weights")
        copy_shipped(options.folder)
    elif options.folder.resolve() == WEIGHTS.resolve():
        options.folder = WEIGHTS  # whose variants lie apart
    for variant in options.variant or SETTINGS:
        if options.adopt:
            report = adopt(variant, options.adopt, options.folder)
        else:
            settings = replace(QUICK if options.quick else SETTINGS[variant], workers=options.workers)
            report = train(variant, settings, options.folder, options.work, options.go_on)
        for name, value in report["samples"].items():
            print(f"{variant}, {report['sampling steps']} steps: {name:36s} {value:.3f}")


if __name__ == "__main__":
    main()
