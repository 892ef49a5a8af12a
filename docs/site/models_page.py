# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/models.md out of models_template.md, docs/models.csv (words on each model) and what the package says of itself."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nag_kernels.diffusers.models.registry import TESTED_WITH, all_models
from nag_kernels.published import Settings

DOCS = Path(__file__).parents[1]
KINDS = ("pictures", "videos", "sound")
SDXL = SimpleNamespace(config=SimpleNamespace(addition_embed_type="text_time"))
OTHERS = SimpleNamespace(config=SimpleNamespace(addition_embed_type=None, cross_attention_dim=768))


def settings_of(spec: Any, model: str) -> Settings:
    return spec.settings(SDXL if "XL" in model and "ControlNet-XS" not in model else OTHERS)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def page() -> str:
    specs = all_models()
    with (DOCS / "models.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    unknown = {row["denoiser"] for row in rows} ^ set(specs)
    if unknown:
        raise ValueError(
            f"docs/models.csv and the registry must name the same denoisers; only one has {sorted(unknown)}"
        )
    parts = {"processors": table(["denoiser", "diffusers", "this package"], list(_processors(specs)))}
    for kind in KINDS:
        here = [row for row in rows if row["draws"] == kind]
        models = table(["model", "denoiser", "route", "settings", "NASA", "tested"], [_row(specs, row) for row in here])
        notes = "\n".join(f"- **{row['model']}.** {row['note']}" for row in here if row["note"])
        parts[kind] = f"{models}\n{notes}\n"
    text = (Path(__file__).parent / "models_template.md").read_text().replace("VERSION", TESTED_WITH)
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->\n", part)
    return text


def _row(specs: dict[str, Any], row: dict[str, str]) -> list[str]:
    spec = specs[row["denoiser"]]
    settings = settings_of(spec, row["model"])
    star = "" if row["settings of"] == "paper" else " *"
    numbers = f"{settings.nag_scale:g} / {settings.nag_tau:g} / {settings.nag_alpha:g}{star}"
    tested = row["pipelines"] if row["tested with"] == "its own text encoders" else row["tested with"]
    if row["tested with"] == "ready-made text":
        tested = f"{row['pipelines']}; ready-made text"
    nasa = "" if settings.nasa_scale is None else f"{settings.nasa_scale:g}"
    return [row["model"], f"`{row['denoiser']}`", spec.route, numbers, nasa, tested]


def _processors(specs: dict[str, Any]) -> Any:
    for name, spec in specs.items():
        for stock, ours in spec.processors.items():
            yield [f"`{name}`", f"`{stock.__name__}`", f"`{ours.__name__}`"]


if __name__ == "__main__":
    (DOCS / "models.md").write_text(page())
