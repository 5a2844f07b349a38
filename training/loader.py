"""Batches for training, from worker processes; whatever goes wrong in one is told with the file it was reading."""
import multiprocessing
import os
import signal
import threading
import time
import traceback
from contextlib import contextmanager

import numpy as np
import paddle
from paddle.io.dataloader.collate import default_collate_fn

from common.errors import UserError

HANG_SECONDS = 45  # waiting longer than this for one batch counts as a hang


def training_batches(dataset, stream, num_workers, hang_seconds=HANG_SECONDS):
    """Yield {'img': float32 (N, 3, H, W), 'label': int64 (N, H, W)} in the stream's order.

    Raises ValueError with the text of the sample that could not be made, or naming the files that were being read when
    a worker died or hung; RuntimeError with the traceback for a defect in a transform.
    """
    reading = _Reading(num_workers)
    loader = paddle.io.DataLoader(_Reporting(dataset, reading), batch_sampler=stream, collate_fn=_collate,
                                  num_workers=num_workers, worker_init_fn=_ignore_interrupts)
    count = 0
    with _quiet_threads(), reading.watch(hang_seconds):
        batches = iter(loader)
        while True:
            try:
                with reading.waiting():
                    batch = next(batches, None)
            except (SystemError, RuntimeError, OSError):  # "Blocking queue is killed"; a death noticed by its signal
                batch = None
            if batch is None:
                break
            if 'error' in batch:
                raise (UserError if batch['expected'] else RuntimeError)(batch['error'])
            yield batch
            count += 1
    if count != len(stream):
        files = [str(path) for index in reading.unfinished() for path in _files(dataset, index)]
        raise UserError(f'batch {count + 1}: expected it from a data worker, found that one '
                         f'{"hung and was ended" if reading.hung else "died"} while reading '
                         f'{", ".join(files) or "(unknown)"}; check these files and the free memory, then continue '
                         'with --resume auto')


def _files(dataset, index):
    """Paths behind a sample; datasets that do not tell are named by the index."""
    return dataset.files(*index) if hasattr(dataset, 'files') else [f'sample {index}']


class _Reading:
    """What every worker is reading, in memory shared with the main process: (pid, epoch, index), pid 0 when idle."""

    def __init__(self, num_workers):
        self._slots = np.frombuffer(multiprocessing.RawArray('q', 3 * max(num_workers, 1)), np.int64).reshape(-1, 3)
        self._since = None
        self.hung = False

    @contextmanager
    def sample(self, index):
        worker = paddle.io.get_worker_info()
        slot = self._slots[worker.id if worker else 0]
        slot[:] = os.getpid(), *(index if isinstance(index, tuple) else (0, index))
        yield
        slot[0] = 0

    def unfinished(self):
        return [(int(epoch), int(index)) for pid, epoch, index in self._slots if pid]

    @contextmanager
    def waiting(self):
        """Around the wait for a batch."""
        self._since = time.monotonic()
        yield
        self._since = None

    @contextmanager
    def watch(self, seconds):
        """End workers that keep the main process waiting for so long; it then sees them as dead and can tell."""
        done = threading.Event()

        def loop():
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


class _Reporting(paddle.io.Dataset):
    """A dataset whose errors are samples: Paddle's own way ends in a hang (no workers) or a lost message (workers)."""

    def __init__(self, dataset, reading):
        super().__init__()
        self.dataset = dataset
        self.reading = reading

    def __getitem__(self, index):
        with self.reading.sample(index):
            try:
                return self.dataset[index]
            except (UserError, OSError) as error:
                return {'error': str(error), 'expected': 1}
            except Exception:
                return {'error': f'{_files(self.dataset, index)[0]}: {traceback.format_exc()}', 'expected': 0}

    def __len__(self):
        return len(self.dataset)


def _collate(samples):
    failed = [sample for sample in samples if 'error' in sample]
    shapes = {sample['img'].shape for sample in samples if 'img' in sample}
    if not failed and len(shapes) > 1:
        failed = [{'error': f'train_dataset.transforms: expected images of one size in a batch, found '
                            f'{sorted(shapes)}; end with RandomPaddingCrop or Resize', 'expected': 1}]
    # The array is there because Paddle takes a batch without any for the end of the data.
    return {**failed[0], 'img': np.zeros(1, np.float32)} if failed else default_collate_fn(samples)


def _ignore_interrupts(_worker_id):
    """Ctrl-C reaches every process of the terminal; the main one decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _quiet_threads():
    """Paddle's reader thread prints a traceback about what is told here in one line."""
    hook = threading.excepthook
    threading.excepthook = lambda _: None
    try:
        yield
    finally:
        threading.excepthook = hook
