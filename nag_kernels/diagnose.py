# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What nag_scale, nag_tau and nag_alpha do in a model: tables, pictures and settings to start from.

One prompt is drawn four times from the same noise: at the settings given, with a smaller alpha, with a smaller tau, and at
the settings suggested. Written are layers.png (clipped tokens and movement by layer and step, distribution of the norm ratio)
and pictures.png (the pictures, and how far a token is moved depending on its norm ratio).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from . import checks, user_errors
from .published import SHAPES
from .whole_file import whole_file

try:
    import matplotlib.figure  # noqa: F401  # the pictures come last
    from rich.console import Console
    from tqdm import tqdm

    from .diffusers.diagnose import Findings, bin_middles, diagnose, new_figure, ratio_axis
    from .shapes.loading import load_model, try_guidance
except ImportError as error:
    raise user_errors.missing("nag_kernels.diagnose", __name__, error) from error

SMALL = 4  # alpha, and what tau is above 1, are divided by this to show what each of them does
COLOURS = ("#1f5fa8", "#e08214", "#2b8a3e", "#8e44ad")


def plot_comparison(runs: dict[str, tuple[Findings, list[Any]]], plain: list[Any], path: str | Path) -> None:
    """A picture [png] of several runs: how far tokens are moved depending on R, and what was drawn from the same noise."""
    shown, rows = min(6, len(plain)), 1 + len(runs)
    figure = new_figure(14, 1.35 * rows)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    axes = left.subplots()
    for (name, (found, _)), colour in zip(runs.items(), COLOURS, strict=False):
        cell = found.cell()
        counts, moved = cell.counts.double().numpy(), cell.moved_by_ratio.numpy()
        enough = counts > max(8, 1e-4 * cell.tokens)
        axes.plot(bin_middles()[enough], 100 * moved[enough] / counts[enough], color=colour, label=name)
    ratio_axis(axes, [found.cell() for found, _ in runs.values()])
    axes.set_ylabel("moved, |out - Z+| / |Z+|, %")
    axes.set_title("how far a token is moved")
    axes.legend(fontsize=8)
    tiles = right.subplots(rows, shown, squeeze=False)
    named = {"no negative": plain} | {name: pictures for name, (_, pictures) in runs.items()}
    for line, (name, pictures) in zip(tiles, named.items(), strict=True):
        for tile, picture in zip(line, pictures, strict=False):
            tile.imshow(picture)
            tile.set_xticks([])
            tile.set_yticks([])
        line[0].set_title(name, loc="left", fontsize=9)
    figure.savefig(path)


def readable(table: Any, width: int) -> Any:
    """The table; where a terminal is narrow, its names are whole, if on several lines, and so are its numbers."""
    if width < 120:
        table.columns[0].overflow = "fold"
        table.padding = (0, 0)
        for column in table.columns[1:]:
            column.header, column.no_wrap = column.header.replace("difference", "differ"), True
    return table


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nag_kernels.diagnose",
        description=__doc__,
        epilog="Example: python -m nag_kernels.diagnose --model stabilityai/stable-diffusion-3.5-large-turbo --steps 8 "
        "--prompt 'a portrait of a fox' --negative 'low resolution, blurry'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="shapes", help="shapes, or any diffusers model id or folder (default: shapes)")
    add("--prompt", default="a large circle", help="what to draw (default: a large circle)")
    add("--negative", default="red", help="what to keep out of the picture (default: red)")
    add("--scale", type=float, help="nag_scale (default: the paper's for the model; shapes 5)")
    add("--tau", type=float, help="nag_tau (default: 2.5)")
    add("--alpha", type=float, help="nag_alpha (default: the paper's for the model; shapes 0.2)")
    add("--layers", help="the layers to guide and to measure, 0-9,12 or up_blocks (default: all)")
    add("--end", type=float, default=1.0, help="the part of the steps that is guided (default: 1, all)")
    add("--cfg-scale", type=float, default=1.0, help="classifier-free guidance beside it; 1 = none (default: 1)")
    add("--clipped", type=float, default=0.05, help="for the suggestion: the share of tokens to clip (default: 0.05)")
    add("--moved", type=float, default=0.4, help="for the suggestion: the most to move tokens by (default: 0.4)")
    add("--steps", type=int, default=4, help="denoising steps (default: 4)")
    add("--samples", type=int, help="pictures, drawn at once (default: 64 of shapes, else 2)")
    add("--seed", type=int, default=0, help="seed of the first picture; the others count up (default: 0)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    add("--out", type=Path, default=Path("out/settings"), help="folder for the pictures (default: out/settings)")
    options = parser.parse_args(arguments)
    ours = options.model == "shapes"
    if options.samples is None:
        options.samples = 64 if ours else 2
    if ours:
        options.scale = SHAPES.nag_scale if options.scale is None else options.scale
        options.alpha = SHAPES.nag_alpha if options.alpha is None else options.alpha
    user_errors.check_at_least(parser, options, 1, "steps", "samples")
    user_errors.check_finite(parser, options, "cfg_scale", "end", "moved")
    user_errors.check_device(parser, options.device)
    user_errors.check_seed(parser, options.seed, options.samples)
    user_errors.check_folder(parser, options.out)
    for name, low, high in (("end", 0, 1), ("clipped", 0, 1), ("moved", 0, float("inf"))):
        value = getattr(options, name)
        if not (low < value < high or (name == "end" and value == high)):
            parser.error(
                f"--{name} must be above {low}{'' if name == 'moved' else f' and below {high}'}, got {value:g}"
            )
    try:
        checks.check_scalars("diagnose", options.scale, options.tau, options.alpha)
        if (options.scale is not None and options.scale <= 1) or options.alpha == 0:
            raise ValueError("diagnose: --scale must be above 1 and --alpha above 0: nothing is steered otherwise")
    except ValueError as error:
        parser.error(str(error))
    return options


@user_errors.in_one_sentence("nag_kernels.diagnose")
def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    pipe = load_model(options.model, options.device)
    with user_errors.named("the model refused", *user_errors.DRAWING):
        if options.model == "shapes":
            pipe.encode_prompt([options.prompt, options.negative])
        settings = {"nag_scale": options.scale, "nag_tau": options.tau, "nag_alpha": options.alpha}
        try_guidance(pipe, options.negative, end=options.end, layers=options.layers, **settings)
    with (
        user_errors.named("drawing ended", *user_errors.DRAWING),
        tqdm(total=5, desc="draws", unit="draw") as bar,
    ):
        draw_and_say(pipe, options, bar)


def draw_and_say(pipe: Any, options: argparse.Namespace, bar: Any) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)

    def draw() -> list[Any]:
        generators = [torch.Generator().manual_seed(options.seed + i) for i in range(options.samples)]
        prompts, steps = [options.prompt] * options.samples, options.steps
        call = {"num_inference_steps": steps, "generator": generators, "guidance_scale": options.cfg_scale}
        images = pipe(prompts, **call).images
        bar.update()
        return images

    def run(scale: float | None, tau: float | None, alpha: float | None) -> tuple[Findings, list[Any]]:
        settings: dict[str, Any] = {"nag_scale": scale, "nag_tau": tau, "nag_alpha": alpha}
        with diagnose(pipe, options.negative, end=options.end, layers=options.layers, **settings) as found:
            return found, draw()

    plain = draw()
    given = run(options.scale, options.tau, options.alpha)
    found = given[0]
    proposal = found.suggest(options.clipped, options.moved)
    scale, tau, alpha = found.nag_scale, found.nag_tau, found.nag_alpha
    small_tau = round(1 + (min(tau, found.cell().quantile(0.5)) - 1) / SMALL, 2)
    runs = {
        f"tau {tau:g}, alpha {alpha:g}": given,
        f"alpha small: tau {tau:g}, alpha {alpha / SMALL:g}": run(scale, tau, alpha / SMALL),
        f"tau small: tau {small_tau:g}, alpha {alpha:g}": run(scale, small_tau, alpha),
        f"suggested: tau {proposal.nag_tau:g}, alpha {proposal.nag_alpha:g}": run(
            scale, proposal.nag_tau, proposal.nag_alpha
        ),
    }
    bar.close()
    for by in ("layer", "step"):
        console.print(readable(found.table(by), console.width))
    with whole_file(options.out / "layers.png") as part:
        found.plot(part)
    with whole_file(options.out / "pictures.png") as part:
        plot_comparison(runs, plain, part)
    print(f"suggested: nag_scale={scale:g}, nag_tau={proposal.nag_tau:g}, nag_alpha={proposal.nag_alpha:g}")
    print(proposal.why)
    print(f"pictures: {options.out / 'layers.png'}, {options.out / 'pictures.png'}")


if __name__ == "__main__":
    main()
