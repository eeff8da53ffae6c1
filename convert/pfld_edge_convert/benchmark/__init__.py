"""How fast networks are: fair turns, intervals, the processor's own peak, and when a machine is too noisy to tell.

Nothing is imported here: a fresh process that times its own start must not wait for it.
"""

__all__: list[str] = []
