"""The ``[augment]`` table of a training configuration."""

from dataclasses import dataclass

__all__ = ["AugmentConfig"]


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Strength of the augmentation; 0 turns a part off. See `pfld_edge_train.augment`.

    Attributes:
        rotation: Standard deviation of the rotation in degrees.
        shear: Largest horizontal squeeze, as a share: a poor man's yaw.
        shift: Largest shift of the box, as a share of its side.
        scale: Largest change of the box's side, as a share.
        flip: Probability of a mirrored face.
        light: Strength of brightness, contrast and side light, 0 to 1.
        color: Strength of the colour cast, 0 to 1.
        noise: Largest standard deviation of the noise in grey levels.
        low_resolution: Probability of a face that was once smaller than the input.
        blur: Probability of a blurred face.
        occlusion: Probability of a rectangle that hides part of the face.
        gray: Probability of a grey face.
    """

    rotation: float = 15.0
    shear: float = 0.15
    shift: float = 0.06
    scale: float = 0.1
    flip: float = 0.5
    light: float = 0.5
    color: float = 0.15
    noise: float = 12.0
    low_resolution: float = 0.25
    blur: float = 0.2
    occlusion: float = 0.3
    gray: float = 0.1
