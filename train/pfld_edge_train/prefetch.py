"""Prepares batches while the network computes."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["prefetched"]

Item = TypeVar("Item")


def prefetched(items: Iterable[Item], depth: int = 4) -> Iterator[Item]:
    """Yield the items in their order, made by a thread that runs ahead.

    Args:
        items: Consumed in the thread; an error there is raised here.
        depth: Most items that wait.
    """
    waiting: queue.Queue[Item | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def offer(item: Item | BaseException | None) -> None:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def produce() -> None:
        try:
            for item in items:
                offer(item)
                if stop.is_set():
                    return
            offer(None)
        except BaseException as error:  # noqa: BLE001 - carried to the consumer
            offer(error)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
