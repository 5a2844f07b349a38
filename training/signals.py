"""SIGTERM and Ctrl-C: the first asks a run to finish its step and save, the second ends it at once."""
import os
import signal


class StopRequest:
    """Context manager; `signum` is the signal that came, or 0."""
    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.signum = 0

    def __enter__(self):
        self._previous = {signum: signal.signal(signum, self._note) for signum in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for signum, handler in self._previous.items():
            signal.signal(signum, handler or signal.SIG_DFL)  # None: it was set outside Python

    def _note(self, signum, _frame):
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum

    @property
    def status(self):
        """Exit status of a process that ends because of the signal, as a shell gives it."""
        return 128 + self.signum if self.signum else None
