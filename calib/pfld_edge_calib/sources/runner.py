"""Runs units on this machine or others, and gives their results in order."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import Any, Protocol

from pfld_edge_calib.process_pool import ordered_results
from pfld_edge_calib.sources.results_folder import ResultsFolder
from pfld_edge_calib.sources.unit import Unit

__all__ = ["Runner", "UnitWork", "run_locally", "unit_results"]

UnitWork = Callable[[Any], Any]
"""Does one task: small and picklable in, small and picklable out."""


class Runner(Protocol):
    """Runs tasks somewhere."""

    def __call__(self, make: Callable[[], UnitWork], tasks: Iterable[Any], /) -> Generator[Any, None, None]:
        """Give the tasks' results in the tasks' order; closed early, stop.

        Args:
            make: Gives the work; called once in each process, and picklable.
            tasks: Picklable.
        """


def run_locally(workers: int) -> Runner:
    """Run in processes of this machine; in this one where one is enough."""

    def run(make: Callable[[], UnitWork], tasks: Iterable[Any], /) -> Generator[Any, None, None]:
        return ordered_results(make, tasks, workers)

    return run


def unit_results(
    make: Callable[[], UnitWork], units: Sequence[Unit], run: Runner, folder: ResultsFolder | None = None
) -> Generator[tuple[Unit, bytes], None, None]:
    """Give each unit's result in order; those that a folder holds are read from it, the others go there.

    Args:
        make: See `Runner`; the work gives bytes.
        units: All of the set.
        run: Where to run those that are missing.
        folder: Keeps results; None for a run that can't be resumed.

    Raises:
        PfldEdgeError: What a unit's work raised, the first one's.
    """
    missing = [unit for index, unit in enumerate(units) if folder is None or index not in folder]
    with closing(run(make, missing)) as fresh:
        for index, unit in enumerate(units):
            result = None if folder is None else folder.get(index)
            if result is None:
                result = next(fresh)
                if folder is not None:
                    folder.put(index, result)
            yield unit, result
