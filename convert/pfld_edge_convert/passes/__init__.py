"""Rewrites of ONNX graphs that keep what the graph computes."""
