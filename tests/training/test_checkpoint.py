"""Checkpoints: whole or not there, the oldest removed, PaddleSeg's readable."""
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import paddle
import pytest

from common.errors import UserError
from tests.conftest import ROOT
from tests.models import crafted
from training import checkpoint


def build():
    layer = paddle.nn.Sequential(paddle.nn.Linear(3, 2), paddle.nn.BatchNorm1D(2))
    schedule = paddle.optimizer.lr.PolynomialDecay(0.1, 10)
    return layer, paddle.optimizer.Momentum(schedule, parameters=layer.parameters())


def step(model, optimizer, seed=0):
    x = paddle.to_tensor(np.random.default_rng(seed).standard_normal([4, 3]).astype('float32'))
    (model(x) ** 2).sum().backward()
    optimizer.step()
    optimizer.clear_grad()
    optimizer._learning_rate.step()


def test_a_resumed_step_equals_the_uninterrupted_one(tmp_path):
    """The second model's parameters have other names in this process; momentum and schedule must find them."""
    model, optimizer = build()
    step(model, optimizer)
    checkpoint.save(tmp_path, 1, model, optimizer, {'best_miou': 0.25, 'best_iteration': 1}, 5)
    other, other_optimizer = build()
    state = checkpoint.resume(tmp_path / 'iter_1', other, other_optimizer)
    assert (state['best_miou'], state['best_iteration'], state['iteration']) == (0.25, 1, 1)
    assert other[0].weight.name != model[0].weight.name
    for m, o in ((model, optimizer), (other, other_optimizer)):
        step(m, o, seed=1)
    assert other_optimizer.get_lr() == optimizer.get_lr()
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name].numpy(), value.numpy())


def enabled_scaler(scale):
    """A GradScaler with the state it has on a GPU; on a CPU, Paddle builds it switched off and without one."""
    scaler = paddle.amp.GradScaler(enable=False)
    scaler._enable = scaler._use_dynamic_loss_scaling = True
    scaler._scale = paddle.to_tensor(np.array([scale], 'float32'))
    scaler._incr_ratio, scaler._decr_ratio, scaler._incr_count, scaler._decr_count = 2.0, 0.5, 17, 1
    scaler._incr_every_n_steps, scaler._decr_every_n_nan_or_inf = 1000, 2
    return scaler


def test_the_state_of_the_loss_scaling_is_resumed(tmp_path):
    model, optimizer = build()
    saved, other = enabled_scaler(512.0), enabled_scaler(1024.0)
    other._incr_count = 0
    checkpoint.save(tmp_path, 1, model, optimizer, {}, 5, scaler=saved)
    checkpoint.resume(tmp_path / 'iter_1', *build(), scaler=other)
    assert other.state_dict() == saved.state_dict() and saved.state_dict()['incr_count'] == 17


def test_a_checkpoint_of_paddleseg_has_its_iteration_in_its_name(tmp_path):
    model, optimizer = build()
    folder = tmp_path / 'iter_70'
    folder.mkdir()
    paddle.save(model.state_dict(), str(folder / 'model.pdparams'))
    paddle.save(optimizer.state_dict(), str(folder / 'model.pdopt'))
    assert checkpoint.resume(folder, *build()) == {'iteration': 70}
    folder.rename(tmp_path / 'mine')
    with pytest.raises(ValueError, match='expected a folder named iter_N or one with state.json'):
        checkpoint.resume(tmp_path / 'mine', *build())


def test_only_the_newest_are_kept(tmp_path):
    model, optimizer = build()
    for iteration in (8, 9, 10, 11):
        checkpoint.save(tmp_path, iteration, model, optimizer, {}, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['iter_10', 'iter_11']
    assert json.loads((tmp_path / 'iter_11' / 'state.json').read_text())['iteration'] == 11


def test_a_damaged_newer_checkpoint_does_not_cost_the_one_just_written(tmp_path):
    model, optimizer = build()
    for iteration in (1, 9):
        checkpoint.save(tmp_path, iteration, model, optimizer, {}, 5)
    (tmp_path / 'iter_9' / 'state.json').unlink()
    assert checkpoint.save(tmp_path, 2, model, optimizer, {}, 1).is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['iter_2', 'iter_9']


def test_continuing_below_newer_checkpoints_is_refused(tmp_path):
    model, optimizer = build()
    for iteration in (1, 2):
        checkpoint.save(tmp_path / 'run', iteration, model, optimizer, {}, 5)
    older = tmp_path / 'run' / 'iter_1'
    with pytest.raises(ValueError, match=r'iter_1: expected no newer checkpoint than iteration 1 in --save_dir '
                                         r'.*run, found iter_2; continue from it with --resume auto, or choose'):
        checkpoint.check_newest(tmp_path / 'run', older)
    checkpoint.check_newest(tmp_path / 'run', tmp_path / 'run' / 'iter_2')
    checkpoint.check_newest(tmp_path / 'other', older)
    checkpoint.check_newest(tmp_path / 'run', tmp_path / 'nothing')  # refused by resume()


def test_a_failed_write_leaves_the_earlier_checkpoints(tmp_path, monkeypatch):
    model, optimizer = build()
    checkpoint.save(tmp_path, 1, model, optimizer, {}, 1)

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(checkpoint.paddle, 'save', full)
    with pytest.raises(OSError, match='No space left'):
        checkpoint.save(tmp_path, 2, model, optimizer, {}, 1)
    assert [p.name for p in tmp_path.glob('iter_*')] == ['iter_1']


def test_a_fresh_start_refuses_a_folder_with_checkpoints(tmp_path):
    checkpoint.check_fresh(tmp_path / 'new')
    (tmp_path / 'iter_5').mkdir()
    (tmp_path / 'iter_10').mkdir()
    with pytest.raises(ValueError, match=r'found 2 up to iter_10; continue with --resume auto'):
        checkpoint.check_fresh(tmp_path)


@pytest.mark.parametrize('harm, text', [
    (lambda f: (f / 'model.pdopt').write_bytes((f / 'model.pdopt').read_bytes()[:-9]), 'model.pdopt is damaged'),
    (lambda f: (f / 'model.pdparams').unlink(), 'model.pdparams is missing'),
    (lambda f: (f / 'state.json').write_text('{"iterat'), 'state.json is damaged'),
    (lambda f: (f / 'state.json').write_text('{"sha256": [1]}'), 'state.json is damaged'),
    (lambda f: (f / 'state.json').write_text('{"sha256": {"../x": ""}}'), 'state.json is damaged'),
    (lambda f: (f / 'state.json').write_text('[' * 100_000), 'state.json is damaged'),
    (lambda f: (f / 'state.json').unlink(), 'state.json is missing')])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, caplog, harm, text):
    model, optimizer = build()
    for iteration in (1, 2):
        checkpoint.save(tmp_path, iteration, model, optimizer, {}, 5)
    assert checkpoint.latest(tmp_path) == tmp_path / 'iter_2'
    harm(tmp_path / 'iter_2')
    assert checkpoint.latest(tmp_path) == tmp_path / 'iter_1'
    assert f'{tmp_path / "iter_2"} is skipped: {text}' in caplog.text
    checkpoint.save(tmp_path, 2, model, optimizer, {}, 5)
    assert checkpoint.damage(tmp_path / 'iter_2') == ''


@pytest.mark.parametrize('name, content, text', [
    ('model.pdopt', [1], 'expected an optimizer state, found list; resume from another checkpoint'),
    ('model.pdopt', {0: 1}, 'expected an optimizer state, found dict'),
    ('model.pdopt', {'LR_Scheduler': 3}, 'expected a state of this config.s model and optimizer, found another'),
    ('model.pdparams', {'StructuredToParameterName@@': [1]}, 'expected a table of parameter names'),
    ('model.pdparams', {'StructuredToParameterName@@': {'0.weight': []}}, 'expected a table of parameter names'),
    ('scaler.pd', {'scale': 1.0}, 'expected a state of this config.s model and optimizer, found another'),
    ('scaler.pd', 3, 'expected a state, found int'),
    ('scaler.pd', {'scale': crafted.Call(os.system, 'false')}, 'the name posix.system')])
def test_a_state_that_is_none_is_one_line(tmp_path, name, content, text):
    """Files of PaddleSeg have no checksums: what is in them may be anything that is read."""
    model, optimizer = build()
    step(model, optimizer)
    folder = checkpoint.save(tmp_path, 1, model, optimizer, {}, 5, scaler=enabled_scaler(512.0))
    (folder / 'state.json').unlink()
    if name == 'model.pdparams':
        content = {**paddle.load(str(folder / name), return_numpy=True), **content}
    (folder / name).write_bytes(pickle.dumps(content, 4))
    with pytest.raises(UserError, match=text) as error:
        checkpoint.resume(folder, *build(), scaler=enabled_scaler(1.0))
    assert str(error.value).startswith(str(folder / name)) and '\n' not in str(error.value)


def test_no_checkpoint_to_continue_from(tmp_path):
    (tmp_path / '.iter_5.tmp').mkdir()
    assert checkpoint.latest(tmp_path) is None and checkpoint.latest(tmp_path / 'nothing') is None


def test_a_full_disk_is_told_with_what_could_not_be_written(tmp_path):
    """A real one: a file size limit of the process, as a full disk would, stops the write half way."""
    code = ('import resource, signal, sys; from pathlib import Path\n'
            'sys.path.insert(0, sys.argv[1])\n'
            'from tests.training.test_checkpoint import build\n'
            'from training import checkpoint\n'
            'model, optimizer = build()\n'
            'checkpoint.save(sys.argv[2], 1, model, optimizer, {}, 1)\n'
            'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
            'resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n'
            'try:\n'
            '    checkpoint.save(sys.argv[2], 2, model, optimizer, {}, 1)\n'
            'except OSError as error:\n'
            '    print(error)\n')
    done = subprocess.run([sys.executable, '-c', code, str(ROOT), str(tmp_path)], capture_output=True, text=True)
    assert f'{tmp_path / "iter_2"}: expected to write a checkpoint, found "' in done.stdout, done.stderr[-2000:]
    assert [p.name for p in tmp_path.iterdir()] == ['iter_1'] and checkpoint.damage(tmp_path / 'iter_1') == ''
