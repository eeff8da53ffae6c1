"""Settings of the whole suite; and the mark `shared_data`, for the second pass of .ci/run."""

import functools
import inspect
import re
from typing import Any

import pytest
from hypothesis import settings

# A test must not depend on the machine's speed.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Mark the tests that ask for PFLD_EDGE_SHARED: in a skip's reason, a fixture, or a function that they name."""
    for item in items:
        fixtures = [found.func for known in item._fixtureinfo.name2fixturedefs.values() for found in known]
        reasons = (str(mark.kwargs.get("reason")) for mark in item.iter_markers("skipif"))
        if any("SHARED" in reason for reason in reasons) or any(map(asks, [item.function, *fixtures])):
            item.add_marker(pytest.mark.shared_data)


@functools.cache
def asks(function: Any) -> bool:
    """Whether the lines of a function, or of another one of its module that it names, speak of the shared data."""
    if not inspect.isfunction(function):
        return False
    if re.search(r"SHARED|CASES", inspect.getsource(function)):
        return True
    named = (function.__globals__.get(name) for name in function.__code__.co_names)
    return any(
        asks(one) for one in named if one is not function and getattr(one, "__module__", "") == function.__module__
    )
