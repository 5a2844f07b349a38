"""What all tests share: the CPU unless MSCALE_TEST_DEVICE=gpu, one thread unless OMP_NUM_THREADS says otherwise, and a
toy dataset made once."""
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PATIENCE = 240  # seconds to wait for another process or thread; only a test that fails waits so long
# CUDA stops reading at -1. The launcher takes one entry for each of the (at most two) processes of a test, and would
# have them talk through NCCL.
NO_GPU = {
    'CUDA_VISIBLE_DEVICES': '-1,-1', 'PADDLE_DISTRI_BACKEND': 'gloo'}
if os.environ.get('MSCALE_TEST_DEVICE', 'cpu') != 'gpu':  # inherited by the processes that tests start
    os.environ.update(NO_GPU)
os.environ.setdefault('OMP_NUM_THREADS', '1')  # as Paddle does; the tests' tensors are small
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory):
    """No test looks into the user's folder of converted networks, nor leaves anything there."""
    os.environ['MSCALE_CACHE'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='session', autouse=True)
def one_thread_of_opencv():
    """Tests fork Paddle's own loader from this process, where a thread of OpenCV's pool may hold its lock at that
    moment: the worker would wait for it for ever. training/loader.py takes care of it (`_forkable`).
    """
    import cv2
    cv2.setNumThreads(1)


@pytest.fixture(scope='session')
def toy(tmp_path_factory):
    """A converted toy Cityscapes of 6 + 3 + 6 images of 64x128; not to be changed by a test."""
    from tools import convert_cityscapes, convert_cityscapes_autolabeling
    from tools.make_toy_cityscapes import make_toy

    root = tmp_path_factory.mktemp('toy') / 'cityscapes'
    make_toy(root, (64, 128), 6, 3, 6, seed=3)
    convert_cityscapes.main(['--cityscapes_path', str(root), '--num_workers', '1'])
    convert_cityscapes_autolabeling.main(['--dataset_root', str(root), '--num_workers', '1'])
    return root


@pytest.fixture
def tiny_config(toy, tmp_path):
    """A config file of a very small network on the toy dataset."""
    return write_tiny_config(tmp_path / 'tiny.yml', toy)


def write_tiny_config(path, toy=None, optimizer='{_inherited_: False, type: sgd, momentum: 0.9, weight_decay: 0.0001}',
                      n_scales=None):
    """A config of a very small network. toy: its dataset; optimizer, n_scales: None for those of configs/toy.yml."""
    scales = f'n_scales: {n_scales}, ' if n_scales else ''
    lines = [f'_base_: {ROOT}/configs/toy.yml', 'iters: 3', 'batch_size: 2',
             f'model: {{{scales}ocr_mid_channels: 16, ocr_key_channels: 8, attn_channels: 8}}']
    if optimizer:
        lines.append(f'optimizer: {optimizer}')
    if toy:
        lines += [f'train_dataset: {{dataset_root: {toy}}}', f'val_dataset: {{dataset_root: {toy}}}']
    path.write_text('\n'.join(lines) + '\n')
    return path


def run_script(main, *argv):
    """Exit status of a script's main in this process, through the same door as the command line."""
    from common import cli

    with pytest.raises(SystemExit) as stop:
        cli.run(main, [str(a) for a in argv])
    return stop.value.code
