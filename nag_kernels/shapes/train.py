# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Train shapes from nothing: autoencoder, classifier, text encoder, generator, four-step distillation, evaluation.

Every stage starts from the seed alone and leaves one file in the working folder, so that a run that was interrupted
goes on with the stage it was in and ends with the same weights.
"""

import argparse
import json
import os
import platform
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from ..user_errors import in_one_sentence, named
from ..whole_file import whole_file, write_text
from .autoencoder import train_autoencoder
from .classifier import load_classifier
from .classifier_training import accuracy, train_classifier
from .evaluate import evaluate
from .generator import build_pipeline, load_generator, train_few_steps, train_flow
from .parallel import launch
from .pipeline import ShapesPipeline, load
from .settings import QUICK, Settings
from .text_encoder import train_text

STAGES = {
    "vae.safetensors": train_autoencoder,
    "classifier.safetensors": train_classifier,
    "text.safetensors": train_text,
    "flow.safetensors": train_flow,
    "few.safetensors": train_few_steps,
}


def _run(rank: int, workers: int, settings: Settings, work: Path) -> None:
    """Every stage that `work` does not hold yet, in this process of several."""
    log = work / "minutes.json"
    minutes = json.loads(log.read_text()) if log.exists() else {}
    for name in [name for name in STAGES if name not in minutes]:
        dist.barrier()  # so that nobody begins while a file of the stage before is still written
        began, spent = time.monotonic(), time.process_time()
        STAGES[name](settings, rank, work)
        if rank == 0:
            busy = time.process_time() - spent
            minutes[name] = {"clock": (time.monotonic() - began) / 60, "cpu per process": busy / 60}
            write_text(log, json.dumps(minutes))


def write_weights(settings: Settings, work: Path, out: Path) -> ShapesPipeline:
    """The pipeline and the classifier, in float16, as they are shipped; returns the pipeline as it loads from there."""
    pipe = build_pipeline(settings.shift)
    pipe.vae.load_state_dict(load_file(str(work / "vae.safetensors")))
    load_generator(pipe, work / "few.safetensors")
    for part in (pipe.text_encoder, pipe.denoiser, pipe.vae):
        part.half()
    pipe.save_pretrained(str(out))
    # transformers 5 writes its new name for this class, which version 4 does not know; both know the old one.
    for name in ("model_index.json", "tokenizer/tokenizer_config.json"):
        write_text(out / name, (out / name).read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    with whole_file(out / "classifier.safetensors") as part:
        shutil.copyfile(work / "classifier.safetensors", part)
    return load(out)


def train(settings: Settings, work: Path, out: Path) -> dict:
    """Run every stage that `work` does not hold yet, write `out`, evaluate; returns what `training.json` holds."""
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_text(work / "settings.json", json.dumps(asdict(settings), indent=1))
    log = work / "minutes.json"
    kept = json.loads(log.read_text()) if log.exists() else {}
    for name in kept:
        print(f"{STAGES[name].__name__}: kept from {work / name}")
    if set(STAGES) - set(kept):
        launch(_run, settings.workers, settings, work)
    minutes = json.loads(log.read_text())
    pipe = write_weights(settings, work, out)
    found = {
        "classifier": accuracy(load_classifier(out / "classifier.safetensors"), 10 * settings.judged, seed=999),
        "samples": evaluate(pipe, load_classifier(out / "classifier.safetensors"), settings.judged, seed=999),
    }
    total = {key: sum(each[key] for each in minutes.values()) for key in ("clock", "cpu per process")}
    report = {
        "settings": asdict(settings),
        "minutes": minutes | {"all": total},
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "evaluation": found,
    }
    write_text(out / "training.json", json.dumps(report, indent=1) + "\n")
    return report


@in_one_sentence("nag_kernels.shapes.train")
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m nag_kernels.shapes.train", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the weights (default: that of --work with "
                        "'-weights' behind it; the shipped ones are replaced only where their folder is named)")  # fmt: skip
    parser.add_argument(
        "--work", type=Path, help="folder for what each stage leaves (default: out/shapes, out/shapes-quick)"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of each stage, to see that everything runs")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    options = parser.parse_args(arguments)
    settings = replace(QUICK if options.quick else Settings(), seed=options.seed)
    options.work = options.work or Path("out/shapes-quick" if options.quick else "out/shapes")
    options.out = options.out or options.work.with_name(f"{options.work.name}-weights")
    kept = options.work / "settings.json"
    with named(f"{kept} is damaged: remove {options.work} or name another --work", ValueError):
        other = kept.exists() and json.loads(kept.read_text()) != asdict(settings)
    if other:
        parser.error(f"{options.work} holds stages of a run with other settings; remove it or name another --work")
    report = train(settings, options.work, options.out)
    for name, spent in report["minutes"].items():
        print(f"{name:24s} {spent['clock']:6.1f} min by the clock, {spent['cpu per process']:6.1f} min of each core")
    for group, numbers in report["evaluation"].items():
        for name, value in numbers.items():
            print(f"{group}: {name:36s} {value:.3f}")


if __name__ == "__main__":
    main()
