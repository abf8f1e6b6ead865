"""Work that depends on nothing but its job, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def spread(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int | None = None) -> list[Result]:
    """What `work` makes of every job, in their order, on so many processes (None: one a core).

    `work` is a function of a module, not a closure: it is sent to other processes by its name.
    """
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1:
        return list(map(work, jobs))
    # Spawned, not forked: the parent has torch's threads, which do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, jobs, chunksize=8))
