"""Worker processes that fail, die or hang: one line with the file, soon."""
import gc
import multiprocessing
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

from common.errors import UserError
from datasets.sampling import EpochStream
from tests.conftest import PATIENCE
from training import loader
from training.loader import training_batches


class Images(paddle.io.Dataset):
    """Samples named image_0.png ...; number 5 does what `fault` says."""

    def __init__(self, fault=None):
        self.fault = fault

    def __len__(self):
        return 8

    def files(self, epoch, index):
        return f'/data/image_{index}.png', f'/data/label_{index}.png'

    def __getitem__(self, index):
        _, i = index
        if i == 5 and self.fault:
            return self.fault()
        return {'img': np.full([3, 2, 2], i, 'float32'), 'label': np.full([2, 2], i, 'int64')}


def read_all(fault=None, num_workers=2, **kwargs):
    dataset = Images(fault)
    return [batch['label'].numpy()[:, 0, 0].tolist()
            for batch in training_batches(dataset, EpochStream(dataset, 2, 4, seed=1), num_workers, **kwargs)]


def bad_value():
    raise UserError('/data/label_5.png: expected train ids, found 26')


def missing_file():
    return Path('/data/no_such_image.png').read_bytes()


def library_error():
    raise OSError('image file is truncated')


def defect():
    return {}['no such key']


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def bus_error():
    """What writing into a full /dev/shm ends in; Paddle's handler removes what the worker has there, and exits."""
    os.kill(os.getpid(), signal.SIGBUS)


def hang():
    time.sleep(10 * PATIENCE)


def other_size():
    return {'img': np.zeros([3, 4, 2], 'float32'), 'label': np.zeros([4, 2], 'int64')}


def test_two_workers_and_none_give_the_same_batches():
    assert read_all(num_workers=2) == read_all(num_workers=0)


def test_no_worker_outlives_the_last_batch():
    """Whoever takes a known number of batches, as the training loop does, never asks for one more."""
    before, dataset = set(multiprocessing.active_children()), Images()
    stream = EpochStream(dataset, 2, 4, seed=1)
    batches = training_batches(dataset, stream, 2)
    next(batches)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for _ in range(len(stream) - 1):
        next(batches)
    for worker in workers:
        worker.join(PATIENCE)
        assert not worker.is_alive()


@pytest.mark.parametrize('num_workers', [2, 0])
def test_errors_of_a_sample(num_workers, capfd):
    with pytest.raises(ValueError, match='^/data/label_5.png: expected train ids, found 26$'):
        read_all(bad_value, num_workers)
    with pytest.raises(UserError, match='No such file or directory: ./data/no_such_image.png'):
        read_all(missing_file, num_workers)
    with pytest.raises(RuntimeError, match='^/data/image_5.png: (.|\n)*OSError: image file is truncated'):
        read_all(library_error, num_workers)
    with pytest.raises(RuntimeError, match='^/data/image_5.png: (.|\n)*KeyError: .no such key'):
        read_all(defect, num_workers)
    with pytest.raises(ValueError, match='^train_dataset.transforms: expected images of one size'):
        read_all(other_size, num_workers)
    assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize('fault, word, seconds', [(die, 'died', 10 * PATIENCE), (bus_error, 'died', 10 * PATIENCE),
                                                  (hang, 'hung and was ended', 4)])
def test_a_worker_that_dies_or_hangs_is_reported_with_its_file(fault, word, seconds):
    start = time.monotonic()
    with pytest.raises(ValueError, match=f'{word} while reading .*/data/image_5.png, /data/label_5.png'):
        read_all(fault, hang_seconds=seconds)
    assert time.monotonic() - start < PATIENCE


@pytest.mark.parametrize('act, word', [(hang, 'hung and was ended'), (die, 'died'), (bus_error, 'died')])
@pytest.mark.parametrize('where', ['before its first sample', 'between two samples'])
def test_a_worker_that_fails_while_it_reads_nothing(monkeypatch, act, word, where):
    original = loader._start_worker if where.startswith('before') else loader._collate

    def faulty(*arguments):
        if where.startswith('between') or arguments[1:] == (1,):  # of the two workers, the second one
            time.sleep(2)  # Paddle 2.6 may raise at any line while it starts its workers
            act()
        return original(*arguments)

    monkeypatch.setattr(loader, original.__name__, faulty)
    start = time.monotonic()
    with pytest.raises(UserError, match=rf'^batch \d: .* found that one {word} {where}; check the free memory'):
        read_all(hang_seconds=3 if act is hang else 10 * PATIENCE)
    assert time.monotonic() - start < PATIENCE


@pytest.mark.parametrize('act', [signal.SIGKILL, signal.SIGBUS])
def test_a_worker_that_dies_during_the_training_step_is_reported_with_the_next_batch(act):
    """Paddle's handler of SIGCHLD would raise within the step, at whatever line it is."""
    read_all()  # Paddle sets its handler once
    handler, before, dataset = signal.getsignal(signal.SIGCHLD), set(multiprocessing.active_children()), Images()
    batches = training_batches(dataset, EpochStream(dataset, 2, 40, seed=1), 2)
    next(batches)
    worker = (set(multiprocessing.active_children()) - before).pop()
    os.kill(worker.pid, act)
    end = time.monotonic() + PATIENCE
    while worker.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(UserError, match=r'^batch \d+: expected it from a data worker, found that one died'):
        list(batches)
    assert signal.getsignal(signal.SIGCHLD) == handler


def test_the_log_shows_where_a_worker_hangs(caplog):
    with pytest.raises(UserError, match='hung and was ended'):
        read_all(hang, hang_seconds=2)
    text, = (record.getMessage() for record in caplog.records if 'wait here' in record.getMessage())
    assert re.match(r'data workers \[\d+\] wait here:\n', text) and f'{__file__}", line' in text and 'in hang' in text


class WaitsForItsThread:
    """Ends where it was made, and never in a fork of that process: like anything that joins its threads."""

    def __init__(self):
        self.itself, self.pid = self, os.getpid()  # only the garbage collector ends it

    def __del__(self):
        if os.getpid() != self.pid:
            hang()


def collect():
    gc.collect()
    return Images()[0, 4]


def test_workers_leave_the_garbage_of_the_main_process_alone():
    gc.collect()
    gc.disable()
    try:
        WaitsForItsThread()
        assert len(read_all(collect, hang_seconds=10)) == 4
        assert not gc.isenabled() and not gc.get_freeze_count()
    finally:
        gc.enable()
        gc.collect()


def test_who_is_suspected():
    """Who reads or has never begun; only where nobody does, all."""
    workers = loader._WorkerSamples(3)
    workers.pids = {11, 12, 13}
    workers._slots[:] = [[11, 4, 5, 0], [0, 0, 0, 0], [13, 4, 6, 1]]
    assert workers.unfinished() == [(4, 6)] and workers._suspects() == {12, 13} and not workers.all_have_begun()
    workers._slots[:] = [[11, 4, 5, 0], [12, 4, 7, 0], [13, 4, 6, 0]]
    assert workers.unfinished() == [] and workers._suspects() == {11, 12, 13} and workers.all_have_begun()


def test_a_hang_names_the_option_for_slow_disks():
    with pytest.raises(ValueError, match='if only the disk is slow, raise options.loader_timeout above 2 seconds'):
        read_all(hang, hang_seconds=2)
    with pytest.raises(ValueError, match='options.loader_timeout: expected seconds above 0, found 0'):
        read_all(hang_seconds=0)


@pytest.mark.parametrize('num_workers', [0, 1])
def test_samples_that_do_not_fit_together(monkeypatch, num_workers):
    monkeypatch.setattr(loader, 'default_collate_fn', lambda samples: samples[len(samples)])
    with pytest.raises(RuntimeError, match='IndexError: list index out of range'):
        read_all(num_workers=num_workers)


def test_a_failure_of_the_reader_thread_is_not_taken_for_a_dead_worker(monkeypatch, capfd):
    def broken(*_):
        raise ZeroDivisionError('CUDA error 700')

    monkeypatch.setattr(loader, '_collate', broken)
    with pytest.raises(RuntimeError, match=r'^batch 1: (.|\n)*CUDA error 700') as error:
        read_all(num_workers=1)
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert 'Traceback' not in capfd.readouterr().err


def test_what_paddle_says_of_anything_else_is_not_taken_for_a_dead_worker(monkeypatch):
    def failing(_):
        raise OSError('(External) CUDA error(700), an illegal memory access was encountered.')
        yield

    monkeypatch.setattr(paddle.io.DataLoader, '__iter__', failing)
    with pytest.raises(OSError, match='illegal memory access'):
        read_all()


def test_other_threads_keep_their_tracebacks(monkeypatch):
    seen = []
    monkeypatch.setattr(threading, 'excepthook', lambda arguments: seen.append(arguments.exc_type))
    dataset = Images()
    batches = training_batches(dataset, EpochStream(dataset, 2, 4, seed=1), 0)
    next(batches)
    thread = threading.Thread(target=lambda: {}['nothing'])
    thread.start()
    thread.join()
    batches.close()
    assert seen == [KeyError]


def test_the_default_number_of_workers():
    assert [loader.default_workers(cores, on_gpu=True) for cores in (1, 2, 6, 64)] == [0, 1, 5, 8]
    assert [loader.default_workers(cores, on_gpu=False) for cores in (1, 2, 64)] == [0, 1, 1]


def test_threads_of_opencv_in_the_main_process_do_not_stop_the_workers():
    """They are not forked with it; a worker that wanted to end them would wait for ever."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    try:
        cv2.GaussianBlur(np.zeros([2000, 2000, 3], np.uint8), (9, 9), 2)  # starts them
        assert len(read_all(num_workers=2)) > 1 and cv2.getNumThreads() == 4
    finally:
        cv2.setNumThreads(before)


def test_workers_do_not_start_threads_of_opencv():
    class Threads(Images):
        def __getitem__(self, index):
            import cv2
            return {'img': np.zeros([3, 2, 2], 'float32'), 'label': np.full([2, 2], cv2.getNumThreads(), 'int64')}

    dataset = Threads()
    for batch in training_batches(dataset, EpochStream(dataset, 2, 4, seed=1), 1):
        assert batch['label'].numpy().max() == 1


def test_a_batch_that_a_dying_worker_took_along_is_not_a_failure_of_the_reader_thread(monkeypatch):
    """The order that a bus error may bring: the thread misses a file, and then the worker's end is seen."""
    monkeypatch.setattr(loader._ReaderThread, 'failure', lambda _: RuntimeError('open failed'))
    with pytest.raises(UserError, match='found that one died while reading /data/image_5.png'):
        read_all(die)
