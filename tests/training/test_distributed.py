"""Two CPU processes under Paddle's launcher against one process with twice the batch."""
import re
import subprocess
import sys

import cv2
import numpy as np
import paddle
import pytest

import predict
from tests.conftest import ROOT, run_script
from tests.rounding import assert_close

# Of the gradients in float64: the last bit of a float32 input moves them by up to 4e-4, 4000 times its size (but for
# ReLUs at their corners, which a bit of float64 does not reach).
CONDITION = 4000 * 2**-52
SCRIPT = str(ROOT / 'tests' / 'training' / 'parallel_run.py')


def launch(processes, logs, *command, status=0):
    done = subprocess.run([sys.executable, '-m', 'paddle.distributed.launch', '--nproc_per_node', str(processes),
                           '--log_dir', str(logs), *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    text = ''.join(p.read_text() for p in sorted(logs.glob('workerlog.*')))
    assert done.returncode in (status if isinstance(status, tuple) else (status,)), done.stderr[-2000:] + text[-2000:]
    return (logs / 'workerlog.0').read_text()


def losses_of(log):
    return [float(value) for value in re.findall(r'iter: \d+/3, loss: ([\d.]+)', log)]


def test_two_processes_train_and_evaluate_like_one(tiny_config, tmp_path):
    two = launch(2, tmp_path / 'logs', SCRIPT, tiny_config, tmp_path / 'two', 1)
    done = subprocess.run([sys.executable, SCRIPT, str(tiny_config), str(tmp_path / 'one'), '2'], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(losses_of(two)) == 3
    # The log of rank 0 shows its own half; the momentum carries the gradients of both. (The learning rate is next to
    # nothing, so that the gradients of all three iterations are those of nearly the same weights.)
    states = [paddle.load(str(tmp_path / run / 'iter_3' / 'model.pdopt')) for run in ('one', 'two')]
    velocities = [{name: value.numpy() for name, value in state.items() if 'velocity' in name} for state in states]
    assert velocities[0].keys() == velocities[1].keys() and len(velocities[0]) > 60
    assert {value.dtype for value in velocities[0].values()} == {np.dtype('float64')}
    for name, one in velocities[0].items():
        assert_close(velocities[1][name], one, CONDITION, floor=0, name=name)
    scores = [re.search(r'\[EVAL\] iter: 3, mIoU: ([\d.]+), accuracy: ([\d.]+)', log).groups()
              for log in (two, done.stdout)]
    assert scores[0] == scores[1]


def test_val_under_the_launcher_counts_every_image_once(tiny_config, tmp_path):
    """Three images on two processes: the same confusion matrix, hence the same JSON, as one process."""
    from common.builder import Builder
    from common.config import Config

    paddle.seed(1)
    weights = tmp_path / 'model.pdparams'
    paddle.save(Builder(Config(tiny_config)).model.state_dict(), str(weights))
    report = tmp_path / 'evaluation_tiny.json'
    log = launch(2, tmp_path / 'logs', 'val.py', '--config', tiny_config, '--model_path', weights)
    parallel = report.read_text()
    report.unlink()
    subprocess.run([sys.executable, 'val.py', '--config', str(tiny_config), '--model_path', str(weights)], cwd=ROOT,
                   check=True, capture_output=True)
    assert report.read_text() == parallel
    assert 'images: 3' in log and 'mIoU' in log
    assert 'mIoU' not in (tmp_path / 'logs' / 'workerlog.1').read_text()


@pytest.mark.parametrize('broken', ['loss', 'gradient'])
def test_what_is_not_finite_is_reported_with_the_images_of_its_process(tmp_path, broken):
    log = launch(2, tmp_path / 'logs', ROOT / 'tests' / 'training' / 'broken_run.py', broken,
                 status=(1, 241))  # the launcher ends the other process, maybe before its own message, the same one
    log += (tmp_path / 'logs' / 'workerlog.1').read_text()
    files = dict(re.findall(r'process (\d) has (.*)', log))
    (error,) = set(re.findall('^error: .*', log, re.MULTILINE))
    if broken == 'loss':
        assert f'found loss nan of process 1 with the batch {files["1"]}; last good' in error
        assert 'process 0' not in error
    else:  # the mean over the processes is all that is known
        assert f' of process 0 and a gradient that is not finite with the batch {files["0"]}' in error
        assert f'loss 0 of process 1 and a gradient that is not finite with the batch {files["1"]}' in error


def test_predict_under_the_launcher_shares_the_images(tiny_config, tmp_path, capfd):
    """Five images on two processes, two of them broken: all pictures as of one process, one report, status 1."""
    from common.builder import Builder
    from common.config import Config

    paddle.seed(1)
    weights = tmp_path / 'model.pdparams'
    paddle.save(Builder(Config(tiny_config)).model.state_dict(), str(weights))
    (tmp_path / 'images').mkdir()
    for name in 'abcde':
        cv2.imwrite(str(tmp_path / 'images' / f'{name}.png'), np.full([40, 60, 3], 2 * ord(name), np.uint8))
    for name in 'cd':  # one of each process
        (tmp_path / 'images' / f'{name}.png').write_bytes(b'no image')
    common = '--config', tiny_config, '--model_path', weights, '--image_path', tmp_path / 'images'
    assert run_script(predict.main, *common, '--save_dir', tmp_path / 'one') == 1
    one = capfd.readouterr().err
    log = launch(2, tmp_path / 'logs', 'predict.py', *common, '--save_dir', tmp_path / 'two', status=1)
    pictures = [{p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob('*.png')}
                for name in ('one', 'two')]
    assert len(pictures[0]) == 6 and pictures[0] == pictures[1]
    errors = [line for line in log.splitlines() if line.startswith('error: ')]
    assert errors == [line for line in one.splitlines() if line.startswith('error: ')] and len(errors) == 2
    assert 'predicted 3 of 5 images' in log
    other = (tmp_path / 'logs' / 'workerlog.1').read_text()
    assert 'error: ' not in other and 'predicted' not in other
    log = launch(2, tmp_path / 'again', 'predict.py', *common, '--save_dir', tmp_path / 'two', '--skip_existing',
                 status=1)
    assert '3 of 5 images have their predictions already' in log and 'predicted 0 of 2 images' in log
