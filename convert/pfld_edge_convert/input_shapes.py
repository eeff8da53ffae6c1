"""Gives a model's free input axes sizes, so that all of it can be counted."""

from collections.abc import Mapping, Sequence

import onnx

__all__ = ["with_free_sides_filled", "with_input_shapes"]


def with_input_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """Copy a model with inputs of certain shapes; what is noted of other tensors' shapes is left out.

    Args:
        model: Left as it is.
        shapes: By the input's name; others stay as they are.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name in shapes:
            for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
                dim.dim_value = size
    fixed.graph.ClearField("value_info")
    return fixed


def with_free_sides_filled(model: onnx.ModelProto, side: int) -> onnx.ModelProto | None:
    """Copy a model with the free height and width of its picture set, the batch left free.

    Args:
        model: Left as it is.
        side: Pixels.

    Returns:
        None where nothing but the batch is free, or where the input isn't one picture.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    dims = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else []
    if len(dims) != 4 or all(dim.dim_value for dim in dims[1:]):
        return None
    filled = with_input_shapes(model, {})
    value = next(item for item in filled.graph.input if item.name == inputs[0].name)
    for dim in value.type.tensor_type.shape.dim[1:]:
        if not dim.dim_value:
            dim.dim_value = side
    return filled
