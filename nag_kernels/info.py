# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m nag_kernels.info`: what is here, what is not and why, and which backend each operation would take."""

import argparse
import importlib.metadata
import importlib.util
import platform

import torch

from . import __version__, availability, backends
from .prove import verdicts

OPTIONAL = {
    "diffusers": "it would serve the processors and the entry point (pip install diffusers transformers accelerate)",
    "transformers": "it would serve the text encoders of pipelines (pip install transformers)",
    "triton": "it would run the Triton kernels (pip install triton)",
}


def _installed(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        return f"not installed; {OPTIONAL[name]}"
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "installed under another distribution's name"


def _verdicts() -> list[str]:
    """What is known of each plan on the GPUs of this machine."""
    if not torch.cuda.is_available():
        return [f"verdicts        none without a CUDA device; on one {verdicts.COMMAND} finds what is right and fast"]
    lines = []
    for index in range(torch.cuda.device_count()):
        known = verdicts.read(verdicts.facts_of(torch.device("cuda", index)))
        lines.append(f"verdicts        of device {index}{'' if known.plans else f': none; {verdicts.COMMAND}'}")
        lines += [f"                {line}" for line in known.lines()] if known.plans else []
    return lines


def report() -> str:
    """The whole report as text; every line says what is here, or what is not and why."""
    capability = availability.cpu_capability()
    cpu = f"loaded, runs its {capability} path" if capability else f"not here: {availability.refusal('cpu', 'cpu')}"
    triton, cuda_kernels = (availability.refusal(name, "cuda") for name in ("triton", "cuda"))
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device seen by this torch"
    by = "NAG_BACKEND" if availability.ASKED else "a verdict"
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    lines = [
        f"nag_kernels     {__version__}",
        f"python          {platform.python_version()} on {platform.system()} {platform.machine()}",
        f"torch           {torch.__version__}",
        *(f"{name:<15} {_installed(name)}" for name in OPTIONAL),
        f"cuda            {cuda}",
        "",
        f"cpu kernels     {cpu}",
        f"triton kernels  {f'turned on by {by}' if triton is None else f'off: {triton}'}",
        f"cuda kernels    {f'turned on by {by}' if cuda_kernels is None else f'off: {cuda_kernels}'}",
        f"NAG_BACKEND     {availability.ASKED or 'not set'}",
        f"NAG_PROVE       {availability.PROVE}",
        *_verdicts(),
        "",
    ]
    for op in availability.OPERATIONS:
        lines += [backends.explain(op, device) for device in devices]
    lines += [
        "",
        "head sizes      any from 1 up; 32 to 256 in multiples of 8 is the fast range, others take the same path padded",
        "                to the vector width, with the same accuracy",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m nag_kernels.info",
        description="Say what is installed, what is missing and why, and which backend serves each operation. "
        "NAG_BACKEND forces one; NAG_LOG=debug logs what plain PyTorch serves.",
    )
    parser.parse_args(arguments)
    print(report())


if __name__ == "__main__":
    main()
