# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Draws and measures cells, several at once, and keeps each in two small files, so that a cut run goes on where it was."""

import functools
import hashlib
import json
import signal
import time
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nag_kernels.shapes.classifier import load_classifier
from nag_kernels.shapes.parallel import one_thread_each
from nag_kernels.shapes.pipeline import WEIGHTS, ShapesPipeline, folder_of, load
from nag_kernels.whole_file import whole_file, write_text

from .cells import PAIRS, REAL, Cell, Size
from .frechet import Features
from .measures import MEASURES, Reference, Replicates, interval, judge, measure, reference
from .methods import draw
from .renders import real

SHOWN = 4  # pictures of each pair that are kept


@functools.cache
def digest(variant: str, folder: Path = WEIGHTS) -> str | None:
    """What a cell of this variant depends on (weights, configurations, pairs), in 12 hex digits; None where the variant is
    not shipped."""
    parts = [folder / "vae", folder / "classifier.safetensors"]
    if variant not in REAL:
        parts += [folder_of(variant, folder), *(folder / part for part in ("text_encoder", "scheduler", "tokenizer"))]
    if not all(part.exists() for part in parts):
        return None
    files = [file for part in parts for file in [part, *sorted(part.rglob("*"))] if file.is_file()]
    found = hashlib.sha256(repr(PAIRS).encode())
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


@functools.lru_cache(maxsize=1)
def _pipe(variant: str) -> ShapesPipeline:
    return load(variant=variant)


@functools.lru_cache(maxsize=1)
def judges(file: Path) -> tuple[torch.nn.Module, Features, Reference]:
    """Classifier, features and the moments of real renders, which `write_reference` put into `file`."""
    classifier = load_classifier()
    with np.load(file) as kept:
        moments = [
            torch.from_numpy(kept[name]) for name in ("mean", "covariance", "mean_quadrants", "covariance_quadrants")
        ]
    return classifier, Features(classifier), Reference(tuple(moments[:2]), tuple(moments[2:]))


def reference_file(size: Size, work: Path) -> Path:
    return work / f"reference-{size.reference}-{digest(REAL[0])}.npz"


def write_reference(size: Size, work: Path) -> None:
    file = reference_file(size, work)
    if not is_whole(file):
        found = reference(Features(load_classifier()), size)
        named = zip(("mean", "covariance", "mean_quadrants", "covariance_quadrants"),
                    (*found.whole, *found.quadrants), strict=True)  # fmt: skip
        with whole_file(file) as part:
            np.savez(part, **{name: value.numpy() for name, value in named})


def pictures_of(cell: Cell, each: int) -> Tensor:
    """[N, 3, 32, 32] in [-1, 1], `each` of every pair, pair by pair."""
    if cell.variant not in REAL:
        return draw(_pipe(cell.variant), cell.method, cell.steps, each)
    pictures = torch.cat([real(pair, each, (2, index)) for index, pair in enumerate(PAIRS)])
    if cell.variant == "decoded renders":
        vae = _pipe("few").vae
        with torch.inference_mode():
            parts = pictures.split(64)
            pictures = torch.cat([vae.decode(vae.encode(part).latent, return_dict=False)[0] for part in parts])
        pictures = pictures.clamp(-1, 1)
    return pictures


def draw_cell(cell: Cell, size: Size, work: Path) -> None:
    """Draw and measure one cell, and write `<stem>.npz` (samples, replicates) and then `<stem>.json` (the row)."""
    began, each = time.perf_counter(), size.samples(cell)
    classifier, features, against = judges(reference_file(size, work))
    pictures = pictures_of(cell, each)
    samples = judge(classifier, features, pictures)
    found = measure(samples, against, size.replicates)
    shown = pictures.unflatten(0, (len(PAIRS), each))[:, :SHOWN]
    kept = {
        "whole": samples.whole.astype(np.float16),
        "quadrants": samples.quadrants.astype(np.float16),
        "pictures": ((shown + 1) * 127.5).round().to(torch.uint8).numpy(),
        **{f"flag {name}": flags for name, flags in samples.flags.items()},
        **{f"replicates {name}": values for name, values in found.items()},
    }
    with whole_file(work / f"{cell.stem}.npz") as part:
        np.savez_compressed(part, **kept)
    row = {
        "name": cell.name, "weights": digest(cell.variant), "size": asdict(size), "samples": len(pictures),
        "seconds": round(time.perf_counter() - began, 1), "method": asdict(cell.method),
        "measures": {name: interval(values, name) for name, values in found.items()},
    }  # fmt: skip
    write_text(work / f"{cell.stem}.json", json.dumps(row, indent=1))


def is_whole(file: Path) -> bool:
    """Whether a .npz is there, each of its arrays as it was written (by the checksums of the file)."""
    if not file.exists():
        return False
    now = file.stat()
    return _is_whole(file, now.st_size, now.st_mtime_ns)


@functools.cache
def _is_whole(file: Path, size: int, written: int) -> bool:
    """`size` and `written` are for the cache: a row is asked for often."""
    try:
        with zipfile.ZipFile(file) as arrays:
            return arrays.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError):
        return False


def row_of(cell: Cell, size: Size, work: Path) -> dict | None:
    """The kept row of a cell, None where it was not drawn, drawn with other weights, pairs or size, or its files are damaged."""
    try:
        row = json.loads((work / f"{cell.stem}.json").read_text(encoding="utf-8"))
        same = row["name"] == cell.name and row["weights"] == digest(cell.variant) and row["size"] == asdict(size)
        return row if same and set(row["measures"]) == set(MEASURES) and is_whole(work / f"{cell.stem}.npz") else None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def replicates_of(cell: Cell, work: Path) -> Replicates:
    """Every measure of a kept cell."""
    with np.load(work / f"{cell.stem}.npz") as kept:
        return Replicates(len(kept["flag match"]), {name: kept[f"replicates {name}"] for name in MEASURES})


def missing_variants(cells: list[Cell]) -> list[str]:
    """The variants among `cells` that are not shipped."""
    return [variant for variant in dict.fromkeys(cell.variant for cell in cells) if digest(variant) is None]


def run(cells: list[Cell], size: Size, work: Path, workers: int = 2) -> int:
    """Draw those of `cells` that are shipped and not kept yet, each once; how many were drawn. Ctrl-C loses at most those
    under way."""
    work.mkdir(parents=True, exist_ok=True)
    absent = missing_variants(cells)
    todo = [cell for cell in cells if cell.variant not in absent and row_of(cell, size, work) is None]
    if not todo:
        return 0
    write_reference(size, work)
    work_of = {cell: (cell.forwards + 2) * size.samples(cell) for cell in todo}  # 2: to decode and to judge
    bar = tqdm(total=round(sum(work_of.values()) * len(PAIRS) / 1000), desc="cells", unit="k", mininterval=1,
               bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left{postfix}")  # fmt: skip
    done = 0.0
    with bar:
        for count, cell in enumerate(_drawn(todo, size, work, workers), 1):
            done += work_of[cell] * len(PAIRS) / 1000
            bar.set_postfix_str(f"{count} of {len(todo)}: {cell.name}", refresh=False)
            bar.update(round(done) - bar.n)
    return len(todo)


def _drawn(todo: list[Cell], size: Size, work: Path, workers: int):
    """The cells as they are finished."""
    if workers == 1:
        for cell in todo:
            draw_cell(cell, size, work)
            yield cell
        return
    one_thread_each()
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        futures = {pool.submit(draw_cell, cell, size, work): cell for cell in todo}
        for future in as_completed(futures):
            if (error := future.exception()) is not None:
                raise RuntimeError(f"cell {futures[future].name!r} failed: {error}") from error
            yield futures[future]
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is under way is finished and kept
    torch.set_num_threads(1)
