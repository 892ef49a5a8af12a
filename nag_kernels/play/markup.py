# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures as HTML. Each is a PNG within the page, so no file stays behind and every pixel arrives as it was drawn."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from .settings import Settings

Images = Sequence[Image.Image]


def picture(image: Image.Image, words: str) -> str:
    """words: what stands for the picture where it cannot be seen."""
    file = io.BytesIO()
    image.save(file, "png")
    small = ' class="small"' if image.width < 128 else ""
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img{small} src="data:image/png;base64,{data}" alt="{html.escape(words)}">'


def grid(images: Images, seeds: Sequence[int], words: str) -> str:
    columns = next(n for n in range(1, 5) if n * n >= len(images))
    tiles = "".join(picture(image, f"{words}, seed {seed}") for image, seed in zip(images, seeds, strict=True))
    return f'<div class="grid" style="--columns: {columns}">{tiles}</div>'


def pair(without: Images, steered: Images, settings: Settings) -> str:
    """Both sets of pictures side by side, the same seeds in the same places."""
    return '<div class="pair">' + "".join(
        f'<figure data-set="{name}"><figcaption>{html.escape(words)}</figcaption>'
        f"{grid(images, settings.seeds, words)}</figure>"
        for name, images, words in (
            ("without", without, "without the negative"),
            ("steered", steered, f"steered away from “{settings.negative}”"),
        )
    ) + "</div>"  # fmt: skip


def strip(named: Sequence[tuple[str, Images]], settings: Settings) -> str:
    """A column of pictures for each value, which stands below it."""
    return '<div class="strip">' + "".join(
        "<figure>" + "".join(picture(image, f"{name}, seed {seed}") for image, seed in zip(images, seeds, strict=True))
        + f"<figcaption>{html.escape(name)}</figcaption></figure>"
        for name, images in named
        for seeds in [range(settings.seed, settings.seed + len(images))]
    ) + "</div>"  # fmt: skip


def measured(figure: Image.Image, tables: str) -> str:
    words = "tokens clipped and moved by layer and step, and the norm ratio"
    return f'<div class="measured">{picture(figure, words)}<pre>{html.escape(tables)}</pre></div>'
