# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Plots of the CSV rows, and grids of pictures from the kept cells."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nag_kernels.whole_file import whole_file

from .cells import (
    ALPHAS,
    CFG,
    FEW_STEPS,
    MANY,
    MORE,
    NAG,
    NASA,
    NONE,
    PAIRS,
    PARTS,
    SCALES,
    TAUS,
    VARIANTS_OF,
    VSF,
    Cell,
    Steering,
)
from .run import SHOWN, digest, is_whole

COLOURS = {"CFG": "#d08000", "NASA": "#1060c0", "NAG": "#108030", "NAG by alpha": "#70b080", "VSF": "#a020a0"}
Rows = dict[str, dict[str, str]]


def _curves() -> dict[str, list[Steering]]:
    """Method: its settings from weak to strong."""
    rules = {"NASA": "nasa", "VSF": "vsf"}
    found = {"CFG": sorted([*CFG, *(each for each in MORE if each.cfg > 1)], key=lambda method: method.cfg)}
    for name, rule in rules.items():
        every = [*NASA, *VSF, *MORE]
        found[name] = sorted((each for each in every if each.rule == rule), key=lambda method: method.scale)
    found["NAG"] = [replace(NAG[0], scale=scale) for scale in SCALES]
    found["NAG by alpha"] = [replace(NAG[0], alpha=alpha) for alpha in ALPHAS]
    return found


def _setting(method: Steering) -> str:
    return f"{method.cfg:g}" if method.cfg > 1 else f"{method.scale:g}"


def plot_all(rows: Rows, architecture: str, folder: Path) -> list[str]:
    """Draw what the rows allow; the names of the files that were written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    few, teacher, _ = VARIANTS_OF[architecture]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, drawing in (("curves", _plot_curves), ("steps", _plot_steps), ("sweeps", _plot_sweeps)):
        figure = drawing(plt, rows, few, teacher)
        if figure is not None:
            figure.tight_layout()
            with whole_file(folder / f"{name}_{architecture}.png") as part:
                figure.savefig(part, dpi=110, metadata={"Software": None})
            plt.close(figure)
            written.append(f"{name}_{architecture}.png")
    return written


def _value(rows: Rows, cell: Cell, measure: str) -> float:
    row = rows.get(cell.name)
    return float(row[measure]) if row else np.nan


def _plot_curves(plt, rows: Rows, few: str, teacher: str):
    """Removal against clean match at four steps, a curve over the scale of each method."""
    if Cell(few, 4).name not in rows:
        return None
    figure, axes = plt.subplots(figsize=(7.5, 5.5))
    for name, methods in _curves().items():
        cells = [Cell(few, 4, NONE), *(Cell(few, 4, method) for method in methods)]
        points = [(100 * _value(rows, cell, "shows"), 100 * _value(rows, cell, "clean_match")) for cell in cells]
        axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[name], markersize=4,
                  label="NAG, alpha 0.125 to 1" if "alpha" in name else name)  # fmt: skip
        for method, (x, y) in zip(methods, points[1:], strict=True):
            text = f"{method.alpha:g}" if "alpha" in name else _setting(method)
            if np.isfinite(x):
                axes.annotate(text, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7, color=COLOURS[name])
    plain = Cell(few, 4)
    axes.plot(100 * _value(rows, plain, "shows"), 100 * _value(rows, plain, "clean_match"), "k*", markersize=12)
    axes.set_xlabel("still shows the negative, % (less is better)")
    axes.set_ylabel("matches the prompt and is clean, %")
    axes.set_title(f"{few}, 4 steps; the star has no negative; numbers are scales", fontsize=10)
    axes.legend(fontsize=8), axes.grid(alpha=0.3)
    return figure


def _plot_steps(plt, rows: Rows, few: str, teacher: str):
    """Frechet distance and clean match by steps."""
    places = [*((few, steps) for steps in FEW_STEPS), (teacher, MANY)]
    if not any(Cell(*place).name in rows for place in places):
        return None
    figure, both = plt.subplots(1, 2, figsize=(10, 4))
    shown = {"no negative": (NONE, "black"), f"CFG {CFG[1].cfg:g}": (CFG[1], COLOURS["CFG"]),
             NASA[1].label: (NASA[1], COLOURS["NASA"]), NAG[0].label: (NAG[0], COLOURS["NAG"]),
             NAG[1].label: (NAG[1], COLOURS["NAG by alpha"]), VSF[0].label: (VSF[0], COLOURS["VSF"])}  # fmt: skip
    x = np.arange(len(places))
    for axes, measure in zip(both, ("frechet", "clean_match"), strict=True):
        factor = 100 if measure == "clean_match" else 1
        for label, (method, colour) in shown.items():
            cells = [Cell(*place, method) for place in places]
            middle = np.array([_value(rows, cell, measure) for cell in cells])
            ends = np.array([[_value(rows, cell, f"{measure}_{end}") for cell in cells] for end in ("low", "high")])
            for part in (slice(0, -1), slice(-1, None)):  # the last has fewer samples, so no line leads there
                axes.errorbar(x[part], factor * middle[part], factor * np.abs(ends - middle)[:, part], fmt="o-",
                              color=colour, label=label if part.stop else None, markersize=4, capsize=2)  # fmt: skip
        axes.set_xticks(x, [f"{steps}\n{variant}" for variant, steps in places], fontsize=8)
        axes.set_xlabel("steps and variant"), axes.grid(alpha=0.3)
    floors = [_value(rows, Cell("renders", 4 if steps <= 8 else MANY), "frechet") for _, steps in places]
    both[0].plot(x[:-1], floors[:-1], "k:", label="real renders"), both[0].plot(x[-1], floors[-1], "kx")
    both[0].set_yscale("log"), both[0].set_ylabel("Frechet distance"), both[0].legend(fontsize=7)
    both[1].set_ylabel("matches the prompt and is clean, %")
    return figure


def _plot_sweeps(plt, rows: Rows, few: str, teacher: str):
    """Shares over each setting of NAG."""
    if not any(Cell(few, 4, replace(NAG[0], alpha=alpha)).name in rows for alpha in ALPHAS):
        return None
    figure, every = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True)
    for axes, (name, values) in zip(every, (("scale", SCALES), ("tau", TAUS), ("alpha", ALPHAS)), strict=True):
        cells = [Cell(few, 4, replace(NAG[0], **{name: value})) for value in values]
        for measure, colour, label in (
            ("shows", "#c02020", "shows the negative"),
            ("clean_match", "#108030", "clean match"),
        ):
            axes.plot(100 * np.array([_value(rows, cell, measure) for cell in cells]), "o-", color=colour, label=label)
            axes.axhline(100 * _value(rows, Cell(few, 4), measure), color=colour, linestyle=":", linewidth=1)
        axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axes.set_xlabel(f"nag_{name}"), axes.grid(alpha=0.3)
    every[0].set_ylabel("% (dotted: no negative)"), every[0].legend(fontsize=8)
    figure.suptitle(f"{few}, 4 steps; the other two settings as in {NAG[0].label}", fontsize=10)
    return figure


def grids(work: Path, architecture: str, folder: Path) -> list[str]:
    """Pictures side by side, same seeds in every column; the names of the files that were written."""
    few, teacher, student = VARIANTS_OF[architecture]
    strong = [replace(NAG[0], scale=11.0, formula=formula) for formula in ("full", *PARTS)]
    shown = {
        "methods": [Cell(few, 4, method) for method in (NONE, CFG[1], CFG[2], NASA[1], NAG[0], NAG[1], VSF[0])],
        "ablation": [Cell(few, 4, method) for method in (NONE, *strong)],
        "many": [Cell(teacher, MANY, method) for method in (NONE, CFG[1], CFG[2], NASA[1], NAG[0], NAG[1], VSF[0])],
        "student": [Cell(student, 1, method) for method in (NONE, CFG[1], CFG[2], NASA[0], NASA[1], NAG[0], NAG[1])],
    }
    written = []
    for name, cells in shown.items():
        if all(is_whole(work / f"{cell.stem}.npz") and digest(cell.variant) for cell in cells):
            with whole_file(folder / f"pictures_{name}_{architecture}.png") as part:
                grid(cells, work).quantize(128).save(part, optimize=True)
            written.append(f"pictures_{name}_{architecture}.png")
    return written


def grid(cells: list[Cell], work: Path, pairs: tuple[int, ...] = (0, 3, 5, 8, 10, 12), tile: int = 64) -> Image.Image:
    """Rows are pairs, columns are cells; a red frame says that the classifier sees the negative."""
    step, left, top, gap = tile + 4, 190, 64, 14
    images = []
    for cell in cells:
        with np.load(work / f"{cell.stem}.npz") as kept:
            flags = kept["flag shows"].reshape(len(PAIRS), -1)
            images.append((kept["pictures"], flags))
    across = min(SHOWN, images[0][0].shape[1])
    wide = across * step + gap
    image = Image.new("RGB", (left + len(cells) * wide, top + len(pairs) * (step + gap)), "white")
    pen = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    for column, cell in enumerate(cells):
        words = cell.method.label.replace(", ", ",\n", 1)
        pen.multiline_text((left + column * wide, 12), words, "black", small, spacing=3)
    for row, index in enumerate(pairs):
        y, pair = top + row * (step + gap), PAIRS[index]
        pen.multiline_text((8, y), _wrapped(pair.prompt, font, left - 16), "black", font, spacing=2)
        pen.text((8, y + 40), f"without: {pair.negative}", "#c01818", small)
        for column, (pictures, flags) in enumerate(images):
            for place in range(across):
                at = (left + column * wide + place * step, y)
                tile_image = Image.fromarray(pictures[index, place].transpose(1, 2, 0)).resize(
                    (tile, tile), Image.Resampling.NEAREST
                )
                image.paste(tile_image, at)
                there = bool(flags[index, place])
                frame = (at[0] - 1, at[1] - 1, at[0] + tile, at[1] + tile)
                pen.rectangle(frame, outline="#e00000" if there else "#c8c8c8", width=3 if there else 1)
    return image


def _wrapped(text: str, font, wide: int) -> str:
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], joined] if font.getlength(joined) <= wide else [*lines, word]
    return "\n".join(lines)
