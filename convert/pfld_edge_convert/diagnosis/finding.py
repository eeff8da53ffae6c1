"""A likely cause, and whether it is beyond doubt."""

from dataclasses import dataclass

from pfld_edge_calib.proof import Suspicion

__all__ = ["AGREES", "Finding"]

AGREES = 1 / 2
"""A cause is found where undoing it leaves no more than this share of the deviation."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found.

    Attributes:
        suspicion: The cause.
        proven: Whether undoing it brought the reference's landmarks back, or the file's bytes show it.
    """

    suspicion: Suspicion
    proven: bool = True
