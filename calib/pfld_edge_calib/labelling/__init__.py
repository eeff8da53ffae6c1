"""Pseudo-labels: several landmark networks predict each face, and their disagreement becomes a confidence."""
