"""Prefetched items come in their order, whoever makes them, and errors come where they belong."""

import threading
from collections.abc import Iterator

import pytest

from pfld_edge_train.lazy_sequence import LazySequence
from pfld_edge_train.prefetch import prefetched


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("depth", [1, 4])
def test_items_come_in_order(depth: int, workers: int) -> None:
    assert list(prefetched(LazySequence(20, lambda i: i * i), depth, workers)) == [i * i for i in range(20)]
    assert list(prefetched(iter(range(20)), depth, workers)) == list(range(20))
    assert not list(prefetched([]))


def test_an_error_is_raised_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more faces")

    ahead = prefetched(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="no more faces"):
        next(ahead)


def test_items_are_made_ahead_while_one_is_out() -> None:
    made = threading.Semaphore(0)

    def make(number: int) -> int:
        made.release()
        return number

    items = prefetched(LazySequence(10, make), depth=3)
    next(items)
    assert all(made.acquire(timeout=10) for _ in range(4))
    assert not made.acquire(timeout=0.05)
    items.close()  # type: ignore[attr-defined]


def test_leaving_early_ends_the_threads() -> None:
    before = threading.active_count()
    items = prefetched(LazySequence(1000, lambda i: i), workers=2)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_lazy_sequence_makes_only_what_is_asked_for() -> None:
    made: list[int] = []
    numbers = LazySequence(10, lambda i: made.append(i) or i)
    assert len(numbers[3:8]) == 5
    assert numbers[3:8][1] == 4
    assert numbers[-1] == 9
    assert made == [4, 9]
    with pytest.raises(IndexError):
        numbers[10]
