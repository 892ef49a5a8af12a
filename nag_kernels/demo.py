# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Draw the same seeds with no negative prompt, CFG, NASA and NAG, and count what the negative prompt did.

The default model, "shapes", ships with the project, and so does a classifier that reads its pictures.
"""

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import availability, checks, user_errors
from .published import SHAPES
from .whole_file import whole_file

try:
    from PIL import Image, ImageDraw, ImageFont
    from rich.console import Console
    from rich.table import Table
    from tqdm import tqdm

    from .diffusers import guide
    from .shapes.loading import load_model, shapes_judge, try_guidance
except ImportError as error:
    raise user_errors.missing("nag_kernels.demo", __name__, error) from error

CASES = [("a large circle", "red"), ("a blue square", "on white"), ("a circle left of a square", "red")]
METHODS = ("no negative", "CFG", "NASA", "NAG")
BATCH = 64  # pictures drawn at once by shapes
TIMED = 8  # pictures in a timed call
ROUNDS = 7  # timed calls of each method, in turn


@dataclass
class Cell:
    """One prompt drawn by one method."""

    pictures: list[Image.Image] = field(default_factory=list)
    shows: list[bool] = field(default_factory=list)  # still shows the negative; empty where nothing can read pictures
    clean: list[bool] = field(default_factory=list)  # matches the prompt and is clean
    milliseconds: float = 0.0  # per step, median
    backend: str = "none"


def draw(
    pipe: Any, prompt: str, negative: str, method: str, seeds: range, options: argparse.Namespace, **call: Any
) -> Any:
    """One picture per seed, all in one call of the pipeline."""
    context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if method == "CFG":
        call |= {"negative_prompt": [negative] * len(seeds), "guidance_scale": options.cfg_scale}
    else:
        call |= {"guidance_scale": 1.0}
    if method == "NASA":
        context = guide(pipe, negative, nag_scale=options.nasa_scale, rule="nasa")
    if method == "NAG":
        context = guide(pipe, negative, nag_scale=options.scale, nag_tau=options.tau, nag_alpha=options.alpha)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with context:
        return pipe([prompt] * len(seeds), num_inference_steps=options.steps, generator=generators, **call).images


def run_case(
    pipe: Any, prompt: str, negative: str, options: argparse.Namespace, judge: Callable | None, bar: Any = None
) -> dict[str, Cell]:
    """Every method on one prompt: pictures, what they show, and the backend that ran. `bar` counts pictures."""
    cells = {}
    for method in METHODS:
        cell, before = Cell(), availability.counts()
        for start in range(0, options.samples, options.batch):
            seeds = range(options.seed + start, options.seed + min(start + options.batch, options.samples))
            cell.pictures += draw(pipe, prompt, negative, method, seeds, options)
            if bar is not None:
                bar.update(len(seeds))
        ran = [name for name, count in availability.counts().items() if count > before.get(name, 0)]
        if (method in ("NASA", "NAG")) != bool(ran):
            raise RuntimeError(f"demo: {method} on {prompt!r} ran {ran or 'no'} backend of guided attention")
        cell.backend = ", ".join(ran) or "not guided"
        if judge is not None:
            cell.shows, cell.clean = judge(cell.pictures, prompt, negative)
        cells[method] = cell
    plain = [picture.tobytes() for picture in cells["no negative"].pictures]
    if plain == [picture.tobytes() for picture in cells["NAG"].pictures]:
        raise RuntimeError(f"demo: NAG away from {negative!r} left every picture of {prompt!r} as it was")
    return cells


def time_methods(
    pipe: Any, prompt: str, negative: str, options: argparse.Namespace, bar: Any = None
) -> dict[str, float]:
    """Milliseconds per step of a call without decoding: the median of calls that take turns, after one of each."""
    seeds = range(options.seed, options.seed + min(TIMED, options.batch))
    spent: dict[str, list[float]] = {method: [] for method in METHODS}
    for turn in range(ROUNDS + 1):
        for method in METHODS:
            began = time.perf_counter()
            draw(pipe, prompt, negative, method, seeds, options, output_type="latent")
            if pipe.device.type == "cuda":
                torch.cuda.synchronize()
            if bar is not None:
                bar.update(len(seeds))
            if turn:
                spent[method].append((time.perf_counter() - began) * 1000 / options.steps)
    return {method: statistics.median(each) for method, each in spent.items()}


def percent(flags: list[bool]) -> str:
    return f"{100 * sum(flags) / len(flags):.1f} %"


def tables(results: list[tuple[str, str, dict[str, Cell]]], options: argparse.Namespace) -> list[Table]:
    """One for each prompt, a line for each method, and one for all prompts together. Each fits 80 columns."""
    pooled = {
        method: Cell(
            [picture for _, _, cells in results for picture in cells[method].pictures],
            [flag for _, _, cells in results for flag in cells[method].shows],
            [flag for _, _, cells in results for flag in cells[method].clean],
            statistics.mean(cells[method].milliseconds for _, _, cells in results),
            results[0][2][method].backend,
        )
        for method in METHODS
    }
    titled = [(f'"{prompt}" without "{negative}"', cells) for prompt, negative, cells in results]
    found = []
    for title, cells in [*titled, *([("all prompts", pooled)] if len(results) > 1 else [])]:
        each = Table(title=title, title_justify="left")
        each.add_column("method", no_wrap=True, min_width=len("no negative"))
        for name in ("samples", "shows negative", "clean match", "ms per step"):
            each.add_column(name, justify="right", width=max(len(word) for word in [*name.split(), "not read"]))
        each.add_column("backend")
        for method, cell in cells.items():
            shares = (percent(cell.shows), percent(cell.clean)) if cell.shows else ("not read", "not read")
            each.add_row(method, str(len(cell.pictures)), *shares, f"{cell.milliseconds:.1f}", cell.backend)
        found.append(each)
    return found


def choose_seeds(cells: dict[str, Cell], columns: int, rows: int) -> list[int]:
    """Samples to show: half of the rows with the negative in the unguided picture, then without, in seed order."""
    shows = cells["no negative"].shows
    if not shows:
        return list(range(min(columns * rows, len(cells["no negative"].pictures))))
    half = columns * (rows // 2)
    with_it = [i for i, there in enumerate(shows) if there][:half]
    without = [i for i, there in enumerate(shows) if not there][: columns * rows - len(with_it)]
    return with_it + without


def draw_grid(results: list[tuple[str, str, dict[str, Cell]]], options: argparse.Namespace) -> Image.Image:
    """Rows are prompts, columns are methods; a cell shows the same seeds in the same places as its neighbours."""
    columns, rows = (4, 2) if options.model == "shapes" else (2, 1)
    tile = 72 if options.model == "shapes" else 192
    step, left, top, gap, foot = tile + 6, 230, 92, 26, 64
    wide, high = columns * step + gap, rows * step + 54
    image = Image.new("RGB", (left + len(METHODS) * wide, top + len(results) * high + foot), "white")
    pen = ImageDraw.Draw(image)
    big, middle, small = (ImageFont.load_default(size) for size in (25, 20, 16))
    settings = {
        "no negative": "the prompt alone",
        "CFG": f"scale {options.cfg_scale:g}",
        "NASA": f"scale {options.nasa_scale:g}",
        "NAG": f"scale {options.scale:g}, tau {options.tau:g}, alpha {options.alpha:g}",
    }
    for column, method in enumerate(METHODS):
        pen.text((left + column * wide, 20), method, "black", big)
        pen.text((left + column * wide, 54), settings[method], "#555555", small)
    for row, (prompt, negative, cells) in enumerate(results):
        y = top + row * high
        words, lines = prompt.split(), [""]
        for word in words:
            joined = f"{lines[-1]} {word}".strip()
            lines = [*lines[:-1], joined] if middle.getlength(joined) < left - 40 else [*lines, word]
        pen.multiline_text((20, y), "\n".join(lines), "black", middle, spacing=6)
        pen.text((20, y + 28 * len(lines) + 6), f"without: {negative}", "#c01818", middle)
        chosen = choose_seeds(cells, columns, rows)
        for column, method in enumerate(METHODS):
            cell, x = cells[method], left + column * wide
            for place, index in enumerate(chosen):
                at = (x + place % columns * step, y + place // columns * step)
                scaled = cell.pictures[index].convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)
                image.paste(scaled, at)
                shows = bool(cell.shows) and cell.shows[index]
                frame = (at[0] - 2, at[1] - 2, at[0] + tile + 1, at[1] + tile + 1)
                pen.rectangle(frame, outline="#e00000" if shows else "#c8c8c8", width=3 if shows else 1)
            if cell.shows:
                text = f"shows it {percent(cell.shows)}, clean match {percent(cell.clean)}"
                pen.text((x, y + rows * step + 4), text, "#333333", small)
    note = f"{options.model}, {options.steps} steps. The same seeds in every column."
    if results[0][2]["NAG"].shows:
        note += (
            f" Upper row: seeds that show the negative when unguided (red frame); lower row: others."
            f"  Shares over {options.samples} samples."
        )
    pen.text((20, image.height - 42), note, "#333333", small)
    return image


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nag_kernels.demo",
        description=__doc__,
        epilog="Example: python -m nag_kernels.demo --prompt 'a star' --negative 'on black' --scale 8",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--prompt", help="what to draw; needs --negative (default: three pairs in turn)", default=argparse.SUPPRESS
    )
    parser.add_argument("--negative", help="what to keep out of the picture; needs --prompt", default=argparse.SUPPRESS)
    parser.add_argument(
        "--scale",
        type=float,
        default=SHAPES.nag_scale,
        help="NAG: how far to step away from the negative; 1 = not at all",
    )
    parser.add_argument(
        "--tau",
        type=float,
        default=SHAPES.nag_tau,
        help="NAG: longest a guided token may get, in lengths of the unguided",
    )
    parser.add_argument(
        "--alpha", type=float, default=SHAPES.nag_alpha, help="NAG: share of the guided result in the blend, 0 to 1"
    )
    parser.add_argument(
        "--nasa-scale", type=float, default=SHAPES.nasa_scale, help="NASA: share of the negative that is subtracted"
    )
    parser.add_argument("--cfg-scale", type=float, default=3.0, help="CFG: classifier-free guidance; 1 = none")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture; the others count up from it")
    samples = "pictures per prompt and method (default: 256; 2 for other models)"
    parser.add_argument("--samples", type=int, default=argparse.SUPPRESS, help=samples)
    model = "shapes, or any diffusers model id or folder, whose pictures are shown and timed but not read"
    parser.add_argument("--model", default="shapes", help=model)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    parser.add_argument("--out", type=Path, default=Path("out/demo.png"), help="where the picture goes")
    options = parser.parse_args(arguments)
    ours = options.model == "shapes"
    given = [hasattr(options, name) for name in ("prompt", "negative")]
    if any(given) != all(given) or not (ours or all(given)):
        parser.error(
            "--prompt and --negative must be given together" + ("" if ours else f" for --model {options.model}")
        )
    options.cases = [(options.prompt, options.negative)] if all(given) else CASES
    options.samples = getattr(options, "samples", 256 if ours else 2)
    options.batch = min(BATCH if ours else 1, options.samples)
    user_errors.check_at_least(parser, options, 1, "steps", "samples")
    user_errors.check_finite(parser, options, "nasa_scale", "cfg_scale")
    user_errors.check_device(parser, options.device)
    user_errors.check_seed(parser, options.seed, options.samples)
    user_errors.check_folder(parser, options.out.parent)
    try:
        checks.check_scalars("NAG", options.scale, options.tau, options.alpha)
    except ValueError as error:
        parser.error(str(error))
    if options.out.is_dir() or options.out.suffix.lower() not in Image.registered_extensions():
        parser.error(f"--out must be a picture, such as {options.out / 'demo.png'}, got {options.out}")
    return options


def check_cases(pipe: Any, options: argparse.Namespace, judge: Callable | None) -> None:
    """Whether model and judge take these prompts, negatives and settings, before the first picture is drawn."""
    for prompt, negative in options.cases:
        if judge is not None:
            pipe.encode_prompt([prompt, negative])
            judge([Image.new("RGB", (32, 32))], prompt, negative)
        for settings in ({"rule": "nasa", "nag_scale": options.nasa_scale},
                         {"nag_scale": options.scale, "nag_tau": options.tau, "nag_alpha": options.alpha}):  # fmt: skip
            try_guidance(pipe, negative, **settings)


@user_errors.in_one_sentence("nag_kernels.demo")
def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    print(f"loading {options.model}", flush=True)
    pipe = load_model(options.model, options.device)
    judge = shapes_judge() if options.model == "shapes" else None
    results = []
    with user_errors.named("the model refused", *user_errors.DRAWING):
        check_cases(pipe, options, judge)
    pictures = options.samples + (ROUNDS + 1) * min(TIMED, options.batch)  # for each prompt and method
    with (
        user_errors.named("drawing ended", *user_errors.DRAWING),
        tqdm(total=len(options.cases) * len(METHODS) * pictures, unit=" pictures", desc="drawing") as bar,
    ):
        for prompt, negative in options.cases:
            cells = run_case(pipe, prompt, negative, options, judge, bar)
            for method, milliseconds in time_methods(pipe, prompt, negative, options, bar).items():
                cells[method].milliseconds = milliseconds
            results.append((prompt, negative, cells))
    with whole_file(options.out) as part:
        draw_grid(results, options).save(part)
    console = Console(width=None if sys.stdout.isatty() else 80)
    timed = f"ms with {min(TIMED, options.batch)} pictures at once"
    print(f"{options.model}, {options.steps} steps, {options.device}; {timed}")
    for each in tables(results, options):
        console.print(each)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
