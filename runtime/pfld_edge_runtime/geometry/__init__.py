"""Geometry of landmarks: head pose, eye and mouth openness, other schemes, aligned faces, confidence."""
