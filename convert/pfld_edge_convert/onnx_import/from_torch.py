"""Reads the dataflow of one of our torch networks."""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from pfld_edge_convert.onnx_import.dataflow import Flow, Geometry

__all__ = ["torch_flow"]

_FUNCTIONS: dict[object, str] = {
    torch.relu: "relu",
    F.relu: "relu",
    torch.cat: "concat",
    operator.add: "add",
    F.adaptive_avg_pool2d: "pool",
}


def torch_flow(model: nn.Module) -> Flow[str]:
    """Trace a fused network; the weights of a flow are the name of the module that holds them."""
    traced = fx.symbolic_trace(model)
    flows: dict[fx.Node, Flow[str]] = {}
    result: Flow[str] | None = None
    for node in traced.graph.nodes:
        if node.op == "output":
            result = flows[node.args[0]]
        else:
            flows[node] = _read(node, traced, flows)
    if result is None:
        raise TypeError("the network has no output")
    return result


def _read(node: fx.Node, traced: fx.GraphModule, flows: dict[fx.Node, Flow[str]]) -> Flow[str]:
    if node.op == "placeholder":
        return Flow("input")
    inputs = tuple(flows[argument] for argument in node.all_input_nodes)
    if node.op == "call_module":
        return _layer(traced.get_submodule(str(node.target)), str(node.target), inputs)
    operation = _FUNCTIONS.get(node.target)
    if operation is not None:
        return Flow(operation, inputs)
    if node.target in ("flatten", operator.getitem):
        return inputs[0]
    raise TypeError(f"{node.target} is not an operation of our networks")


def _layer(module: nn.Module, name: str, inputs: tuple[Flow[str], ...]) -> Flow[str]:
    if isinstance(module, nn.Conv2d):
        stride, padding = int(module.stride[0]), int(module.padding[0])
        return Flow("conv", inputs, Geometry(tuple(module.weight.shape), stride, padding, module.groups), name)
    if isinstance(module, nn.Linear):
        return Flow("linear", inputs, Geometry(tuple(module.weight.shape)), name)
    if isinstance(module, nn.ReLU):
        return Flow("relu", inputs)
    raise TypeError(f"{type(module).__name__} is not a layer of our fused networks")
