"""INT8: ranges, rounding and the nodes that hold them."""
