# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Both operations on DTensor over several processes of one machine (gloo), equal to the whole tensors."""

import forked
import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "placements"), [(2, 4), (4, 3)])
def test_sharded_tensors_give_what_whole_ones_give(processes, placements, tmp_path):
    """Each process checks itself."""
    import sharding_worker

    assert [len(x) for x in forked.run(sharding_worker.main, processes, tmp_path)] == [placements] * processes
