# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Where the installed diffusers is older than the pinned one, what it does not have is skipped by name."""

import diffusers
import pytest

from nag_kernels.diffusers.models.registry import TESTED_WITH, version_of

OLD = version_of(diffusers.__version__) < version_of(TESTED_WITH)


def pytest_ignore_collect(collection_path):
    if not OLD:
        return None
    from every_model import TOO_NEW  # which imports the tests of all models

    return collection_path.stem.removeprefix("test_") in TOO_NEW or None


@pytest.hookimpl(hookwrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    done = yield
    error = done.excinfo[1] if done.excinfo else None
    absent = isinstance(error, AttributeError) and str(error).startswith("module diffusers has no attribute")
    if OLD and (absent or isinstance(error, ImportError)):  # of a name that it does not have, or refused by `guide`
        done.force_exception(pytest.skip.Exception(f"diffusers {diffusers.__version__}: {error}"))
