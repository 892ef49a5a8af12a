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

import numpy as np
import torch
from rich.console import Console

from .diffusers.diagnose import BINS, FIRST_OCTAVE, PER_OCTAVE, Findings, diagnose

SMALL = 4  # alpha, and what tau is above 1, are divided by this to show what each of them does
COLOURS = ("#1f5fa8", "#e08214", "#2b8a3e", "#8e44ad")


def _middles() -> np.ndarray:
    """The middle of each bin of R."""
    return 2.0 ** (FIRST_OCTAVE + (np.arange(BINS) - 0.5) / PER_OCTAVE)


def _figure(wide: float, high: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "nag_kernels.diagnose needs matplotlib for its pictures: pip install 'nag-kernels[evaluate]'"
        ) from error
    return Figure(figsize=(wide, high), dpi=90, layout="constrained")


def _ratios(axes: Any, cells: list[Any], least: float = 0.0) -> None:
    """The axis of R, on which all but a thousandth of the tokens are seen, and `least` at the least."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    low, high = min(x.quantile(0.001) for x in cells), max(x.quantile(0.999) for x in cells)
    axes.set(xscale="log", xlim=(min(low, least or low) / 1.1, max(high, least) * 1.1), xlabel="R = |G| / |Z+|")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def plot(found: Findings, path: str | Path) -> None:
    """A picture [png] of one run: clipped share and movement by layer and step, and the distribution of R at each step."""
    layers, steps = found.layers, found.steps
    figure = _figure(15, max(3.2, 1.6 + 0.24 * len(layers)))
    maps, shares = figure.subplots(1, 3, width_ratios=(1, 1, 1.25)), {}
    for name in ("clipped", "moved"):
        shares[name] = np.array([[100 * getattr(found.cell(x, step), name) for step in steps] for x in layers])
    titles = (f"tokens clipped (R > {found.nag_tau:g}), %", "moved, |out - Z+| / |Z+|, %")
    for axes, values, title in zip(maps, shares.values(), titles, strict=False):
        image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_xticks(range(len(steps)), steps)
        if values.size <= 200:
            for (row, column), value in np.ndenumerate(values):
                light = value < 0.6 * max(values.max(), 1e-9)
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", color="white" if light else "black")
        figure.colorbar(image, ax=axes)
    shown = range(len(layers)) if len(layers) <= 40 else range(0, len(layers), len(layers) // 20)
    maps[0].set_yticks(shown, [layers[i].replace("transformer_blocks", "blocks") for i in shown], fontsize=7)
    maps[1].set_yticks([])
    cells = [found.cell(step=step) for step in steps]
    for i, (step, cell) in enumerate(zip(steps, cells, strict=True)):
        if len(steps) > 8 and i not in np.linspace(0, len(steps) - 1, 8).astype(int):
            continue
        share = 100 * cell.counts.double().numpy() / max(cell.tokens, 1)
        shade = str(0.75 * (1 - i / max(1, len(steps) - 1)))
        maps[2].plot(_middles(), share, color=shade, label=f"step {step}")
    if found.nag_tau < 2.0 ** (FIRST_OCTAVE + BINS / PER_OCTAVE):
        maps[2].axvline(found.nag_tau, color="#c01818", label="tau")
    _ratios(maps[2], cells, min(found.nag_tau, 100.0))
    maps[2].set_ylabel("% of tokens")
    maps[2].set_title(f"norm ratio at scale {found.nag_scale:g}")
    maps[2].legend(fontsize=8)
    figure.savefig(path)


def plot_comparison(runs: dict[str, tuple[Findings, list[Any]]], plain: list[Any], path: str | Path) -> None:
    """A picture [png] of several runs: how far tokens are moved depending on R, and what was drawn from the same noise."""
    shown, rows = min(6, len(plain)), 1 + len(runs)
    figure = _figure(14, 1.35 * rows)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    axes = left.subplots()
    for (name, (found, _)), colour in zip(runs.items(), COLOURS, strict=False):
        cell = found.cell()
        counts, moved = cell.counts.double().numpy(), cell.moved_by_ratio.numpy()
        enough = counts > max(8, 1e-4 * cell.tokens)
        axes.plot(_middles()[enough], 100 * moved[enough] / counts[enough], color=colour, label=name)
    _ratios(axes, [found.cell() for found, _ in runs.values()])
    axes.set_ylabel("moved, |out - Z+| / |Z+|, %")
    axes.set_title("how far a token is moved")
    axes.legend(fontsize=8)
    tiles = right.subplots(rows, shown, squeeze=False)
    named = {"no negative": plain} | {name: pictures for name, (_, pictures) in runs.items()}
    for line, (name, pictures) in zip(tiles, named.items(), strict=True):
        for tile, picture in zip(line, pictures, strict=False):
            tile.imshow(picture)
            tile.set_xticks([]), tile.set_yticks([])
        line[0].set_title(name, loc="left", fontsize=9)
    figure.savefig(path)


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
    options.samples = options.samples or (64 if ours else 2)
    if ours:
        options.scale = 5.0 if options.scale is None else options.scale
        options.alpha = 0.2 if options.alpha is None else options.alpha
    for name in ("steps", "samples"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def main(arguments: list[str] | None = None) -> None:
    from .demo import load_model

    options = parse(arguments)
    pipe = load_model(options.model, options.device)
    console = Console(width=None if sys.stdout.isatty() else 140)

    def draw() -> list[Any]:
        generators = [torch.Generator().manual_seed(options.seed + i) for i in range(options.samples)]
        prompts, steps = [options.prompt] * options.samples, options.steps
        call = {"num_inference_steps": steps, "generator": generators, "guidance_scale": options.cfg_scale}
        return pipe(prompts, **call).images

    def run(scale: float | None, tau: float | None, alpha: float | None) -> tuple[Findings, list[Any]]:
        settings = {"nag_scale": scale, "nag_tau": tau, "nag_alpha": alpha}
        with diagnose(pipe, options.negative, end=options.end, **settings) as found:
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
    for by in ("layer", "step"):
        console.print(found.table(by))
    options.out.mkdir(parents=True, exist_ok=True)
    found.plot(options.out / "layers.png")
    plot_comparison(runs, plain, options.out / "pictures.png")
    print(f"suggested: nag_scale={scale:g}, nag_tau={proposal.nag_tau:g}, nag_alpha={proposal.nag_alpha:g}")
    print(proposal.why)
    print(f"pictures: {options.out / 'layers.png'}, {options.out / 'pictures.png'}")


if __name__ == "__main__":
    main()
