# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The torch to build against: where it is installed and what its version file says. Nothing imports torch for this."""

import importlib.util
import re
import site
import sys
import sysconfig
from pathlib import Path

OLDEST = (2, 10)


def folder() -> Path | None:
    """The folder of the package torch: as this process would import it, else in the environment that pip installs into.

    pip builds a package in an environment of its own, in which no torch is seen, but it runs there the Python of the
    environment that it installs into, which therefore still knows where that keeps its packages.
    """
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin:
        return Path(spec.origin).parent
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()]
    settings = Path(sys.prefix, "pyvenv.cfg")
    if settings.exists() and re.search(r"include-system-site-packages\s*=\s*true", settings.read_text()):
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        places += [sysconfig.get_path(kind, vars=base) for kind in ("purelib", "platlib")]
    return next((Path(x, "torch") for x in places if Path(x, "torch", "version.py").exists()), None)


def _said(root: Path, name: str) -> str | None:
    file = root / "version.py"
    match = re.search(rf"^{name}\b.*=\s*['\"](.+)['\"]", file.read_text(), re.M) if file.exists() else None
    return match and match[1]


def version(root: Path) -> str:
    return _said(root, "__version__") or "of an unknown version"


def cuda(root: Path) -> str | None:
    """The CUDA of this build of torch, as "13.0", or None."""
    return _said(root, "cuda")


def missing(root: Path | None) -> str | None:
    """Why nothing can be built against the torch in `root`, or None."""
    if root is None:
        return "no torch to build against"
    numbers = re.match(r"(\d+)\.(\d+)", version(root))
    if numbers and tuple(map(int, numbers.groups())) < OLDEST:
        return f"only torch {version(root)}, older than {OLDEST[0]}.{OLDEST[1]}"
    return None
