"""Settings of the whole suite: hypothesis has no deadline, since a test must not depend on the machine's speed."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
