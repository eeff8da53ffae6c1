"""Runs tasks in processes of this machine or of a Ray cluster, and keeps results so that a run can be resumed."""

import json
import logging
import multiprocessing
import os
import pickle
import signal
import socket
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
from pfld_edge_calib.face import Unit
from pfld_edge_calib.files import write_atomically
from pfld_edge_runtime import MissingPackageError, PfldEdgeError

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
    """Run tasks, which are read as they are needed, and yield their results in the tasks' order; see `Runner`.

    One worker is this process, where nothing need be picklable. A process that was killed is a LabellingError.
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


_MOST_BLOCKS = 1000
"""Ray has a cost for each block: a task is a block, or many tasks share one."""


def run_on_ray(address: str | None = None, workers: int | None = None) -> Runner:
    """Connect to a cluster, whose machines must see the set and the models under the paths that this one sees.

    `address` is what `ray.init` takes, ``auto`` for the cluster that runs here; None for the one that ``RAY_ADDRESS``
    names, or else a new one of this machine's cores. `workers` are processes, each on one core, and no more than the
    cluster has. MissingPackageError where Ray is not installed, FaceSetError where the cluster doesn't answer.
    """
    try:
        # Before the import: no usage statistics, no progress messages.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise MissingPackageError("--ray needs Ray: install it with `pip install 'pfld-edge[ray]'`") from error
    place = address or os.environ.get("RAY_ADDRESS") or "local"
    if not ray.is_initialized():
        _check_answers(place)
        started = workers if place == "local" else None
        try:
            ray.init(place, num_cpus=started, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray raises its own, and builtin ones of many kinds
            what = "Ray did not start" if place == "local" else f"no Ray cluster answers at {place}"
            raise FaceSetError(f"{what}: {' '.join(str(error).split())[:200]}") from error
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    return partial(_ray_results, workers=min(workers or cores, cores))  # Ray would wait for more


def _check_answers(place: str) -> None:
    """Check the port first: `ray.init` waits many minutes for a cluster that is not there."""
    host, _, port = place.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise FaceSetError(f"no Ray cluster answers at {place}: {error}") from error


def _ray_results(make: Callable[[], UnitWork], tasks: Iterable[Any], workers: int) -> Generator[Any, None, None]:
    items = [{"task": pickle.dumps(task)} for task in tasks]
    if not items:
        return
    import ray.data
    from ray.data import DataContext

    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    strategy = ray.data.ActorPoolStrategy(size=min(workers, len(items)))
    done = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS)).map(
        _RayWorker, fn_constructor_args=(make,), compute=strategy, num_cpus=1
    )
    for row in done.iter_rows():
        result = pickle.loads(row["result"])  # noqa: S301 - what `_RayWorker` wrote
        if isinstance(result, Exception):
            raise result
        yield result


class _RayWorker:
    """One process of the cluster."""

    def __init__(self, make: Callable[[], UnitWork]) -> None:
        self._make = make
        self._work: UnitWork | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do a task; an error is returned as a result, so that it is raised in order and with its own type."""
        try:
            self._work = self._work or self._make()
            result = self._work(pickle.loads(row["task"]))  # noqa: S301 - what `_ray_results` wrote
        except (PfldEdgeError, OSError) as error:
            result = error
        return {"result": pickle.dumps(result)}


def unit_results(
    make: Callable[[], UnitWork],
    units: Sequence[Task],
    run: Runner,
    folder: "ResultsFolder | None" = None,
    keep: Callable[[bytes], bool] | None = None,
) -> Generator[tuple[Task, bytes], None, None]:
    """Yield each unit's result in order; reads those that a folder holds, computes the others and stores them there.

    The work returns bytes, and its first error is raised. Where there is no `folder` a run can't be resumed. A result
    that `keep` refuses, or raises an error of, is not stored, so that the next run computes it again.
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

        A folder that holds another run's results, or something else, is a FaceSetError.
        """
        self.path = path
        head = path / "run.json"
        if head.exists():
            try:
                before = dict(json.loads(head.read_bytes()))
            except (TypeError, ValueError) as error:
                raise FaceSetError(f"{head}: not that of a run; choose another name, or delete it") from error
            changed = [name for name in run if before.get(name) != run[name]]
            if not changed:
                return
            if any(path.glob("*/*")):
                raise FaceSetError(
                    f"{path} holds the results of a run with other {', '.join(changed)}: repeat that command to "
                    "finish it, choose another name, or delete the folder"
                )
        elif path.is_file() or (path.is_dir() and any(path.iterdir())):
            what = "is a file" if path.is_file() else "holds other files"
            raise FaceSetError(f"{path}: {what}; choose another name, or delete it")
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

    def done(self, units: Sequence[Unit]) -> int:
        """Count the photographs of all units, or lines of a list, in those that are finished."""
        return sum(unit.count for index, unit in enumerate(units) if index in self)

    def __contains__(self, index: int) -> bool:
        """Whether a unit is finished."""
        return self._file(index).exists()

    def _file(self, index: int) -> Path:
        # At most a thousand files in a folder.
        return self.path / f"{index // 1000:05}" / f"{index:08}.part"
