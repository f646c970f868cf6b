"""The tasks of an experiment, run in worker processes and recorded in its run folder."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch
from tqdm import tqdm

from robustnn.runs import RunFolder

# Key of the cell, a function of a module (worker processes import it), and its arguments.
Task = tuple[str, Callable[..., Any], tuple[Any, ...]]


def run_tasks(run: RunFolder, tasks: Sequence[Task], workers: int, what: str) -> None:
    """Run the tasks that are not done yet in worker processes of one thread, and record each result as it comes.

    Args:
        run: The run folder; the cell of a task is recorded under its key.
        tasks: What to compute.
        workers: Number of processes.
        what: Title of the progress bar.
    """
    pending = [task for task in tasks if not run.done(task[0])]
    bar = tqdm(total=len(tasks), initial=len(tasks) - len(pending), desc=what, unit="task", smoothing=0.1)
    with bar, ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:  # fmt: skip
        futures = {pool.submit(function, *arguments): key for key, function, arguments in pending}
        try:
            for future in as_completed(futures):
                run.record(futures[future], future.result())
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
