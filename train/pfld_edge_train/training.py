"""What `pfld-edge train` and `python -m pfld_edge_train` share: begin, or go on."""

from collections.abc import Callable
from pathlib import Path

from pfld_edge_train.config import TrainConfig
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.fit import LAST, fit
from pfld_edge_train.processes import Processes
from pfld_edge_train.run_log import EpochResult
from pfld_edge_train.run_state import new_run, resumed_run

__all__ = ["train"]


def train(
    config: TrainConfig,
    out: Path,
    processes: Processes,
    resume: bool,
    init: Path | None,
    cache: Path | None,
    epoch_progress: Callable[[int, int, int], Callable[[float], None]],
    report: Callable[[EpochResult], None],
) -> None:
    """Train into a folder.

    Args:
        config: The run.
        out: Its folder.
        processes: Where it runs.
        resume: Go on from the folder's last checkpoint, where there is one.
        init: Checkpoint to start from otherwise.
        cache: Folder of cut faces; one in `out` where None.
        epoch_progress: See `fit`.
        report: See `fit`.

    Raises:
        CheckpointError: A checkpoint can't be read.
        TrainConfigError: The folder holds a run already, or the configuration asks for something impossible.
        TrainingDivergedError: The loss became NaN.
    """
    last = out / LAST
    if last.exists() and not resume:
        raise TrainConfigError(f"{out} holds a run already: give --resume to go on, or another --out")
    goes_on = resume and last.exists()
    state = resumed_run(config, last, processes) if goes_on else new_run(config, init, processes)
    fit(state, out, cache or out / "cache", epoch_progress, report)
