# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`diagnose`: what nag_scale, nag_tau and nag_alpha do in a model, by guided layer and step. It looks on and changes nothing."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from nag_kernels import fused_guided_attention, reference

from .attention.base import KeyValue, Masks, SettingTensors
from .attention.distributed import PLAIN
from .compatibility import head_mesh
from .denoiser_calls import inner_denoiser, name_in, named_modules
from .guard import is_compiled
from .guide import guide
from .models.registry import find_denoisers
from .negative_arguments import Negative
from .owners import owner_of

FIRST_OCTAVE, OCTAVES, PER_OCTAVE = -2, 8, 32  # R from 1/4 to 64, in bins 2.2 % wide; one more bin at each end
BINS = OCTAVES * PER_OCTAVE + 2
PUBLISHED_TAU = 2.5  # in all of the paper's settings
PUBLISHED_STEP = 1.0  # nag_alpha (nag_scale - 1): the median of the paper's settings, which lie between 0.5 and 1.5


@contextlib.contextmanager
def diagnose(pipe: Any, negative_prompt: Negative, *, rule: str = "nag", **options: Any) -> Iterator["Findings"]:
    """Within the block `pipe` is guided as by `guide`, bit for bit, and every guided layer is measured.

        G = nag_scale Z+ - (nag_scale - 1) Z-,  R = |G|_1 / |Z+|_1          per token, over all heads (arXiv 2505.21179)
        a token is clipped if R > nag_tau; it is moved by |out - Z+|_1 / |Z+|_1

    Z+ and Z- are computed once more beside the guided call, in float32 (float64 for float64). Nothing waits for the device until
    the findings are read. Guided attention takes about twice its time.

    The arguments are those of `guide`, but nag_scale must be one number for all steps. With `layers` only the chosen layers are
    measured.
    Yields: Findings, to which every call of pipe adds its measurements.
    Raises: ValueError for a rule without tau ("nasa", "vsf"), for a compiled denoiser, and for one whose heads are sharded over
        devices; otherwise what `guide` raises.
    """
    if rule in ("nasa", "vsf"):
        raise ValueError(
            f"diagnose: rule must be 'nag', got '{rule}': it has no nag_tau, nag_alpha and norm ratio to look at"
        )
    with guide(pipe, negative_prompt, rule=rule, **options):
        for denoiser in find_denoisers(pipe):
            if is_compiled(denoiser, named_modules(denoiser)):
                raise ValueError("diagnose: the denoiser must not be compiled (what is measured would be compiled too)")
            if head_mesh(denoiser) is not None:
                raise ValueError(
                    "diagnose: the heads of the denoiser must be on one device, for norms run over all heads"
                )
        owner = owner_of(pipe)
        assert owner is not None  # that of the block
        guidance = owner.guidance
        if guidance.scale.number is None:
            raise ValueError(
                "diagnose: nag_scale must be one number: what is measured, and what is suggested by it, holds for one scale; "
                f"diagnose each by itself, got {options['nag_scale']!r:.60}"
            )
        found = guidance.watch = Findings(pipe, guidance.scale.number, guidance.nag_tau, guidance.nag_alpha)
        yield found


@dataclasses.dataclass(frozen=True)
class Cell:
    """What was measured, over all tokens of one or more layers and steps.

    tokens: how many.  clipped: share of them with R > nag_tau.  counts: of R, [BINS].  difference: mean of
    |Z+ - Z-|_1 / |Z+|_1.  moved: mean of |out - Z+|_1 / |Z+|_1, where Z+ is not zero.  moved_by_ratio: its sum by bin of R.
    """

    tokens: int
    clipped: float
    difference: float
    moved: float
    counts: Tensor
    moved_by_ratio: Tensor

    def quantile(self, share: float) -> float:
        """The R that `share` of the tokens do not exceed, within 2.2 %; 1/4 and 64 stand for all beyond."""
        if not self.tokens:
            return math.nan
        below = self.counts.cumsum(0).double() / self.tokens
        place = min(int((below < share - 1e-12).sum()), BINS - 1)
        before = 0.0 if place == 0 else float(below[place - 1])
        part = (share - before) / max(float(below[place]) - before, 1e-12)
        inside = min(max(place - 1 + part, 0.0), float(BINS - 2))
        return 2.0 ** (FIRST_OCTAVE + inside / PER_OCTAVE)


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """Settings to start from, and why."""

    nag_scale: float
    nag_tau: float
    nag_alpha: float
    why: str


class Findings:
    """What `diagnose` measured, for each layer and each step. `cell` gives the numbers of a layer, of a step, of both or of all.

    A layer is known by its name. A step is the number of the denoiser's call for the prompt (a scheduler of second order makes
    two calls for a step).

    nag_scale, nag_tau, nag_alpha: the settings of the run.
    """

    def __init__(self, pipe: Any, nag_scale: float, nag_tau: float, nag_alpha: float):
        self.name = type(pipe).__name__
        self.nag_scale, self.nag_tau, self.nag_alpha = nag_scale, nag_tau, nag_alpha
        self._prefix = {id(x): f"{name_in(pipe, x)}." for x in find_denoisers(pipe)[1:]}
        self._names: dict[Any, str] = {}
        self._raw: dict[tuple[str, int], tuple[Tensor, Tensor, Tensor]] = {}
        self._step, self._mixed = 0, False

    # --- while the pipeline runs ---

    def begin(self, denoiser: Module, processors: list[tuple[Module, Any, Any]], step: int, mixed: bool) -> None:
        """One guided call of the denoiser follows. mixed: it has rows that are not steered, by their neutral settings."""
        prefix = self._prefix.get(id(denoiser), "")
        self._names = {site: prefix + name for name, site in inner_denoiser(denoiser).named_modules()}
        for site, _, ours in processors:
            self._names[getattr(ours, "nag_attention", ours)] = self._names[site]
        self._step, self._mixed = step, mixed

    @torch.no_grad()
    def attention(
        self, processor: Any, query: Tensor, positive: KeyValue, negative: KeyValue, settings: SettingTensors,
        masks: Masks, shared: KeyValue | None,
    ) -> None:  # fmt: skip
        """The arguments of one guided layer, [B, S, H, D]."""
        dtype, rows = reference.accumulate_dtype(query.dtype), query.shape[0]
        options: dict[str, Any]
        options = {} if shared is None else {"key_shared": shared[0].to(dtype), "value_shared": shared[1].to(dtype)}
        both: list[Tensor] = []
        with torch.autocast(query.device.type, enabled=False):
            for text, mask in zip((positive, negative), masks, strict=True):
                key, value = (x.to(dtype).expand(rows, -1, -1, -1) for x in text)
                plain = (query.to(dtype), key, value, key[:, :0], value[:, :0], *PLAIN)
                both.append(fused_guided_attention(*plain, mask_positive=mask, **options).flatten(2))
        self.branches(processor, both[0], both[1], settings)

    @torch.no_grad()
    def branches(self, layer: Any, positive: Tensor, negative: Tensor, settings: SettingTensors) -> None:
        """Z+ and Z- [B, S, C] of one guided layer."""
        dtype = reference.accumulate_dtype(positive.dtype)
        positive, negative = positive.to(dtype), negative.to(dtype)
        scale, tau, alpha = (
            x.expand(*positive.shape[:-1], 1) for x in (reference.as_tensor(x, positive) for x in settings)
        )
        out = reference.guidance(positive, negative, *settings)
        whole, guided, apart, moved = (
            x.abs().sum(-1) for x in (positive, scale * positive - (scale - 1) * negative, positive - negative, out - positive)
        )  # fmt: skip
        there = whole > 0
        ratio = torch.where(there, guided / whole, torch.where(guided == 0, 1.0, math.inf))
        tokens = torch.ones_like(ratio)
        if self._mixed:
            tokens = tokens * ~((scale == 1) & torch.isinf(tau) & (alpha == 1))[..., 0]
        clipped = (guided > tau[..., 0] * whole) * tokens
        apart, moved = (torch.where(there, x / whole, 0.0) * tokens for x in (apart, moved))
        place = ((ratio.log2() - FIRST_OCTAVE) * PER_OCTAVE).floor().nan_to_num(BINS, BINS, -BINS) + 1
        place = place.clamp(0, BINS - 1).long().flatten()

        counts, moved_by_ratio, sums = self._accumulators(layer, positive.device)
        counts.scatter_add_(0, place, tokens.flatten().long())
        moved_by_ratio.scatter_add_(0, place, moved.double().flatten())
        sums += torch.stack([clipped.sum(), apart.sum(), moved.sum(), (there * tokens).sum()])

    def _accumulators(self, layer: Any, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        key = (self._names[layer], self._step)
        if key not in self._raw:
            with torch.inference_mode(False):  # other calls, in other modes, go on with them
                self._raw[key] = (
                    torch.zeros(BINS, dtype=torch.long, device=device),
                    torch.zeros(BINS, dtype=torch.double, device=device),
                    torch.zeros(4, dtype=torch.double, device=device),
                )
        return self._raw[key]

    # --- what was found ---

    @property
    def layers(self) -> list[str]:
        """The names of the measured layers, in the order in which they ran."""
        return list(dict.fromkeys(layer for layer, _ in self._raw))

    @property
    def steps(self) -> list[int]:
        return sorted({step for _, step in self._raw})

    def cell(self, layer: str | None = None, step: int | None = None) -> Cell:
        """The measurements of a layer, of a step, of both, or of everything. Raises ValueError if nothing was recorded."""
        chosen = [raw for (name, number), raw in self._raw.items() if layer in (None, name) and step in (None, number)]
        if not chosen:
            where = "" if layer is None and step is None else f" for layer {layer!r} and step {step}"
            raise ValueError(f"diagnose: nothing was recorded{where}: was {self.name} called in the block?")
        counts, by_ratio, sums = (
            functools.reduce(torch.add, [x.cpu() for x in same]) for same in zip(*chosen, strict=True)
        )
        tokens = int(counts.sum())
        clipped, apart, moved, there = sums.tolist()
        means = (clipped / max(tokens, 1), apart / max(there, 1), moved / max(there, 1))
        return Cell(tokens, *means, counts, by_ratio)

    def table(self, by: str = "layer") -> Any:
        """A rich table with a line for each layer or step, and one for all. Raises ValueError if `by` is not layer or step."""
        from rich.table import Table

        if by not in ("layer", "step"):
            raise ValueError(f"diagnose: by must be 'layer' or 'step', got {by!r}")
        title = f"{self.name}: scale {self.nag_scale:g}, tau {self.nag_tau:g}, alpha {self.nag_alpha:g}"
        table = Table(title=title, caption="R = |G|/|Z+|; difference = |Z+ - Z-|/|Z+|; moved = |out - Z+|/|Z+|")
        table.add_column(by)
        for name in ("tokens", "clipped", "R 5 %", "R 50 %", "R 95 %", "R 99 %", "difference", "moved"):
            table.add_column(name, justify="right")
        lines = [(x, self.cell(layer=x)) for x in self.layers] if by == "layer" else [
            (str(x), self.cell(step=x)) for x in self.steps
        ]  # fmt: skip
        for name, cell in [*lines, ("all", self.cell())]:
            if name == "all":
                table.add_section()
            ratios = (f"{cell.quantile(share):.2f}" for share in (0.05, 0.5, 0.95, 0.99))
            shares = (f"{100 * x:.1f} %" for x in (cell.clipped, cell.difference, cell.moved))
            clipped, difference, moved = shares
            table.add_row(name, str(cell.tokens), clipped, *ratios, difference, moved)
        return table

    def suggest(self, clipped: float = 0.05, moved: float = 0.4) -> Suggestion:
        """Settings to start from, for this model, prompt and negative prompt. nag_scale stays that of the run.

            nag_tau   = the quantile 1 - clipped of R, at most 2.5, at least 1
            nag_alpha = 1 / (nag_scale - 1), or less: so that tokens move by at most the share `moved` of their length in the mean

        The reasons: in the paper's eight settings tau is always 2.5. nag_alpha (nag_scale - 1) is how many times Z+ - Z- is added
        to a token that is not clipped; in the paper it lies between 0.5 and 1.5, with the median 1. The demo's settings move the
        tokens of "shapes" by 0.4. The suggestion assumes that tokens move in proportion to alpha as they did in the run, so run
        with nag_tau near 2.5.
        Raises ValueError for a run with nag_scale not above 1 or nag_alpha 0, for shares out of range, and if nothing was
        recorded.
        """
        if not self.nag_scale > 1 or not self.nag_alpha > 0:
            raise ValueError(
                f"diagnose: nag_scale must be above 1 and nag_alpha above 0 for a suggestion, got {self.nag_scale:g} and "
                f"{self.nag_alpha:g}"
            )
        if not 0 < clipped < 1 or not moved > 0:
            raise ValueError(
                f"diagnose: clipped must be between 0 and 1 and moved above 0, got {clipped:g} and {moved:g}"
            )
        cell = self.cell()
        outliers, reach = cell.quantile(1 - clipped), cell.moved / self.nag_alpha
        tau = round(min(PUBLISHED_TAU, max(1.0, outliers)), 2)
        alpha = min(1.0, PUBLISHED_STEP / (self.nag_scale - 1), moved / max(reach, 1e-12))
        why = (
            f"tau: {100 * clipped:g} % of the tokens have R above {outliers:.2f} (at most the paper's {PUBLISHED_TAU:g}); alpha: "
            f"tokens move by {100 * reach:.0f} % of their length times alpha, here {100 * reach * alpha:.0f} %. A starting "
            "point: look at pictures"
        )
        return Suggestion(self.nag_scale, tau, float(f"{alpha:.2g}"), why)

    def plot(self, path: str | Path) -> None:
        """Writes a picture: clipped share and movement by layer and step, and the distribution of R by step."""
        plot(self, path)


def bin_middles() -> np.ndarray:
    """The middle of each bin of R."""
    return 2.0 ** (FIRST_OCTAVE + (np.arange(BINS) - 0.5) / PER_OCTAVE)


def new_figure(wide: float, high: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("nag_kernels.diagnose needs matplotlib for its pictures: pip install matplotlib") from error
    return Figure(figsize=(wide, high), dpi=90, layout="constrained")


def ratio_axis(axes: Any, cells: list[Any], least: float = 0.0) -> None:
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
    figure = new_figure(15, max(3.2, 1.6 + 0.24 * len(layers)))
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
        maps[2].plot(bin_middles(), share, color=shade, label=f"step {step}")
    if found.nag_tau < 2.0 ** (FIRST_OCTAVE + BINS / PER_OCTAVE):
        maps[2].axvline(found.nag_tau, color="#c01818", label="tau")
    ratio_axis(maps[2], cells, min(found.nag_tau, 100.0))
    maps[2].set_ylabel("% of tokens")
    maps[2].set_title(f"norm ratio at scale {found.nag_scale:g}")
    maps[2].legend(fontsize=8)
    figure.savefig(path)
