"""Checkpoints: whole or not there, the oldest removed, PaddleSeg's readable."""
import json

import numpy as np
import paddle
import pytest

from engine import checkpoint


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
