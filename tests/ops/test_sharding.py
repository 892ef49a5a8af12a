# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Both operations on DTensor over several processes of one machine (gloo), equal to the whole tensors."""

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("sharding_worker.py")


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "placements"), [(2, 4), (4, 3)])
def test_sharded_tensors_give_what_whole_ones_give(processes, placements):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*launcher, str(WORKER)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.count(f"on {processes} processes: ") == placements, done.stdout
