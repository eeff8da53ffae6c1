"""The ``[augment]`` table of a training configuration."""

from dataclasses import dataclass, field, fields

from pfld_edge_train.errors import TrainConfigError

__all__ = ["HARD_VIEW", "AugmentConfig"]


def _strength(default: float, most: float = 1.0) -> float:
    """A setting from 0, which turns the part off, to `most`."""
    value: float = field(default=default, metadata={"most": most})
    return value


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Strength of the augmentation; 0 turns a part off. `docs/augmentation.md` shows each part.

    `shift` and `scale` are what detectors were measured to do, see there; the others are judgement.

    Attributes:
        rotation: Standard deviation of the rotation in degrees.
        shear: Largest horizontal squeeze, as a share: a poor man's yaw. Half of it slants.
        shift: Standard deviation of the box's shift along each axis, as a share of the crop's side.
        scale: Standard deviation of the logarithm of the box's side.
        flip: Probability of a mirrored face.
        antialias: Probability of a face that is smoothed before it is shrunk, as photographs are that something
            resized before the device saw them. The device's own crop doesn't smooth. Without effect where cached crops
            are hardly larger than the input.
        light: Strength of brightness, contrast and side light, 0 to 1.
        darkness: Probability of a face in the dark, with more noise.
        gamma: Largest logarithm of the gamma exponent.
        temperature: Largest logarithm of the red gain, and of the blue gain the other way.
        color: Largest logarithm of each channel's gain.
        gray: Probability of a grey face.
        blur: Probability of a face that moved.
        defocus: Probability of a face out of focus.
        low_resolution: Probability of a face that was once smaller than the input.
        noise: Largest standard deviation of the noise in grey levels.
        jpeg: Probability of JPEG's artefacts.
        occlusion: Probability of something before the face: a rectangle, an ellipse, a blob, a hand.
        mask: Probability of a covered lower face: a mask or a scarf.
        glasses: Probability of dark glasses or a bar over the eyes.
    """

    rotation: float = _strength(15.0, 180.0)
    shear: float = _strength(0.15, 0.9)
    shift: float = _strength(0.035, 0.5)
    scale: float = _strength(0.065, 0.5)
    flip: float = _strength(0.5)
    antialias: float = _strength(0.5)
    light: float = _strength(0.5)
    darkness: float = _strength(0.04)
    gamma: float = _strength(0.4, 2.0)
    temperature: float = _strength(0.12)
    color: float = _strength(0.12)
    gray: float = _strength(0.1)
    blur: float = _strength(0.12)
    defocus: float = _strength(0.12)
    low_resolution: float = _strength(0.25)
    noise: float = _strength(12.0, 128.0)
    jpeg: float = _strength(0.25)
    occlusion: float = _strength(0.25)
    mask: float = _strength(0.04)
    glasses: float = _strength(0.04)

    def __post_init__(self) -> None:
        """Refuse strengths that mean nothing."""
        for item in fields(self):
            value, most = getattr(self, item.name), item.metadata["most"]
            if not 0 <= value <= most:
                raise TrainConfigError(f"{item.name} must be from 0 to {most:g}, found {value}")


HARD_VIEW = AugmentConfig(
    rotation=20.0,
    shear=0.25,
    light=0.7,
    darkness=0.1,
    gamma=0.6,
    blur=0.2,
    defocus=0.2,
    low_resolution=0.35,
    noise=16.0,
    jpeg=0.35,
    occlusion=0.4,
    mask=0.08,
    glasses=0.08,
)
"""What validation's hard views do to held-out faces. Never depends on a run's own strengths: runs stay comparable."""
