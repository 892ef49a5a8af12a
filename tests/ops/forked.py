# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Several processes of one machine that meet by gloo."""

import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def run(work, count: int, folder: Path, *arguments, seconds: float = 300) -> list:
    """What work(*arguments) gives in each of `count` processes; an error in one is raised here, and so is one that takes longer.

    Forked processes need not import everything again; but a GPU's context cannot be forked.
    """
    begin = "spawn" if torch.cuda.is_available() else "fork"
    processes = torch.multiprocessing.start_processes(
        _process, (work, count, folder, arguments), nprocs=count, join=False, start_method=begin
    )
    end = time.monotonic() + seconds
    while not processes.join(max(0.0, end - time.monotonic())):
        if time.monotonic() > end:
            for process in processes.processes:
                process.kill()
            raise TimeoutError(f"{count} processes did not end within {seconds:g} seconds")
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _process(rank: int, work, count: int, folder: Path, arguments: tuple) -> None:
    torch.set_num_threads(1)
    meeting, patience = f"file://{folder / 'meeting'}", timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count, timeout=patience)
    torch.save(work(*arguments), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
