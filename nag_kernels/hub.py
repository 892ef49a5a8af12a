# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Models by name without a network.

huggingface_hub asks for each file of a model six times, with 23 seconds of waiting in between, before it looks into its cache or
gives up. So it is asked here once whether its hub answers at all; where it does not, the rest of this process does as
HF_HUB_OFFLINE=1 would: models that are in the cache load at once, and others fail at once.
"""

import sys
from pathlib import Path

from .user_errors import UserError

SECONDS = 5.0  # for an answer of any kind


def is_folder(name: str) -> bool:
    """Whether a model is meant by its folder. Raises UserError for what can only be a folder and is not there."""
    if Path(name).expanduser().is_dir():
        return True
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or Path(name).is_absolute():
        raise UserError(f"there is no folder {name}")
    return False


def go_offline_if_need_be(*names: str) -> None:
    """Before models of these names are loaded; folders need no network. Raises UserError as `is_folder` does."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    hubs = [name for name in names if not is_folder(name)]
    if not hubs or constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # of whichever library the hub's client is made of
        print(
            f"{constants.ENDPOINT} cannot be reached ({error}): only models that are here already load", file=sys.stderr
        )
        constants.HF_HUB_OFFLINE = True
