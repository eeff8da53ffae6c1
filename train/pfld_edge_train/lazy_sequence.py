"""A sequence whose items are made when they are asked for."""

from collections.abc import Callable, Sequence
from typing import TypeVar, overload

__all__ = ["LazySequence"]

Item = TypeVar("Item")


class LazySequence(Sequence[Item]):
    """Items 0 to ``length - 1`` of a function; nothing is kept."""

    def __init__(self, length: int, make: Callable[[int], Item]) -> None:
        """Take the function.

        Args:
            length: How many items there are.
            make: Gives the item of a number from 0.
        """
        self._numbers = range(length)
        self._make = make

    def __len__(self) -> int:
        """How many items there are."""
        return len(self._numbers)

    @overload
    def __getitem__(self, number: int) -> Item: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Item]: ...

    def __getitem__(self, number: int | slice) -> Item | Sequence[Item]:
        """Make one item, or choose some without making them.

        Raises:
            IndexError: There is no such item.
        """
        if isinstance(number, slice):
            chosen = self._numbers[number]
            return LazySequence(len(chosen), lambda place: self._make(chosen[place]))
        return self._make(self._numbers[number])
