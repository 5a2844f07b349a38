"""Batches for training, from worker processes; an error in a worker names the file it was reading."""
import faulthandler
import functools
import gc
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import cv2
import numpy as np
import paddle
from paddle.io.dataloader.collate import default_collate_fn

from common import cli
from common.errors import UserError, is_expected
from datasets.normalization import Normalization
from datasets.sampling import EpochStream

logger = logging.getLogger(__name__)

HANG_SECONDS = 45.0  # waiting longer than this for one batch counts as a hang
MAX_WORKERS = 8
STACK_SECONDS = 1.0  # seconds that a hung worker has to write where it is
WORKER_ENDS = 2.0  # seconds to wait for the end of a worker whose end may be why that thread has failed
READER_ENDS = 10.0  # seconds to wait for the end of Paddle's thread after it has shut its queue
# How Paddle says that a worker has ended: its queue is shut, or SIGCHLD has come.
WORKER_ENDED = ('Blocking queue is killed because the data reader raises an exception', 'DataLoader process (pid')


def default_workers(cores: int, on_gpu: bool) -> int:
    """Worker processes per training process, for the cores that it may use.

    Beside a GPU the cores are free but for one, and the augmentation of 1024x2048 pixels needs several. On a CPU the
    network takes them all: one worker is enough to have the next batch ready.
    """
    return min(cores - 1, MAX_WORKERS if on_gpu else 1)


def training_batches(dataset: Any, stream: EpochStream, num_workers: int,
                     hang_seconds: float = HANG_SECONDS) -> Generator[dict[str, paddle.Tensor], None, None]:
    """Yield {'img': float32 (N, 3, H, W), 'label': int64 (N, H, W)} in the stream's order.

    A dataset with the method `compact` has its samples come here and to the device as that gives them: 8 instead of
    42 MB for 1024x2048 pixels. Normalisation and types are completed there.

    Raises UserError with the text of an expected error in a sample, or naming the files that were being read when a
    worker died or hung (kept the caller waiting for hang_seconds); RuntimeError with the traceback for a defect in a
    dataset or transform, or with its cause for one in Paddle's thread that collects the batches.
    """
    if not hang_seconds > 0:
        raise UserError(f'options.loader_timeout: expected seconds above 0, found {hang_seconds}; correct the value')
    workers = _WorkerSamples(num_workers)
    normalization: Normalization | None = getattr(dataset, 'normalization', None)
    collate: Any = functools.partial(_collate, normalization)
    loader = paddle.io.DataLoader(_ErrorsAsSamples(dataset, workers), batch_sampler=stream, collate_fn=collate,
                                  num_workers=num_workers, worker_init_fn=functools.partial(_start_worker, workers))
    count = 0
    cause: Exception | None = None
    with _ReaderThread() as reader, workers.watch(hang_seconds):
        while True:
            try:
                if workers.batches is None:
                    with _forkable(), workers.start():
                        workers.batches = reader.started(lambda: iter(loader))
                with workers.waiting():
                    batch = next(workers.batches, None)
            except (SystemError, RuntimeError, OSError) as error:
                if not any(text in str(error) for text in WORKER_ENDED):
                    raise
                # Without its traceback, whose frames would keep the workers, and with them this process, alive.
                batch, cause = None, error.with_traceback(None)
                if (failure := reader.failure()) is not None and not workers.one_died():
                    raise RuntimeError(f'batch {count + 1}: the thread that collects the batches failed: '
                                       f'{type(failure).__name__}: {failure}') from failure
            if batch is None:
                break
            if 'error' in batch:
                raise (UserError if batch['expected'] else RuntimeError)(batch['error'])
            count += 1
            if count == len(stream):
                # Paddle ends its workers when it is asked for more than there is.
                with suppress(SystemError, RuntimeError, OSError), workers.waiting():
                    next(workers.batches, None)
            yield {**batch, 'label': batch['label'].astype('int64'),
                   'img': normalization.on_device(batch['img']) if normalization else batch['img']}
            if count == len(stream):
                return
    if count != len(stream):
        ended = 'hung and was ended' if workers.hung else 'died'
        raise UserError(f'batch {count + 1}: expected it from a data worker, found that one {ended} '
                         f'{_where(dataset, workers)} the free memory and the room in /dev/shm (docs/training.md), '
                         'then continue with --resume auto'
                         f'{_slow_disk(hang_seconds) if workers.hung else ""}') from cause


def _slow_disk(hang_seconds: float) -> str:
    return f'; if only the disk is slow, raise options.loader_timeout above {hang_seconds:g} seconds'


def _where(dataset: Any, workers: '_WorkerSamples') -> str:
    """What a worker was doing when it ended, and what to check."""
    files = [str(path) for index in workers.unfinished() for path in _files(dataset, index)]
    if files:
        return f'while reading {", ".join(files)}; check these files,'
    return f'{"between two samples" if workers.all_have_begun() else "before its first sample"}; check'


def _files(dataset: Any, index: Any) -> Sequence[str | None]:
    """Paths of a sample; its index for datasets without `files`."""
    return dataset.files(*index) if hasattr(dataset, 'files') else [f'sample {index}']


class _WorkerSamples:
    """What each worker reads, in memory shared with the main process: (pid, epoch, index, whether it is reading that).

    A worker's pid is 0 before its first sample.
    """

    def __init__(self, num_workers: int) -> None:
        shared: Any = multiprocessing.RawArray('q', 4 * max(num_workers, 1))
        self._slots = np.frombuffer(shared, np.int64).reshape(-1, 4)
        self.pids: set[int] = set()
        self.batches: Any = None  # Paddle's iterator, once they have been started
        self._processes: Sequence[Any] = ()
        self._since: float | None = None  # when the main process began to wait for a batch
        self._paddles_handler: Any = None  # of SIGCHLD
        self._signalled = False
        self._stacks = tempfile.TemporaryFile()  # noqa: SIM115 - each worker's stack, if it hangs
        self.hung = False

    @contextmanager
    def reading(self, index: int | tuple[int, int]) -> Iterator[None]:
        """Around the reading of a sample, in a worker."""
        worker = paddle.io.get_worker_info()
        slot = self._slots[worker.id if worker else 0]
        slot[:] = os.getpid(), *(index if isinstance(index, tuple) else (0, index)), 1
        yield
        slot[3] = 0

    def unfinished(self) -> list[tuple[int, int]]:
        """(epoch, index) of every sample whose reading has begun but not ended."""
        return [(int(epoch), int(index)) for _, epoch, index, reading in self._slots if reading]

    @contextmanager
    def start(self) -> Iterator[None]:
        """Around the start of the workers: the child processes that begin within."""
        earlier = set(multiprocessing.active_children())
        try:
            yield
        finally:
            handler = signal.getsignal(signal.SIGCHLD)
            if callable(handler) and threading.current_thread() is threading.main_thread():
                self._paddles_handler = handler
                signal.signal(signal.SIGCHLD, self._child_ended)
            self._processes = [child for child in multiprocessing.active_children() if child not in earlier]
            self.pids = {child.pid for child in self._processes}

    def _child_ended(self, signum: int, frame: Any) -> None:
        """Paddle's handler raises if a worker has died, at whatever line the main process is: here, only in a wait."""
        self._signalled = True
        if self._since is not None:
            self._raise_if_one_died(signum, frame)

    def _raise_if_one_died(self, signum: int = signal.SIGCHLD, frame: Any = None) -> None:
        self._signalled = False
        self._paddles_handler(signum, frame)

    def write_stack_when_asked(self) -> None:
        """In a worker: SIGUSR1 has it write its stack, also where it waits for ever."""
        faulthandler.register(signal.SIGUSR1, self._stacks)

    def one_died(self) -> bool:
        """Whether a worker has ended with an error, or does so now.

        One that dies takes batches in /dev/shm along that it has sent already: then the thread that collects them fails
        first, at a file that is no longer there.
        """
        sentinels = {process.sentinel: process for process in self._processes}
        ended = [sentinels[found] for found in multiprocessing.connection.wait(list(sentinels), WORKER_ENDS)]
        for process in ended:
            process.join()  # a sentinel is ready a moment before the exit code is
        return any(process.exitcode for process in ended)

    def all_have_begun(self) -> bool:
        return bool(self._slots[:, 0].all())

    def _suspects(self) -> set[int]:
        """Pids of the workers that are reading or have never begun, in a fork that went wrong for example; else of all.
        """
        reading = {int(pid) for pid, _, _, reading in self._slots if reading}
        begun = {int(pid) for pid in self._slots[:, 0]}
        return ((reading | (self.pids - begun)) or self.pids) - {os.getpid()}

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch. SystemError, also later within, if a worker has died since the last wait."""
        self._since = time.monotonic()
        try:
            if self._signalled:
                self._raise_if_one_died()
            yield
        finally:
            self._since = None

    @contextmanager
    def watch(self, seconds: float) -> Iterator[None]:
        """Inside, workers that keep the main process waiting for this long are killed; it then finds them dead.

        The workers end with it.
        """
        done = threading.Event()

        def loop() -> None:
            while not done.wait(min(1, seconds / 4)):
                since = self._since
                if since is not None and time.monotonic() - since > seconds:
                    self.hung = True
                    for signum in (signal.SIGUSR1, signal.SIGKILL):
                        for pid in self._suspects():
                            with suppress(ProcessLookupError):
                                os.kill(pid, signum)
                        if signum == signal.SIGUSR1:
                            time.sleep(STACK_SECONDS)
                            self._log_stacks()
                    return

        threading.Thread(target=loop, daemon=True).start()
        try:
            yield
        finally:
            done.set()
            self.batches = None
            if self._paddles_handler and signal.getsignal(signal.SIGCHLD) == self._child_ended:
                signal.signal(signal.SIGCHLD, self._paddles_handler)

    def _log_stacks(self) -> None:
        self._stacks.seek(0)
        if stacks := self._stacks.read().decode(errors='replace').strip():
            logger.warning('data workers %s wait here:\n%s', sorted(self._suspects()), stacks)


class _ErrorsAsSamples(paddle.io.Dataset):
    """A dataset that returns errors as samples: raised, they would hang (no workers) or lose their text (workers)."""

    def __init__(self, dataset: Any, workers: _WorkerSamples) -> None:
        super().__init__()
        self.dataset = dataset
        self.workers = workers

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        with self.workers.reading(index):
            try:
                return (self.dataset.compact if hasattr(self.dataset, 'compact') else self.dataset.__getitem__)(index)
            except Exception as error:
                if is_expected(error):
                    return {'error': str(error), 'expected': 1}
                return {'error': f'{_files(self.dataset, index)[0]}: {traceback.format_exc()}', 'expected': 0}

    def __len__(self) -> int:
        return len(self.dataset)


def _collate(normalization: Normalization | None, samples: list[dict[str, Any]]) -> dict[str, Any]:
    failed: list[dict[str, Any]] = [sample for sample in samples if 'error' in sample]
    shapes = {sample['img'].shape for sample in samples if 'img' in sample}
    if not failed and len(shapes) > 1:
        failed = [{'error': f'train_dataset.transforms: expected images of one size in a batch, found '
                            f'{sorted(shapes)}; end with RandomPaddingCrop or Resize', 'expected': 1}]
    if not failed:
        if normalization and len({sample['img'].dtype for sample in samples}) > 1:  # some with integers, some without
            samples = [{**sample, 'img': normalization.on_host(sample['img'])} for sample in samples]
        try:
            return default_collate_fn(samples)
        except Exception:  # raised, it would hang without workers
            failed = [{'error': traceback.format_exc(), 'expected': 0}]
    # With an array, because Paddle treats a batch without one as the end of the data.
    return {**failed[0], 'img': np.zeros(1, np.float32)}


@contextmanager
def _forkable() -> Iterator[None]:
    """What is forked within waits for no thread that was not forked with it.

    OpenCV has one thread per worker (they share the cores), set before the fork. What the main process has left for the
    garbage collector stays out of the workers': there, the end of an object with threads would wait for ever.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        cv2.setNumThreads(before)


def _start_worker(workers: _WorkerSamples, _worker_id: int) -> None:
    """Ctrl-C reaches every process of the terminal; the main process handles it."""
    workers.write_stack_when_asked()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cli.end_with_parent(signal.SIGKILL)  # Paddle's worker waits for ever where its parent is gone


class _ReaderThread:
    """Keeps the exception of Paddle's thread that collects the batches, instead of its traceback on standard error.

    A context manager. Other threads' exceptions go where they did before.
    """

    def __init__(self) -> None:
        self._threads: set[threading.Thread] = set()
        self._failure: BaseException | None = None

    def started(self, start: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """start(); the reader threads that it starts are those whose exceptions are kept."""
        before = set(threading.enumerate())
        batches = start()
        self._threads = {thread for thread in threading.enumerate() if _is_reader(thread)} - before
        return batches

    def failure(self) -> BaseException | None:
        """The exception with which the thread has ended or is ending."""
        for thread in self._threads:
            thread.join(READER_ENDS)
        return self._failure

    def __enter__(self) -> '_ReaderThread':
        self._hook = threading.excepthook
        threading.excepthook = self._note
        return self

    def __exit__(self, *_: object) -> None:
        threading.excepthook = self._hook

    def _note(self, arguments: Any) -> None:
        if arguments.thread in self._threads or _is_reader(arguments.thread):  # it may fail before start() returns
            self._failure = arguments.exc_value
        else:
            self._hook(arguments)


def _is_reader(thread: threading.Thread | None) -> bool:
    """Python names a thread after its function; the others are feeders of queues, which do not end with the reader."""
    return thread is not None and thread.name.endswith('(_thread_loop)')
