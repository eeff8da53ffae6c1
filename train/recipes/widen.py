"""Makes pfld-edge-m's initial weights from a trained pfld-edge-s: its stages, widened, with the same maps.

    python train/recipes/widen.py checkpoints/pfld-edge-s.pth runs/widened.pth [SEED]

After Net2WiderNet (Chen et al., "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016, section 2.2). Each
new channel copies an old one, and the next layer reads each copy with a share of the old weight; the shares differ, so
that the copies learn to differ. The layers after the stages differ between the two networks and start at random.
(pfld-edge-s's last block has no counterpart.)
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pfld_edge_train.checkpoint import Checkpoint, load_model, save_checkpoint
from pfld_edge_train.models import ModelConfig, build_model

WIDER = "pfld-edge-m"
LEAST_SHARE = 0.25


def copied_channels(old: int, new: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose which old channel each new one copies, ``(new,)``, and its share; those of one channel sum to 1."""
    sources = torch.arange(old)
    while len(sources) < new:
        sources = torch.cat([sources, torch.randperm(old, generator=generator)[: new - len(sources)]])
    shares = LEAST_SHARE + (1 - 2 * LEAST_SHARE) * torch.rand(new, generator=generator)
    return sources, shares / torch.zeros(old).index_add_(0, sources, shares)[sources]


def widened(narrow: nn.Module, wide: nn.Module, seed: int) -> dict[str, Tensor]:
    """Fill the wide network's stages from the narrow one's; give its whole state dict.

    The narrow blocks have one branch each; the wide blocks are the first of them, each at least as wide.
    """
    generator = torch.Generator().manual_seed(seed)
    target = wide.state_dict()
    state = {name: old for name, old in narrow.state_dict().items() if name.startswith("blocks.") and name in target}
    sources, shares = torch.arange(3), torch.ones(3)
    for name, old in state.items():
        if name.endswith("conv.weight"):
            # A convolution comes before its BatchNorm; its inputs are the last block's outputs.
            kernel = old[:, sources] * shares[None, :, None, None]
            sources, shares = copied_channels(len(old), len(target[name]), generator)
            target[name] = kernel[sources]
        elif ".bn." in name and old.ndim:
            target[name] = old[sources]
        else:
            target[name] = old
    return target


def main() -> None:
    """Write the wider network's checkpoint."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    narrow, checkpoint = load_model(source)
    config: ModelConfig = replace(checkpoint.model, kind=WIDER)
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    torch.manual_seed(seed)
    weights = widened(narrow, build_model(config), seed)
    save_checkpoint(out, Checkpoint(weights, config, contract=checkpoint.contract))


if __name__ == "__main__":
    main()
