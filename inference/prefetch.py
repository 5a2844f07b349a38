"""Reading ahead in threads (decoding and NumPy release the interpreter lock), with bounded memory."""
from collections import deque
from concurrent.futures import ThreadPoolExecutor


def prefetch(function, items, num_workers):
    """Yield (item, result, error) in order; at most num_workers + 1 results wait. 0 workers: computed when asked for.

    An exception of `function` is the third element, the result is None then.
    """
    def attempt(item):
        try:
            return item, function(item), None
        except Exception as error:
            return item, None, error

    if num_workers == 0:
        yield from map(attempt, items)
        return
    with ThreadPoolExecutor(num_workers) as pool:
        waiting = deque()
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
