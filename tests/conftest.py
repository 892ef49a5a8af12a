# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures by backend, one seed, and a last line that says which backends were exercised how often."""

import gc
import os
import sys
from pathlib import Path

import pytest
import torch

from nag_kernels import availability

# Without a GPU Triton's kernels are interpreted, which must be settled before the first import of triton.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# pytest has put this folder on the path, where its folders diffusers, evidence and benchmarks could be taken for the packages of
# these names. Modules that tests share are found through `pythonpath` in pyproject.toml.
sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]

REQUIRED = [name for name in os.environ.get("NAG_REQUIRE_BACKENDS", "").split(",") if name]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _process_state():
    """What a test could leave behind for all that run after it in this process."""
    backends = torch.backends.cuda
    kept = {
        "attention function": torch.nn.functional.scaled_dot_product_attention,
        "flash attention": backends.flash_sdp_enabled(),
        "memory-efficient attention": backends.mem_efficient_sdp_enabled(),
        "math attention": backends.math_sdp_enabled(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "trace": sys.gettrace(),
    }
    dispatch = sys.modules.get("diffusers.models.attention_dispatch")
    if dispatch is not None:
        kept["diffusers' attention backend"] = dispatch._AttentionBackendRegistry.get_active_backend()[0]
    return kept


@pytest.fixture(autouse=True)
def _process_state_is_kept():
    before = _process_state()
    yield
    after = _process_state()
    assert not (left := {k: after[k] for k, x in before.items() if after[k] != x}), f"the test left behind: {left}"


@pytest.fixture
def one_thread():
    """Tiny models are slower on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(params=["cpu", "sdpa", "reference"])
def backend(request) -> str:
    """Every backend for tensors on the CPU in turn; one that is not here is skipped by name, or fails if
    NAG_REQUIRE_BACKENDS names it."""
    reason = availability.refusal(request.param, "cpu")
    if reason is not None:
        (pytest.fail if request.param in REQUIRED else pytest.skip)(f"{request.param} is not here: {reason}")
    return request.param


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true",
                     help="of each test the case in the middle; none that is marked slow")  # fmt: skip
    parser.addoption(
        "--comfy", metavar="FOLDER", help="a checkout of ComfyUI for tests/comfyui, instead of the fetched core"
    )
    parser.addoption("--sdnext", metavar="FOLDER", help="a checkout of SD.Next for tests/sdnext/test_sdnext_real.py")
    parser.addoption("--sdnext-python", metavar="FILE", help="a Python that has what this SD.Next needs")
    parser.addoption("--play-screenshot", metavar="FILE",
                     help="where tests/play/test_play_browser.py puts its picture of the page")  # fmt: skip
    parser.addoption("--ptx-check", action="store_true",
                     help="every case of the executed PTX (make ptx-check), not only the sample")  # fmt: skip


# What takes longest begins first: else one process of pytest-xdist goes on with it long after the others have ended.
LONGEST = (
    "test_every_model", "test_cpu_paths", "test_cuda_compile", "test_triton", "test_ptx_mutants", "test_benchmarks",
    "test_operations", "test_guide", "test_guided_denoisers", "test_guide_interrupts", "test_play_page", "test_shapes",
    "test_combinations", "test_variants", "test_page", "test_ops", "test_processors", "test_prompt_calls", "test_gpu_choice",
    "test_layers", "test_attention", "test_comfy_families", "test_packaging", "test_guider", "test_parallel", "test_prove",
    "test_registry", "test_demo", "test_diagnose", "test_comfy_combinations", "test_backends", "test_aot_inductor",
)  # fmt: skip


def pytest_collection_modifyitems(config, items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))  # the rest stays in its random order
    if not config.option.ptx_check:
        left_out = [item for item in items if item.get_closest_marker("ptx_check")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("ptx_check")]
    if not config.option.fast:
        return
    cases = {}
    for item in items:
        if item.get_closest_marker("slow") is None:
            cases.setdefault((item.path, item.originalname), []).append(item)
    kept = {id(each[len(each) // 2]) for each in cases.values()}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]


def pytest_collection_finish():
    """What is imported stays: collections of garbage, which are many under torch.compile, need not walk over it each time."""
    gc.collect()
    gc.freeze()


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes seconds; left out by --fast (make test-fast)")
    config.addinivalue_line("markers", "ptx_check: of the executed PTX more than a sample; run by --ptx-check alone")
    config.calls = {}  # of each backend, over all processes of pytest-xdist


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's, which is not needed
def pytest_testnodedown(node, error):
    for name, n in getattr(node, "workeroutput", {}).get("calls", {}).items():
        node.config.calls[name] = node.config.calls.get(name, 0) + n


def pytest_sessionfinish(session, exitstatus):
    gc.unfreeze()
    calls = session.config.calls
    for name, n in availability.counts().items():
        calls[name] = calls.get(name, 0) + n
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["calls"] = calls
        return
    absent = [name for name in REQUIRED if calls.get(name, 0) == 0]
    if absent and not session.config.option.collectonly:
        session.exitstatus = 1
        print(f"\nNAG_REQUIRE_BACKENDS: never ran: {', '.join(absent)}")


def pytest_terminal_summary(terminalreporter):
    counts = ", ".join(f"{name}={n}" for name, n in terminalreporter.config.calls.items())
    path = availability.cpu_capability() or "not built"
    skips = {report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])}
    gpu = [] if torch.cuda.is_available() else ["any GPU"]
    absent = "; ".join([*gpu, *sorted(skips - {"any GPU"})]) or "nothing"
    terminalreporter.write_line(
        f"backends exercised (calls counted inside each): {counts} [cpu path: {path}]; not run here: {absent}"
    )
    seed = terminalreporter.config.getoption("randomly_seed", None)
    if seed is not None:  # pytest-randomly's, which is not needed
        terminalreporter.write_line(f"random order: --randomly-seed={seed} gives it again")
