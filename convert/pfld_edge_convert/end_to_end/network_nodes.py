"""What stands between crops and a network's input, and between its output and pixels, as ONNX nodes."""

import numpy as np
from onnx import TensorProto

from pfld_edge_convert.end_to_end.node_writer import NodeWriter
from pfld_edge_convert.end_to_end.window_nodes import WindowTensors
from pfld_edge_runtime import Contract

__all__ = ["input_nodes", "output_nodes"]


def input_nodes(write: NodeWriter, crops: str, contract: Contract) -> str:
    """Write `pfld_edge_runtime.prepare_input` for RGB crops.

    Args:
        write: Gets the nodes.
        crops: Name of ``(N, S, S, 3)`` uint8, RGB.
        contract: The network's.

    Returns:
        Name of what the network takes.
    """
    size, swap = contract.input_size, contract.color_order == "bgr"
    batch = crops
    if contract.input_dtype == "float32":
        factor = 1 / np.array(contract.scale, np.float32)
        offset = np.array(contract.mean, np.float32) * factor
        # The contract counts channels as the network does, and they are not swapped yet.
        rgb = slice(None, None, -1) if swap else slice(None)
        real = write.cast(
            "real_levels", write.add("rows", "Reshape", crops, write.numbers(0, size, 3 * size)), TensorProto.FLOAT
        )
        scaled = write.add("scaled_levels", "Mul", real, write.constant("factor", np.tile(factor[rgb], size)))
        shifted = write.add("normalized", "Sub", scaled, write.constant("offset", np.tile(offset[rgb], size)))
        batch = write.add("normalized_crops", "Reshape", shifted, write.numbers(0, size, size, 3))
    # Swapped as planes: onnxruntime moves three large blocks, where channels last it would move single bytes.
    if swap or contract.layout == "NCHW":
        batch = write.add("planar", "Transpose", batch, perm=[0, 3, 1, 2])
    if swap:
        batch = write.add("swapped", "Gather", batch, write.numbers(2, 1, 0), axis=1)
    if swap and contract.layout == "NHWC":
        batch = write.add("channels_last", "Transpose", batch, perm=[0, 2, 3, 1])
    return batch


def output_nodes(write: NodeWriter, fractions: str, windows: WindowTensors, points: int, output: str) -> None:
    """Write `pfld_edge_runtime.CropWindows.to_image`; NaN for boxes that can't be used.

    Args:
        write: Gets the nodes.
        fractions: Name of the network's ``(N, 2 P)`` output.
        windows: What was cut.
        points: P.
        output: Name of the ``(N, P, 2)`` float32 result, photograph pixels.
    """
    pairs = write.add("fractions", "Reshape", fractions, write.numbers(0, points, 2))
    real = write.cast("real_fractions", pairs, TensorProto.DOUBLE)
    side = write.add("real_sides", "Unsqueeze", write.cast("sides", windows.side, TensorProto.DOUBLE), write.numbers(2))
    corner = write.add(
        "real_corners", "Unsqueeze", write.cast("corners", windows.corner, TensorProto.DOUBLE), write.numbers(1)
    )
    moved = write.add("in_photo", "Add", write.add("in_pixels", "Mul", real, side), corner)
    landmarks = write.cast("all_landmarks", moved, TensorProto.FLOAT)
    usable = write.add("usable_faces", "Unsqueeze", windows.usable, write.numbers(2))
    unknown = write.constant("unknown", np.array(np.nan, np.float32))
    write.add("known_landmarks", "Where", usable, landmarks, unknown)
    write.nodes[-1].output[0] = output
