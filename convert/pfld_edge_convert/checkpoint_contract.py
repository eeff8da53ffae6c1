"""The contract of a checkpoint, its own or the published protocol's."""

from pfld_edge_convert.errors import ConvertError
from pfld_edge_runtime import WFLW_98, Contract
from pfld_edge_train.checkpoint import Checkpoint

__all__ = ["contract_of"]


def contract_of(checkpoint: Checkpoint) -> Contract:
    """Read a checkpoint's contract; one without is taken as published PFLD, of the kind and size that it has.

    Raises:
        ConvertError: It carries none, and its number of points is not WFLW's.
        ModelContractError: Its contract is damaged.
    """
    if checkpoint.contract:
        return Contract.from_dict(checkpoint.contract)
    network = checkpoint.model
    if network.num_landmarks != WFLW_98.num_landmarks:
        raise ConvertError(
            f"the checkpoint has {network.num_landmarks} landmarks and no contract that names them; only files with "
            f"{WFLW_98.num_landmarks} landmarks can be taken as published PFLD"
        )
    return Contract(model=network.kind, input_size=network.input_size)
