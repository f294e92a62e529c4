"""Two processes for a test, without importing everything anew in each of them."""

import multiprocessing

from torch.multiprocessing import start_processes


def in_two_processes(function, *args):
    """`function(rank, *args)` in two processes, which are forked from one that has imported what they need (and has no
    threads yet)."""
    multiprocessing.set_forkserver_preload(["modeling_a2mim.trainer"])
    start_processes(function, args, nprocs=2, start_method="forkserver")
