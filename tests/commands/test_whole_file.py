# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A file is the old one or the new one, and never half of one."""

import ast
import pathlib

import pytest

from nag_kernels.whole_file import whole_file, write_text

ROOT = pathlib.Path(__file__).parents[2]


def test_a_file_is_there_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as part:
        part.write_text("half")
        assert not path.exists()
        assert (part.name, part.parent.parent) == (path.name, path.parent)  # so that moving it is no copy
    assert path.read_text() == "half"
    write_text(path, "whöle")
    assert path.read_bytes() == "whöle".encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_after_an_error_the_old_file_stays(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), whole_file(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder(tmp_path):
    path = tmp_path / "student"
    for text in ("one", "two"):
        with whole_file(path) as part:
            part.mkdir()
            (part / "config.json").write_text(text)
        (path / "training.json").touch()
    assert {x.name: x.read_text() for x in path.iterdir()} == {"config.json": "two", "training.json": ""}
    assert list(tmp_path.iterdir()) == [path]


# What writes beside `whole_file`: a row at a time, the lock of the verdicts, and one file that has its own way (mkstemp).
APART = {"nag_kernels/distill/train.py": 1, "nag_kernels/prove/verdicts.py": 2}


@pytest.mark.parametrize("folder", ["nag_kernels", "evidence"])
def test_nothing_is_written_in_another_way(folder):
    """Calls that open a path for writing: `write_text` of a path, and `open` with a mode that writes, outside of a block of
    `whole_file`."""
    found = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        if name == "nag_kernels/whole_file.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            on_part = isinstance(node.func.value, ast.Name | ast.BinOp) and "part" in ast.dump(node.func.value)
            modes = [x.value for x in node.args if isinstance(x, ast.Constant) and isinstance(x.value, str)]
            opens = node.func.attr in ("open", "fdopen") and any(set(x) & set("wa") and len(x) <= 2 for x in modes)
            if (opens or node.func.attr in ("write_text", "write_bytes")) and not on_part:
                found[name] = found.get(name, 0) + 1
    assert found == {name: n for name, n in APART.items() if name.startswith(folder)}
