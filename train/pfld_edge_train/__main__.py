"""`python -m pfld_edge_train`, and under torchrun: a run without the command line's package.

torchrun --nproc-per-node 2 -m pfld_edge_train --config run.toml -o runs/mine
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pfld_edge_runtime import PfldEdgeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as a TOML configuration says; print a line an epoch.

    Returns:
        The exit status: 0, or 2 where a user's mistake was told in one line.
    """
    parser = argparse.ArgumentParser(
        "pfld_edge_train", description=main.__doc__.splitlines()[0] if main.__doc__ else ""
    )
    parser.add_argument("--config", required=True, type=Path, help="a TOML file")
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/last.pth")
    parser.add_argument("--init", type=Path, help="checkpoint to start from")
    parser.add_argument("--cache", type=Path, help="folder of cut faces; OUT/cache where left out")
    parser.add_argument("--threads", type=int, help="CPU threads of each process")
    chosen = parser.parse_args(arguments)
    try:
        _train(chosen)
    except PfldEdgeError as error:
        # Every process meets a user's mistake; one says so.
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"Error: {error}\n")
        return 2
    return 0


def _train(chosen: argparse.Namespace) -> None:
    import torch

    from pfld_edge_train.config import load_config
    from pfld_edge_train.processes import joined_processes
    from pfld_edge_train.run_log import EpochResult
    from pfld_edge_train.training import train

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    config = load_config(chosen.config)

    def silent(_epoch: int, _steps: int, _done: int) -> Callable[[float], None]:
        return lambda _loss: None

    def report(result: EpochResult) -> None:
        best = " (best)" if result.best else ""
        sys.stdout.write(
            f"epoch {result.epoch + 1}/{config.epochs}: loss {result.loss:.3f}, validation NME {result.nme:.5f}{best}\n"
        )
        sys.stdout.flush()

    with joined_processes(config.device) as processes:
        train(config, chosen.out, processes, chosen.resume, chosen.init, chosen.cache, silent, report)


if __name__ == "__main__":
    sys.exit(main())
