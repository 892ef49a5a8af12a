# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which backend serves a call, and why the others do not."""

from typing import Any

from . import _ops, gpu, gpu_table
from .availability import BACKENDS, FORCED, LOG, OPERATIONS, may_be_turned_on, refusal

if may_be_turned_on():
    _ops.register_kernels(lambda: gpu.KERNELS, "CUDA", behind=refusal("cuda", "cuda") is None)


def choose(op: str, device: str, backend: str | None = None) -> str:
    """The backend that serves `op` on a device type; `backend` (else NAG_BACKEND) forces one.

    Raises: ValueError with the reason where the forced one cannot run.
    """
    forced, reason = backend or FORCED, None
    for name in (forced,) if forced else BACKENDS:
        reason = refusal(name, device)
        if reason is None:
            return name
        LOG.debug("%s cannot run nag::%s: %s", name, op, reason)
    raise ValueError(f"{forced} cannot run nag::{op}: {reason}")


def explain(op: str = "fused_guided_attention", device: str = "cpu", **call: Any) -> str:
    """Says which backend serves `op` on a device type, and why each other backend does not, in one line for each backend.

    With `call`, it has one line for each GPU kernel instead. `call` describes one call of fused_guided_attention on a GPU, by
    the fields of `nag_kernels.gpu_table.Call`: chip, length, heads, size, positive, negative, shared, ... This needs no GPU.
    `chip` is 90 for compute capability 9.0.
    """
    if op not in OPERATIONS:
        raise ValueError(f"op must be one of {', '.join(OPERATIONS)}, got {op!r}")
    if call:
        if op != "fused_guided_attention":
            raise ValueError(f"only fused_guided_attention is chosen by call, not {op}")
        return gpu.explain_here(gpu_table.Call(**call))
    if FORCED and refusal(FORCED, device):
        return f"nothing serves nag::{op} on {device}: NAG_BACKEND forces {FORCED}, but {refusal(FORCED, device)}"
    chosen, lines = choose(op, device), []
    for name in BACKENDS:
        if name == chosen:
            lines.append(f"{name} serves nag::{op} on {device}")
        else:
            reason = refusal(name, device) or (f"NAG_BACKEND forces {FORCED}" if FORCED else f"{chosen} comes first")
            lines.append(f"{name} does not serve nag::{op} on {device}: {reason}")
    return "\n".join(lines)
