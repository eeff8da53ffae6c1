"""The ``[finetune]`` table of a training configuration: how a run treats the weights that it starts from."""

from dataclasses import dataclass

from pfld_edge_train.errors import TrainConfigError

__all__ = ["FinetuneConfig"]


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """How a network that has learned already goes on learning.

    Attributes:
        freeze: Layers that keep their weights, by the beginning of their names, such as ``blocks.0``; ``backbone`` for
            all but the last layer. Their BatchNorm keeps its statistics too.
        backbone_rate: Learning rate of all layers but the last, as a multiple of the run's.
        layer_decay: Factor to a layer's rate for each layer between it and the network's end (Clark et al., "ELECTRA",
            ICLR 2020, table 6): below 1, what is general moves less than what is special.
        fused: Train the inference form, without BatchNorm and branches; `pfld-edge import-onnx` gives no other.
        pointwise_scale: The start's GhostOne has scale branches in its 1x1 blocks too.
    """

    freeze: tuple[str, ...] = ()
    backbone_rate: float = 1.0
    layer_decay: float = 1.0
    fused: bool = False
    pointwise_scale: bool = False

    def __post_init__(self) -> None:
        """Turn TOML's list into a tuple, and refuse rates that mean nothing."""
        names = [self.freeze] if isinstance(self.freeze, str) else self.freeze
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
            raise TrainConfigError(f"freeze must be a list of names of layers, found {self.freeze!r}")
        object.__setattr__(self, "freeze", tuple(names))
        for name in ("backbone_rate", "layer_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise TrainConfigError(f"{name} must be above 0 and at most 1, found {getattr(self, name)}")
