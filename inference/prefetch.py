"""Reading ahead in threads (decoding and NumPy release Python's lock), with bounded memory."""
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar('Item')


def prefetch(function: Callable[[Item], Any], items: Iterable[Item],
             num_workers: int) -> Iterator[tuple[Item, Any, Exception | None]]:
    """Yield (item, result, error) in order; at most num_workers + 1 results wait. 0 workers: computed on demand.

    The third element is an exception of `function`, with the result None, or None.
    """
    def attempt(item: Item) -> tuple[Item, Any, Exception | None]:
        try:
            return item, function(item), None
        except Exception as error:
            return item, None, error

    if num_workers == 0:
        yield from map(attempt, items)
        return
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque[Future[tuple[Item, Any, Exception | None]]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(attempt, item))
                if len(waiting) > num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
