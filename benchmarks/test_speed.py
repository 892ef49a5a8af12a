# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The cases of `python -m benchmarks attention` under pytest-benchmark: `pytest benchmarks --benchmark-only`."""

import pytest
import torch

from benchmarks.providers import PROVIDERS, verify
from benchmarks.workloads import CPU
from nag_kernels import testing


@pytest.mark.parametrize("provider", [name for name, each in PROVIDERS.items() if each.usual and each.guided])
@pytest.mark.parametrize("workload", CPU, ids=lambda w: w.name)
def test_attention(benchmark, workload, provider):
    each = PROVIDERS[provider]
    if not each.takes(workload):
        pytest.skip(f"{provider} needs shared keys")
    benchmark.group = workload.name
    try:
        run = each.set_up("cpu")
    except RuntimeError as error:
        pytest.skip(str(error))
    inputs = testing.make_inputs(**workload.inputs())
    with torch.inference_mode():
        verify(provider, run, {**inputs, "query": inputs["query"][:, :64]})
        benchmark(run, inputs)
