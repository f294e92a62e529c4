"""Many short runs, in this process or in several that share the cores, or a GPU."""

import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch
from tqdm.auto import tqdm


def run_all(run: Callable, items: Iterable, workers: int, after: Callable) -> None:
    """`run` each of `items`, of which several processes take one after the other, and `after()` each here. The
    processes are forked, so that they need not import anything again; nothing may have used a GPU before.

    Raises:
        Exception: the first that a run raised, once all others have ended.
    """
    torch.set_num_threads(1)
    items = list(items)
    if workers == 1:
        for item in tqdm(items, unit="run"):
            run(item)
            after()
        return
    context, failures = multiprocessing.get_context("fork"), []
    with ProcessPoolExecutor(workers, context) as pool:
        tasks = {pool.submit(run, item): item for item in items}
        for task in tqdm(as_completed(tasks), total=len(tasks), unit="run"):
            if error := task.exception():
                print(f"{tasks[task]}:", *traceback.format_exception(error), file=sys.stderr, flush=True)
                failures.append(error)
            else:
                after()
    if failures:
        raise failures[0]
