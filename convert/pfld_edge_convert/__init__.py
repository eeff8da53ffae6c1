"""From checkpoint to device: fuse, export, graph passes, quantization, contract; and ONNX files back to checkpoints.

Nothing is imported here: a command that reads an ONNX file must not wait for torch.
"""

__all__: list[str] = []
