"""Landmark schemes: the name of each point of a face, and the point that it becomes in the mirror image."""

from dataclasses import dataclass


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


def _scheme(
    name: str, parts: tuple[tuple[str, tuple[int, ...]], ...], normalizing_points: tuple[int, int]
) -> LandmarkScheme:
    """Build a scheme from its regions in output order, each with the indices that its points have when mirrored."""
    names = tuple(f"{part}_{i}" for part, mirror in parts for i in range(len(mirror)))
    return LandmarkScheme(name, names, tuple(index for _, mirror in parts for index in mirror), normalizing_points)


WFLW_98 = _scheme(
    "wflw-98",
    (
        ("contour", tuple(range(32, -1, -1))),
        ("left_brow", (46, 45, 44, 43, 42, 50, 49, 48, 47)),
        ("right_brow", (37, 36, 35, 34, 33, 41, 40, 39, 38)),
        ("nose_bridge", (51, 52, 53, 54)),
        ("nose_base", (59, 58, 57, 56, 55)),
        ("left_eye", (72, 71, 70, 69, 68, 75, 74, 73)),
        ("right_eye", (64, 63, 62, 61, 60, 67, 66, 65)),
        ("outer_lip", (82, 81, 80, 79, 78, 77, 76, 87, 86, 85, 84, 83)),
        ("inner_lip", (92, 91, 90, 89, 88, 95, 94, 93)),
        ("left_pupil", (97,)),
        ("right_pupil", (96,)),
    ),
    normalizing_points=(60, 72),
)
"""The 98 points of WFLW (Wu et al., "Look at Boundary", CVPR 2018, figure 2)."""

IBUG_68 = _scheme(
    "ibug-68",
    (
        ("contour", tuple(range(16, -1, -1))),
        ("left_brow", (26, 25, 24, 23, 22)),
        ("right_brow", (21, 20, 19, 18, 17)),
        ("nose_bridge", (27, 28, 29, 30)),
        ("nose_base", (35, 34, 33, 32, 31)),
        ("left_eye", (45, 44, 43, 42, 47, 46)),
        ("right_eye", (39, 38, 37, 36, 41, 40)),
        ("outer_lip", (54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55)),
        ("inner_lip", (64, 63, 62, 61, 60, 67, 66, 65)),
    ),
    normalizing_points=(36, 45),
)
"""The 68 points of 300-W (Sagonas et al., ICCV Workshops 2013, figure 1), which dlib and many others use."""

FIVE_POINTS = LandmarkScheme(
    name="five-points",
    names=("left_eye", "right_eye", "nose_tip", "left_mouth_corner", "right_mouth_corner"),
    mirror=(1, 0, 2, 4, 3),
    normalizing_points=(0, 1),
)
"""The five points of detectors and of face recognition; "left" is the photograph's."""
