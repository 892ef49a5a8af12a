# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What installs: wheel names, no top-level triton_kernels, no compiler, only stable symbols in the library."""

import os
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

import nag_kernels
from nag_kernels import backends, user_errors

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from release_notes import notes, section  # noqa: E402
from source_files import source_files  # noqa: E402

import cuda_build  # noqa: E402
import installed_torch  # noqa: E402
from nag_kernels import availability  # noqa: E402

pytestmark = pytest.mark.slow  # it compiles

LIBRARY = pathlib.Path(backends.__file__).parent / "_C.abi3.so"
needs_library = pytest.mark.skipif(availability.refusal("cpu", "cpu") is not None, reason="cpu is not here: not built")


def copied(to, names):
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes((ROOT / name).read_bytes())
    return to


def build(tmp_path, **environment):
    """`pip wheel` of a copy of the tracked and new files: the tree itself stays as it is."""
    copy = copied(tmp_path / "copy", source_files())
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", tmp_path, copy],
        env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    return done, list(tmp_path.glob("*.whl"))


def test_nothing_that_git_ignores_is_in_the_repository():
    """An environment or a build, committed by force or before it was ignored."""
    listed = subprocess.run(["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"git: {listed.stderr}")
    assert not listed.stdout.split("\n")[:-1]


def test_pure_python_wheel(tmp_path):
    done, wheels = build(tmp_path, NAG_BUILD_EXT="0")
    assert done.returncode == 0, done.stderr
    assert [re.sub(r"-[\d.]+-", "-", w.name) for w in wheels] == ["nag_kernels-py3-none-any.whl"]
    names = zipfile.ZipFile(wheels[0]).namelist()
    assert {n.split("/")[0] for n in names if "dist-info" not in n} == {"nag_kernels", "nag_kernels_command.py"}
    assert wheels[0].stat().st_size < 8_000_000
    assert {"nag_kernels/triton_kernels/__init__.py", "nag_kernels/py.typed"} <= set(names)
    packages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nag_kernels").rglob("__init__.py")}
    assert packages <= set(names), packages - set(names)
    assert any(n.startswith("nag_kernels/shapes/weights/") and n.endswith(".safetensors") for n in names)
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheels[0]], check=True
    )
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in str(f)]; "
        "import nag_kernels, nag_kernels.triton_kernels; from nag_kernels import testing; "
        "assert sys.argv[1] in nag_kernels.__file__; print(nag_kernels.available_backends()); "
        "print(nag_kernels.fused_guided_attention(**testing.make_inputs(length=3), nag_scale=5.0).isfinite().all())"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(target)], cwd=tmp_path, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(target)})  # fmt: skip
    assert ran.stdout.split("\n")[:2] == ["('sdpa', 'reference')", "tensor(True)"], ran.stderr
    script = target / ("bin/nag-kernels" if os.name == "posix" else "Scripts/nag-kernels.exe")
    ran = subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(target)})  # fmt: skip
    assert ran.stdout.startswith("usage: nag-kernels COMMAND"), ran.stderr


def test_a_source_distribution_is_the_whole_project(tmp_path):
    """Each file, the tests included, so that they run there; and nothing that was made from it."""
    copy = copied(tmp_path / "copy", names := source_files())
    for made in ("nag_kernels/_C.abi3.so", "nag_kernels/__pycache__/a.pyc", "benchmarks/results/a.partial.csv"):
        (copy / made).parent.mkdir(exist_ok=True)
        (copy / made).touch()
    code = "import setuptools.build_meta as x; x.build_sdist('../dist')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    with tarfile.open(next((tmp_path / "dist").glob("*.tar.gz"))) as archive:
        packed = {x.name.partition("/")[2] for x in archive.getmembers() if x.isfile()}
    assert set(names) - packed == {name for name in names if name.startswith(".ci/")}
    added = {name for name in packed - set(names) if not name.startswith("nag_kernels.egg-info/")}
    assert added <= {"PKG-INFO", "setup.cfg"}


def test_what_the_commands_need_is_in_an_extra():
    """README's install gives README's commands what they import, and each hint names packages that an extra names too."""
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    def packages(extra):
        found = set()
        for each in extras[extra]:
            own = re.fullmatch(r"nag-kernels\[(.+)\]", each)
            found |= (
                {x for name in own[1].split(",") for x in packages(name)} if own else {re.match(r"[\w-]+", each)[0]}
            )
        return found

    for command, needs in user_errors.NEEDS.items():
        assert set(needs) <= packages(user_errors.EXTRAS.get(command, "commands")), command
    assert set(user_errors.NEEDS["nag_kernels.demo"]) <= packages("demo")
    assert set(user_errors.NEEDS["nag_kernels.distill"]) <= packages("distill")
    assert set(user_errors.NEEDS["nag_kernels.evaluate"]) | {"matplotlib", "torchmetrics"} <= packages("evaluate")
    assert {"diffusers", "transformers", "accelerate"} == packages("diffusers")  # accelerate offloads
    assert "pip install '.[commands]'" in (ROOT / "README.md").read_text()


def test_no_hint_names_a_package_of_an_index():
    """nag-kernels is on none: `pip install nag-kernels` would fail, or install what somebody else put there."""
    for name in source_files(
        "nag_kernels", "nag_kernels_command.py", "comfyui", "sdnext", "examples", "docs", "README.md"
    ):
        if name.endswith((".py", ".md")):
            assert not re.search(r"pip install (-\S+ )*'?nag[-_]kernels(?!-)", (ROOT / name).read_text()), name


def test_without_a_compiler_the_install_is_pure_python_and_says_so(tmp_path):
    done, wheels = build(tmp_path, CXX="no-such-compiler")
    assert done.returncode == 0
    assert wheels[0].name.endswith("py3-none-any.whl")
    output = done.stdout + done.stderr
    assert "WARNING: no C++ compiler (no-such-compiler); installing pure Python" in output


def test_a_compiler_that_is_too_old_is_no_compiler(tmp_path):
    compiler = tmp_path / "old-c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    done, wheels = build(tmp_path, CXX=str(compiler))
    assert done.returncode == 0
    assert wheels[0].name.endswith("py3-none-any.whl")
    assert "no C++ compiler that is new enough (GCC 12 or Clang" in done.stdout + done.stderr


def test_without_a_compiler_a_demanded_extension_is_an_error(tmp_path):
    done, wheels = build(tmp_path, CXX="no-such-compiler", NAG_BUILD_EXT="1")
    assert done.returncode != 0
    assert not wheels
    assert "NAG_BUILD_EXT=1, but there is no C++ compiler (no-such-compiler)" in done.stdout + done.stderr


FAILING = """#!/bin/sh
# A compiler that fails on one file and makes an empty object of each other one.
case "$*" in
  *csrc/module.cpp*) echo "csrc/module.cpp: error: on purpose" >&2; exit 1;;
  *" -o "*) for last; do :; done; exec c++ -c -x c++ /dev/null -o "$(echo "$*" | sed 's/.* -o \\([^ ]*\\).*/\\1/')";;
  *) exec c++ "$@";;
esac
"""


def failing_compiler(folder):
    compiler = folder / "failing-c++"
    compiler.write_text(FAILING)
    compiler.chmod(0o755)
    return str(compiler)


def test_a_compiler_that_fails_is_no_compiler(tmp_path):
    """It is asked with all words of CXX, which may be those of a wrapper ("ccache g++")."""
    done, wheels = build(tmp_path, CXX=f"env {failing_compiler(tmp_path)}", NAG_BUILD_CUDA="0")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert wheels[0].name.endswith("py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheels[0]).namelist() if name.endswith(".so")]
    assert "csrc/module.cpp: error: on purpose" in output
    assert output.count("WARNING: the C++ compiler failed; installing pure Python") == output.count("WARNING: ") == 1


def test_a_compiler_that_fails_is_an_error_where_the_extension_is_demanded(tmp_path):
    done, wheels = build(tmp_path, CXX=failing_compiler(tmp_path), NAG_BUILD_CUDA="0", NAG_BUILD_EXT="1")
    assert done.returncode != 0
    assert not wheels


# In a test of its own process: two extensions that fail, or build, without a compiler being asked.
BUILD = """
import os, subprocess, sys
sys.path.insert(0, os.getcwd())
import setuptools
kept = {}
setuptools.setup = lambda **settings: kept.update(settings)
sys.argv = ["setup.py", "build_ext"]
exec(compile(open("setup.py").read(), "setup.py", "exec"), {"__name__": "__main__", "__file__": "setup.py"})
from setuptools import Distribution, Extension
names = ["nag_kernels._C", "nag_kernels._C_cuda"]
command = kept["cmdclass"]["build_ext"](Distribution({"ext_modules": [Extension(name, []) for name in names]}))
command.extensions = command.distribution.ext_modules
def build(ext):
    if ext.name == failing:
        raise subprocess.CalledProcessError(1, "nvcc")
command.build_extension, failing = build, os.environ["FAILING"]
command.build_extensions()
print("built", *[ext.name for ext in command.extensions])
"""


@pytest.mark.parametrize(
    ("failing", "demanded", "built"),
    [
        ("_C_cuda", {}, "built nag_kernels._C\n"),
        ("_C_cuda", {"NAG_BUILD_EXT": "1"}, "built nag_kernels._C\n"),
        ("_C", {}, "built\n"),
        ("none", {}, "built nag_kernels._C nag_kernels._C_cuda\n"),
        ("_C", {"NAG_BUILD_EXT": "1"}, None),
        ("_C_cuda", {"NAG_BUILD_CUDA": "1"}, None),
    ],
)
def test_which_failures_are_errors(failing, demanded, built):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NAG_")}
    if demanded.get("NAG_BUILD_CUDA") and cuda_build.missing(installed_torch.folder(), any_torch=True):
        pytest.skip("cuda compile is not here")
    ran = subprocess.run([sys.executable, "-c", BUILD], cwd=ROOT, capture_output=True, text=True,
                         env={**environment, **demanded, "FAILING": f"nag_kernels.{failing}"})  # fmt: skip
    if built is None:
        assert "CalledProcessError: Command 'nvcc'" in ran.stderr
        assert "WARNING" not in ran.stderr
    else:
        assert ran.stdout.endswith(built), ran.stderr
        assert ran.stderr.count("WARNING") == (failing != "none")


# --- the torch to build against -------------------------------------------------------------------------------------


@pytest.fixture
def no_torch(monkeypatch):
    """As in the environment that pip builds in: nothing that is imported finds torch."""
    monkeypatch.setattr(installed_torch.importlib.util, "find_spec", lambda name: None)


def test_pip_builds_against_the_torch_of_the_environment_that_it_installs_into(no_torch, monkeypatch, tmp_path):
    monkeypatch.setattr(installed_torch.site, "getusersitepackages", lambda: str(tmp_path / "user"))
    places = {"purelib": tmp_path / "pure", "platlib": tmp_path / "plat"}
    monkeypatch.setattr(installed_torch.sysconfig, "get_path", lambda kind, vars=None: str(places[kind]))
    assert installed_torch.folder() is None
    for place in ("user", "plat", "pure"):
        (tmp_path / place / "torch").mkdir(parents=True)
        (tmp_path / place / "torch" / "version.py").write_text("__version__ = '2.11.0+cu130'\ncuda: str = '13.0'\n")
        assert installed_torch.folder() == tmp_path / place / "torch"
    assert installed_torch.version(tmp_path / "pure" / "torch") == "2.11.0+cu130"
    assert installed_torch.cuda(tmp_path / "pure" / "torch") == "13.0"


@pytest.mark.parametrize("shared", ["true", "false"])
def test_an_environment_that_shares_the_packages_of_its_python(no_torch, monkeypatch, tmp_path, shared):
    (tmp_path / "pyvenv.cfg").write_text(f"include-system-site-packages = {shared}\n")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "base"))
    monkeypatch.setattr(sys, "base_exec_prefix", str(tmp_path / "base"))
    monkeypatch.setattr(installed_torch.site, "getusersitepackages", lambda: str(tmp_path / "user"))
    own, here = installed_torch.sysconfig.get_path, dict.fromkeys(("base", "platbase"), str(tmp_path))
    monkeypatch.setattr(installed_torch.sysconfig, "get_path",
                        lambda kind, vars=None: own(kind, vars=vars or here))  # fmt: skip
    torch = pathlib.Path(own("purelib", vars={"base": str(tmp_path / "base")}), "torch")
    torch.mkdir(parents=True)
    (torch / "version.py").write_text("")
    assert installed_torch.folder() == (torch if shared == "true" else None)


def test_a_torch_that_is_too_old(tmp_path):
    (tmp_path / "version.py").write_text("__version__ = '2.9.1'\n")
    assert installed_torch.missing(tmp_path) == "only torch 2.9.1, older than 2.10"
    (tmp_path / "version.py").write_text("__version__ = '2.10.0'\n")
    assert installed_torch.missing(tmp_path) is None
    assert installed_torch.missing(None) == "no torch to build against"


def test_torch_is_no_requirement_of_the_build():
    """pip would fetch the newest of it, of several GB, into the environment that it builds in."""
    requires = re.search(r"^\[build-system\]\nrequires = (.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert "torch" not in requires


@pytest.mark.parametrize(("command", "refused"), [("dist_info", True), ("bdist_wheel", True), ("egg_info", False)])
def test_without_a_torch_the_build_is_refused_with_the_command(tmp_path, command, refused):
    code = (
        "import sys, runpy, setuptools; sys.path.insert(0, '.'); import installed_torch; "
        "setuptools.setup = lambda **settings: print('set up', len(settings['ext_modules'])); "
        f"installed_torch.folder = lambda: None; sys.argv = ['setup.py', '{command}']; "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NAG_")}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    if refused:
        assert ran.returncode == 1
        assert "there is no torch to build against" in ran.stderr
        assert "pip install torch\n    pip install .\n" in ran.stderr
    else:
        assert ran.stdout == "set up 0\n", ran.stderr
    environment["NAG_BUILD_EXT"] = "0"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert ran.stdout == "set up 0\n", ran.stderr


def test_the_folder_is_no_top_level_package():
    ran = subprocess.run([sys.executable, "-c", "import triton_kernels"], cwd=ROOT, capture_output=True, text=True)
    assert "import nag_kernels.triton_kernels" in ran.stderr
    assert subprocess.run([sys.executable, "-c", "import triton_kernels"], cwd=ROOT / "tests").returncode != 0


def test_a_checkout_that_is_not_installed_finds_its_triton_kernels(tmp_path):
    """As on a machine that is lent for a while: the folder is on the path, and nothing is installed or linked."""
    copied(tmp_path, [name for name in source_files("nag_kernels", "triton_kernels") if "weights" not in name])
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in str(f)]; "
        "import nag_kernels.triton_kernels.configs as x; print(x.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert done.stdout.strip() == str(tmp_path / "triton_kernels" / "configs.py"), done.stderr


@needs_library
def test_the_library_holds_only_stable_symbols():
    """No C++ symbol of torch (at::, c10::, torch::) is needed: what is left is the C shim that torch keeps stable."""
    text = subprocess.run(["nm", "-DC", "--undefined-only", LIBRARY], capture_output=True, text=True, check=True).stdout
    needed = [line.split(maxsplit=1)[1] for line in text.splitlines()]
    assert any("aoti_torch" in name or "torch_" in name for name in needed)
    assert not [name for name in needed if re.search(r"\b(at|c10|torch)::", name)]


@needs_library
def test_a_public_auditor_agrees():
    auditor = pathlib.Path(sys.executable).with_name("torch-abi-audit")
    audit = subprocess.run([auditor, "--check", "both", LIBRARY], capture_output=True, text=True)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert re.search(r"Torch ABI:\s+STABLE\s+Min torch:\s+2\.10\.", audit.stdout)
    assert re.search(r"CPython ABI:\s+abi3", audit.stdout)


@needs_library
def test_the_library_exports_nothing_but_its_init():
    assert LIBRARY.exists()
    text = subprocess.run(["nm", "-D", LIBRARY], capture_output=True, text=True, check=True).stdout
    exported = [line.split()[-1] for line in text.splitlines() if line.split()[-2] not in ("U", "w", "v")]
    assert exported == ["PyInit__C"]


def test_torch_enters_every_operation_where_exceptions_are_caught():
    """Past TORCH_BOX an exception of another C++ library than torch's ends the process: csrc/entry.h. With the compiler of these
    tests nobody would notice; build_wheels.sh tries it with zig's."""
    found = {path.name for path in (ROOT / "csrc").rglob("*.*") if "TORCH_BOX(" in path.read_text()}
    assert found == {"entry.h"}


# --- a release --------------------------------------------------------------------------------------------------------


def test_release_notes_are_the_section_of_the_version_and_the_checksums():
    changelog = "# Changelog\n\n## 0.2.0 (2026-12-01)\n\n- New.\n  More.\n\n## 0.1.0 (2026-11-01)\n\n- Old.\n"
    assert notes(changelog, "0.2.0", "ab12  a.whl\ncd34  b.whl\n") == (
        "# nag_kernels 0.2.0 (2026-12-01)\n\n- New.\n  More.\n\n| wheel | SHA-256 |\n|---|---|\n"
        "| `a.whl` | `ab12` |\n| `b.whl` | `cd34` |\n"
    )
    assert section(changelog, "0.1.0") == ("2026-11-01", "- Old.")
    for version, said in (("0.3.0", "no section"), ("0.2", "no section")):
        with pytest.raises(ValueError, match=said):
            section(changelog, version)
    with pytest.raises(ValueError, match="is empty"):
        section("## 0.2.0 (unreleased)\n\n## 0.1.0 (2026-11-01)\n\n- Old.\n", "0.2.0")


def test_the_changelog_has_a_section_of_this_version():
    assert section((ROOT / "CHANGELOG.md").read_text(), nag_kernels.__version__)


def test_the_release_script_uploads_nothing():
    text = (ROOT / "build_wheels.sh").read_text()
    assert not re.search(r"twine|\bgh\b|curl|git push|--repository", text)
    assert "Nothing was uploaded" in text
