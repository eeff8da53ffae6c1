"""How a network is quantized."""

from dataclasses import dataclass

__all__ = ["CANDIDATES", "LEVELLED_BY", "QuantizationSettings"]

CANDIDATES = ("minmax", "faces:98", "percentile:99.99", "percentile:99.9", "moving-average", "mse", "entropy")
"""Range methods that ``auto`` tries."""

LEVELLED_BY = ("minmax", "faces:98")
"""What the range of a channel is for `EqualizeChannels`: the first levels what a few faces blow up, the second lets it
be and levels what nearly all faces hold. Which is better depends on the network."""


@dataclass(frozen=True, slots=True)
class QuantizationSettings:
    """How a network is quantized. The defaults are for users; the switches are there to measure what each step does.

    Attributes:
        target: Name of a `Target`.
        ranges: A method of `estimate`, or ``auto``: the one whose landmarks, on calibration faces that were held back,
            stay closest to those of the float network.
        equalize: 0 to 1, how much of the difference between channel ranges `EqualizeChannels` takes away.
        levelled_by: The range method whose ranges are meant, or ``auto``.
        feedback: Round weights with feedback instead of each by itself.
        correct_bias: Let biases take up the mean errors.
        pixels: Take uint8 pixels, ``(n, S, S, 3)``, where the network's first layers allow it.
    """

    target: str = "portable"
    ranges: str = "auto"
    equalize: float = 0.75
    levelled_by: str = "auto"
    feedback: bool = True
    correct_bias: bool = True
    pixels: bool = True

    def describe(self, ranges: str, float_layers: int = 0) -> str:
        """Name the settings in one line, for the contract.

        Args:
            ranges: The method that was chosen.
            float_layers: Number of layers that stayed in float.
        """
        words = ["int8 static, QOperator, uint8 activations, int8 weights per channel", f"{ranges} ranges"]
        words += [name for name, on in (("equalized", self.equalize > 0), ("bias corrected", self.correct_bias)) if on]
        words.append("feedback rounding" if self.feedback else "nearest rounding")
        if float_layers:
            words.append(f"{float_layers} layer{'s' if float_layers > 1 else ''} in float")
        return ", ".join(words)
