"""Reading, computing and writing at the same time, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

MAX_HELD_BYTES = 2**28  # of images that wait to be translated, and of those that wait to be written


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for a block. When it raises, Ctrl-C included, they do not begin what they have not begun."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def read_ahead(
    pool: ThreadPoolExecutor,
    read: Callable[[int], T],
    places: Iterable[int],
    count: int,
    size: Callable[[T], int],
    max_bytes: int = MAX_HELD_BYTES,
) -> Iterator[T]:
    """The results of `read` in the order of `places`, while those of the next ones are made in threads.

    Args:
        pool: The threads.
        read: Makes a result; what it raises is raised here.
        places: Its arguments.
        count: How many are made ahead, at most.
        size: Bytes of a result.
        max_bytes: Where the results that wait have more than that, no further one is begun.
    """
    window: deque[Future[T]] = deque()
    left = iter(places)

    def full() -> bool:
        done = [f.result() for f in window if f.done() and f.exception() is None]
        return len(window) >= count or sum(map(size, done)) > max_bytes

    while True:
        while not (window and full()):
            place = next(left, None)
            if place is None:
                break
            window.append(pool.submit(read, place))
        if not window:
            return
        yield window.popleft().result()


class Writing(Generic[R]):
    """Jobs of threads whose results are wanted in their order.

    Args:
        pool: The threads.
        max_bytes: Of what waits to be written; `add` waits where there is more.
    """

    def __init__(self, pool: ThreadPoolExecutor, max_bytes: int = MAX_HELD_BYTES) -> None:
        self._pool, self._max_bytes = pool, max_bytes
        self._jobs: deque[tuple[list[Future[R]], int, Callable[[list[R]], None]]] = deque()
        self._held = 0

    def add(self, jobs: list[Callable[[], R]], size: int, done: Callable[[list[R]], None]) -> None:
        """Begin some jobs, and call `done` with their results when they are finished and all before them were.

        Args:
            jobs: Called in threads; what they raise is raised here or in `finish`.
            size: Bytes that they hold until they are done.
            done: Called by this thread, in `add` or `finish`.
        """
        while self._jobs and (self._held + size > self._max_bytes or all(job.done() for job in self._jobs[0][0])):
            self._collect()
        self._held += size
        self._jobs.append(([self._pool.submit(job) for job in jobs], size, done))

    def finish(self) -> None:
        """Wait for all of them."""
        while self._jobs:
            self._collect()

    def _collect(self) -> None:
        jobs, size, done = self._jobs[0]
        results = [job.result() for job in jobs]
        self._jobs.popleft()
        self._held -= size
        done(results)
