"""Many small jobs in processes that never outlive the one that started them."""
import ctypes
import errno
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import cv2

from common.errors import FileError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class DiskFull(FileError):
    """Nothing more can be written: what ends all jobs, where another OSError is the matter of one file."""

    @classmethod
    def check(cls, error, path):
        """Raises DiskFull, a line that names `path`, if that is what the OSError says."""
        if error.errno in _NO_ROOM:
            raise cls(f'{path}: expected room for it, found none ({error.strerror}); make room and start again: '
                      'what is done is kept') from error


def results_of(work, jobs, num_workers):
    """Generator of work(job) in the order of the jobs; closing it early gives up the jobs that have not begun.

    num_workers: processes; 0 or 1: this one. Workers leave Ctrl-C to this process and die when it does, even by
    SIGKILL. Raises what `work` raises, and OSError when a worker was killed.
    """
    num_workers = min(num_workers, len(jobs))
    if num_workers < 2:
        yield from map(work, jobs)
        return
    pool = ProcessPoolExecutor(num_workers, initializer=_follow, initargs=(os.getpid(),))
    # Workers inherit the blocked SIGINT, from their first instruction on, and OpenCV without threads: a fork loses the
    # threads but not the locks they hold, and the other cores belong to the other workers anyway.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        results = pool.map(work, jobs, chunksize=4)
        cv2.setNumThreads(threads)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from results
    except BrokenProcessPool as error:
        raise FileError('expected all worker processes to live, found one killed (out of memory?); start again with a '
                      'smaller --num_workers: what is done is kept') from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        pool.shutdown(cancel_futures=True)


def _follow(parent):
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
    else:  # not forked
        cv2.setNumThreads(1)
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent):
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
