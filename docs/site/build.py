# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Builds the site into site/: `make docs`. The pages are those of docs/ and of the top folder, as the repository has them.

What differs is done to a copy in build/docs: README.md becomes the first page, and a link to code becomes plain text,
or a link to the repository where `repo_url` of mkdocs.yml names one. The rest is in mkdocs.yml.
"""

import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "build" / "docs"
TOP = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
REPOSITORY = re.search(r"^repo_url: (\S+?)/?$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)


def placed(text: str, folder: str) -> str:
    """The page with its links, which are relative to `folder` of the repository, as those of the site."""

    def link(found: re.Match[str]) -> str:
        image, label, target, anchor = found[1], found[2], found[3], found[4] or ""
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in TOP:
            return f"[{label}]({TOP[path]}{anchor})"
        if path.startswith("docs/") and (ROOT / path).is_file():
            return f"{image}[{label}]({path.removeprefix('docs/')}{anchor})"
        if REPOSITORY is None:
            return label
        return f"[{label}]({REPOSITORY[1]}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}{anchor})"

    return LINK.sub(link, text)


def prepare() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("*.py", "*.md", "__pycache__"))
    for source in (ROOT / "docs").glob("*.md"):
        (PAGES / source.name).write_text(placed(source.read_text(), "docs"))
    for name, page in TOP.items():
        (PAGES / page).write_text(placed((ROOT / name).read_text(), ""))


def mkdocs(config: Path, *options: str) -> list[str]:
    """The command that builds the site: a warning is an error."""
    return [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config), *options]


def main() -> int:
    prepare()
    # The theme prints an advertisement of its successor at each build.
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(mkdocs(ROOT / "mkdocs.yml", *sys.argv[1:]), cwd=ROOT, env=quiet).returncode


if __name__ == "__main__":
    sys.exit(main())
