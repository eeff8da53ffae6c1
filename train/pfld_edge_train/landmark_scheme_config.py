"""The ``[landmarks]`` table of a training configuration: which points of a face the network finds."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pfld_edge_runtime import FIVE_POINTS, IBUG_68, WFLW_98, LandmarkScheme, ModelContractError
from pfld_edge_runtime.contract import CropRule
from pfld_edge_train.errors import TrainConfigError

__all__ = ["KNOWN_SCHEMES", "LandmarksConfig", "landmark_scheme"]

KNOWN_SCHEMES: Mapping[str, LandmarkScheme] = MappingProxyType(
    {scheme.name: scheme for scheme in (WFLW_98, IBUG_68, FIVE_POINTS)}
)
"""Schemes that a configuration need only name."""


@dataclass(frozen=True, slots=True)
class LandmarksConfig:
    """The points of a face, in the order of the CSV's columns.

    Attributes:
        scheme: One of `KNOWN_SCHEMES`, or a name of your own, which the other settings describe.
        points: How many there are; may be left out where `names` are given.
        names: One each; ``point_0``, ``point_1``, ... where left out.
        mirror: ``mirror[i]`` is the index of the point that point i becomes in the mirror image. Left out, nobody
            knows, and ``[augment] flip`` must be 0.
        normalizing_points: The two points whose distance divides errors, the outer corners of the eyes as a rule.
        margin: Side of the crop as a multiple of the longer side of the points' tight box. 1.2 suits points that reach
            from the brows to the chin; points that span less of a face need more of its surroundings.
    """

    scheme: str = WFLW_98.name
    points: int = 0
    names: tuple[str, ...] = ()
    mirror: tuple[int, ...] = ()
    normalizing_points: tuple[int, ...] = ()
    margin: float = 1.2

    def __post_init__(self) -> None:
        """Turn TOML's lists into tuples, and refuse what is no scheme."""
        for name, kind in (("names", str), ("mirror", int), ("normalizing_points", int)):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(type(value) is kind for value in values):
                wanted = "text" if kind is str else "whole numbers"
                raise TrainConfigError(f"{name} must be a list of {wanted}, found {values!r}")
            object.__setattr__(self, name, tuple(values))
        landmark_scheme(self)
        try:
            CropRule(margin=self.margin)
        except ModelContractError as error:
            raise TrainConfigError(f"margin: {error}") from error


def landmark_scheme(config: LandmarksConfig) -> LandmarkScheme:
    """Give the scheme that a configuration names or describes.

    Where it says no mirror image, every point is its own in the scheme, see `LandmarkScheme.has_mirror`.

    Raises:
        TrainConfigError: It is described by halves, or contradicts itself.
    """
    described = config.points or config.names or config.mirror or config.normalizing_points
    if config.scheme in KNOWN_SCHEMES:
        if described:
            raise TrainConfigError(
                f"scheme {config.scheme!r} is known: choose another name to describe one of your own"
            )
        return KNOWN_SCHEMES[config.scheme]
    count = config.points or len(config.names)
    if count < 1:
        raise TrainConfigError(
            f"unknown scheme {config.scheme!r}; known: {', '.join(KNOWN_SCHEMES)}. One of your own needs points, "
            "normalizing_points and, if faces are to be mirrored, mirror"
        )
    names = config.names or tuple(f"point_{i}" for i in range(count))
    if len(names) != count or len(set(names)) != count:
        raise TrainConfigError(f"{count} points need {count} names, all different; found {len(set(names))}")
    _check_mirror(config.mirror, count)
    ends = config.normalizing_points
    if len(ends) != 2 or ends[0] == ends[1] or not all(0 <= point < count for point in ends):
        raise TrainConfigError(
            f"normalizing_points must name two of the points 0 to {count - 1}, such as the outer corners of the eyes; "
            f"found {list(ends)}"
        )
    return LandmarkScheme(config.scheme, names, config.mirror or tuple(range(count)), (ends[0], ends[1]))


def _check_mirror(mirror: tuple[int, ...], count: int) -> None:
    if not mirror:
        return
    if sorted(mirror) != list(range(count)):
        raise TrainConfigError(f"mirror must hold each of 0 to {count - 1} once")
    odd = next((i for i, point in enumerate(mirror) if mirror[point] != i), None)
    if odd is not None:
        raise TrainConfigError(
            f"mirror is not a mirror: {odd} becomes {mirror[odd]}, which becomes {mirror[mirror[odd]]}"
        )
