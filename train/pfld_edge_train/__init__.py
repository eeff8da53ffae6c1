"""Networks of the PFLD family, their checkpoints, and the loop that trains them.

Nothing is imported here: reading a configuration must not wait for torch.
"""

__all__: list[str] = []
