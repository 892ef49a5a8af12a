# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""For the API page: docstrings say in a sentence what is returned and raised ("Raises: ValueError where ..."), not in a list."""

import re
from typing import Any

import griffe

SENTENCE = re.compile(r"^(Returns|Raises): (.+(?:\n[ \t]+\S.*)*)", re.MULTILINE)


def paragraphs(text: str) -> str:
    return SENTENCE.sub(lambda found: f"\n**{found[1]}:** {' '.join(found[2].split())}\n", text)


class Sentences(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = paragraphs(obj.docstring.value)
