"""Prepares batches while the network computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetched"]

Item = TypeVar("Item")

_END = object()


def prefetched(items: Iterable[Item], depth: int = 4, workers: int = 1) -> Iterator[Item]:
    """Yield the items in their order, made by threads that run ahead.

    Args:
        items: A sequence, or any iterable. An error while an item is made is raised here in its turn.
        depth: Most items that are made ahead of the one that is out.
        workers: How many threads make them; an iterable that is not a sequence has one.
    """
    if isinstance(items, Sequence):
        length: int | None = len(items)
        make: Callable[[int], object] = items.__getitem__
    else:
        length, workers = None, 1
        source = iter(items)
        make = lambda _: next(source, _END)  # noqa: E731 - one of two ways to make an item
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    waiting: deque[Future[object]] = deque()
    try:
        number = 0
        while True:
            while len(waiting) <= depth and (length is None or number < length):
                waiting.append(pool.submit(make, number))
                number += 1
            if not waiting:
                return
            item = waiting.popleft().result()
            if item is _END:
                return
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)
