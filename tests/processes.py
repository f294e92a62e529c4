"""Processes for a test, without importing everything anew in each of them."""

import multiprocessing
import os
import socket
import threading

from torch.multiprocessing import start_processes
from tqdm.std import tqdm


def in_two_processes(function, *args):
    """`function(rank, *args)` in two processes with the environment that torchrun gives them. They are forked from one
    that has imported what they need, and has no threads yet."""
    multiprocessing.set_forkserver_preload(["modeling_a2mim.training.trainer"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_run, (port, function, args), nprocs=2, start_method="forkserver")


def _run(rank: int, port: int, function, args: tuple):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function(rank, *args)


def forked(function, *args):
    """`function(*args)` in a process that is forked from this one, patches included, and may be killed."""
    process = multiprocessing.get_context("fork").Process(target=_with_own_lock, args=(function, args))
    process.start()
    return process


def _with_own_lock(function, args: tuple):
    # Progress bars share a lock with this process's parent: killed while it holds that, it would stop the parent for
    # good, and forked while a thread holds it, itself.
    lock, kinds = threading.RLock(), [tqdm]
    for kind in kinds:
        kind.set_lock(lock)
        kinds += kind.__subclasses__()
    function(*args)
