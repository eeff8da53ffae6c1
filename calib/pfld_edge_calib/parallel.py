"""Runs tasks in several processes with results in the tasks' order, and keeps results so that a run can be resumed."""

import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pfld_edge_calib.errors import FaceSetError, LabellingError
from pfld_edge_calib.files import write_atomically

Task = TypeVar("Task")
Result = TypeVar("Result")

UnitWork = Callable[[Any], Any]
"""Does one task; tasks and results are picklable."""

_AHEAD = 4
"""Tasks a process that are queued or finished but not yet taken: enough to keep it busy, few enough for the memory."""

Runner = Callable[[Callable[[], UnitWork], Iterable[Any]], Generator[Any, None, None]]
"""Runs tasks on this machine or on others, and yields the results in the tasks' order; stops when it is closed.

Its arguments are called once in each process, to return the function that does a task, and the tasks; both picklable.
"""


def usable_cores() -> int:
    """Count the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def run_locally(workers: int) -> Runner:
    """Return a runner with processes of this machine; one worker runs in this process."""
    return partial(ordered_results, workers=workers)


def ordered_results(
    make: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    """Run tasks and yield their results in the tasks' order.

    Args:
        make: See `Runner`; with one worker nothing need be picklable.
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
    # Not "fork": threads of onnxruntime and torch don't survive it.
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
    """Initialize a worker process."""
    global _worker
    # Ctrl-C reaches every process of the terminal; only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        _worker = make()
    except Exception as error:  # noqa: BLE001 - the first task raises it, so that the parent receives it
        _worker = error


def _exit_with_parent() -> None:
    """Exit when the parent does, even if it was killed; otherwise workers would wait for tasks for ever."""
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


def unit_results(
    make: Callable[[], UnitWork],
    units: Sequence[Task],
    run: Runner,
    folder: "ResultsFolder | None" = None,
    keep: Callable[[bytes], bool] | None = None,
) -> Generator[tuple[Task, bytes], None, None]:
    """Yield each unit's result in order; reads those that a folder holds, computes the others and stores them there.

    Args:
        make: See `Runner`; the work returns bytes.
        units: All units of the dataset.
        run: Runs those that are missing.
        folder: Stores results; None for a run that can't be resumed.
        keep: Whether a result is stored; where it isn't, the next run computes it again. None for all.

    Raises:
        PfldEdgeError: The first error that a unit's work raised.
    """
    missing = [unit for index, unit in enumerate(units) if folder is None or index not in folder]
    with closing(run(make, missing)) as fresh:
        for index, unit in enumerate(units):
            result = None if folder is None else folder.get(index)
            if result is None:
                result = next(fresh)
                if folder is not None and (keep is None or keep(result)):
                    folder.put(index, result)
            yield unit, result


class ResultsFolder:
    """Results of finished units on disk, one file a unit, so that a stopped run can be resumed."""

    def __init__(self, path: Path, run: Mapping[str, str]) -> None:
        """Create a folder, or resume the run that it belongs to; `run` holds everything that results depend on.

        Raises:
            FaceSetError: It holds another run's results, or something else.
            OSError: It can't be written.
        """
        self._path = path
        head = path / "run.json"
        if head.exists():
            changed = check_same_run(head.read_bytes(), run)
            if changed is None:
                raise FaceSetError(f"{head}: not the results of a run; give another folder")
            if changed:
                raise FaceSetError(
                    f"{path} holds the results of a run with other {', '.join(changed)}: repeat that command to "
                    f"finish it, or give another folder"
                )
        elif path.is_dir() and any(path.iterdir()):
            raise FaceSetError(f"{path}: holds other files; give a new folder, or that of the run to go on with")
        else:
            write_atomically(head, json.dumps(dict(run), indent=2).encode())

    def get(self, index: int) -> bytes | None:
        """Read a unit's result; None where it is not finished."""
        try:
            return self._file(index).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, index: int, result: bytes) -> None:
        """Store a unit's result; from then on it survives a kill."""
        write_atomically(self._file(index), result)

    def __contains__(self, index: int) -> bool:
        """Whether a unit is finished."""
        return self._file(index).exists()

    def _file(self, index: int) -> Path:
        # At most a thousand files in a folder.
        return self._path / f"{index // 1000:05}" / f"{index:08}.npz"


def check_same_run(head: bytes, run: Mapping[str, str]) -> list[str] | None:
    """Names of the values by which this run differs from the writer of `head`; None where that is something else."""
    try:
        before = json.loads(head)
    except ValueError:
        return None
    return [name for name in run if before.get(name) != run[name]] if isinstance(before, dict) else None
