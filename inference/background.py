"""Work in threads beside the prediction of the next image, with bounded memory."""
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Self = TypeVar('Self', bound='Background')
WAITING = 2  # calls that wait beside those that run


class Background:
    """Calls functions in threads. A context manager: at its end everything is done.

    A call that fails raises its error in a later `submit` or at the end.
    """

    def __init__(self, threads: int = 1) -> None:
        self._bound = threads - 1 + WAITING
        self._calls: deque[Future[Any]] = deque()
        self._pool = ThreadPoolExecutor(threads)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Returns once at most two calls wait."""
        self._calls.append(self._pool.submit(function, *arguments))
        while len(self._calls) > self._bound:
            self._calls.popleft().result()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()  # after an error, too: what is predicted need not be predicted again
        for call in self._calls if kind is None else ():
            call.result()
