"""Many small jobs in worker processes that never outlive the process that started them."""
import argparse
import ctypes
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

from common.cli import PR_SET_PDEATHSIG
from common.errors import FileError, UserError

Job = TypeVar('Job')
Result = TypeVar('Result')
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class DiskFull(FileError):
    """Nothing more can be written. It stops all jobs, while any other OSError concerns a single file."""

    @classmethod
    def check(cls, error: OSError, path: str | os.PathLike) -> None:
        """Raise DiskFull, with one line that names `path`, if the OSError means that."""
        if error.errno in _NO_ROOM:
            raise cls(f'{path}: expected room for it, found none ({error.strerror}); make room and start again: '
                      'what is done is kept') from error


def available_cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def add_num_workers_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--num_workers', type=int, default=available_cores(), help='processes (default: all cores)')


def check_num_workers(num_workers: int) -> None:
    """Raise UserError if a value of --num_workers is negative."""
    if num_workers < 0:
        raise UserError(f'--num_workers: expected 0 or more, found {num_workers}')


def results_of(work: Callable[[Job], Result], jobs: Sequence[Job], num_workers: int) -> Generator[Result, None, None]:
    """Generator of work(job) in the order of the jobs; closing it early cancels the jobs that have not started.

    num_workers: processes; 0 or 1: the calling process does the work. Workers leave Ctrl-C to the calling process and
    die when it does, even if it is killed by SIGKILL. Raises whatever `work` raises, and FileError if a worker was
    killed.
    """
    num_workers = min(num_workers, len(jobs))
    if num_workers < 2:
        yield from map(work, jobs)
        return
    pool = ProcessPoolExecutor(num_workers, initializer=_die_with, initargs=(os.getpid(),))
    # Workers inherit the blocked SIGINT, from their first instruction on, and OpenCV without threads: a fork copies
    # held locks but not the threads that hold them, and the other cores are for the other workers anyway.
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


def _die_with(parent: int) -> None:
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)
    else:  # not forked
        cv2.setNumThreads(1)
        threading.Thread(target=_exit_without, args=(parent,), daemon=True).start()


def _exit_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
