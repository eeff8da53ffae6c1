"""Which part of the face each landmark belongs to, and where the pupils are."""

from pfld_edge_runtime import LandmarkScheme

__all__ = ["eye_centres", "landmark_regions"]

# In the order of tables. "eye" after "brow" and "pupil", for a name may hold both words.
_REGIONS = (
    ("brows", ("brow",)),
    ("pupils", ("pupil",)),
    ("eyes", ("eye",)),
    ("nose", ("nose",)),
    ("mouth", ("lip", "mouth")),
    ("contour", ("contour",)),
)


def landmark_regions(scheme: LandmarkScheme) -> dict[str, tuple[int, ...]]:
    """Group a scheme's points: brows, pupils, eyes, nose, mouth, contour; ``other`` where a name says none of these.

    Returns:
        Indices by region; only regions that have points.
    """
    groups: dict[str, list[int]] = {name: [] for name, _ in _REGIONS}
    groups["other"] = []
    for index, name in enumerate(scheme.names):
        groups[_region(name)].append(index)
    return {region: tuple(indices) for region, indices in groups.items() if indices}


def _region(name: str) -> str:
    return next((region for region, words in _REGIONS if any(word in name for word in words)), "other")


def eye_centres(scheme: LandmarkScheme) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Say which points' means are the two pupils.

    Of WFLW points 96 and 97. Schemes without pupils have the mean of each eye's points, as 300-W's "inter-pupil" has it
    (Sagonas et al., 2013).

    Returns:
        Indices for the left and the right eye; None where the scheme's names tell no eyes.
    """
    for part in ("pupil", "eye"):
        sides = [
            tuple(i for i, name in enumerate(scheme.names) if name == f"{side}_{part}" or _is_part(name, side, part))
            for side in ("left", "right")
        ]
        if all(sides):
            return sides[0], sides[1]
    return None


def _is_part(name: str, side: str, part: str) -> bool:
    return name.startswith(f"{side}_{part}_")
