"""Work for several processes, results in order, only a few tasks ahead of what is done."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from pfld_edge_calib.errors import LabellingError

__all__ = ["ordered_results", "usable_cores"]

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 4
"""Tasks a process that wait or are done but not yet taken: enough that none idles, too few to fill the memory."""


def usable_cores() -> int:
    """Count the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def ordered_results(
    make: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    """Run tasks and give their results in the tasks' order.

    Args:
        make: Called once in each process, gives the function that does a task. Must be picklable, as must be tasks and
            results, where there is more than one worker.
        tasks: Read as they are needed.
        workers: Processes; 1 runs everything in this one.

    Raises:
        LabellingError: A process was killed, most likely for memory.
    """
    if workers == 1:
        work = make()
        for task in tasks:
            yield work(task)
        return
    # Not "fork": onnxruntime's and torch's threads don't survive one.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(make,)) as pool:
        waiting: deque[Future[Result]] = deque()
        source = iter(tasks)
        try:
            for task in islice(source, workers * _AHEAD):
                waiting.append(pool.submit(_work, task))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(_work, task) for task in islice(source, 1))
                yield result
        except BrokenProcessPool as error:
            raise LabellingError(
                f"one of {workers} processes was killed, most likely for want of memory: run again with fewer workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: Callable[[Any], Any] | Exception | None = None


def _start(make: Callable[[], Callable[[Any], Any]]) -> None:
    """Prepare a process."""
    global _worker
    # Ctrl-C reaches every process of the terminal; the first one alone decides what becomes of the run.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        _worker = make()
    except Exception as error:  # noqa: BLE001 - raised by the first task instead, where the parent hears of it
        _worker = error


def _follow_parent() -> None:
    """End with the parent, even one that is killed: its processes would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Any) -> Any:  # noqa: ANN401 - whatever the caller's tasks and results are
    if _worker is None:
        raise RuntimeError("the process was not prepared")
    if isinstance(_worker, Exception):
        raise _worker
    return _worker(task)
