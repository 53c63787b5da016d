"""Reading the next file while the present one is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item, Read = TypeVar("Item"), TypeVar("Read")


def read_ahead(
    items: Sequence[Item], read: Callable[[Item], Read]
) -> Iterator[tuple[Item, Future[Read]]]:
    """Yield each of `items`, in their order, with the future of `read(item)`, whose result() raises
    what `read` raised.

    While one is used, the next, and no more, is read in a thread: decoders leave Python's lock. No
    items: nothing. An iteration that is given up waits for the one that is being read.
    """
    with ThreadPoolExecutor(1, "reading ahead") as thread:
        futures: list[Future[Read]] = [thread.submit(read, item) for item in items[:1]]
        for number, item in enumerate(items):
            future = futures.pop()
            future.exception()  # the thread is free for the next
            if number + 1 < len(items):
                futures.append(thread.submit(read, items[number + 1]))
            yield item, future
