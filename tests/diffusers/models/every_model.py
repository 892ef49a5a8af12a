# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The tiny models and pipelines of all models, gathered from their test files.

The registry says which files there are. A model's test file has those of these tables that it needs:

    TINY            models that are held against two runs of the untouched one (a class of diffusers, and what is special)
    PIPELINES       pipelines over them, each a call with ready-made text or with text encoders
    DROP_IN         models with drop-in processors, held against a doubled batch
    FULL_PIPELINES  pipelines with text encoders, which `drawing` draws with
    READY_MADE      pipelines without them, and a call of four steps
    EXAMPLES        what else `examples/families.py` draws with --tiny
"""

import importlib

import diffusers
import pytest

from nag_kernels.diffusers.models.registry import FILES, all_models

# Files of models that the installed diffusers is too old for; a file with several models has at least one that it is not.
TOO_NEW = set(FILES.values()) - {FILES[kind] for kind in all_models()}


class Table(dict):
    def __missing__(self, kind):
        if TOO_NEW:
            pytest.skip(f"diffusers {diffusers.__version__} is too old for {kind}")
        raise KeyError(kind)


def gathered(table: str) -> Table:
    found = Table()
    for name in dict.fromkeys(FILES.values()):
        new = {} if name in TOO_NEW else getattr(importlib.import_module(f"test_{name}"), table, {})
        assert not found.keys() & new.keys(), (table, name)
        found.update(new)
    return found


TINY = Table({kind: tiny for kind, tiny in gathered("TINY").items() if hasattr(diffusers, kind.split()[0])})
PIPELINES = gathered("PIPELINES")
FULL_PIPELINES = gathered("FULL_PIPELINES")
READY_MADE = gathered("READY_MADE")
EXAMPLES = PIPELINES | gathered("EXAMPLES")
DROP_IN = gathered("DROP_IN")
MODELS = {kind: model.build for kind, model in DROP_IN.items()}


def model_arguments(kind, rows, dtype):
    """All arguments but the text; every row its own."""
    return DROP_IN[kind].arguments(rows, dtype)


def text_width(kind):
    return DROP_IN[kind].width


def pipeline(kind):
    pipe = FULL_PIPELINES[kind]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ready_made_pipeline(kind):
    """A pipeline without text encoders (large language models) and the arguments of a call of four steps."""
    return READY_MADE[kind]()
