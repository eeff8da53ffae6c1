"""Runs units on a Ray cluster, through Ray Data (https://docs.ray.io/en/latest/data/data.html)."""

import logging
import os
import pickle
import socket
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any

from pfld_edge_calib.errors import FaceSetError
from pfld_edge_calib.parallel import Runner, UnitWork
from pfld_edge_runtime import MissingPackageError, PfldEdgeError

_MOST_BLOCKS = 1000
"""Ray has a cost for each block: a task is a block, or many tasks share one."""


def run_on_ray(address: str | None = None, workers: int | None = None) -> Runner:
    """Connect to a cluster, whose machines must see the set and the models under the paths that this one sees.

    Args:
        address: As `ray.init` takes it, ``auto`` for the cluster that runs here; None for the one that ``RAY_ADDRESS``
            names, or else a new one of this machine's cores.
        workers: Processes, each on one core; as many as the cluster has cores where None, and no more.

    Raises:
        MissingPackageError: Ray is not installed.
        FaceSetError: The cluster doesn't answer.
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
    return partial(_results, workers=min(workers or cores, cores))  # Ray would wait for more


def _check_answers(place: str) -> None:
    """Check the port first: `ray.init` waits many minutes for a cluster that is not there."""
    host, _, port = place.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise FaceSetError(f"no Ray cluster answers at {place}: {error}") from error


def _results(make: Callable[[], UnitWork], tasks: Iterable[Any], workers: int) -> Generator[Any, None, None]:
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
        _Worker, fn_constructor_args=(make,), compute=strategy, num_cpus=1
    )
    for row in done.iter_rows():
        result = pickle.loads(row["result"])  # noqa: S301 - what `_Worker` wrote
        if isinstance(result, Exception):
            raise result
        yield result


class _Worker:
    """One process of the cluster."""

    def __init__(self, make: Callable[[], UnitWork]) -> None:
        self._make = make
        self._work: UnitWork | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do a task; an error is returned as a result, so that it is raised in order and with its own type."""
        try:
            self._work = self._work or self._make()
            result = self._work(pickle.loads(row["task"]))  # noqa: S301 - what `_results` wrote
        except (PfldEdgeError, OSError) as error:
            result = error
        return {"result": pickle.dumps(result)}
