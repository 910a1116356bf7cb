"""Checks that run in several processes which talk to each other (gloo)."""

import traceback
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

needs_gloo = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
# Forks of a process that has imported what takes seconds; without them (Windows), each imports it anew.
START = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"


def work(rank, world, folder, check, reports):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=timedelta(seconds=200)
    )
    try:
        torch.manual_seed(0)
        check(rank, world)
        dist.barrier()
        reports.put((rank, "passed"))
    except BaseException:
        reports.put((rank, traceback.format_exc()))
    dist.destroy_process_group()


def run(check, world, tmp_path):
    """Run ``check(rank, world)`` in processes of their own; an assertion in one fails the test."""
    context = mp.get_context(START)
    if START == "forkserver":
        function = check.func if isinstance(check, partial) else check
        context.set_forkserver_preload(["torch._dynamo", function.__module__])
    reports = context.SimpleQueue()
    processes = [context.Process(target=work, args=(i, world, tmp_path, check, reports)) for i in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
    outcomes = dict.fromkeys(range(world), "no report: it hung or crashed")
    while not reports.empty():
        rank, outcome = reports.get()
        outcomes[rank] = outcome
    # Not the exit codes: torch's gloo threads sometimes abort a process at its very end, after all is done.
    assert set(outcomes.values()) == {"passed"}, "\n".join(f"rank {rank}: {text}" for rank, text in outcomes.items())
