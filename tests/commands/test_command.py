# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The command `nag-kernels`: help at once, every command by its name, and a sentence where something does not do."""

import importlib
import importlib.util
import pathlib
import re
import subprocess
import sys
import types

import pytest

import nag_kernels_command as command
from nag_kernels import checkout, user_errors

ROOT = pathlib.Path(__file__).parents[2]


def test_help_comes_without_torch():
    code = (
        "import sys, nag_kernels_command as x; x.main(sys.argv[1:]); print({'torch', 'nag_kernels'} & set(sys.modules))"
    )
    for arguments in ([], ["--help"], ["--version"], ["dmeo"]):
        ran = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert ran.stdout.splitlines()[-1] == "set()", ran.stderr


def test_help_has_a_line_and_an_example_for_each_command(capsys):
    assert command.main([]) == 0
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines()) <= 80
    for name in command.COMMANDS:
        assert re.search(rf"^  {name} +\w.+\n +\$ nag-kernels {name}( |$)", said, re.MULTILINE), name


def test_the_examples_and_both_forms_are_those_of_the_modules():
    """Each is a module with `main`, which `python -m` runs too; the examples that need nothing are parsed."""
    assert re.search(r'^nag-kernels = "nag_kernels_command:main"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for name, each in command.COMMANDS.items():
        assert each.module.removesuffix(".__main__") == f"nag_kernels.{name}"
        text = pathlib.Path(importlib.util.find_spec(each.module).origin).read_text()
        assert re.search(r"^def main\(arguments: list\[str\] \| None = None\)", text, re.MULTILINE), name
        assert '__name__ == "__main__"' in text, name


def test_a_command_gets_its_arguments_and_its_status_comes_back(capsys, monkeypatch):
    assert command.main(["info"]) == 0
    assert "nag_kernels     " in capsys.readouterr().out
    prove = importlib.import_module("nag_kernels.prove.__main__")
    monkeypatch.setattr(prove.run, "devices", lambda: (_ for _ in ()).throw(prove.run.NoDevice("no GPU here")))
    assert command.main(["prove"]) == 3
    assert capsys.readouterr().out.startswith("no GPU here So there is nothing to prove")
    with pytest.raises(SystemExit, match="0"):
        command.main(["bench", "--help"])
    assert "python -m benchmarks attention" in capsys.readouterr().out


def test_a_wrong_name_is_told_the_nearest(capsys):
    assert command.main(["evalute", "--steps", "3"]) == 2
    said = capsys.readouterr().err
    assert "got 'evalute' (did you mean evaluate?)" in said
    assert said.count("\n") == 1
    assert command.main(["frobnicate"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_folders_of_a_checkout_are_not_in_an_installed_package(monkeypatch, tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__main__.py").write_text("raise AssertionError('of another project')")
    monkeypatch.setattr(checkout, "CHECKOUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    others = types.SimpleNamespace(main=lambda arguments: pytest.fail("another project's benchmarks ran"))
    monkeypatch.setitem(sys.modules, "benchmarks.__main__", others)
    for name, folder in (("evidence", "evidence"), ("bench", "benchmarks")):
        with pytest.raises(SystemExit, match=f"the folder {folder} is in a checkout .*run `python -m {folder}` there"):
            command.main([name])


def test_folders_of_the_checkout_that_one_is_in(monkeypatch, tmp_path):
    """An installed package, in a folder of a clone."""
    ran = []
    monkeypatch.setattr(checkout, "CHECKOUT", tmp_path)
    monkeypatch.chdir(pathlib.Path(__file__).parent)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setitem(sys.modules, "benchmarks.__main__", types.SimpleNamespace(main=ran.append))
    command.main(["bench", "attention"])
    assert ran == [["attention"]]


def test_a_package_that_is_missing_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "nag_kernels.demo", None)
    assert command.main(["demo"]) == 1
    assert capsys.readouterr().err.startswith("nag-kernels demo: error: ")
    here = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda x: None if x in ("PIL", "matplotlib") else here(x))
    by_name = user_errors.missing("nag_kernels.diagnose", "nag_kernels.diagnose", ImportError("no"))
    assert isinstance(by_name, ImportError)
    assert str(by_name) == "nag_kernels.diagnose needs pillow, matplotlib: pip install pillow matplotlib"
    started = user_errors.missing("nag_kernels.diagnose", "__main__", ImportError("no"))
    assert isinstance(started, SystemExit)
    assert str(started) == str(by_name)
    broken = user_errors.missing("nag_kernels.distill", "__main__", ImportError("libfoo.so is too old"))
    assert str(broken).startswith("nag_kernels.distill needs pillow")


def test_ctrl_c_ends_without_a_traceback(capsys, monkeypatch):
    def stopped(arguments):
        raise KeyboardInterrupt

    info = importlib.import_module("nag_kernels.info")
    monkeypatch.setattr(info, "main", stopped)
    assert command.main(["info"]) == 130
    wrapped = user_errors.in_one_sentence("nag_kernels.demo")(stopped)
    with pytest.raises(SystemExit, match="130"):
        wrapped([])
    assert capsys.readouterr().err == "nag-kernels: stopped\nnag_kernels.demo: stopped\n"
