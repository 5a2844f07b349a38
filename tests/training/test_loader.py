"""Worker processes that fail, die or hang: one line with the file, soon."""
import os
import signal
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

from common.errors import UserError
from datasets.sampling import EpochStream
from tests.conftest import PATIENCE
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


def hang():
    time.sleep(10 * PATIENCE)


def other_size():
    return {'img': np.zeros([3, 4, 2], 'float32'), 'label': np.zeros([4, 2], 'int64')}


def test_two_workers_and_none_give_the_same_batches():
    assert read_all(num_workers=2) == read_all(num_workers=0)


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


@pytest.mark.parametrize('fault, word, seconds', [(die, 'died', 10 * PATIENCE), (hang, 'hung and was ended', 4)])
def test_a_worker_that_dies_or_hangs_is_reported_with_its_file(fault, word, seconds):
    start = time.monotonic()
    with pytest.raises(ValueError, match=f'{word} while reading .*/data/image_5.png, /data/label_5.png'):
        read_all(fault, hang_seconds=seconds)
    assert time.monotonic() - start < PATIENCE
