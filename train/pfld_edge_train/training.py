"""What `pfld-edge train` and `python -m pfld_edge_train` share: begin, or go on."""

from pathlib import Path

import cv2
import torch

from pfld_edge_train.config import TrainConfig
from pfld_edge_train.errors import TrainConfigError
from pfld_edge_train.fit import LAST, fit
from pfld_edge_train.processes import Processes
from pfld_edge_train.run_state import RunState, new_run, resumed_run
from pfld_edge_train.watcher import Watcher

__all__ = ["train", "use_threads"]


def train(
    config: TrainConfig,
    out: Path,
    processes: Processes,
    watcher: Watcher,
    *,
    resume: bool = False,
    init: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Train into a folder.

    Args:
        config: The run.
        out: Its folder.
        processes: Where it runs.
        watcher: Hears how it goes.
        resume: Go on from the folder's last checkpoint, where there is one.
        init: Checkpoint to start from otherwise.
        cache: Folder of cut faces; one in `out` where None.

    Raises:
        CheckpointError: A checkpoint can't be read.
        TrainConfigError: The folder holds a run already, or the configuration asks for something impossible.
        PfldEdgeError: What `fit` raises.
    """
    with processes.together():
        state = _state(config, out / LAST, processes, resume, init)
    fit(state, out, cache or out / "cache", watcher)


def use_threads(count: int) -> None:
    """Let a process compute with so many CPU threads."""
    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def _state(config: TrainConfig, last: Path, processes: Processes, resume: bool, init: Path | None) -> RunState:
    if not last.exists():
        if config.finetune.freeze and init is None:
            raise TrainConfigError(
                "[finetune] freezes layers, which are random without a checkpoint to start from: --init"
            )
        return new_run(config, init, processes)
    if not resume:
        raise TrainConfigError(f"{last.parent} holds a run already: give --resume to go on, or another --out")
    return resumed_run(config, last, processes)
