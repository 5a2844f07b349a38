"""Batches for training, from worker processes; an error in a worker names the file it was reading."""
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
from paddle.io.dataloader.collate import default_collate_fn

from common.errors import UserError, is_expected
from datasets.sampling import EpochStream

HANG_SECONDS = 45  # waiting longer than this for one batch counts as a hang


def training_batches(dataset: Any, stream: EpochStream, num_workers: int,
                     hang_seconds: float = HANG_SECONDS) -> Generator[dict[str, paddle.Tensor], None, None]:
    """Yield {'img': float32 (N, 3, H, W), 'label': int64 (N, H, W)} in the stream's order.

    Raises UserError with the text of an expected error in a sample, or naming the files that were being read when a
    worker died or hung; RuntimeError with the traceback for a defect in a dataset or transform.
    """
    workers = _WorkerSamples(num_workers)
    collate: Any = _collate  # Paddle's stub wants a function of a parameter named otherwise
    loader = paddle.io.DataLoader(_ErrorsAsSamples(dataset, workers), batch_sampler=stream, collate_fn=collate,
                                  num_workers=num_workers, worker_init_fn=_ignore_interrupts)
    count = 0
    cause: Exception | None = None
    with _no_thread_tracebacks(), workers.watch(hang_seconds):
        batches = iter(loader)
        while True:
            try:
                with workers.waiting():
                    batch = next(batches, None)
            except (SystemError, RuntimeError, OSError) as error:  # Paddle's way to say that a worker died
                batch, cause = None, error
            if batch is None:
                break
            if 'error' in batch:
                raise (UserError if batch['expected'] else RuntimeError)(batch['error'])
            yield batch
            count += 1
    if count != len(stream):
        files = [str(path) for index in workers.unfinished() for path in _files(dataset, index)]
        raise UserError(f'batch {count + 1}: expected it from a data worker, found that one '
                         f'{"hung and was ended" if workers.hung else "died"} while reading '
                         f'{", ".join(files) or "(unknown)"}; check these files, the free memory and the room in '
                         '/dev/shm (docs/training.md), then continue with --resume auto') from cause


def _files(dataset: Any, index: Any) -> Sequence[str | None]:
    """Paths of a sample; its index for datasets without `files`."""
    return dataset.files(*index) if hasattr(dataset, 'files') else [f'sample {index}']


class _WorkerSamples:
    """The sample each worker is reading, in memory shared with the main process: (pid, epoch, index), pid 0 if idle."""

    def __init__(self, num_workers: int) -> None:
        shared: Any = multiprocessing.RawArray('q', 3 * max(num_workers, 1))
        self._slots = np.frombuffer(shared, np.int64).reshape(-1, 3)
        self._since: float | None = None
        self.hung = False

    @contextmanager
    def reading(self, index: int | tuple[int, int]) -> Iterator[None]:
        """Around the reading of a sample, in a worker."""
        worker = paddle.io.get_worker_info()
        slot = self._slots[worker.id if worker else 0]
        slot[:] = os.getpid(), *(index if isinstance(index, tuple) else (0, index))
        yield
        slot[0] = 0

    def unfinished(self) -> list[tuple[int, int]]:
        """(epoch, index) of every sample whose reading has begun but not ended."""
        return [(int(epoch), int(index)) for pid, epoch, index in self._slots if pid]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch."""
        self._since = time.monotonic()
        yield
        self._since = None

    @contextmanager
    def watch(self, seconds: float) -> Iterator[None]:
        """Inside, workers that keep the main process waiting for this long are killed; it then finds them dead."""
        done = threading.Event()

        def loop() -> None:
            while not done.wait(min(1, seconds / 4)):
                since = self._since
                if since is not None and time.monotonic() - since > seconds:
                    for pid in {int(pid) for pid in self._slots[:, 0]} - {0, os.getpid()}:
                        self.hung = True
                        os.kill(pid, signal.SIGKILL)
                    return

        threading.Thread(target=loop, daemon=True).start()
        try:
            yield
        finally:
            done.set()


class _ErrorsAsSamples(paddle.io.Dataset):
    """A dataset that returns errors as samples: raised, they would hang (no workers) or lose their text (workers)."""

    def __init__(self, dataset: Any, workers: _WorkerSamples) -> None:
        super().__init__()
        self.dataset = dataset
        self.workers = workers

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        with self.workers.reading(index):
            try:
                return self.dataset[index]
            except Exception as error:
                if is_expected(error):
                    return {'error': str(error), 'expected': 1}
                return {'error': f'{_files(self.dataset, index)[0]}: {traceback.format_exc()}', 'expected': 0}

    def __len__(self) -> int:
        return len(self.dataset)


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    failed: list[dict[str, Any]] = [sample for sample in samples if 'error' in sample]
    shapes = {sample['img'].shape for sample in samples if 'img' in sample}
    if not failed and len(shapes) > 1:
        failed = [{'error': f'train_dataset.transforms: expected images of one size in a batch, found '
                            f'{sorted(shapes)}; end with RandomPaddingCrop or Resize', 'expected': 1}]
    # With an array, because Paddle treats a batch without one as the end of the data.
    return {**failed[0], 'img': np.zeros(1, np.float32)} if failed else default_collate_fn(samples)


def _ignore_interrupts(_worker_id: int) -> None:
    """Ctrl-C reaches every process of the terminal; the main process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _no_thread_tracebacks() -> Iterator[None]:
    """Paddle's reader thread prints a traceback for an error that is reported here in one line."""
    hook = threading.excepthook
    threading.excepthook = lambda _: None
    try:
        yield
    finally:
        threading.excepthook = hook
