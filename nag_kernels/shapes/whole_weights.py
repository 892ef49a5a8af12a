# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Weights that lack a tensor are an error. diffusers and transformers make the tensor up, of random numbers, and warn."""

import contextlib
import logging
import re
from collections.abc import Iterator

from ..user_errors import UserError

DIFFUSERS, TRANSFORMERS = "diffusers.models.modeling_utils", "transformers.modeling_utils"


@contextlib.contextmanager
def refuse_missing_tensors(where: object, *libraries: str) -> Iterator[None]:
    """Raises UserError where one of `libraries` (DIFFUSERS, TRANSFORMERS) makes up a tensor within the block.

    where: what is loaded, for the message.

    Of published pipelines only diffusers' parts are to be held to it: a text encoder may come without a head that nothing calls.
    """
    found: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        text = re.sub(r"\x1b\[[\d;]*m", "", record.getMessage())
        if "newly initialized" not in text:
            return True
        made_up = re.findall(r"^(\S+) *\| *MISSING", text, re.MULTILINE)  # a report by transformers 5
        found.append(", ".join(made_up) or text.splitlines()[0])
        return False

    levels = {logging.getLogger(name): logging.getLogger(name).level for name in libraries}
    for log in levels:
        log.addFilter(keep)
        if not log.isEnabledFor(logging.WARNING):
            log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log, level in levels.items():
            log.removeFilter(keep)
            log.setLevel(level)
    if found:
        raise UserError(f"{where}: the weights lack tensors: {'; '.join(found)}")
