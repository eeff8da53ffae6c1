"""What a run tells the program that shows it."""

from pfld_edge_train.run_log import EpochResult
from pfld_edge_train.run_plan import RunPlan

__all__ = ["Watcher"]


class Watcher:
    """Hears how a run goes, in its first process; this one keeps quiet."""

    def begin(self, plan: RunPlan) -> None:
        """Hear what the run will do."""

    def note(self, text: str) -> None:
        """Hear a remark."""

    def epoch(self, number: int, done: int) -> None:
        """Hear that an epoch goes on.

        Args:
            number: From 0.
            done: Its steps that are done already.
        """

    def step(self, loss: float) -> None:
        """Hear a step's loss, in pixels."""

    def result(self, result: EpochResult) -> None:
        """Hear what an epoch did."""
