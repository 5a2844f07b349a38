"""SIGTERM and Ctrl-C: the first makes a run finish its step and save, a later one ends it at once."""
import os
import signal
import time
from types import FrameType

SAME_REQUEST = 2.0  # seconds; Paddle's launcher sends SIGTERM three times within 0.6 s, then waits 30 s


class StopRequest:
    """Context manager; `signum` is the signal that came, or 0."""
    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signum = 0
        self._first = 0.0

    def __enter__(self) -> 'StopRequest':
        self._previous = {signum: signal.signal(signum, self._note) for signum in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler or signal.SIG_DFL)  # None: it was set outside Python

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        if not self.signum:
            self.signum, self._first = signum, time.monotonic()
        elif time.monotonic() - self._first > SAME_REQUEST:
            os._exit(128 + signum)

    @property
    def status(self) -> int | None:
        """Exit status of a process that ends because of the signal, by the shells' convention."""
        return 128 + self.signum if self.signum else None
