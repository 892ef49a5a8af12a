# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: their PTX, compiled for the arguments of each launch as the JIT would, and run in the place of a GPU."""

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from ptx_machine import GlobalMemory, Kernel, Machine
from torch import Tensor

from nag_kernels import availability

POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.uint8: "*u8"}
WRITTEN = ("positive", "negative", "scales_positive", "scales_negative", "out")
FORMATS = {"i32": "i", "i64": "q", "fp32": "f"}
SOURCES = sorted((Path(__file__).parents[2] / "triton_kernels").glob("*.py"))


# Other versions of Triton than the installed one; `make ptx-check` fetches them, `make test` the oldest.
OTHERS = Path(__file__).parents[2] / ".triton"


@functools.cache
def _compiler(version: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if version != importlib.metadata.version("triton"):
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(OTHERS / version), environment.get("PYTHONPATH")])
        )
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("triton_compiler.py")], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@functools.cache
def compiled(asked: str, version: str) -> tuple[str, int]:
    """PTX and bytes of shared memory, kept between runs by the hash of all that they are made from."""
    text = b"".join(path.read_bytes() for path in SOURCES) + asked.encode() + version.encode()
    folder = Path(tempfile.gettempdir()) / f"nag_ptx-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    to = folder / f"{hashlib.sha256(text).hexdigest()[:24]}.json"
    if not to.exists():
        compiler = _compiler(version)
        compiler.stdin.write(asked + "\n")
        compiler.stdin.flush()
        line = next((line for line in compiler.stdout if line.startswith("made ")), None)
        assert line is not None, f"the compiler ended at {asked}"
        partial = to.with_suffix(f".{os.getpid()}")
        partial.write_text(line.removeprefix("made "))
        partial.rename(to)
    made = json.loads(to.read_text())
    return made["ptx"], made["shared"]


@functools.lru_cache(64)
def _kernel(text: str) -> Kernel:
    return Kernel.of(text)


def specialised(names: list[str], arguments: dict) -> tuple[dict, dict, list, list]:
    """What the JIT makes of these arguments: (signature, constants, aligned arguments, [(type, value)])."""
    signature, constants, aligned, values = {}, {}, [], []
    for name in names:
        x = arguments[name]
        if isinstance(x, Tensor):
            kind, number = POINTERS[x.dtype], x.data_ptr()
        elif isinstance(x, float):
            kind, number = "fp32", x
        else:
            kind, number = "i32" if -(2**31) <= x < 2**31 else "i64", x
        if kind[0] == "i" and number == 1:
            kind, constants[name] = "constexpr", 1
        elif kind[0] in "*i" and number % 16 == 0:
            aligned.append(name)
        signature[name] = kind
        if kind != "constexpr":
            values.append((kind, number))
    return signature, constants, aligned, values


class Launch:
    """Stands for one kernel: `self[grid](...)` compiles it and runs its PTX."""

    def __init__(self, owner: "Launcher", name: str, names: list[str]):
        self.owner, self.name, self.names = owner, name, names

    def __getitem__(self, grid):
        return functools.partial(self._run, grid if isinstance(grid, tuple) else (grid,))

    def _run(self, grid, *given, num_warps: int = 4, num_stages: int = 3, **constants):
        arguments = dict(zip(self.names, given, strict=False))
        signature, ones, aligned, values = specialised([n for n in self.names if n not in constants], arguments)
        signature |= dict.fromkeys(constants, "constexpr")
        asked = {"kernel": self.name, "signature": signature, "constants": constants | ones, "aligned": aligned,
                 "chip": self.owner.chip, "options": {"num_warps": num_warps, "num_stages": num_stages}}  # fmt: skip
        text, shared = compiled(json.dumps(asked, sort_keys=True), self.owner.version)
        kernel = _kernel(self.owner.change(text) if self.owner.change else text)
        parameters = b""
        for (kind, value), at in zip(values, kernel.parameters.values(), strict=False):
            parameters = parameters.ljust(at.offset, b"\0") + struct.pack("<" + FORMATS.get(kind, "Q"), value)
        memory = GlobalMemory()
        for writable in (False, True):
            for name, x in arguments.items():
                if isinstance(x, Tensor) and (name in WRITTEN) == writable:
                    memory.add(x, writable)
        machine = Machine(kernel, memory, 32 * num_warps, shared, **self.owner.how)
        self.owner.machines.append(machine)
        machine.launch(grid, parameters, self.owner.together)


class Launcher:
    """`with` it the module's operations run PTX of one chip; `change` may alter it, `how` goes to the machine.

    version: the Triton that compiles, None for the installed one.  as_version: the one that the kernels take it for.
    """

    def __init__(self, chip: int, change=None, together: int = 8, version: str | None = None,
                 as_version: str | None = None, **how):  # fmt: skip
        self.chip, self.change, self.how, self.together = chip, change, how, together
        self.version = version or importlib.metadata.version("triton")
        self.as_version = as_version or self.version
        self.machines: list[Machine] = []
        self.module = importlib.import_module(availability.TRITON_MODULE)

    @contextlib.contextmanager
    def __call__(self):
        module = self.module
        configs = importlib.import_module(f"{module.__package__}.configs")
        known = configs.triton_version
        kept = {name: getattr(module, name) for name in ("branches", "blend", "capability", "INTERPRETED")}
        try:
            for name in ("branches", "blend"):
                setattr(module, name, Launch(self, name, list(kept[name].arg_names)))
            module.capability, module.INTERPRETED = lambda device: self.chip, False
            configs.triton_version = lambda: tuple(map(int, self.as_version.split(".")))
            yield module
        finally:
            configs.triton_version = known
            for name, value in kept.items():
                setattr(module, name, value)

    def attention(self, inputs: dict, settings: tuple, rule: str = "nag") -> Tensor:
        from nag_kernels import testing

        with self() as module:
            return module.fused_guided_attention(**testing.with_settings(inputs, settings), rule=rule)
