"""Part of pfld-edge."""
