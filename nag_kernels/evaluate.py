# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Draw the same prompts and seeds by several methods of guidance, and score the pictures.

A method is none, cfg:SCALE, nag[:SCALE[:TAU[:ALPHA]]], nasa[:SCALE] or vsf:SCALE[:BIAS]; what is left out is the paper's for the
model. cfg:7+nag is both at once. Finished pictures stay on disk, so a run that was cut goes on where it was.
"""

import argparse
import contextlib
import functools
import hashlib
import inspect
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from . import user_errors
from .checks import check_scalars
from .hub import go_offline_if_need_be
from .prompt_files import read_rows
from .user_errors import UserError
from .whole_file import whole_file, write_text

try:
    from PIL import Image, ImageDraw, ImageFont
    from rich.console import Console
    from tqdm import tqdm

    from .diffusers import guide
    from .diffusers.models.registry import find_denoisers, spec_of
    from .score_tables import kept_scores, reasons, table, write_scores
    from .scores import Drawn, Judges
    from .shapes.loading import load_model, try_guidance
except ImportError as error:
    raise user_errors.missing("nag_kernels.evaluate", __name__, error) from error

UNIVERSAL = "Low resolution, blurry"  # the negative prompt of NAG's tables
RULES = {"nag": ("nag_scale", "nag_tau", "nag_alpha"), "nasa": ("nag_scale",),
         "vsf": ("nag_scale", "negative_logit_bias")}  # fmt: skip
SHOWN = 8  # prompts on the contact sheet


@dataclass(frozen=True)
class Item:
    """One line of the prompts file. reference: a real picture of it, or ""."""

    prompt: str
    negative: str
    reference: str = ""


@dataclass(frozen=True)
class Method:
    """How pictures are guided. cfg: the scale of classifier-free guidance, None is off.  rule: None is none."""

    name: str
    cfg: float | None = None
    rule: str | None = None
    settings: tuple[float, ...] = ()

    @property
    def folder(self) -> str:
        return self.name.replace(":", "_").replace("+", "-")


def parse_method(text: str) -> Method:
    """Raises ValueError for what is no method."""
    cfg: float | None = None
    rule: str | None = None
    settings: tuple[float, ...] = ()
    for part in text.split("+"):
        name, *numbers = part.split(":")
        try:
            values = tuple(float(x) for x in numbers)
        except ValueError:
            raise ValueError(f"method {text!r}: settings must be numbers, got {':'.join(numbers)!r}") from None
        if not all(math.isfinite(x) or (name == "nag" and place == 1 and x > 0) for place, x in enumerate(values)):
            raise ValueError(f"method {text!r}: settings must be finite (but tau, which inf turns off), got {numbers}")
        if name == "none" and text == "none":
            continue
        if name == "cfg" and len(values) == 1 and cfg is None:
            cfg = values[0]
        elif name in RULES and len(values) <= len(RULES[name]) and rule is None and (values or name != "vsf"):
            rule, settings = name, values
            if name == "nag":
                check_scalars(f"method {text!r}", *values)
        else:
            raise ValueError(
                f"method must be none, cfg:SCALE, nag[:SCALE[:TAU[:ALPHA]]], nasa[:SCALE], vsf:SCALE[:BIAS], or cfg and one of "
                f"the others with a +, got {text!r}"
            )
    return Method(text, cfg, rule, settings)


def read_prompts(path: Path, negative: str) -> list[Item]:
    """What `prompt_files.read_rows` reads; `negative` is that of an entry that has none."""
    return [Item(row["prompt"], row["negative"] or negative, row["reference"]) for row in read_rows(path)]


def check_references(path: Path, items: list[Item]) -> None:
    """Raises UserError where a prompts file names pictures that are not there."""
    absent = [item.reference for item in items if item.reference and not (path.parent / item.reference).is_file()]
    if absent:
        raise UserError(f"{path}: {len(absent)} of the pictures that it names are not there, the first is {absent[0]}")


def draw(
    pipe: Any, method: Method, items: list[Item], seeds: list[int], options: argparse.Namespace
) -> list[Image.Image]:
    """One picture for each item and seed, all in one call of the pipeline."""
    known = inspect.signature(type(pipe).__call__).parameters
    scale = "true_cfg_scale" if "true_cfg_scale" in known else "guidance_scale"  # FLUX.1's guidance_scale is no CFG
    call = {"num_inference_steps": options.steps, scale: spec_of(find_denoisers(pipe)[0]).cfg_above} | options.call
    negatives = [item.negative for item in items]
    if method.cfg is not None:
        call |= {scale: method.cfg, "negative_prompt": negatives}
    context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if method.rule is not None:
        settings: dict[str, Any] = dict(zip(RULES[method.rule], method.settings, strict=False))
        context = guide(pipe, negatives, rule=method.rule, end=options.end, **settings)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with context:
        return pipe([item.prompt for item in items], generator=generators, **call).images


def manifest(options: argparse.Namespace, items: list[Item]) -> dict[str, Any]:
    """What the pictures of a folder are of."""
    names = ("model", "steps", "seed", "images", "dtype", "call", "end")
    ours = {name: getattr(options, name) for name in names}
    ours["prompts"] = hashlib.sha256(json.dumps([asdict(x) for x in items]).encode()).hexdigest()
    return ours


def check_manifest(options: argparse.Namespace, items: list[Item]) -> None:
    """Pictures in one folder come from one setting. Raises UserError naming what differs from the run that began it."""
    path, ours = options.out / "manifest.json", manifest(options, items)
    if path.exists():
        try:
            theirs = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, which says what the pictures there are of, is damaged: remove {options.out}, or "
                            "give another --out") from error  # fmt: skip
        other = [f"{name} {theirs.get(name)!r}, now {ours[name]!r}" for name in ours if theirs.get(name) != ours[name]]
        if other:
            raise UserError(
                f"{options.out} was begun with {'; '.join(other)}: give another --out, or the same settings"
            )


def is_whole(path: Path) -> bool:
    """Whether there is a picture, of which nothing is cut off or overwritten."""
    try:
        with Image.open(path) as picture:
            picture.verify()
    except (OSError, ValueError, SyntaxError):  # what Pillow raises for files that are no pictures, or torn
        return False
    return True


def generate(
    load: Callable[[], Any], methods: list[Method], items: list[Item], options: argparse.Namespace
) -> dict[str, list[Drawn]]:
    """Draws what is not there whole yet; the model is loaded only if there is something to draw.

    A picture's noise depends on its place in the list alone, not on the batch.
    """
    load = functools.cache(load)
    tasks = [(i * options.images + j, item) for i, item in enumerate(items) for j in range(options.images)]
    drawn = {}
    for method in methods:
        folder = options.out / method.folder
        folder.mkdir(parents=True, exist_ok=True)
        paths = {number: folder / f"{number:06d}.png" for number, _ in tasks}
        missing = [task for task in tasks if not is_whole(paths[task[0]])]
        with tqdm(total=len(tasks), initial=len(tasks) - len(missing), desc=method.name, unit="picture") as bar:
            for start in range(0, len(missing), options.batch):
                numbers, part = zip(*missing[start : start + options.batch], strict=True)
                seeds = [options.seed + number for number in numbers]
                for number, picture in zip(numbers, draw(load(), method, list(part), seeds, options), strict=True):
                    with whole_file(paths[number]) as file:
                        picture.save(file)
                bar.update(len(numbers))
        drawn[method.name] = [Drawn(paths[number], item.prompt, item.negative) for number, item in tasks]
    return drawn


def reference_folder(options: argparse.Namespace, items: list[Item]) -> Path | None:
    """--reference, or the pictures that the prompts file names, linked into one folder."""
    if options.reference is not None or not any(item.reference for item in items):
        return options.reference
    folder = options.out / "reference"
    folder.mkdir(exist_ok=True)
    for number, item in enumerate(items):
        source = options.prompts.parent / item.reference
        if item.reference and not (link := folder / f"{number:06d}{source.suffix}").exists():
            link.unlink(missing_ok=True)  # a link to what has been moved
            link.symlink_to(source.resolve())
    return folder


def shapes_judge(drawn: list[Drawn]) -> Any:
    """Reads shapes' pictures, each beside its own prompt and negative."""
    from .shapes.loading import shapes_judge as judge_of

    judge = judge_of()

    def read(pictures: list[Image.Image]) -> tuple[list[bool], list[bool]]:
        shows, clean = [False] * len(drawn), [False] * len(drawn)
        for case in dict.fromkeys((x.prompt, x.negative) for x in drawn):
            places = [i for i, x in enumerate(drawn) if (x.prompt, x.negative) == case]
            for i, s, c in zip(places, *judge([pictures[i].convert("RGB") for i in places], *case), strict=True):
                shows[i], clean[i] = s, c
        return shows, clean

    return read


def contact_sheet(drawn: dict[str, list[Drawn]], images: int, path: Path) -> None:
    """The first picture of the first prompts: rows are prompts, columns are methods."""
    tile, left, top = 160, 200, 30
    firsts = {name: each[::images][:SHOWN] for name, each in drawn.items()}
    rows = len(next(iter(firsts.values())))
    sheet = Image.new("RGB", (left + len(firsts) * (tile + 6), top + rows * (tile + 6)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, (name, each) in enumerate(firsts.items()):
        pen.text((left + column * (tile + 6), 8), name, "black", font)
        for row, one in enumerate(each):
            if column == 0:
                lines = [one.prompt[i : i + 26] for i in range(0, min(len(one.prompt), 104), 26)]
                words = "\n".join([*lines, f"without: {one.negative}"[:52]])
                pen.multiline_text((6, top + row * (tile + 6)), words, "black", font)
            with Image.open(one.path) as picture:
                scaled = picture.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(scaled, (left + column * (tile + 6), top + row * (tile + 6)))
    with whole_file(path) as part:
        sheet.save(part)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nag_kernels.evaluate",
        description=__doc__,
        epilog="Example: python -m nag_kernels.evaluate --model black-forest-labs/FLUX.1-schnell --prompts coco.txt --steps 4 "
        "--methods none nag --reference coco/val2017 --dtype bfloat16. docs/evaluate.md repeats the papers' tables.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="shapes", help="shapes, or any diffusers model id or folder (default: shapes)")
    add(
        "--prompts", type=Path, help="one prompt a line; or .csv or .jsonl with prompt, negative, reference (a picture)"
    )
    add("--negative", default=UNIVERSAL, help=f"where the file names none (default: {UNIVERSAL!r})")
    add("--methods", nargs="+", default=["none", "nag"], metavar="METHOD", help="see above (default: none nag)")
    add("--steps", type=int, default=4, help="denoising steps (default: 4)")
    add("--images", type=int, default=1, help="pictures for each prompt (default: 1)")
    add("--batch", type=int, default=8, help="pictures drawn at once (default: 8)")
    add("--seed", type=int, default=0, help="seed of the first picture; the others count up (default: 0)")
    add("--end", type=float, default=1.0, help="the part of the steps that nag, nasa and vsf guide (default: 1, all)")
    add(
        "--call", nargs="*", default=[], metavar="NAME=VALUE", help="more arguments of the pipeline's call: height=1024"
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    add(
        "--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of the model (default: float32)"
    )
    add("--clip", default="openai/clip-vit-large-patch14", help="CLIP model's id or folder (default: %(default)s)")
    add("--reference", type=Path, help="folder of real pictures, for FID")
    add("--hps-version", default="v2.0", choices=("v2.0", "v2.1"), help="of HPSv2 (default: v2.0)")
    add("--out", type=Path, default=Path("out/evaluate"), help="folder for all results (default: out/evaluate)")
    options = parser.parse_args(arguments)
    user_errors.check_at_least(parser, options, 1, "steps", "images", "batch")
    user_errors.check_device(parser, options.device)
    user_errors.check_seed(parser, options.seed, options.images)
    user_errors.check_folder(parser, options.out)
    if not 0 < options.end <= 1:
        parser.error(f"--end must be above 0 and at most 1, got {options.end:g}")
    if options.reference is not None and not options.reference.is_dir():
        parser.error(f"--reference must be a folder of pictures, there is none at {options.reference}")
    if options.prompts is None and options.model != "shapes":
        parser.error(f"--prompts must be given for --model {options.model}")
    call = {}
    for pair in options.call:
        name, equals, value = pair.partition("=")
        if not equals:
            parser.error(f"--call must be NAME=VALUE, got {pair!r}")
        try:
            call[name] = json.loads(value)
        except json.JSONDecodeError:
            call[name] = value
    options.call = call
    if taken := {"prompt", "negative_prompt", "num_inference_steps", "generator"} & set(call):
        parser.error(f"--call cannot set {', '.join(sorted(taken))}: --prompts, --negative, --steps and --seed do")
    try:
        options.methods = [parse_method(text) for text in dict.fromkeys(options.methods)]
    except ValueError as error:
        parser.error(str(error))
    return options


def checked_model(options: argparse.Namespace, items: list[Item]) -> Any:
    """The pipeline, which takes these texts, methods and arguments: so no picture is drawn for a run that will be refused."""
    pipe = load_model(options.model, options.device, getattr(torch, options.dtype))
    known = inspect.signature(type(pipe).__call__).parameters
    unknown = [name for name in options.call if name not in known]
    if unknown and not any(x.kind is x.VAR_KEYWORD for x in known.values()):
        raise UserError(
            f"--call: a {type(pipe).__name__} has no argument {', '.join(unknown)}; it has {', '.join(known)}"
        )
    with user_errors.named("the model refused", *user_errors.DRAWING):
        if options.model == "shapes":
            pipe.encode_prompt([text for item in items for text in (item.prompt, item.negative)])
        for method in options.methods:
            if method.rule is not None:
                settings = dict(zip(RULES[method.rule], method.settings, strict=False))
                try_guidance(pipe, items[0].negative, rule=method.rule, end=options.end, **settings)
    write_text(options.out / "manifest.json", json.dumps(manifest(options, items), indent=1))
    return pipe


@user_errors.in_one_sentence("nag_kernels.evaluate")
def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.prompts is None:
        from .demo import CASES

        items = [Item(*case) for case in CASES]
    else:
        items = read_prompts(options.prompts, options.negative)
        check_references(options.prompts, items)
    go_offline_if_need_be(*({options.model, options.clip} - {"shapes"}))
    check_manifest(options, items)
    with user_errors.named("drawing ended", *user_errors.DRAWING):
        drawn = generate(lambda: checked_model(options, items), options.methods, items, options)
    ours = options.model == "shapes"
    judge = shapes_judge(next(iter(drawn.values()))) if ours else None
    judges = Judges(options.clip, reference_folder(options, items), options.device, options.hps_version, judge)
    shown = "{desc} {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left"
    with tqdm(total=len(drawn), desc="scores", bar_format=shown) as bar:
        scores = {name: judges.all(each, bar) for name, each in drawn.items()}
    scores = kept_scores(scores, options.out / "scores.csv")
    write_scores(scores, options.out / "scores.csv")
    contact_sheet(drawn, options.images, options.out / "contact_sheet.png")
    Console(width=None if sys.stdout.isatty() else 100).print(table(scores, f"{options.model}, {options.steps} steps"))
    for line in reasons(scores):
        print(line)
    print(f"written: {options.out / 'scores.csv'}, {options.out / 'contact_sheet.png'}")


if __name__ == "__main__":
    main()
