"""Landmark schemes: what each point of a face is called, and what a mirror does to it."""

from dataclasses import dataclass

__all__ = ["WFLW_98", "LandmarkScheme"]


@dataclass(frozen=True, slots=True)
class LandmarkScheme:
    """A fixed ordering of the points of a face.

    Attributes:
        name: The scheme's name, e.g. ``wflw-98``.
        names: One name a point, in output order; "left" and "right" are the sides of the photograph.
        mirror: ``mirror[i]`` is the index of the point that point ``i`` becomes in the mirror image; ``i`` for all of
            them where the scheme knows no mirror image.
        normalizing_points: The two points whose distance divides the error in the NME
            (for WFLW the outer eye corners, 60 and 72).
    """

    name: str
    names: tuple[str, ...]
    mirror: tuple[int, ...]
    normalizing_points: tuple[int, int]

    @property
    def num_landmarks(self) -> int:
        """How many points a face has."""
        return len(self.names)

    @property
    def has_mirror(self) -> bool:
        """Whether the points of the mirror image are known."""
        return self.mirror != tuple(range(len(self.names)))


# WFLW (Wu et al., "Look at Boundary", CVPR 2018, figure 2): the region, its first index, and how the points of the
# region map onto the mirrored region. A run "reversed" is a line walked from its other end.
_WFLW_PARTS: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    ("contour", 0, tuple(range(32, -1, -1))),
    ("left_brow", 33, (46, 45, 44, 43, 42, 50, 49, 48, 47)),
    ("right_brow", 42, (37, 36, 35, 34, 33, 41, 40, 39, 38)),
    ("nose_bridge", 51, (51, 52, 53, 54)),
    ("nose_base", 55, (59, 58, 57, 56, 55)),
    ("left_eye", 60, (72, 71, 70, 69, 68, 75, 74, 73)),
    ("right_eye", 68, (64, 63, 62, 61, 60, 67, 66, 65)),
    ("outer_lip", 76, (82, 81, 80, 79, 78, 77, 76, 87, 86, 85, 84, 83)),
    ("inner_lip", 88, (92, 91, 90, 89, 88, 95, 94, 93)),
    ("left_pupil", 96, (97,)),
    ("right_pupil", 97, (96,)),
)


def _wflw_98() -> LandmarkScheme:
    names = [f"{part}_{i}" for part, _, mirror in _WFLW_PARTS for i in range(len(mirror))]
    mirror = [index for _, _, part in _WFLW_PARTS for index in part]
    return LandmarkScheme("wflw-98", tuple(names), tuple(mirror), (60, 72))


WFLW_98 = _wflw_98()
