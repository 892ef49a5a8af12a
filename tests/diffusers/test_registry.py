# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which file knows a denoiser, when it is imported, and that no module of the package imports itself through others."""

import ast
import copy
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nag_kernels.diffusers.models.registry import (
    FILES,
    all_models,
    file_of,
    find_denoisers,
    further_denoisers,
    spec_of,
    supported,
)

PACKAGE = Path(sys.modules["nag_kernels"].__file__).parent
MODELS = PACKAGE / "diffusers" / "models"


def python(code: str) -> str:
    """Without what diffusers imports beside its models where it is installed, which takes as long as all else."""
    fast = "import sys; sys.modules.update(dict.fromkeys(('bitsandbytes', 'torchao', 'peft')))\n"
    done = subprocess.run([sys.executable, "-c", fast + code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("kind", FILES)
def test_the_file_of_a_class_has_its_entry(kind):
    denoiser = type(kind, (torch.nn.Module,), {})()
    assert spec_of(denoiser) is file_of(kind).MODELS[kind]


def test_every_entry_and_every_file_is_registered():
    files = {path.stem for path in MODELS.glob("*.py")} - {"__init__", "registry", "spec", "layers"}
    assert files == set(FILES.values())
    assert {kind for name in FILES for kind in file_of(name).MODELS} == set(FILES)
    assert list(all_models()) == list(FILES)


@pytest.mark.slow
def test_a_file_is_imported_when_its_denoiser_comes():
    """Importing the package imports no model's file, and none of diffusers' models that diffusers has not imported itself."""
    code = (
        "import sys, torch, diffusers, diffusers.models.attention_processor\n"
        "from diffusers import DiffusionPipeline, ModularPipeline\n"
        "before = set(sys.modules)\n"
        "import nag_kernels.diffusers\n"
        "new = {x for x in sys.modules if '.models.' in x} - before\n"
        "print(sorted(x for x in new if x.startswith('diffusers.') and '.transformers.' in x))\n"
        "print(sorted(x.rpartition('.')[2] for x in new if x.startswith('nag_kernels.')))\n"
        "nag_kernels.diffusers.models.registry.spec_of(type('FluxTransformer2DModel', (torch.nn.Module,), {})())\n"
        "print(sorted(x.rpartition('.')[2] for x in sys.modules if x.startswith('nag_kernels.diffusers.models.')))"
    )
    theirs, ours, with_flux = python(code).splitlines()[-3:]
    assert theirs == "[]"
    assert ours == "['registry', 'spec']"
    assert with_flux == "['flux', 'layers', 'registry', 'spec']"


@pytest.mark.slow
def test_a_model_that_diffusers_has_moved_breaks_no_other():
    modules = ["chronoedit", "flux2", "z_image"]
    code = (
        "import sys, torch, diffusers.models.transformers\n"
        f"for module in {modules}:\n"
        "    sys.modules[f'diffusers.models.transformers.transformer_{module}'] = None\n"
        "from nag_kernels.diffusers import NAGAttnProcessor2_0, guide, supported\n"
        "from nag_kernels.diffusers.models.registry import FILES, spec_of\n"
        "broken = []\n"
        "for kind in FILES:\n"
        "    try:\n"
        "        spec_of(type(kind, (torch.nn.Module,), {})())\n"
        "    except ImportError:\n"
        "        broken.append(FILES[kind])\n"
        "said = supported()\n"
        "print(sorted(broken), all((x in said) == (FILES[x] not in broken) for x in FILES))"
    )
    assert python(code).splitlines()[-1] == f"{modules} True"


def test_names_of_processors_are_there_before_they_are_imported():
    import nag_kernels.diffusers as package

    assert set(package.__all__) <= set(dir(package))
    assert all(getattr(package, name).__name__ == name for name in package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'NAGOtherAttnProcessor'"):
        _ = package.NAGOtherAttnProcessor
    assert len(supported().splitlines()) == 1 + len(FILES)


def imports_of(path: Path) -> set[Path]:
    """The files of the package that a file of it imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == PACKAGE.name:
            base = PACKAGE.parent.joinpath(*node.module.split("."))
        else:
            continue
        for alias in node.names:
            for candidate in (base / f"{alias.name}.py", base / alias.name / "__init__.py", base.with_suffix(".py"),
                              base / "__init__.py"):  # fmt: skip
                if candidate.exists():
                    found.add(candidate)
                    break
    return found - {path}


def test_no_module_imports_itself_through_others():
    files = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "triton_kernels"]
    graphlib.TopologicalSorter({path: imports_of(path) for path in files}).prepare()


def test_how_a_layer_is_guided_names_no_model():
    for path in (PACKAGE / "diffusers" / "attention").glob("*.py"):
        assert not {x.name for x in imports_of(path) if x.parent == MODELS}, path.name


def test_a_denoiser_under_another_name():
    from every_model import pipeline

    pipe, other = pipeline("sd15"), pipeline("sd15").unet
    for further in (other, torch.compile(other, backend="eager")):
        pipe.unet_refiner = further
        assert find_denoisers(pipe) == [pipe.unet]
        assert further_denoisers(pipe, [pipe.unet]) == [("unet_refiner", further)]
    pipe.unet_refiner = pipe.unet  # a second name of the same
    assert further_denoisers(pipe, find_denoisers(pipe)) == []


def test_a_denoiser_for_the_unconditional_branch_alone():
    from every_model import EXAMPLES

    pipe = EXAMPLES["ideogram 4"]()[0]
    pipe.unconditional_transformer = copy.deepcopy(pipe.transformer)
    assert find_denoisers(pipe) == [pipe.transformer]
    pipe.another_transformer = copy.deepcopy(pipe.transformer)
    further = further_denoisers(pipe, [pipe.transformer])
    assert further == [("another_transformer", pipe.another_transformer)]


@pytest.mark.parametrize("kind", ["sd15", "flux", "wan"])
def test_a_subclass_whose_forward_hands_all_on(kind):
    from drawing import draw
    from every_model import pipeline
    from pipeline_parts import NEGATIVE

    from nag_kernels.diffusers import guide

    pipe = pipeline(kind)
    model = find_denoisers(pipe)[0]
    with guide(pipe, NEGATIVE, nag_scale=4.0):
        wanted = draw(pipe)

    class Logged(type(model)):
        def forward(self, *call, **named):
            return super().forward(*call, **named)

    model.__class__ = Logged
    with guide(pipe, NEGATIVE, nag_scale=4.0):
        assert torch.equal(draw(pipe), wanted)
