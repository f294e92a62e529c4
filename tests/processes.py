"""Processes for a test, without importing everything anew in each of them."""

import multiprocessing
import os
import socket
import threading
from pathlib import Path

from torch.multiprocessing import start_processes
from tqdm.std import tqdm


PRELOADED = ["modeling_a2mim.training.trainer"]


def in_two_processes(function, *args):
    """`function(rank, *args)` in two processes with the environment that torchrun gives them. They are forked from one
    that has imported what they need, and has no threads yet."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_run, (port, function, args), nprocs=2, start_method="forkserver")


def _run(rank: int, port: int, function, args: tuple):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function(rank, *args)


def in_a_new_process(folder: Path, function, *args) -> int:
    """The exit code of `function(*args)` in a process that knows nothing of this one, forked as those of
    `in_two_processes`. What it says is in `stdout` and `stderr` of the folder."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    process = multiprocessing.get_context("forkserver").Process(target=_told, args=(folder, function, args))
    process.start()
    process.join()
    return process.exitcode


def _told(folder: Path, function, args: tuple):
    for descriptor, name in enumerate(("stdout", "stderr"), 1):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    function(*args)


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
